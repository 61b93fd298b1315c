"""Writing and reading checkpoint folders, whole or not at all, without chatter.

Knows folders and transformers' progress bars; knows no family.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from mrsp_engine.errors import EngineError


@contextmanager
def without_progress_bars() -> Generator[None]:
    """Keep transformers from drawing its own progress bars; the caller's setting is put back."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def write_checkpoint(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, force it to disk, and give it its name; an older checkpoint there is replaced.

    At every moment `folder` is a complete checkpoint or, for the instant between two renames, absent.

    Raises:
        EngineError: The disk refused; nothing half-written is left under `folder`.
    """
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.writing-", dir=folder.parent))
        with without_progress_bars():
            write(temporary)
        for path in sorted(temporary.rglob("*")):
            _force_to_disk(path)
        temporary.chmod(0o755)
        if folder.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f".{folder.name}.replaced-", dir=folder.parent))
            folder.replace(replaced / folder.name)
            temporary.replace(folder)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            temporary.replace(folder)
        _force_to_disk(folder.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EngineError(f"{folder}: can't write the checkpoint ({reason}); choose another output folder") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
