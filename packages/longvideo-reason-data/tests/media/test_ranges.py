"""One video is read by several threads: the same frames and errors, in order, in bounded memory."""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.decoders import ranges
from longvideo_reason_data.media.decoders.base import FrameReader, Pixels
from longvideo_reason_data.media.decoders.pyav import PyAVReader
from longvideo_reason_data.media.decoders.ranges import RangeReader, cut_ranges
from longvideo_reason_data.media.video_file import VideoFile

MakeVideo = Callable[..., Path]

NUM_FRAMES, GROUP = 400, 20
OPEN_GROUPS = f"open-gop=1:keyint={GROUP}:min-keyint={GROUP}:scenecut=0"


@pytest.fixture
def video(make_video: MakeVideo) -> VideoFile:
    options = {"preset": "ultrafast", "bf": "3", "x264-params": OPEN_GROUPS}
    return VideoFile.open(make_video(num_frames=NUM_FRAMES, options=options))


def threads_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read_ranges")]


@pytest.mark.parametrize("num_threads", [2, 3, 0])
def test_several_threads_give_the_frames_of_one(video: VideoFile, num_threads: int) -> None:
    divided, draw = replace(video, num_threads=num_threads), random.Random(0)
    for num_frames in (1, 2, 30, NUM_FRAMES):
        plan = sorted(draw.sample(range(NUM_FRAMES), num_frames))
        read = list(divided.frames(plan))
        assert [place for place, _ in read] == plan
        assert np.array_equal(np.stack([frame for _, frame in read]), video.read(plan))
    assert not threads_left()


def test_damage_stays_where_it_is(video: VideoFile) -> None:
    content = bytearray(video.path.read_bytes())
    with av.open(str(video.path)) as container:
        start, size = next((p.pos, p.size) for p in container.demux(video=0) if p.is_keyframe and p.pts == 200 * 512)
    content[start + 12 : start + size] = random.Random(0).randbytes(size - 12)
    video.path.write_bytes(content)
    plan = range(0, NUM_FRAMES, 5)
    outcomes: list[tuple[list[int], str]] = []
    for num_threads in (1, 3):
        read: list[int] = []
        with pytest.raises(DataError, match=r"frame 200 .* is damaged") as raised:
            read.extend(place for place, _ in replace(video, num_threads=num_threads).frames(plan))
        outcomes.append((read, str(raised.value)))
    assert outcomes[0] == outcomes[1]
    video.path.unlink()
    with pytest.raises(UsageError, match="no such file"):
        replace(video, num_threads=3).read(plan)
    assert not threads_left()


def test_what_is_read_ahead_is_bounded_and_may_be_left(video: VideoFile, monkeypatch: pytest.MonkeyPatch) -> None:
    num_threads, most = 3, 4
    monkeypatch.setattr(ranges, "MOST_BYTES_AHEAD", most * (num_threads + 1) * 3 * 96 * 64)
    num_read = 0

    class Counted:
        def __init__(self, reader: FrameReader) -> None:
            self.reader = reader

        def frames(self, wanted: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
            nonlocal num_read
            for frame in self.reader.frames(wanted):
                num_read += 1
                yield frame

    @contextmanager
    def open_reader() -> Iterator[FrameReader]:
        with PyAVReader(video.path, video.index, num_threads=1) as reader:
            yield Counted(reader)

    for plan in (range(NUM_FRAMES), range(0, NUM_FRAMES, 5)):  # more, and as many of a group as may wait
        num_read = 0
        frames = RangeReader(video.index, open_reader, num_threads=num_threads).frames(plan)
        for num_consumed in range(1, len(plan) // 2):
            next(frames)
            # Ranges begun but not consumed, and in each thread one frame that waits for room.
            assert num_read <= num_consumed + (num_threads + 1) * most + num_threads
        frames.close()
        assert num_read < len(plan)
        assert not threads_left()


def test_a_video_is_cut_at_key_frames_into_ranges_of_similar_size(video: VideoFile) -> None:
    keys = video.index.key_times
    for plan in (range(NUM_FRAMES), range(3, NUM_FRAMES, 7), [0, 5, 390], [17]):
        found = cut_ranges(video.index, plan, num_threads=2, most_frames=50)
        assert [place for part in found for place in part] == list(plan)
        groups = [set(keys.searchsorted(video.index.times[list(part)], "right").tolist()) for part in found]
        assert sum(len(group) for group in groups) == len(set[int]().union(*groups))
        assert all(len(part) <= 50 for part in found)
    assert len(cut_ranges(video.index, range(NUM_FRAMES), num_threads=2, most_frames=50)) >= 8


def test_fewer_than_no_threads_are_refused(video: VideoFile) -> None:
    with pytest.raises(UsageError, match="num_threads is -1, expected 0"):
        VideoFile.open(video.path, num_threads=-1)
