"""Decodes forward through one open file and identifies every frame.

A frame is identified by its presentation time, so it doesn't matter where a seek lands: if it lands too late, an
earlier key frame is tried, and finally the file is read from its start. Only files without presentation times, or with
different ones after a seek (`longvideo_reason_data.media.jumps`), are counted from the start.

On the way to a wanted frame, pictures that nothing refers to are skipped
(`longvideo_reason_data.media.decoders.skipping`). If a frame isn't found so, nothing is skipped from then on, and it is
looked for again.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.decoders.skipping import DecodePacket, decode_all, find_skipping
from longvideo_reason_data.media.frame_index import VideoIndex, open_video, packets_from_key_frame
from longvideo_reason_data.media.jumps import MistimedFramesError, packets_after_jump, read_in_sequence

# Seeking to a key frame discards the decoder's buffered frames; below this many frames, decoding on is as fast.
MIN_SKIPPED_FRAMES_TO_JUMP = 8
_NUM_KEY_FRAMES_TRIED = 3


class _Damage:
    """Which frames may be wrong after a packet failed, because a decoder silently replaces a lost reference frame.

    These are all frames up to the next key frame. Frames that are stored after a key frame but shown before it depend
    on both groups; they fail after every seek to that key frame, which says nothing about the frames shown after it.
    """

    def __init__(self) -> None:
        self._times: set[int | None] = set()
        self._is_on = self._is_on_for_leading = False
        self._key_time: int | None = None

    def begins_at(self, packet: "av.Packet[VideoStream]") -> None:
        """Record a packet that the decoder refused."""
        self._times.add(packet.pts)
        if self._is_leading(packet):
            self._is_on_for_leading = True
        else:
            self._is_on = True

    def passes(self, packet: "av.Packet[VideoStream]") -> None:
        """Record a packet that the decoder accepted."""
        if packet.is_keyframe:
            self._is_on, self._is_on_for_leading = False, self._is_on
            self._key_time = packet.pts
        elif self._is_on_for_leading if self._is_leading(packet) else self._is_on:
            self._times.add(packet.pts)

    def is_anywhere(self) -> bool:
        """Return whether any packet was refused so far."""
        return bool(self._times)

    def covers(self, frame: VideoFrame) -> bool:
        """Return whether a decoded frame may be wrong."""
        return frame.pts in self._times

    def _is_leading(self, packet: "av.Packet[VideoStream]") -> bool:
        return self._key_time is not None and packet.pts is not None and packet.pts < self._key_time


class FrameDecoder:
    """A file opened for decoding; a context manager.

    Args:
        path: The file.
        index: The result of probing it.
        num_threads: Threads of the decoder; 0 lets it choose. They work on the same frame, because threads on different
            frames report damage at the wrong frame. Read several videos at once to use many cores.

    Attributes:
        num_decoded: Frames decoded so far, wanted or not: the cost of the requests.
    """

    def __init__(self, path: Path, index: VideoIndex, *, num_threads: int) -> None:
        self._path = path
        self._index = index
        self._num_threads = num_threads
        self._resources = ExitStack()
        self._frames: Iterator[VideoFrame] = iter(())
        self._position = -1
        self._passed_time: int | None = None
        self._skips = True
        self._wanted_times: list[int] = []
        self._pending = slice(0)
        self._awaited_times: set[int] = set()
        self.num_decoded = 0
        self._container: InputContainer
        self._stream: VideoStream
        self._decode_packet: DecodePacket

    def __enter__(self) -> Self:
        self._start_over()
        return self

    def __exit__(self, *unused: object) -> None:
        self._resources.close()

    def frames(self, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the wanted frames, which must ascend, in one pass that seeks where that is faster.

        Raises:
            DataError: When one of them can't be decoded.
        """
        self._wanted_times = self._index.times[np.asarray(wanted, dtype=np.int64)].tolist()
        cuts = [place + 1 for place in self._places_of_seeks(wanted)]
        for start, end in pairwise([0, *cuts, len(wanted)]):  # decoded without a seek between
            self._awaited_times = set(self._wanted_times[start:end])
            for place in range(start, end):
                self._pending = slice(place, end)
                yield wanted[place], self._find_anyway(wanted[place])

    def _find_anyway(self, target: int) -> VideoFrame:
        try:
            frame = self._find(target)
        except MistimedFramesError:
            frame = self._find_in_sequence(target)
        if frame is None and self._skips:
            self._skips = False
            self._start_over()
            frame = self._find(target)
        if frame is None:
            seconds = float((int(self._index.times[target]) - int(self._index.times[0])) * self._index.time_base)
            raise DataError(f"{self._path}: frame {target} (at {seconds:.3f} s) can't be decoded; it is damaged")
        return frame

    def _places_of_seeks(self, wanted: Sequence[int]) -> list[int]:
        """Find after which of the wanted frames seeking to the next one is faster than decoding on."""
        if not self._index.seekable or not len(self._index.key_times):
            return []
        frames, keys = np.asarray(wanted, dtype=np.int64), self._index.key_times
        nearest = keys.searchsorted(self._index.times[frames], side="right") - 1
        num_skipped = self._index.times.searchsorted(keys[nearest[1:]]) - (frames[:-1] + 1)
        return np.flatnonzero((nearest[1:] >= 0) & (num_skipped >= MIN_SKIPPED_FRAMES_TO_JUMP)).tolist()

    def _find(self, target: int) -> VideoFrame | None:
        if self._passed_time is not None:
            self._position = max(self._position, self._place_of(self._passed_time))
        starts = self._starts_before(target)
        is_near = not starts or self._place_of(starts[0]) - (self._position + 1) < MIN_SKIPPED_FRAMES_TO_JUMP
        if is_near and (frame := self._advance(target)):
            return frame
        came = is_near and self._position == target
        for start in starts:
            # The previous key frame: a seek may land late, and after seeking into an open group the decoder refuses
            # packets that it accepts when coming from the group before.
            self._container.seek(start, stream=self._stream)
            self._begin(packets_after_jump(self._container, self._stream, self._index))
            if frame := self._advance(target):
                return frame
            came = came or self._position == target
        if came or (is_near and not starts):
            return None
        self._start_over()
        return self._advance(target)

    def _find_in_sequence(self, target: int) -> VideoFrame | None:
        """Count from the start from now on: the times are wrong."""
        num_frames = len(self._index.times)
        self._index = read_in_sequence(self._path, self._index)
        if len(self._index.times) != num_frames:
            raise DataError(
                f"{self._path}: it has {len(self._index.times)} frames, but times for {num_frames}; convert the file"
            )
        self._start_over()
        return self._advance(target)

    def _start_over(self) -> None:
        self._resources.close()
        self._container, self._stream = self._resources.enter_context(open_video(self._path))
        self._stream.codec_context.thread_count = self._num_threads
        self._stream.thread_type = "SLICE"
        skipping = find_skipping(self._stream, self._index) if self._skips else None
        self._skips = skipping is not None
        self._decode_packet = skipping or decode_all
        packets = packets_from_key_frame(self._container.demux(self._stream), has_key_frames=self._index.has_key_frames)
        self._begin(packets)

    def _begin(self, packets: "Iterator[av.Packet[VideoStream]]") -> None:
        self._frames = self._decode(packets)
        self._position, self._passed_time = -1, None
        self._awaited_times = set(self._wanted_times[self._pending])
        self._damage = _Damage()

    def _decode(self, packets: "Iterator[av.Packet[VideoStream]]") -> Iterator[VideoFrame]:
        """Decode these packets, skipping those that can't be decoded.

        The decoder is emptied after the last wanted frame, instead of decoding on until it returns that. One more
        packet is decoded before, because it may be the other field of the same frame.
        """
        for packet in packets:
            is_last = self._skips and not self._awaited_times
            try:
                frames = self._decode_packet(packet, is_last or packet.pts in self._awaited_times)
            except av.FFmpegError:
                self._damage.begins_at(packet)
                continue
            self._damage.passes(packet)
            yield from frames
            if is_last and packet.size:
                with suppress(av.FFmpegError):
                    yield from self._stream.codec_context.decode(None)
                return
            if packet.pts is not None:
                self._awaited_times.discard(packet.pts)

    def _advance(self, target: int) -> VideoFrame | None:
        """Decode up to the target; None if decoding passes it or it is damaged."""
        time = int(self._index.times[target])
        try:
            for frame in self._frames:
                self.num_decoded += 1
                if self._skips and frame.pts is not None and frame.pts < time:  # each has a time of its own
                    self._passed_time = frame.pts
                    continue
                if self._recognise(frame) and self._position >= target:
                    is_whole = self._position == target and not frame.is_corrupt and not self._damage.covers(frame)
                    return frame if is_whole else None
        except av.FFmpegError as error:
            raise DataError(f"{self._path}: damaged before frame {target} ({error.strerror})") from error
        return None

    def _recognise(self, frame: VideoFrame) -> bool:
        """Advance the position to this frame; False for a frame that the container hides."""
        if not self._index.seekable:
            self._position += 1
            return True
        if frame.pts is None:
            return False
        times, after = self._index.times, self._position + 1
        place = self._place_of(frame.pts)
        if place >= len(times) or times[place] != frame.pts:
            return False
        # Several frames with the same time are distinguished by their order.
        several = place < after < len(times) and times[after] == frame.pts
        is_checked = self._index.packets is not None and self._position >= 0 and not self._damage.is_anywhere()
        if is_checked and place != after and not several:
            raise MistimedFramesError
        self._position = after if several else place
        return True

    def _starts_before(self, target: int) -> list[int]:
        """Times of the key frames from which the target can be decoded, nearest first."""
        if not self._index.seekable:
            return []
        keys = self._index.key_times
        end = int(np.searchsorted(keys, self._index.times[target], side="right"))
        return [int(time) for time in keys[max(0, end - _NUM_KEY_FRAMES_TRIED) : end][::-1]]

    def _place_of(self, time: int) -> int:
        return int(self._index.times.searchsorted(time))
