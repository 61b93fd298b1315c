"""Digests of a run's inputs, so that it doesn't continue with different ones.

A model's digest covers everything that affects it: all files of its checkpoint, including those in subfolders, where
some models have their language model, tower and projector. Older runs recorded only the top-level files; they continue
as long as those are the same.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from longrl_files.regular_files import open_regular
from longrl_trainer.errors import TrainerUsageError
from mrsp_engine.families.checkpoint_folder import CheckpointFolder

__all__ = ["digest_of", "digest_of_uppermost_files"]


def digest_of(path: Path, setting: str, *, outside: Sequence[Path] = ()) -> str:
    """SHA-256 over a file, or over the names and contents of a checkpoint's files.

    Args:
        path: The file or the checkpoint.
        setting: The setting with this path, for the message.
        outside: Folders that are not part of the checkpoint, wherever they are.

    Raises:
        TrainerUsageError: The path doesn't exist, or is larger than this machine's memory.
    """
    if not path.exists():
        raise TrainerUsageError(f"{path} does not exist; set {setting} to an existing place")
    if path.is_dir():
        from mrsp_engine.families.copies import checkpoint_files  # loads torch, which pages of runs don't need

        files = checkpoint_files(path, outside=outside)
        _require_memory(path, sum((path / name).stat().st_size for name in files), setting)
        return _digest_files(path, files)
    digest = hashlib.sha256()
    with open_regular(path, error=TrainerUsageError) as stream:
        _require_memory(path, os.fstat(stream.fileno()).st_size, setting)
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def digest_of_uppermost_files(folder: Path) -> str:
    """The digest of a model as recorded by older runs, which ignored subfolders."""
    names = CheckpointFolder(folder).files.names()
    return _digest_files(folder, [Path(name) for name in names if (folder / name).is_file()])


def _require_memory(path: Path, num_bytes: int, setting: str) -> None:
    """Refuse what can't be loaded here before all of it is read."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > memory_bytes:
        raise TrainerUsageError(
            f"{path}: has {num_bytes / 1e9:,.1f} GB, and this machine has {memory_bytes / 1e9:,.1f} GB of memory; set "
            f"{setting} to something smaller"
        )


def _digest_files(folder: Path, paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    files = CheckpointFolder(folder).files
    for path in paths:
        with files.open(path.as_posix()) as stream:
            digest.update(f"{path.as_posix()}\0{os.fstat(stream.fileno()).st_size}\0".encode())
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()
