"""Writing files so that a kill at any moment leaves either the old content or the new, never a part of it.

The content goes to a temporary name in the same folder, is forced to disk, and then takes the final name in one step.
A leftover temporary file of a killed process starts with a dot and is never read by anything in this package.
"""

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from longvideo_reason_data.errors import DataError


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Give a temporary path to write to; on leaving without an error it takes the place of `path`.

    Args:
        path: The final name. Its folder is made when it doesn't exist.

    Yields:
        A name in the same folder with the same suffix, which some writers look at to choose a format.

    Raises:
        DataError: When the folder can't be written or the disk is full.
    """
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: can't be written ({reason}); choose another output folder") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` as UTF-8 under `path`, whole or not at all.

    Raises:
        DataError: When it can't be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
