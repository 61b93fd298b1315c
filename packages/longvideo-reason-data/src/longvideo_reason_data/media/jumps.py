"""Checks that seeking gives the same frames as reading in sequence.

Frames are identified by their times. Program and transport streams, AVI, raw streams and similar formats don't store a
time with every frame; the library derives missing ones from what it read before, and after a seek it has read nothing.
So for these formats every packet after a seek is compared with a pass over the whole file: the same bytes must have the
same time. When a file is opened, its first frames are also decoded, to check their order and the frames after a seek,
and some more seeks are tried; the cost of that is bounded. If anything differs, the file is read from its start and its
frames are counted. That is slow but exact, and is reported once.

Formats that store the times (MP4, Matroska, …) are not checked.
"""

import logging
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from longvideo_reason_data.media.frame_index import (
    VideoIndex,
    decode_times,
    index_video,
    open_video,
    packets_from_key_frame,
)

_NUM_FIRST_FRAMES = 72
_NUM_FRAMES_AFTER_JUMP = 8
_NUM_JUMPS_TRIED = 8
_NUM_PACKETS_AFTER_JUMP = 48

_logger = logging.getLogger(__name__)
_told: set[Path] = set()


class MistimedFramesError(Exception):
    """After a seek, or in sequence, a frame has an unexpected time; handled where frames are read."""


def index_and_try_jumps(path: Path) -> VideoIndex:
    """Index a file, and find out whether reading may begin anywhere in it.

    Raises:
        UsageError: When there is no such file.
        DataError: When it is empty, truncated, not a video, or nothing in it can be decoded.
    """
    index = index_video(path)
    if not index.seekable or index.packets is None:
        return index
    try:
        _try_jumps(path, index)
    except MistimedFramesError:
        return read_in_sequence(path, index)
    return index


def read_in_sequence(path: Path, index: VideoIndex) -> VideoIndex:
    """Return the index of a file that is read from its start, because seeking is unreliable. Reports it.

    The file is decoded completely once, because its times may not even give the number of frames.

    Raises:
        DataError: When it is damaged.
    """
    report_slowness(path)
    times = decode_times(path, index.has_key_frames)
    times = index.times if len(times) == len(index.times) else times
    return replace(index, times=times, seekable=False, is_mistimed=True)


def report_slowness(path: Path) -> None:
    """Say, once in a process, that a file is read from its start."""
    if path not in _told:
        _told.add(path)
        _logger.warning(
            "%s: seeking gives other frames than reading in sequence; it is read from its start, which is exact but "
            "slow (re-encode it into an MP4 or MKV file to make it faster)",
            path,
        )


def packets_after_jump(
    container: InputContainer, stream: VideoStream, index: VideoIndex
) -> "Iterator[av.Packet[VideoStream]]":
    """Yield the packets after a seek, without those before a key frame.

    Raises:
        MistimedFramesError: When one has another time than when read in sequence.
    """
    packets = container.demux(stream)
    if index.packets is None:
        yield from packets_from_key_frame(packets, has_key_frames=index.has_key_frames)
        return
    first = [packet for packet in islice(packets, 1) if not packet.size or index.packets.holds(packet)]
    # Otherwise the seek has cut it in two.
    for packet in packets_from_key_frame(chain(first, packets), has_key_frames=index.has_key_frames):
        if packet.size and not index.packets.holds(packet):
            raise MistimedFramesError
        yield packet


def _try_jumps(path: Path, index: VideoIndex) -> None:
    """Check the decoded beginning of the file, and some seeks.

    Raises:
        MistimedFramesError: When a seek gives other frames, or frames aren't in the order of their times.
    """
    with open_video(path) as (container, stream), suppress(av.FFmpegError):  # damage is reported on reading
        packets = packets_from_key_frame(container.demux(stream), has_key_frames=index.has_key_frames)
        pictures: dict[int, int] = {}
        for frame in islice(_frames(packets), _NUM_FIRST_FRAMES):
            if frame.pts is None:
                raise MistimedFramesError
            if frame.pts >= index.times[0]:
                pictures[frame.pts] = _picture(frame)
        if list(pictures) != index.times[: len(pictures)].tolist():
            raise MistimedFramesError
        inside: list[int] = [time for time in index.key_times.tolist() if time in pictures]
        if inside:
            container.seek(inside[-1], stream=stream)
            for frame in islice(_frames(packets_after_jump(container, stream, index)), _NUM_FRAMES_AFTER_JUMP):
                is_leading = frame.pts is not None and frame.pts < inside[-1]
                if not is_leading and pictures.get(frame.pts or 0) not in (None, _picture(frame)):
                    raise MistimedFramesError
        tried = np.linspace(0, len(index.key_times) - 1, min(_NUM_JUMPS_TRIED, len(index.key_times))).astype(int)
        for time in index.key_times[tried].tolist():
            container.seek(time, stream=stream)
            for _ in islice(packets_after_jump(container, stream, index), _NUM_PACKETS_AFTER_JUMP):
                pass


def _frames(packets: "Iterator[av.Packet[VideoStream]]") -> Iterator[VideoFrame]:
    for packet in packets:
        yield from packet.decode()


def _picture(frame: VideoFrame) -> int:
    pixels: Any = frame.to_ndarray(format="rgb24")
    return zlib.crc32(pixels.tobytes())
