"""Writes the dataset browser: markup, style, script and data in one file that needs no network.

Where that would be too much for a browser, the file holds only what it takes to list and to filter, and the rest lies
in parts beside it (`longvideo_reason_data.view.parts`).

Data can't leave its place: it stands as JSON in an element that no browser runs, with every `<` escaped, and the script
puts it on the page as text only. A content security policy allows this very script and style and nothing else, so that
even a mistake there would not run what a dataset says, and nothing can be fetched but the dataset's own videos, when
somebody plays them. With parts, what this
script itself adds to the page may run too, and that is parts only.
"""

import base64
import hashlib
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from longvideo_reason_data.atomic_files import write_text_atomic
from longvideo_reason_data.view.contents import DatasetContents
from longvideo_reason_data.view.parts import (
    ITEMS_PER_PART,
    ItemColumns,
    PartsFolder,
    escape_json,
    remove_other_parts,
)
from longvideo_reason_data.view.thumbnails import make_thumbnails

MOST_THUMBNAILS = 600
MOST_QUESTIONS_INSIDE = 5000
MOST_BYTES_INSIDE = 20_000_000
"""Of the files about how a dataset was made."""


def write_page(dataset: Path, output: Path, *, most_thumbnails: int = MOST_THUMBNAILS) -> dict[str, Any]:
    """Write the browser of a dataset; one of many questions has a folder of parts beside it.

    Args:
        dataset: Its folder.
        output: The HTML file.
        most_thumbnails: Pictures for all videos together.

    Returns:
        What the page itself holds.

    Raises:
        UsageError: When the folder is missing or holds no dataset of this version.
        DataError: When one of its files is damaged, or the page can't be written.
    """
    contents = DatasetContents(dataset)
    if contents.is_at_most(MOST_QUESTIONS_INSIDE, MOST_BYTES_INSIDE):
        page: dict[str, Any] = {"questions": list(contents.questions()), "dropped": list(contents.dropped())}
        page |= {"media": list(_pictured(contents, dataset, most_thumbnails)), "num_dropped": len(page["dropped"])}
        page |= contents.describe_rest() | {"root": _address_of(dataset, output)}
        write_text_atomic(output, render_page(page))
        remove_other_parts(output, None)
        return page
    questions, dropped = ItemColumns(("skill", "difficulty", "split")), ItemColumns(("reason", "stage", "skill"))
    with PartsFolder(output) as parts:
        parts.write("questions", questions.follow(contents.questions()))
        parts.write("dropped", dropped.follow(contents.dropped()))
        parts.write("media", _pictured(contents, dataset, most_thumbnails))
        page = {"questions": questions.as_json(), "dropped": dropped.as_json(), "num_dropped": len(dropped)}
        page |= contents.describe_rest() | {"root": _address_of(dataset, output)}
        folder = parts.keep()
        page["parts"] = {"folder": folder, "size": ITEMS_PER_PART}
        write_text_atomic(output, render_page(page))
    remove_other_parts(output, folder)
    return page


def _address_of(dataset: Path, output: Path) -> str:
    """The dataset's folder as the page names it, to play a video when somebody wants to see it."""
    return quote(Path(os.path.relpath(dataset.resolve(), output.resolve().parent)).as_posix())


def _pictured(contents: DatasetContents, dataset: Path, most_thumbnails: int) -> Iterator[dict[str, Any]]:
    pictures = make_thumbnails(dataset, contents.named_media, most=most_thumbnails)
    for medium, thumbnails in zip(contents.media(), pictures, strict=True):
        yield medium | {"thumbnails": thumbnails}


def render_page(contents: dict[str, Any]) -> str:
    """Put contents into the page."""
    page, style, script = (_read(name) for name in ("browser.html", "browser.css", "browser.js"))
    allowed = _allow(script) + (" 'strict-dynamic'" if "parts" in contents else "")
    policy = (
        f"default-src 'none'; img-src data:; media-src file: 'self'; style-src {_allow(style)}; script-src {allowed}"
    )
    parts = {"POLICY": policy, "STYLE": style, "SCRIPT": script, "DATA": escape_json(contents)}
    first, *rest = page.split("{{")
    pieces = [first]
    for piece in rest:  # in one pass, so that what is put in is never taken for a place
        name, _, after = piece.partition("}}")
        pieces += [parts[name], after]
    return "".join(pieces)


def _read(name: str) -> str:
    return (files("longvideo_reason_data.view") / name).read_text(encoding="utf-8")


def _allow(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"
