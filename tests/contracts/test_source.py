"""The shape of the source: small modules that say what they are, declared dependencies, and no trace of one machine."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from statistics import median
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MEMBERS = sorted([*ROOT.glob("packages/*"), ROOT / "apps"])
MODULES = sorted(path for member in MEMBERS for path in member.glob("src/**/*.py"))

MOST_LINES, MEDIAN_LINES, MOST_FUNCTION_LINES, MOST_MODULES = 300, 120, 70, 12
VAGUE_NAMES = {"utils", "util", "common", "helpers", "misc", "manager"}

# Addresses and folders of the machine on which a file was written; written so that they don't match themselves.
TRACES = re.compile(
    r"""(?<![\w.~-])/(?:work|root|home|Users)/[\w.]   # somebody's folders
    | \b(?!127\.0\.0\.1:|0\.0\.0\.0:)(?:\d{1,3}\.){3}\d{1,3}:\d+      # somebody's servers
    | \b(?:files\.)?py(?:pi|thonhosted)\.org\b | //[\w.:-]+/(?:simple|pypi)\b   # where packages came from
    """,
    re.VERBOSE,
)


# Where `json.loads` reads what this project or a library has written a moment before, in this run.
OWN_JSON = {
    "apps/src/longrl/pipeline.py",
    "packages/longvideo-reason-data/src/longvideo_reason_data/pipeline/ray_stages.py",
    "packages/mrsp-engine/src/mrsp_engine/testing/hostile_checkpoints.py",
    "packages/mrsp-engine/src/mrsp_engine/tiny/published/files.py",
    "packages/mrsp-engine/src/mrsp_engine/tiny/tokenizer.py",
    "packages/longrl-files/src/longrl_files/folders.py",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines that do something: without signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def tracked_files() -> list[Path]:
    """What git tracks or would add."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def find_faults(path: Path) -> Iterator[str]:
    """The violations of form in one module."""
    tree = parse(path)
    if not ast.get_docstring(tree):
        yield "no module docstring"
    if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES:
        yield f"{lines} lines, at most {MOST_LINES}"
    if path.stem in VAGUE_NAMES:
        yield "a name that says nothing"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and num_lines(node) > MOST_FUNCTION_LINES:
            yield f"{node.name} has {num_lines(node)} lines, at most {MOST_FUNCTION_LINES}"


def test_modules_are_short_and_say_what_they_are():
    assert [f"{relative(path)}: {fault}" for path in MODULES for fault in find_faults(path)] == []


def test_half_of_the_modules_are_read_in_a_minute():
    assert median(len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES) <= MEDIAN_LINES


def test_a_room_can_be_surveyed():
    rooms = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    assert {relative(room): count for room, count in rooms.items() if count > MOST_MODULES} == {}


def test_json_from_outside_is_read_in_one_way():
    """By `longrl_files`, which bounds it; Python's own reader ends in a RecursionError, or accepts NaN."""
    readers = re.compile(r"\bjson\.loads?\(|\bParquetFile\(|\bread_table\(")
    found = {relative(path) for path in MODULES if readers.search(path.read_text(encoding="utf-8"))}
    assert found - OWN_JSON == {"packages/longvideo-reason-data/src/longvideo_reason_data/parquet_rows.py"}


def test_a_class_has_a_name_of_its_own():
    """One name for one thing, over all packages; private names too, so that a search finds what was meant."""
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(f"{relative(path)}:{node.lineno}")
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_a_class_is_not_imported_under_another_name():
    renamed = [
        f"{relative(path)}:{node.lineno} {alias.name} as {alias.asname}"
        for path in MODULES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname and alias.name[0].isupper() and not alias.name.isupper()
    ]
    assert renamed == []


@pytest.mark.parametrize("member", MEMBERS, ids=relative)
def test_a_package_is_typed(member):
    assert len(list(member.glob("src/*/py.typed"))) == 1


def test_no_file_tells_where_it_was_written():
    found: list[str] = []
    for path in tracked_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{relative(path)}:{number}" for number, line in enumerate(lines, 1) if TRACES.search(line)]
    assert found == []


def project(member: Path) -> dict[str, Any]:
    return tomllib.loads((member / "pyproject.toml").read_text(encoding="utf-8"))


def names(requirements: list[str]) -> set[str]:
    """Distribution names of requirements, in their normal form."""
    return {normal(re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]) for requirement in requirements}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(paths: Iterator[Path]) -> dict[str, str]:
    """Top-level names that are imported anywhere in the files, each with a location."""
    found: dict[str, str] = {}
    for path in paths:
        for node in ast.walk(parse(path)):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            for module in modules:
                found.setdefault(module.partition(".")[0], f"{relative(path)}:{node.lineno}")
    return found


def undeclared(paths: Iterator[Path], declared: set[str]) -> dict[str, str]:
    """Imports that no declared distribution provides."""
    providers = packages_distributions()
    return {
        name: place
        for name, place in imported(paths).items()
        if name not in sys.stdlib_module_names and not declared.intersection(map(normal, providers.get(name, [name])))
    }


@pytest.mark.slow
@pytest.mark.parametrize("member", MEMBERS, ids=relative)
def test_a_package_imports_what_it_declares(member):
    tables = project(member)["project"]
    extras = [requirement for extra in tables.get("optional-dependencies", {}).values() for requirement in extra]
    declared = names([tables["name"], *tables["dependencies"], *extras])
    assert undeclared(member.glob("src/**/*.py"), declared) == {}


@pytest.mark.slow
@pytest.mark.parametrize("member", MEMBERS, ids=relative)
def test_a_package_is_tested_with_what_it_declares(member):
    # Other libraries may come through a dependency; another package of this workspace must not be taken for granted.
    tables = project(member)["project"]
    others = names([project(other)["project"]["name"] for other in MEMBERS])
    missing = undeclared(member.glob("tests/**/*.py"), names([tables["name"], *tables["dependencies"]]))
    assert {name: place for name, place in missing.items() if normal(name) in others} == {}


def test_the_members_have_one_version():
    assert len({project(member)["project"]["version"] for member in MEMBERS}) == 1
