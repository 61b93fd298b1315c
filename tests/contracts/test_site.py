"""The site of the documentation has every setting and every name, needs no network, and refuses what leads nowhere."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from importlib.metadata import entry_points
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from longrl.pictures.config import PicturesConfig
from longrl.quickstart.config import QuickstartConfig
from longrl.stages import RecipeConfig
from longrl_omni.generation.config.algorithms import ALGORITHMS
from longrl_trainer.config.objectives import OBJECTIVES
from longvideo_reason_data.benchmarks.layouts import LAYOUTS

ROOT = Path(__file__).parents[2]
LOADED = re.compile(r"<(?:script|link|img|iframe|source|video)\b[^>]*?\b(?:src|href)=\"?((?:https?:)?//[^\s\">]+)")
SETTINGS_PAGE = re.compile(r"^\{\{ settings \S+:(\w+) \}\}$", re.MULTILINE)

pytestmark = pytest.mark.long


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site as `.ci/run` does."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The HTML of every page of the site by its name."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}


def places(model: type[BaseModel], described: set[type[BaseModel]], place: str = "") -> Iterator[str]:
    """Where each setting of a model is, except in models with a page of their own."""
    for name, field in model.model_fields.items():
        inner = f"{place}.{name}" if place else name
        yield inner
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in described:
            yield from places(kind, described, inner)


def test_every_setting_of_every_recipe_has_a_place(pages: dict[str, str]) -> None:
    models: dict[str, type[BaseModel]] = {
        model.__name__: model for model in (*get_args(RecipeConfig), QuickstartConfig, PicturesConfig)
    }
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs/pages/settings").glob("*.md")}
    shown = {model: page for page, text in sources.items() for model in SETTINGS_PAGE.findall(text)}
    assert models.keys() <= shown.keys()
    for name, model in models.items():
        page = pages[f"settings/{shown[name]}.html"]
        others = {other for other in models.values() if other is not model}
        assert [place for place in places(model, others) if f'id="{place}"' not in page] == []


def test_every_setting_has_a_meaning(pages: dict[str, str]) -> None:
    rows = [row for page in pages.values() for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL) if 'id="' in row]
    cells = [
        [re.sub("<[^>]+>", "", cell).strip() for cell in re.findall(r"<td>(.*?)</td>", row, re.DOTALL)] for row in rows
    ]
    assert len(cells) > 300
    assert [row[0] for row in cells if not all(row)] == []


def test_every_reward_objective_and_benchmark_is_there(pages: dict[str, str]) -> None:
    for group, page in (("longrl_trainer.rewards", "rewards"), ("longrl_omni.generation.rewards", "picture-rewards")):
        rewards = entry_points(group=group)
        assert rewards
        assert [entry.name for entry in rewards if f'id="{entry.name}"' not in pages[f"{page}.html"]] == []
    for names, page in ((OBJECTIVES, "objectives"), (ALGORITHMS, "objectives"), (LAYOUTS, "benchmarks")):
        assert [name for name in names if f"<td><code>{name}</code></td>" not in pages[f"{page}.html"]] == []


def test_nothing_is_loaded_from_a_network(pages: dict[str, str]) -> None:
    assert len(pages) > 30
    assert {name: unescape(found[0]) for name, page in pages.items() if (found := LOADED.findall(page))} == {}
    assert [name for name, page in pages.items() if 'class="mermaid"' in page] == []


def test_whatever_leads_nowhere_fails(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Start\n\n[a](none.md) [b](#none) [c](other.md#none)\n")
    (docs / "other.md").write_text("# Other\n\n[d](index.md)\n")
    hooks = ROOT / "docs" / "sources" / "hooks.py"
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {docs}\nhooks: [{hooks}]\nnav: [index.md]\n")
    done = build(config, tmp_path / "site")
    assert done.returncode == 1
    for problem in ("'none.md'", "'#none'", "'other.md#none'", 'not included in the "nav"'):
        assert problem in done.stderr
    (docs / "index.md").write_text("# Start\n\n{{ section README.md Nothing }}\n")
    done = build(config, tmp_path / "site")
    assert done.returncode == 1
    assert "README.md: no section 'Nothing'" in done.stderr
