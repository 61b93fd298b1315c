"""How decoded frames are rotated and mirrored: by quarter turns, or the file is refused."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av.filter
import numpy as np
from av.sidedata import sidedata
from av.video.frame import VideoFrame

from longvideo_reason_data.errors import DataError

# Rows of the display matrix as quarter turns and mirrors: (a, b, c, d) with x' = a x + c y and y' = b x + d y.
Orientation = tuple[int, int, int, int]
UPRIGHT: Orientation = (1, 0, 0, 1)
_FIXED_POINT_ONE = 1 << 16
_MAX_SIDE_DATA_KINDS = 64  # FFmpeg 8.1 has 32


def orientation_of(path: Path, frame: VideoFrame) -> Orientation:
    """Read how a decoded frame must be rotated and mirrored.

    Raises:
        DataError: When the rotation isn't a multiple of 90 degrees.
    """
    for data in _side_data(frame):
        if data.type.name == "DISPLAYMATRIX":
            matrix = np.frombuffer(bytes(data), dtype=np.int32).reshape(3, 3)
            linear = np.rint(matrix[:2, :2] / _FIXED_POINT_ONE).astype(int)
            a, b, c, d = (int(value) for value in linear.reshape(-1))
            if sorted((abs(a), abs(d))) + sorted((abs(b), abs(c))) in ([1, 1, 0, 0], [0, 0, 1, 1]):
                return a, b, c, d
            if np.any(linear):
                raise DataError(f"{path}: its frames are rotated by {frame.rotation}°, expected a multiple of 90°")
    return UPRIGHT


def _side_data(frame: VideoFrame) -> Iterator[sidedata.SideData]:
    """Return a frame's side data, without the types that the library has no name for.

    If one such type is present, such as the EXIF of a camera's frames, the library returns no side data at all. FFmpeg
    itself identifies types by number and can remove them.
    """
    try:
        data = frame.side_data
    except ValueError:
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
        )
        named = {kind.value for kind in sidedata.Type}
        unnamed = [number for number in range(_MAX_SIDE_DATA_KINDS) if number not in named]
        removals = [graph.add("sidedata", f"mode=delete:type={number}") for number in unnamed]
        graph.link_nodes(source, *removals, graph.add("buffersink")).configure()
        graph.vpush(frame)
        data = graph.vpull().side_data
    return cast(Iterator[sidedata.SideData], iter(data))  # declared as a mapping of names, but it yields the data
