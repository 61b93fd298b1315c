"""What mkdocs calls while it builds the site: lines in double braces become texts of the repository or tables.

{{ document SECURITY.md }}                              a whole document
{{ introduction README.md }}                            what stands before its first section
{{ section apps/README.md "What is there" }}            one section
{{ settings longrl_trainer.config.stages:GrpoConfig }}  the settings of a model
{{ rewards longrl_trainer.rewards }}                    the rewards of a group of entry points
{{ objectives }}, {{ algorithms }}, {{ benchmarks }}, {{ versions }}
"""

import importlib
import re
import shlex
from pathlib import Path

from catalogues import list_algorithms, list_benchmarks, list_objectives, list_rewards
from documents import IMAGES, ROOT, Shown, anchor_of, relative_page, take_document, take_introduction, take_section
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from settings import describe_settings
from versions import list_versions

_LINE = re.compile(r"^\{\{ (.+) \}\}$", re.MULTILINE)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pictures of the documents."""
    for path, place in IMAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in a page."""
    name = page.file.src_uri
    lines = _find_lines(Path(config.docs_dir))

    def fill(line: re.Match[str]) -> str:
        try:
            return _fill(shlex.split(line[1]), name, lines)
        except ValueError as error:
            raise PluginError(f"{name}: {line[0]}: {error}") from error

    return _LINE.sub(fill, markdown)


def _find_lines(folder: Path) -> list[tuple[str, list[str]]]:
    """Every line in braces, with its page."""
    found: list[tuple[str, list[str]]] = []
    for path in sorted(folder.rglob("*.md")):
        words = [shlex.split(line) for line in _LINE.findall(path.read_text(encoding="utf-8"))]
        found += [(path.relative_to(folder).as_posix(), each) for each in words]
    return found


def _fill(words: list[str], page: str, lines: list[tuple[str, list[str]]]) -> str:
    """What takes the place of a line."""
    shown = Shown(
        documents={each[1]: name for name, each in lines if each[0] == "document"}
        | {each[1]: name for name, each in lines if each[0] == "introduction"},
        sections={(each[1], anchor_of(each[2])): name for name, each in lines if each[0] == "section"},
    )
    match words:
        case ["document", path]:
            return take_document(path, page, shown)
        case ["introduction", path]:
            return take_introduction(path, page, shown)
        case ["section", path, heading]:
            return take_section(path, heading, page, shown)
        case ["settings", model]:
            own = {_import(each[1]): name for name, each in lines if each[0] == "settings" and each[1] != model}
            return describe_settings(_import(model), {kind: relative_page(name, page) for kind, name in own.items()})
        case ["rewards", group]:
            return list_rewards(group)
        case ["objectives"]:
            return list_objectives()
        case ["algorithms"]:
            return list_algorithms()
        case ["benchmarks"]:
            return list_benchmarks()
        case ["versions"]:
            return list_versions()
        case _:
            raise ValueError("nothing that a page can show; see docs/sources/hooks.py")


def _import(name: str) -> type[BaseModel]:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
