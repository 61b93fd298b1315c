"""Digests of a run's inputs, so that it doesn't continue with different ones.

A model's digest covers everything that affects it: all files of its checkpoint, including those in subfolders, where
some models have their language model, tower and projector. Older runs recorded only the top-level files; they continue
as long as those are the same.
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
        setting: The setting with this path, for the message.
        outside: Folders that are not part of the checkpoint, wherever they are.

    Raises:
        TrainerUsageError: The path doesn't exist.
    """
    if not path.exists():
        raise TrainerUsageError(f"{path} does not exist; set {setting} to an existing place")
    if path.is_dir():
        return _digest_files(path, checkpoint_files(path, outside=outside))
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of_uppermost_files(folder: Path) -> str:
    """The digest of a model as recorded by older runs, which ignored subfolders."""
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
