"""Segments cover their video, and a video's split depends only on its bytes."""

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.segments import Segment, check_segments, fixed_windows, frames_in_segment
from longvideo_reason_data.records.record import Split
from longvideo_reason_data.records.splits import SplitFractions, assign_split, connect_media


def spans(duration: float, window: float = 10.0) -> list[tuple[float, float]]:
    return [(s.start_seconds, s.end_seconds) for s in fixed_windows(duration, window_seconds=window)]


def test_windows() -> None:
    assert spans(30) == [(0, 10), (10, 20), (20, 30)]
    assert spans(25) == [(0, 10), (10, 20), (20, 25)]
    assert spans(4) == [(0, 4)]
    assert spans(20.04) == [(0, 10), (10, 20.04)]
    assert spans(0.3) == [(0, 0.3)]


def test_the_times_of_late_segments_are_seconds_and_not_ten_times_that() -> None:
    windows = fixed_windows(3600)
    assert len(windows) == 360
    assert (windows[1].start_seconds, windows[1].end_seconds) == (10, 20)
    assert (windows[359].start_seconds, windows[359].end_seconds) == (3590, 3600)


@given(st.floats(0.01, 2_000), st.floats(1, 120))
def test_windows_keep_the_rules(duration: float, window: float) -> None:
    windows = fixed_windows(duration, window_seconds=window)
    check_segments(windows, duration)
    assert all(segment.end_seconds - segment.start_seconds <= 1.11 * window for segment in windows)


@pytest.mark.parametrize("wrong", [(0, 10), (-1, 10), (10, 0), (float("nan"), 10), (float("inf"), 10)])
def test_windows_of_nothing_are_refused(wrong: tuple[float, float]) -> None:
    with pytest.raises(UsageError):
        fixed_windows(wrong[0], window_seconds=wrong[1])


@pytest.mark.parametrize(
    "wrong",
    [
        [(0, 0, 10), (1, 10, 19)],
        [(0, 0, 10), (1, 11, 20)],
        [(0, 0, 10), (1, 9, 20)],
        [(0, 0, 10), (2, 10, 20)],
        [(0, 1, 10), (1, 10, 20)],
        [(0, 0, 20), (1, 20, 20)],
        [(0, 0, 10), (1, 100, 110), (2, 200, 210)],
        [],
    ],
)
def test_broken_segments_are_found(wrong: list[tuple[int, float, float]]) -> None:
    segments = [Segment(number=n, start_seconds=start, end_seconds=end) for n, start, end in wrong]
    with pytest.raises(DataError):
        check_segments(segments, 20)


def test_frames_of_a_segment_lie_inside_it() -> None:
    video: Any = SimpleNamespace(frame_count=500, timestamps=np.arange(500) / 25, duration_seconds=20.0)
    for segment in fixed_windows(20):
        frames = frames_in_segment(video, segment, num_frames=4)
        assert len(frames) == 4
        assert all(segment.start_seconds <= video.timestamps[frame] < segment.end_seconds for frame in frames)
    still: Any = SimpleNamespace(frame_count=1, timestamps=np.zeros(1), duration_seconds=20.0)
    assert frames_in_segment(still, fixed_windows(20)[1], num_frames=4) == (0,)


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_splits_follow_the_fractions_and_stay() -> None:
    fractions = SplitFractions(train_sft=0.3, train_rl=0.5, held_out=0.2)
    found = [assign_split(digest(number), fractions) for number in range(4000)]
    assert found == [assign_split(digest(number), fractions) for number in range(4000)]
    for split, share in ((Split.TRAIN_SFT, 0.3), (Split.TRAIN_RL, 0.5), (Split.HELD_OUT, 0.2)):
        assert abs(found.count(split) / 4000 - share) < 0.03
    assert found != [assign_split(digest(number), fractions, seed=1) for number in range(4000)]


def test_an_empty_split_stays_empty() -> None:
    for only in Split:
        fractions = SplitFractions(**{split.value: float(split is only) for split in Split})
        assert {assign_split(digest(number), fractions) for number in range(50)} == {only}
    with pytest.raises(ValidationError, match="add up to"):
        SplitFractions(train_sft=0.5)


def test_media_that_a_question_connects_stay_together_in_any_order():
    generator = np.random.default_rng(3)
    names = [digest(number) for number in range(60)]
    shown = [tuple(generator.choice(names, size=generator.integers(1, 4))) for _ in range(40)]
    connected = connect_media(shown)
    assert set(connected) == {name for media in shown for name in media}
    assert all(len({connected[name] for name in media}) == 1 for media in shown)
    assert all(connected[first] == first <= name for name, first in connected.items())
    assert connect_media(shown[::-1]) == connected
    # Only media that a chain of questions connects are connected.
    for first in set(connected.values()):
        members = {name for name in connected if connected[name] == first}
        reached = {first}
        while more := {name for media in shown if set(media) & reached for name in media} - reached:
            reached |= more
        assert reached == members
    assert connect_media([(name,) for name in names]) == {name: name for name in names}
