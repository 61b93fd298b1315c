"""Texts of the repository on pages of the site, so that each fact has one home.

A page shows a whole document, one section of it, or what stands before its first section. Links in it are those of the
repository: they are turned into links to the pages that show the same texts; what no page shows is only named. Knows
nothing of mkdocs.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["IMAGES", "ROOT", "Shown", "relative_page", "take_document", "take_introduction", "take_section"]

ROOT = Path(__file__).parents[2]
PAGES = "docs/pages/"
IMAGES = {
    "docs/quickstart.svg": "images/quickstart.svg",
    "benchmarks/results/step_cpu.svg": "images/step_cpu.svg",
}
"""Pictures in the documents, and where the site has them."""
_FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!https?://|mailto:)([^)\s]+)\)")
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Where the texts of the repository are shown.

    Attributes:
        documents: The page of every document that is shown whole, by its path in the repository.
        sections: The page of every section that is shown by itself, by path and anchor.
    """

    documents: Mapping[str, str]
    sections: Mapping[tuple[str, str], str]

    def find(self, path: str, anchor: str) -> str | None:
        """The page that shows a place in a document, or is it."""
        if path.startswith(PAGES):
            return path.removeprefix(PAGES)
        of_sections = (page for (document, _), page in self.sections.items() if document == path)
        return self.sections.get((path, anchor)) or self.documents.get(path) or next(of_sections, None)


def take_document(path: str, page: str, shown: Shown) -> str:
    """A whole document, for a page."""
    return _with_links_of_the_site(_read(path), path, page, shown)


def take_introduction(path: str, page: str, shown: Shown) -> str:
    """What stands between the title and the first section."""
    text = _read(path).split("\n", 1)[1]
    return _with_links_of_the_site(text.split("\n## ", 1)[0], path, page, shown)


def take_section(path: str, heading: str, page: str, shown: Shown) -> str:
    """A section with its heading.

    Raises:
        ValueError: The document has no such section.
    """
    return _with_links_of_the_site(_cut(_read(path), path, heading), path, page, shown)


def anchor_of(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def relative_page(target: str, page: str) -> str:
    """The path from one page to another."""
    return os.path.relpath(target, PurePosixPath(page).parent).replace(os.sep, "/")


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def _cut(text: str, path: str, heading: str) -> str:
    outside = _FENCE.sub(lambda fence: re.sub(r"[^\n]", " ", fence[0]), text)  # a comment in a block is no heading
    found = [(match.start(), len(match[1]), match[2]) for match in _HEADING.finditer(outside)]
    place = next((number for number, (_, _, title) in enumerate(found) if title == heading), None)
    if place is None:
        raise ValueError(f"{path}: no section {heading!r}; it has {', '.join(title for _, _, title in found)}")
    start, level, _ = found[place]
    end = next((begin for begin, other, _ in found[place + 1 :] if other <= level), len(text))
    return text[start:end]


def _with_links_of_the_site(text: str, path: str, page: str, shown: Shown) -> str:
    folder = PurePosixPath(path).parent

    def rewrite(link: re.Match[str]) -> str:
        mark, label, target = link.groups()
        name, _, anchor = target.partition("#")
        place = os.path.normpath(folder / name) if name else path
        if place in IMAGES:
            return f"{mark}[{label}]({relative_page(IMAGES[place], page)})"
        document = f"{place}/README.md" if (ROOT / place).is_dir() else place
        found = shown.find(document, anchor)
        if found is None:
            return label
        return f"[{label}]({relative_page(found, page)}{f'#{anchor}' if anchor else ''})"

    return _outside_code(text, lambda part: _with_whole_pipes(_LINK.sub(rewrite, part)))


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    return "".join(part if part.startswith("```") else change(part) for part in _FENCE.split(text))


def _with_whole_pipes(text: str) -> str:
    """Code in a table's cell: Python-Markdown shows the backslash that GitHub's needs before a bar."""
    lines = [
        re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), line) if line.startswith("|") else line
        for line in text.split("\n")
    ]
    return "\n".join(lines)
