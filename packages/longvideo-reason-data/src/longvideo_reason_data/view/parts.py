"""The items of a large dataset, as scripts beside the page, so that a browser loads only what somebody looks at.

A page that was opened from disk may not read other files, but it may add scripts. Each part is a script that calls one
function with one text; the text is JSON with every `<` escaped, which the page parses and never runs. The folder's name
holds a digest of what is in it: a page names the parts that were written with it, and is replaced only after they are
there.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Self

from longvideo_reason_data.atomic_files import write_text_atomic
from longvideo_reason_data.errors import DataError

ITEMS_PER_PART = 500


class PartsFolder:
    """The parts of one page, which get their final place with `keep`.

    Args:
        page: The HTML file that they belong to.
    """

    def __init__(self, page: Path) -> None:
        self._page = page
        self._folder = page.with_name(f".{page.stem}-parts.{secrets.token_hex(6)}")
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, kind: str, items: Iterable[dict[str, Any]]) -> None:
        """Write items in their order.

        Args:
            kind: What they are.
            items: They are gone through once, a part at a time.

        Raises:
            DataError: When they can't be written.
        """
        remaining, number = iter(items), 0
        while rows := list(islice(remaining, ITEMS_PER_PART)):
            name = f"{kind}-{number}"
            text = f"takePart({json.dumps(name)}, {json.dumps(escape_json(rows), ensure_ascii=False)});\n"
            self._digest.update(f"{name}\n{text}".encode())
            write_text_atomic(self._folder / f"{name}.js", text)
            number += 1

    def keep(self) -> str:
        """Put the folder beside the page, in place of one with the same parts.

        Returns:
            Its name.

        Raises:
            DataError: When it can't be written.
        """
        target = self._page.with_name(f"{self._page.stem}-parts-{self._digest.hexdigest()[:12]}")
        try:
            if target.exists():
                shutil.rmtree(target)
            self._folder.rename(target)
        except OSError as error:
            raise DataError(f"{target}: can't be written ({error.strerror or error}); remove it") from error
        return target.name


class ItemColumns:
    """What a page knows of all items without their parts: ids, media, and what a list is filtered by.

    Args:
        names: The properties that the list is filtered by.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._ids: list[str] = []
        self._media: list[list[int]] = []
        self._numbers: dict[str, list[int]] = {name: [] for name in names}
        self._values: dict[str, dict[str | None, int]] = {name: {} for name in names}

    def __len__(self) -> int:
        return len(self._ids)

    def follow(self, items: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        """Note items while they are gone through."""
        for item in items:
            self._ids.append(item.get("id") or item["item"])
            self._media.append(item.get("media", []))
            for name, numbers in self._numbers.items():
                values = self._values[name]
                numbers.append(values.setdefault(item.get(name), len(values)))
            yield item

    def as_json(self) -> dict[str, Any]:
        """Give them as the page reads them."""
        filters = {
            name: {"values": list(self._values[name]), "numbers": numbers} for name, numbers in self._numbers.items()
        }
        return {"id": self._ids, "media": self._media, "filters": filters}


def remove_other_parts(page: Path, kept: str | None) -> None:
    """Remove the parts of earlier pages of this name; files that aren't parts, and folders with such files, stay."""
    for folder in page.parent.glob(f"{page.stem}-parts-{'[0-9a-f]' * 12}"):
        if folder.name != kept and folder.is_dir() and not folder.is_symlink():
            for path in folder.glob("*-*.js"):
                path.unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()


def escape_json(value: object) -> str:
    """Write JSON that can't end the element it stands in, whatever its strings say."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # Half of a surrogate pair can come from a JSON file but not go into UTF-8.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
