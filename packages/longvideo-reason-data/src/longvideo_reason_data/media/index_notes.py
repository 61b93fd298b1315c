"""Indexes of videos, remembered between runs, so that a long file isn't read to its end each time it is opened.

They are notes about files (`longrl_files.file_notes`) in the user's cache (`$XDG_CACHE_HOME/longrl/indexes`), which may
be removed at any time. A note holds all that opening the file found: its frames, its key frames, and whether reading
may begin anywhere. It belongs to the decoder that was tried on the file, and to its version and that of the library
that read the packets. No file that was refused is remembered, so a refusal is always found anew.
"""

import base64
import contextlib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from longrl_files.file_notes import FileNotes, user_cache
from longvideo_reason_data.media.frame_index import VideoIndex
from longvideo_reason_data.media.streams import PacketLog

_LAYOUT = 1
_MOST_BYTES = 1 << 28


def remembered_index(path: Path, decoder: str, versions: Sequence[str], find: Callable[[], VideoIndex]) -> VideoIndex:
    """Recall the index of a file, or find and remember it.

    Args:
        path: The file.
        decoder: The name of the decoder that is tried on the file.
        versions: Its version, and that of the library that reads packets.
        find: Reads the file and checks it; its errors are raised.
    """
    folder = user_cache()
    status = _status(path)
    if folder is None or status is None:
        return find()
    notes = FileNotes(folder / "indexes" / decoder, max_bytes=_MOST_BYTES)
    about = {"layout": _LAYOUT, "versions": list(versions)}
    known = notes.recall(path, status, about)
    if known is not None:
        return _unpack_index(known)
    index = find()
    with contextlib.suppress(OSError):
        (folder / "indexes").mkdir(mode=0o700, parents=True, exist_ok=True)
    notes.remember(path, status, about, _pack_index(index))
    return index


def _status(path: Path) -> os.stat_result | None:
    """What the system says of a file; None if it can't be read, which is reported by those who read it."""
    try:
        return path.stat() if os.access(path, os.R_OK) else None
    except (OSError, ValueError):
        return None


def _pack_index(index: VideoIndex) -> dict[str, Any]:
    """Convert it to JSON values."""
    packets = index.packets
    return {
        **asdict(index),
        "times": _pack(index.times),
        "key_times": _pack(index.key_times),
        "time_base": [index.time_base.numerator, index.time_base.denominator],
        "orientation": list(index.orientation),
        "packets": packets and {"times": _pack(packets.times), "checksums": _pack(packets.checksums)},
    }


def _unpack_index(content: dict[str, Any]) -> VideoIndex:
    """Convert it back; a seal vouches for the content."""
    packets = cast(dict[str, Any] | None, content["packets"])
    values: dict[str, Any] = {
        **content,
        "times": _unpack(content["times"], np.int64),
        "key_times": _unpack(content["key_times"], np.int64),
        "time_base": Fraction(*content["time_base"]),
        "orientation": tuple(content["orientation"]),
    }
    if packets is not None:
        times, checksums = _unpack(packets["times"], np.int64), _unpack(packets["checksums"], np.uint32)
        values["packets"] = PacketLog(times=times, checksums=checksums)
    return VideoIndex(**values)


def _pack(values: NDArray[Any]) -> str:
    """Write an array as text: its differences, which are alike and so become short."""
    differences = np.diff(values, prepend=values.dtype.type(0))
    return base64.b64encode(zlib.compress(differences.tobytes(), 1)).decode()


def _unpack(text: str, kind: DTypeLike) -> NDArray[Any]:
    differences = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=kind)
    return np.cumsum(differences, dtype=kind)
