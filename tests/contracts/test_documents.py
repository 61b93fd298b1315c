"""The documents are true: every path, name and command that they mention exists, and their recipes parse."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from longrl.cli import COMMANDS
from longrl_trainer.config.recipes import load_recipe
from longrl_trainer.config.stages import GrpoConfig

ROOT = Path(__file__).parents[2]
PAPERS = sorted([*ROOT.glob("*.md"), *ROOT.glob("packages/*/README.md")])
DATA_COMMANDS = {"timeline", "build", "filter", "check", "stats", "view", "export", "import"}
IMPORTABLE = re.compile(
    r"`((?:longvideo_reason_data|mrsp_engine|longrl_trainer|longrl_omni|longrl)(?:\.\w+)+)(?:\(.*?\))?`"
)
PATH = re.compile(r"`((?:packages|apps|tests|docs|\.ci)/[\w./-]*)`")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
# Names that a library doesn't promise to keep: with a leading underscore, or deep in vLLM.
INSIDE = re.compile(
    r"\b(?!self|cls|os\b)[a-z]\w*\._[a-z]\w+\(|\bops\.aten\._"
    r"|from vllm\.(?!config|platforms)\w|vllm\.model_executor"
)
SOURCE_FOLDERS = [ROOT / "apps" / "src", *ROOT.glob("packages/*/src")]
ENTRY_POINT_GROUPS = {"mrsp_engine.sampler_media"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def shell_lines(paper: Path) -> list[list[str]]:
    """Words of every command in the document's code blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", paper.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("paper", PAPERS, ids=relative)
def test_every_path_and_link_leads_somewhere(paper):
    text = paper.read_text(encoding="utf-8")
    assert [path for path in PATH.findall(text) if not (ROOT / path).exists()] == []
    assert [link for link in LINK.findall(text) if not (paper.parent / link).exists()] == []


@pytest.mark.parametrize("paper", PAPERS, ids=relative)
def test_every_qualified_name_can_be_imported(paper):
    for name in set(IMPORTABLE.findall(paper.read_text(encoding="utf-8"))) - ENTRY_POINT_GROUPS:
        parts = name.split(".")
        thing = importlib.import_module(parts[0])
        for depth, part in enumerate(parts[1:], 2):
            if not hasattr(thing, part):
                importlib.import_module(".".join(parts[:depth]))
            thing = getattr(thing, part)


@pytest.mark.parametrize("paper", PAPERS, ids=relative)
def test_every_command_exists_with_its_files(paper):
    for words in shell_lines(paper):
        for program, known in (("longrl", set(COMMANDS)), ("longvideo-data", DATA_COMMANDS)):
            if program in words:
                command, *rest = words[words.index(program) + 1 :]
                assert command in known, words
                assert [word for word in rest if word.startswith("apps/") and not (ROOT / word).is_file()] == []


def test_the_first_screen_has_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first_screen = "\n".join(text.splitlines()[:30])
    assert "\npip install uv && uv run longrl quickstart      # the main job\n" in first_screen
    assert "\nuv run pytest                                   # the tests\n" in first_screen


def test_the_trainers_readme_has_a_recipe_that_parses(tmp_path):
    text = (ROOT / "packages" / "longrl-trainer" / "README.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "grpo.toml"
    path.write_text(recipe, encoding="utf-8")
    assert load_recipe(path, GrpoConfig).rewards == {"answer": 0.9, "format": 0.1}


def test_each_module_that_leans_on_a_librarys_inside_is_listed():
    leaning = [
        ".".join(path.relative_to(folder).with_suffix("").parts)
        for folder in SOURCE_FOLDERS
        for path in folder.rglob("*.py")
        if INSIDE.search(path.read_text(encoding="utf-8"))
    ]
    text = (ROOT / "PATCHES.md").read_text(encoding="utf-8")
    assert "mrsp_engine.rollout.vllm.long_media" in leaning
    assert sorted(name for name in leaning if f"`{name}`" not in text) == []
