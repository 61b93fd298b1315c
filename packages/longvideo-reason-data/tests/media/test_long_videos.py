"""An hour of video is read in bounded memory, and many videos at once."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.parallel_reading import FrameRequest, read_videos
from longvideo_reason_data.media.video_file import MAX_PLANNED_FRAMES, VideoFile, sample_frames

MakeVideo = Callable[..., Path]
ReadCounter = Callable[[np.ndarray], int]

NUM_FRAMES, RATE, SIDE = 18_000, 5, 64

# Reads the largest plan and prints its cost, and that of a short plan.
READ_AN_HOUR = """
import json, resource, sys
from longvideo_reason_data.media.video_file import VideoFile, sample_frames

def most_kilobytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def number_of(frame):
    return sum(int(frame[8 + 16 * (bit // 4), 8 + 16 * (bit % 4)].mean() > 125) << bit for bit in range(16))

video = VideoFile.open(sys.argv[1])
few = [number_of(frame) for _, frame in video.frames(sample_frames(video, num_frames=8))]
before = most_kilobytes()
plan = sample_frames(video, num_frames=8192)
wrong = sum(number_of(frame) != place for place, frame in video.frames(plan))
print(json.dumps([video.duration_seconds, few, len(plan), wrong, most_kilobytes() - before]))
"""


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour at five frames per second, each with its number in sixteen blocks."""
    path = tmp_path_factory.mktemp("hour") / "hour.mp4"
    bits = np.arange(16).reshape(4, 4)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "crf": "30"})
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.gop_size = "gray", 50
        for number in range(NUM_FRAMES):
            blocks = np.where(number >> bits & 1, 235, 16).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.repeat(np.repeat(blocks, 16, 0), 16, 1), format="gray")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.slow
def test_the_largest_plan_of_an_hour_is_exact_in_bounded_memory(hour: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", READ_AN_HOUR, str(hour)], capture_output=True, text=True, timeout=120, check=True
    )
    seconds, few, num_frames, num_wrong, kilobytes = json.loads(finished.stdout)
    assert seconds == 3600
    assert few == [1125 + 2250 * place for place in range(8)]
    assert (num_frames, num_wrong) == (MAX_PLANNED_FRAMES, 0)
    assert kilobytes < 40_000  # all frames together are 100 MB


def test_plans_larger_than_the_largest_are_refused(hour: Path) -> None:
    video = VideoFile.open(hour)
    with pytest.raises(UsageError, match="num_frames is 8193, expected at most 8192"):
        sample_frames(video, num_frames=8193)
    with pytest.raises(UsageError, match="max_frames is 9000, expected at most 8192"):
        sample_frames(video, frames_per_second=1, max_frames=9000)
    with pytest.raises(UsageError, match=r"frames_per_second is 4, which is 14400 frames .* set max_frames"):
        sample_frames(video, frames_per_second=4)
    assert len(sample_frames(video, frames_per_second=2)) == 7200
    assert len(sample_frames(video, frames_per_second=4, max_frames=500)) == 500
    assert len(sample_frames(video, frames_per_second=4, num_frames=500)) == 500


def test_many_videos_are_read_at_once(make_video: MakeVideo, read_counter: ReadCounter) -> None:
    videos = [VideoFile.open(make_video(f"{number}.mp4", first_number=100 * number)) for number in range(8)]
    videos[3].path.unlink()
    num_drawn = 0

    def requests() -> Iterator[FrameRequest]:
        nonlocal num_drawn
        for video in videos:
            num_drawn += 1
            yield FrameRequest(video=video, indices=[5, 50])

    for number, (request, frames) in enumerate(read_videos(requests(), num_workers=2)):
        assert request.video is videos[number]
        assert num_drawn <= number + 3  # pending results don't grow with the number of videos
        if number == 3:
            assert isinstance(frames, DataError)
            assert "no such file" in str(frames)
        else:
            assert not isinstance(frames, DataError)
            assert [read_counter(frame) for frame in frames] == [100 * number + 5, 100 * number + 50]
    assert num_drawn == 8


def test_reading_many_can_be_left(make_video: MakeVideo) -> None:
    video = VideoFile.open(make_video())
    results = read_videos((FrameRequest(video=video, indices=[0]) for _ in range(100)), num_workers=2)
    next(results)
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read_videos")]


def test_no_workers_are_refused() -> None:
    with pytest.raises(UsageError, match="num_workers is 0, expected 1 or more"):
        read_videos([], num_workers=0)
