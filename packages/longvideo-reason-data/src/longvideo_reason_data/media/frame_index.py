"""The position of every frame of a video file, read from its packets without decoding them.

The times are the container's own integers in its own time base, in the order in which frames are shown. A frame that no
decoder would return (removed by an edit list, or before the first key frame) isn't counted. Files whose packets have no
presentation times (some AVI) are decoded completely once; they can then only be read from the start. The file is opened
once. The content of frames is not checked here.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from itertools import dropwhile
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import ColorTrc
from av.video.stream import VideoStream
from numpy.typing import NDArray

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.containers import CONTAINER_NAMES, missing_bytes
from longvideo_reason_data.media.orientation import Orientation, orientation_of
from longvideo_reason_data.media.streams import PacketLog, checksum, open_stream, reason_of, stores_times

DynamicRange = Literal["standard", "pq", "hlg"]
"""The dynamic range: for ordinary screens, or one of the two curves of ITU-R BT.2100 for brighter ones."""
_HIGH_RANGES: dict[int, DynamicRange] = {ColorTrc.SMPTE2084: "pq", ColorTrc.ARIB_STD_B67: "hlg"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoIndex:
    """The result of probing a file.

    Attributes:
        times: int64 [F], when each frame is shown, in units of `time_base`, ascending.
        time_base: Seconds per unit.
        last_duration: Duration of the last frame, in units.
        key_times: int64 [K], times of the frames that can be decoded on their own, ascending.
        seekable: Whether a decoded frame can be identified by its time, so that reading may begin anywhere.
        coded_width: Width as stored, before the orientation is applied.
        coded_height: Height as stored.
        orientation: How stored frames are rotated and mirrored for display.
        codec: Name of the codec.
        stream_number: Index of the stream among all streams of the file.
        bits_per_channel: 8 for most videos, 10 or 12 for others.
        dynamic_range: The dynamic range.
        has_key_frames: Whether any packet is marked as a key frame.
        has_leading_frames: Whether frames are stored after a key frame but shown before it, as in open groups.
        packets: The packets' checksums, where the container doesn't store their times and these may differ after a seek
            (`longvideo_reason_data.media.jumps`).
        is_mistimed: Whether a seek gave other frames than reading in sequence, so that the file is read from its start.
    """

    times: NDArray[np.int64]
    time_base: Fraction
    last_duration: int
    key_times: NDArray[np.int64]
    seekable: bool
    coded_width: int
    coded_height: int
    orientation: Orientation
    codec: str
    stream_number: int
    bits_per_channel: int
    dynamic_range: DynamicRange
    has_key_frames: bool
    has_leading_frames: bool
    packets: PacketLog | None
    is_mistimed: bool


def open_video(path: Path) -> AbstractContextManager[tuple[InputContainer, VideoStream]]:
    """Open the main video stream of a file; all other streams are skipped.

    Raises:
        UsageError: When there is no such file.
        DataError: When it is empty, not a video, or has audio only.
    """
    return open_stream(path, "a video file", CONTAINER_NAMES, main_video_stream)


def index_video(path: Path) -> VideoIndex:
    """Read the packets of a file and decode its first frame.

    Raises:
        UsageError: When there is no such file.
        DataError: When it is empty, truncated, not a video, or nothing in it can be decoded.
    """
    with open_video(path) as (container, stream):
        missing = missing_bytes(path)
        if missing:
            raise DataError(f"{path}: truncated, {missing} bytes are missing at the end; copy it again")
        time_base = stream.time_base
        if time_base is None:
            raise DataError(f"{path}: its video stream has no time base, so its frames have no times")
        stream.codec_context.thread_count = 1  # for one frame, starting threads costs more than it saves
        walk = _Walk(path, is_logged=not stores_times(container))
        walk.run(container, stream)
        first = walk.first_frame
        if first is None:
            why = f" ({walk.first_error})" if walk.first_error else ""
            raise DataError(f"{path}: truncated or damaged, not one frame can be decoded{why}")
        times, last_duration = walk.times(), walk.last_duration
        # AVI has no presentation times; for reordered H.264 and HEVC those generated by the reader belong to the wrong
        # frames, though as a set they are right.
        is_invented = container.format.name == "avi" and stream.codec_context.has_b_frames > 0
        seekable = times is not None and not (is_invented and stream.codec_context.name in ("h264", "hevc"))
        if times is None:
            times, last_duration = decode_times(path, walk.has_key_frames), 0
        if len(times) > 1 and last_duration <= 0:
            last_duration = round((int(times[-1]) - int(times[0])) / (len(times) - 1))
        if last_duration <= 0:
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            last_duration = max(1, round(1 / (rate * time_base)))
        return VideoIndex(
            times=times,
            time_base=time_base,
            last_duration=last_duration,
            key_times=np.array(sorted(walk.key_times), dtype=np.int64),
            seekable=seekable,
            coded_width=first.width,
            coded_height=first.height,
            orientation=orientation_of(path, first),
            codec=stream.codec_context.name,
            stream_number=stream.index,
            bits_per_channel=max(component.bits for component in first.format.components),
            dynamic_range=_HIGH_RANGES.get(first.color_trc, "standard"),
            has_key_frames=walk.has_key_frames,
            has_leading_frames=walk.has_leading_frames,
            packets=walk.log(),
            is_mistimed=False,
        )


def packets_from_key_frame(
    packets: "Iterator[av.Packet[VideoStream]]", *, has_key_frames: bool
) -> "Iterator[av.Packet[VideoStream]]":
    """Skip the packets before a key frame.

    A recording cut out of a stream begins with frames that depend on missing ones. In a file without any key frame
    (with intra refresh) nothing is skipped.
    """
    return dropwhile(lambda packet: packet.size > 0 and not packet.is_keyframe, packets) if has_key_frames else packets


def main_video_stream(container: InputContainer) -> VideoStream | None:
    """Choose the stream that a player would show: no cover art, the default one first."""
    moving = [
        stream
        for stream in container.streams.video
        if not stream.disposition & (Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails)
    ]
    defaults = [stream for stream in moving if stream.disposition & Disposition.default]
    return (defaults or moving or [None])[0]


class _Walk:
    """The result of a pass over the packets; packets are decoded until the first frame is returned.

    Attributes:
        key_times: Times of the key frames, in the order of the file.
        has_key_frames: Whether any packet is marked as a key frame, with or without a time.
        has_leading_frames: Whether frames are stored after a key frame but shown before it.
        last_duration: Duration of the last frame shown, in units.
        first_frame: One decoded frame: it has the real size and orientation, and a file without any is detected at
            once.
        first_error: Why the decoder refused a packet before that.
    """

    def __init__(self, path: Path, *, is_logged: bool) -> None:
        self.key_times: list[int] = []
        self.has_key_frames = self.has_leading_frames = False
        self.last_duration = 0
        self.first_frame: VideoFrame | None = None
        self.first_error = ""
        self._path = path
        self._logged: list[tuple[int, int]] | None = [] if is_logged else None
        self._shown: list[int] = []
        self._num_packets = self._num_timeless = 0
        self._last_time = -1

    def run(self, container: InputContainer, stream: VideoStream) -> None:
        """Read the file.

        Raises:
            DataError: When packets are damaged or missing.
        """
        try:
            for packet in container.demux(stream):
                if self.first_frame is None:
                    self._decode(packet)
                if packet.size:
                    self._note(packet)
        except av.FFmpegError as error:
            raise DataError(
                f"{self._path}: damaged, its packets can't be read to the end ({reason_of(error)})"
            ) from error
        if self._num_packets == 0:
            raise DataError(f"{self._path}: truncated or empty, its video stream has no frames")

    def times(self) -> NDArray[np.int64] | None:
        """Return the ascending times of the frames shown, or None if some packets have none."""
        if self._num_timeless:
            return None
        times = np.array(sorted(self._shown), dtype=np.int64)
        return times[times >= min(self.key_times)] if self.key_times else times

    def log(self) -> PacketLog | None:
        """Return the packets' checksums, if they were recorded."""
        return None if self._logged is None else PacketLog.of(self._logged)

    def _decode(self, packet: "av.Packet[VideoStream]") -> None:
        try:
            self.first_frame = next(iter(packet.decode()), None)
        except av.FFmpegError as error:
            self.first_error = self.first_error or reason_of(error)

    def _note(self, packet: "av.Packet[VideoStream]") -> None:
        self.has_key_frames = self.has_key_frames or packet.is_keyframe
        if packet.pts is not None:
            if self._logged is not None:
                self._logged.append((packet.pts, checksum(packet)))
            if packet.is_keyframe:
                self.key_times.append(packet.pts)
            self.has_leading_frames |= bool(self.key_times) and packet.pts < self.key_times[-1]
        if packet.is_discard:  # hidden by an edit list, though other frames may need it
            return
        self._num_packets += 1
        if packet.is_corrupt:
            raise DataError(f"{self._path}: damaged, packet {self._num_packets} of its video stream is incomplete")
        if packet.pts is None:
            self._num_timeless += 1
            return
        self._shown.append(packet.pts)
        if packet.pts >= self._last_time or self._num_packets == 1:
            self._last_time, self.last_duration = packet.pts, packet.duration or 0


def decode_times(path: Path, has_key_frames: bool) -> NDArray[np.int64]:
    """Find the times of a file without presentation times by decoding all of it."""
    times: list[int] = []
    with open_video(path) as (container, stream):
        try:
            for packet in packets_from_key_frame(container.demux(stream), has_key_frames=has_key_frames):
                for frame in packet.decode():
                    time = frame.pts if frame.pts is not None else frame.dts
                    times.append(time if time is not None else (times[-1] + 1 if times else 0))
        except av.FFmpegError as error:
            raise DataError(f"{path}: damaged, frame {len(times)} can't be decoded ({reason_of(error)})") from error
    return np.maximum.accumulate(np.array(times, dtype=np.int64))
