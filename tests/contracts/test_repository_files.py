"""Files for other programs say the truth: the locked versions, the citation, and the forms of issues."""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
LOCKED = re.compile(r"^([\w.-]+==[^\s;]+)([^\\\n]*)((?:\\\n +--hash=sha256:[0-9a-f]{64} ?)+)$", re.MULTILINE)


def read_locked(path: Path) -> dict[str, set[str]]:
    """Hashes by name, version and condition; every line has to be part of such an entry."""
    text = path.read_text(encoding="utf-8")
    assert not LOCKED.sub("", text).strip()
    return {name + marker: set(re.findall("[0-9a-f]{64}", hashes)) for name, marker, hashes in LOCKED.findall(text)}


@pytest.mark.skipif(not (ROOT / "uv.lock").exists(), reason="the workspace isn't resolved here; `uv sync` does that")
@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_the_locked_versions_are_those_of_the_workspace(name: str, tmp_path: Path) -> None:
    environment = os.environ | {"UV_FROZEN": "1", "UV_OFFLINE": "1"}
    subprocess.run([ROOT / "locked" / "write", tmp_path], env=environment, check=True)
    locked, resolved = (read_locked(folder / f"{name}.txt") for folder in (ROOT / "locked", tmp_path))
    assert len(locked) > 100
    # Resolving anew may keep or drop a package that only others' options ask for; but versions are the same.
    versions, expected = (group_by_name(entries) for entries in (locked, resolved))
    common = versions.keys() & expected.keys()
    assert [package for package in sorted(common) if versions[package] != expected[package]] == [], "call locked/write"
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"]["constraint-dependencies"]
    needed = {pin.split("==")[0] for pin in pins} & expected.keys()
    assert needed
    assert needed <= versions.keys(), "call locked/write"
    assert len(versions.keys() ^ expected.keys()) < 5, "call locked/write"
    # Mirrors needn't have every file of a version.
    files = [locked[entry] & resolved[entry] for entry in locked.keys() & resolved.keys()]
    assert all(files)


def group_by_name(entries: dict[str, set[str]]) -> dict[str, set[str]]:
    """The versions of each package, with the conditions they are for."""
    found: dict[str, set[str]] = {}
    for entry in entries:
        found.setdefault(entry.split("==")[0], set()).add(entry)
    return found


def test_the_citation_names_this_version() -> None:
    citation: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "apps" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_github_asks_for(form: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= content.keys()
    fields = [element for element in content["body"] if element["type"] != "markdown"]
    assert fields
    assert {element["type"] for element in fields} <= {"textarea", "input", "dropdown", "checkboxes"}
    names = [element["id"] for element in fields]
    assert len(set(names)) == len(names)
    assert all(element["attributes"]["label"] for element in fields)
