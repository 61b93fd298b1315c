"""Writing files and folders so that a reader sees either the old content or the new.

Everything is written under a temporary name in the same folder, flushed to the disk and renamed. What a killed process
leaves behind has `PARTIAL_MARK` in its name, is never read, and is removed by the next run.
"""

import json
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from longrl_files.own_folders import OwnFolder
from longrl_trainer.errors import TrainerError

PARTIAL_MARK = ".partial-"
LOGS_NAME = "logs"
"""What a launcher keeps of the processes' output, in a run's folder before the run is there."""
LOOK_PREFIX = ".longrl-"
"""How the names of files begin that a launcher's look writes and removes again; other nodes may see them meanwhile."""
LINK_CURE = "remove it, or choose another folder"
_PARTIAL = re.compile(rf".+{re.escape(PARTIAL_MARK)}\d+(?:-retired)?")


def write_text(path: Path, text: str) -> None:
    """Replace `path` with a file containing this text, in one step."""
    with new_file(path) as file:
        file.write(text.encode())


@contextmanager
def new_file(path: Path) -> Generator[BinaryIO]:
    """Yield an empty file that replaces `path` when the block ends without an error; it is written through no link."""
    folder = OwnFolder(path.parent, error=TrainerError, link_cure=LINK_CURE)
    partial = f"{path.name}{PARTIAL_MARK}{os.getpid()}"
    with readable_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.remove(partial)
        try:
            with folder.create(partial) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            folder.replace(partial, path.name)
        except BaseException:
            folder.remove(partial)
            raise


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with a JSON file with this value, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def make_partial(folder: Path) -> Path:
    """Make an empty folder that `publish` can give the name of `folder`."""
    partial = folder.with_name(f"{folder.name}{PARTIAL_MARK}{os.getpid()}")
    with readable_write_errors(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    return partial


def publish(partial: Path, folder: Path) -> None:
    """Flush a complete folder to the disk and give it its name; a folder that has the name is replaced."""
    with readable_write_errors(folder):
        for path in partial.rglob("*"):
            _sync(path)
        _sync(partial)
        if folder.exists():
            remove_folder(folder)  # a folder can't be renamed over one that isn't empty
        partial.rename(folder)
        _sync(folder.parent)


def remove_partial(root: Path, folder: str = ".") -> None:
    """Remove the partial files and folders that an interrupted run left directly inside a folder.

    Args:
        root: The run's folder.
        folder: The folder in it; it must not be a link.

    Raises:
        TrainerError: It is one.
    """
    files = OwnFolder(root, error=TrainerError, link_cure=LINK_CURE)
    for name in files.names(folder):
        if _PARTIAL.fullmatch(name):
            with suppress(OSError):
                files.remove_tree(f"{folder}/{name}")


def remove_folder(folder: Path) -> None:
    """Remove a folder; whoever reads or is killed meanwhile finds all of it or nothing."""
    retired = folder.with_name(f"{folder.name}{PARTIAL_MARK}{os.getpid()}-retired")
    folder.rename(retired)
    shutil.rmtree(retired)


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
