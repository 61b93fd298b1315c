"""`longrl store`: the contents of the embedding store, checking it, and making it smaller."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from longrl.errors import AppError, AppUsageError

if TYPE_CHECKING:
    from mrsp_engine.embeddings.disk import DiskTier

__all__ = ["store"]

Folder = Annotated[Path, tyro.conf.Positional]

SIZE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def stats(folder: Folder = Path("embeddings")) -> None:
    """Count the embeddings of a store.

    Example: longrl store stats quickstart/embeddings

    Args:
        folder: Folder of the embedding store.
    """
    disk = _open(folder, is_read_only=True)
    held = disk.stats()
    print(f"{folder}: {held.entries} embeddings, {held.bytes / 1e6:.1f} MB; {disk.count_encodes()} encoded so far")


def verify(folder: Folder = Path("embeddings"), remove: bool = False) -> None:
    """Read every embedding and compare it with its checksums.

    Ends with exit code 1 if one is damaged. Training also finds and replaces damaged ones itself.

    Example: longrl store verify quickstart/embeddings --remove

    Args:
        folder: Folder of the embedding store.
        remove: Remove damaged embeddings, so that they are encoded again.
    """
    from mrsp_engine.embeddings.entries import DiskRefusedError

    disk = _open(folder, is_read_only=not remove)
    damaged = disk.verify()
    for digest in damaged:
        print(f"damaged: {disk.path(digest)}")
        if remove:
            try:
                disk.remove(digest)
            except DiskRefusedError as error:
                raise AppError(f"{folder}: can't be changed ({error})") from None
    if damaged:
        what = "removed" if remove else "remove them with --remove"
        raise AppError(
            f"{folder}: {len(damaged)} of {disk.stats().entries + remove * len(damaged)} embeddings damaged; {what}"
        )
    print(f"{folder}: {disk.stats().entries} embeddings, all sound")


def prune(folder: Folder = Path("embeddings"), *, keep: str) -> None:
    """Remove embeddings, least recently used first, until the store has a given size.

    The next run re-encodes what it needs; a run in progress doesn't.

    Example: longrl store prune quickstart/embeddings --keep 200GB

    Args:
        folder: Folder of the embedding store.
        keep: Maximum size to keep, such as 500MB or 0B.
    """
    from mrsp_engine.embeddings.entries import DiskRefusedError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)", keep.strip(), re.IGNORECASE)
    if match is None:
        raise AppUsageError(f"--keep {keep!r}: expected a number and one of {', '.join(SIZE_UNITS)}, such as 200GB")
    disk = _open(folder, is_read_only=False)
    try:
        removed = disk.prune(int(float(match[1]) * SIZE_UNITS[match[2].upper()]))
    except DiskRefusedError as error:
        raise AppError(f"{folder}: can't be changed ({error})") from None
    kept = disk.stats()
    print(
        f"{folder}: removed {removed.entries} embeddings, {removed.bytes / 1e6:.1f} MB; "
        f"{kept.entries} left, {kept.bytes / 1e6:.1f} MB"
    )


def _open(folder: Path, *, is_read_only: bool) -> "DiskTier":
    if not folder.is_dir():
        raise AppUsageError(f"{folder}: no such folder; expected the folder of an embedding store")
    from mrsp_engine.embeddings.disk import DiskTier

    return DiskTier(folder, None, is_read_only=is_read_only)


Action = (
    Annotated[Any, tyro.conf.subcommand("stats", constructor=stats)]
    | Annotated[Any, tyro.conf.subcommand("verify", constructor=verify)]
    | Annotated[Any, tyro.conf.subcommand("prune", constructor=prune)]
)


def store(action: Annotated[Action, tyro.conf.arg(name="")]) -> None:
    """Maintain an embedding store: count it, check it, make it smaller.

    Example: longrl store stats quickstart/embeddings
    """
