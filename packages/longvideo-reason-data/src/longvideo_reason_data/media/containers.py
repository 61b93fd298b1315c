"""Finds video files, and detects truncated ones by the sizes that their container declares.

A decoder reads a truncated file up to its end and then reports an ordinary end, so half a video would look like a short
one. MP4 and QuickTime, Matroska and WebM, and AVI state the sizes of their parts; this module compares them with the
file. Containers without sizes (transport streams, raw streams, live recordings of unknown length) can't be checked and
count as complete.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from longvideo_reason_data.errors import UsageError

# Only these may be opened. By default the library under PyAV also "opens" text, images and playlists, and a playlist
# can name other files or addresses.
CONTAINER_NAMES = frozenset(
    {
        "mov",
        "mp4",
        "m4a",
        "3gp",
        "3g2",
        "mj2",
        "matroska",
        "webm",
        "avi",
        "mpegts",
        "mpeg",
        "mpegvideo",
        "m4v",
        "h264",
        "hevc",
        "flv",
        "asf",
        "ogg",
        "nut",
        "mxf",
        "ivf",
        "dv",
        "rm",
        "obu",
    }
)

# Extensions by which videos are found in a folder.
VIDEO_SUFFIXES = frozenset(
    {
        ".mp4",
        ".m4v",
        ".mov",
        ".qt",
        ".3gp",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".mts",
        ".m2ts",
        ".mpg",
        ".mpeg",
        ".vob",
        ".flv",
        ".wmv",
        ".asf",
        ".ogv",
        ".mxf",
        ".nut",
        ".ivf",
    }
)

_EBML_MAGIC = b"\x1a\x45\xdf\xa3"
_SEGMENT_ID = b"\x18\x53\x80\x67"
_BOX_TYPES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")


def find_videos(paths: Sequence[Path]) -> list[Path]:
    """List the video files among files and folders, without opening them.

    Args:
        paths: A file is used as it is; a folder is searched recursively for names with a video's extension.

    Returns:
        Each file once: in the order of the arguments, and sorted within a folder.

    Raises:
        UsageError: When a path doesn't exist or a folder contains no video.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder; expected videos")
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if _looks_like_video(file, path))
            if not files:
                raise UsageError(f"{path}: no videos in this folder; expected names ending in .mp4, .mkv, .webm, …")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def missing_bytes(path: Path) -> int:
    """Count the bytes that the container declares but the file lacks.

    Returns:
        0 for a complete file and for one that can't be checked.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] in _BOX_TYPES:
            end = _end_of_boxes(file, size)
        elif head[:4] == _EBML_MAGIC:
            end = _end_of_matroska(file)
        elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            end = _end_of_riff(file, size)
        else:
            end = 0
    return max(0, end - size)


def _looks_like_video(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in VIDEO_SUFFIXES and not hidden and file.is_file()


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """Iterate over the outermost boxes of an MP4 or QuickTime file."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length = int.from_bytes(header[:4])
        if length == 0:  # "up to the end of the file"
            return size
        if length == 1:
            length = int.from_bytes(header[8:16])
        if length < 8:  # not a box, but garbage after the last one
            return position
        position += length
    return position


def _end_of_matroska(file: BinaryIO) -> int:
    """Read the declared size of the segment, which contains everything after the short header."""
    file.seek(4)
    header_length = _variable_integer(file)
    if header_length is None:
        return 0
    file.seek(header_length, 1)
    if file.read(4) != _SEGMENT_ID:
        return 0
    length = _variable_integer(file)
    return 0 if length is None else file.tell() + length


def _end_of_riff(file: BinaryIO, size: int) -> int:
    """Iterate over the RIFF parts of an AVI file; long files have several."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        name, length = file.read(4), int.from_bytes(file.read(4), "little")
        if name != b"RIFF" or length == 0:
            return position
        position += 8 + length
    return position


def _variable_integer(file: BinaryIO) -> int | None:
    """Read a variable-length integer of Matroska; None if it means "unknown"."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    num_more = 8 - first[0].bit_length()
    more = file.read(num_more)
    value = int.from_bytes(bytes([first[0] & (0x7F >> num_more)]) + more)
    return None if value == (1 << 7 * (num_more + 1)) - 1 else value
