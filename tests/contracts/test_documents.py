"""The documents are true: every path and name that they mention exists, and their recipes parse.

Their commands are looked at by `test_document_commands.py`, the links between pages of the site when it is built.
"""

import importlib
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from longrl_trainer.config.recipes import load_recipe
from longrl_trainer.config.stages import GrpoConfig
from longvideo_reason_data.records.record import QuestionRecord

ROOT = Path(__file__).parents[2]
PAPERS = sorted(
    path
    for pattern in ("*.md", "apps/*.md", "packages/*/README.md", "benchmarks/results/*.md", "docs/pages/**/*.md")
    for path in ROOT.glob(pattern)
)
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


def test_the_tables_written_by_hand_are_complete():
    compatibility = (ROOT / "docs/pages/compatibility.md").read_text(encoding="utf-8")
    section = compatibility.partition("## Families")[2].partition("\n## ")[0]
    families = {entry.name for entry in entry_points(group="mrsp_engine.families")}
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == families
    record = (ROOT / "docs/pages/data-format.md").read_text(encoding="utf-8")
    section = record.partition("## A question")[2].partition("\n## ")[0]
    fields = {
        name for row in re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE) for name in re.findall(r"\w+", row)
    }
    assert fields == set(QuestionRecord.model_fields)


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
