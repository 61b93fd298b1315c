"""Writing files and folders so that a reader sees either the old content or the new.

Everything is written under a temporary name in the same folder, flushed to the disk and renamed. What a killed process
leaves behind has `PARTIAL_MARK` in its name, is never read, and is removed by the next run.
"""

import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longrl_trainer.errors import TrainerError

PARTIAL_MARK = ".partial-"


def write_text(path: Path, text: str) -> None:
    """Replace `path` with a file with this text, atomically."""
    partial = path.with_name(f"{path.name}{PARTIAL_MARK}{os.getpid()}")
    with readable_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with a JSON file with this value, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def new_folder(folder: Path) -> Generator[Path]:
    """Yield an empty temporary folder that becomes `folder` when the block ends without an error.

    A folder that already has the name is replaced.
    """
    partial = folder.with_name(f"{folder.name}{PARTIAL_MARK}{os.getpid()}")
    with readable_write_errors(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            for path in partial.rglob("*"):
                _sync(path)
            _sync(partial)
            if folder.exists():
                # A folder can't be renamed over a non-empty one; the old one first gets a name that nobody reads.
                retired = folder.with_name(f"{folder.name}{PARTIAL_MARK}{os.getpid()}-retired")
                folder.rename(retired)
                partial.rename(folder)
                shutil.rmtree(retired)
            else:
                partial.rename(folder)
            _sync(folder.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def remove_folder(folder: Path) -> None:
    """Remove a folder; whoever reads or is killed meanwhile finds all of it or nothing."""
    retired = folder.with_name(f"{folder.name}{PARTIAL_MARK}{os.getpid()}-retired")
    folder.rename(retired)
    shutil.rmtree(retired)


def remove_partial(folder: Path) -> None:
    """Remove what an interrupted run left half-written directly inside `folder`."""
    for path in folder.glob(f"*{PARTIAL_MARK}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def readable_write_errors(path: Path) -> Generator[None]:
    """Turn an operating system's write error into one line that names the path and the setting."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise TrainerError(f"cannot write {path}: {reason}; free some space or choose another `output`") from error


def _sync(path: Path) -> None:
    """Flush one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
