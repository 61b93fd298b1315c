"""Writes the dataset browser: markup, style, script and data in one file that needs no network.

Data can't leave its place: it stands as JSON in an element that no browser runs, with every `<` escaped, and the script
puts it on the page as text only. A content security policy allows this very script and style and nothing else, so that
even a mistake there would not run what a dataset says, and nothing can be fetched.
"""

import base64
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from longvideo_reason_data.atomic_files import write_text_atomic
from longvideo_reason_data.view.contents import collect_contents
from longvideo_reason_data.view.thumbnails import make_thumbnails

MOST_THUMBNAILS = 600


def write_page(dataset: Path, output: Path, *, most_thumbnails: int = MOST_THUMBNAILS) -> dict[str, Any]:
    """Write the browser of a dataset.

    Args:
        dataset: Its folder.
        output: The HTML file.
        most_thumbnails: Pictures for all videos together.

    Returns:
        What the page holds.

    Raises:
        UsageError: When the folder is missing or holds no dataset of this version.
        DataError: When one of its files is damaged, or the page can't be written.
    """
    contents, media = collect_contents(dataset)
    for medium, pictures in zip(contents["media"], make_thumbnails(dataset, media, most=most_thumbnails), strict=True):
        medium["thumbnails"] = pictures
    write_text_atomic(output, render_page(contents))
    return contents


def render_page(contents: dict[str, Any]) -> str:
    """Put contents into the page."""
    page, style, script = (_read(name) for name in ("browser.html", "browser.css", "browser.js"))
    policy = f"default-src 'none'; img-src data:; style-src {_allow(style)}; script-src {_allow(script)}"
    parts = {"POLICY": policy, "STYLE": style, "SCRIPT": script, "DATA": escape_json(contents)}
    first, *rest = page.split("{{")
    pieces = [first]
    for piece in rest:  # in one pass, so that what is put in is never taken for a place
        name, _, after = piece.partition("}}")
        pieces += [parts[name], after]
    return "".join(pieces)


def escape_json(value: object) -> str:
    """Write JSON that can't end the element it stands in, whatever its strings say."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # Half of a surrogate pair can come from a JSON file but not go into UTF-8.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _read(name: str) -> str:
    return (files("longvideo_reason_data.view") / name).read_text(encoding="utf-8")


def _allow(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"
