"""Embedding stores as somebody else might hand them over, made by code: what a store must refuse or mend in one line.

Each builder fills a folder, which may begin as a sound store with one entry, and gets another folder that must stay as
it is: links lead there.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mrsp_engine.embeddings.checksums import seal
from mrsp_engine.embeddings.entry_folder import MARK_NAME
from mrsp_engine.embeddings.entry_layout import TENSOR_NAME
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.testing.fixtures import numbered_key

__all__ = ["DAMAGED_ENTRIES", "ENTRY", "HOSTILE_STORES", "fill_outside"]

ENTRY = numbered_key(0)
"""The key of the entry that a damaged store holds damaged."""

_LONG_AGO = time.time() - 30 * 24 * 3600


def fill_outside(folder: Path) -> None:
    """What a careless store would sweep, list or write to: old partial files in a folder named like a store's."""
    folder.mkdir(parents=True)
    for name in ("notes", f"{'0' * 64}.part", ".writing-letter", f"{'1' * 64}.safetensors"):
        (folder / name).write_text("mine")
        os.utime(folder / name, (_LONG_AGO, _LONG_AGO))


def _sound(folder: Path) -> EmbeddingStore:
    store = EmbeddingStore(folder)
    store.put(ENTRY, torch.ones(8, 4))
    return store


def _foreign_folder(folder: Path, outside: Path) -> None:
    fill_outside(folder / "ab")
    (folder / "thesis.txt").write_text("mine")


def _foreign_subfolders(folder: Path, outside: Path) -> None:
    """As the objects of a repository lie: nothing but subfolders of two digits."""
    fill_outside(folder / "ab")


def _linked_subfolder(folder: Path, outside: Path) -> None:
    _sound(folder)
    taken = ENTRY.digest[:2]
    (folder / ("ab" if taken != "ab" else "cd")).symlink_to(outside)


def _linked_own_subfolder(folder: Path, outside: Path) -> None:
    own = _sound(folder).path(ENTRY).parent
    own.rename(outside / "moved")
    own.symlink_to(outside / "moved")


def _linked_entry(folder: Path, outside: Path) -> None:
    path = _sound(folder).path(ENTRY)
    path.unlink()
    path.symlink_to(outside / "notes")


def _other(name: str, kind: str) -> Callable[[Path, Path], None]:
    """A store in which a file or folder of its own is something else."""

    def build(folder: Path, outside: Path) -> None:
        store = _sound(folder)
        path = store.path(ENTRY) if name == "entry" else folder / name
        path.unlink(missing_ok=True)
        if kind == "link":
            path.symlink_to(outside if name == "digests" else outside / "notes")
        elif kind == "new":
            path.symlink_to(outside / "new")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.mkdir()

    return build


def _entry(header: Callable[[], bytes]) -> Callable[[Path, Path], None]:
    """A store whose one entry has a header of one's own making."""

    def build(folder: Path, outside: Path) -> None:
        path = _sound(folder).path(ENTRY)
        text = header()
        path.write_bytes(len(text).to_bytes(8, "little") + text)

    return build


def _sealed(shape: object, *, blocks: object = "", dtype: object = "F32") -> Callable[[], bytes]:
    def header() -> bytes:
        key, tensor = ENTRY.to_json(), {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
        text = json.dumps([key, blocks, tensor], sort_keys=True)
        mark = seal(key, blocks, tensor) if isinstance(blocks, str) else text
        return json.dumps({"__metadata__": {"blocks": blocks, "key": key, "seal": mark}, TENSOR_NAME: tensor}).encode()

    return header


HOSTILE_STORES: dict[str, Callable[[Path, Path], None]] = {
    "foreign_folder": _foreign_folder,
    "foreign_subfolders": _foreign_subfolders,
    "linked_subfolder": _linked_subfolder,
    "linked_own_subfolder": _linked_own_subfolder,
    "linked_entry": _linked_entry,
    "fifo_as_entry": _other("entry", "fifo"),
    "folder_as_entry": _other("entry", "folder"),
    "fifo_as_subfolder": _other("ef", "fifo"),
    **{
        f"{kind}_as_{name.strip('.')}": _other(name, kind)
        for name in (MARK_NAME, ".lock", "encodes.log")
        for kind in ("link", "new", "fifo", "folder")
    },
    "linked_digests": _other("digests", "link"),
    "fifo_as_digests": _other("digests", "fifo"),
}
"""What is refused when the store is opened or listed, by name."""

DAMAGED_ENTRIES: dict[str, Callable[[Path, Path], None]] = {
    "deep_header": _entry(lambda: b"[" * 100_000),
    "large_header": _entry(lambda: b" " * (17 << 20)),
    "header_of_another_type": _entry(lambda: b'{"__metadata__": [], "embeddings": 5}'),
    "numbers_for_texts": _entry(_sealed([0, 1], blocks=5)),
    "no_shape": _entry(_sealed([])),
    "negative_shape": _entry(_sealed([-1, 0])),
    "fractional_shape": _entry(_sealed([0.5, 0])),
    "text_as_shape": _entry(_sealed("wide")),
    "endless_shape": _entry(_sealed([2**45, 0])),
    "more_rows_than_blocks": _entry(_sealed([2**30, 0])),
    "overflowing_shape": _entry(_sealed([0, 2**39, 2**39])),
    "list_as_dtype": _entry(_sealed([0, 1], dtype=["F32"])),
}
"""What is taken for no entry and made again, by name; each store has the entry of `ENTRY` damaged."""
