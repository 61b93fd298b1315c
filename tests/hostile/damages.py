"""What may stand in the place of any file: damages that need to know nothing about it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from hostile_datasets import DEEP, ESCAPES

Damage = Callable[[Path, Path], object]
"""Gets the file and a folder elsewhere."""


def text(content: str | bytes) -> Damage:
    """Other content."""
    return lambda path, _: path.write_bytes(content.encode() if isinstance(content, str) else content)


def _link(path: Path, outside: Path) -> None:
    """To a file elsewhere that says what the file itself said."""
    (outside / "moved").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside / "moved")


def _fifo(path: Path, outside: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path, outside: Path) -> None:
    path.unlink()
    path.mkdir()


def _hole(path: Path, outside: Path) -> None:
    os.truncate(path, 2**40)


DAMAGES: dict[str, Damage] = {
    "a link": _link,
    "a FIFO": _fifo,
    "a folder": _folder,
    "a terabyte of zeros": _hole,
    "nested deep": text(DEEP),
    "binary": text(bytes(range(256)) * 100),
    "something else": text(json.dumps({"step": ESCAPES * 1000, "stage": ESCAPES, "settings": {}}) + "\n"),
}
