"""Digests of what a run begins with, so that it doesn't go on with something else.

A model counts with everything that shapes it: all files of its checkpoint, those in folders below included, for there
lie the language model, the tower and the projector of some. Runs begun before that knew the uppermost files alone; they
go on as long as those are the same.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from longrl_trainer.errors import TrainerUsageError
from mrsp_engine.families.copies import checkpoint_files

__all__ = ["digest_of", "digest_of_uppermost_files"]


def digest_of(path: Path, setting: str, *, outside: Sequence[Path] = ()) -> str:
    """SHA-256 over a file, or over the names and contents of a checkpoint's files.

    Args:
        path: The file or the checkpoint.
        setting: Where it is named, for the message.
        outside: Folders that are no part of the checkpoint, wherever they lie.

    Raises:
        TrainerUsageError: There is nothing.
    """
    if not path.exists():
        raise TrainerUsageError(f"{path} does not exist; set {setting} to an existing place")
    if path.is_dir():
        return _digest_files(path, checkpoint_files(path, outside=outside))
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of_uppermost_files(folder: Path) -> str:
    """The digest of a model as runs recorded it that didn't know of folders below."""
    return _digest_files(folder, sorted(path.relative_to(folder) for path in folder.iterdir()))


def _digest_files(folder: Path, paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        file = folder / path
        if file.is_file():
            digest.update(f"{path.as_posix()}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(2**20):
                    digest.update(block)
    return digest.hexdigest()
