"""A video that was opened before is opened from what was remembered of it."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longrl_files import file_notes
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media import jumps, video_file
from longvideo_reason_data.media.index_notes import remembered_index
from longvideo_reason_data.media.jumps import index_and_try_jumps
from longvideo_reason_data.media.streams import PacketLog
from longvideo_reason_data.media.video_file import VideoFile

MakeVideo = Callable[..., Path]
ReadCounter = Callable[[np.ndarray], int]

TIMES = [1000 + 40 * number + number % 3 for number in range(60)]
KINDS: dict[str, dict[str, Any]] = {
    "variable.mp4": {"times": TIMES, "rate": 1000, "rotation": 90},
    "no_times.avi": {"options": {"bf": "3"}},
    "stream.ts": {"options": {"bf": "2"}},
    "mistimed.mpg": {"codec": "mpeg1video", "options": {"b": "600000"}},
}


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder of the notes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_notes, "UNSETTLED_SECONDS", 0.05)
    monkeypatch.setattr(jumps, "_told", set())
    return tmp_path / "cache" / "longrl" / "indexes" / "pyav"


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Give the list of files whose packets were read."""
    found: list[Path] = []

    def probe(path: Path) -> Any:
        found.append(path)
        return index_and_try_jumps(path)

    monkeypatch.setattr(video_file, "index_and_try_jumps", probe)
    return found


def settled(path: Path) -> Path:
    time.sleep(0.1)
    return path


def assert_equal(one: Any, other: Any) -> None:
    for field in dataclasses.fields(one):
        before, after = getattr(one, field.name), getattr(other, field.name)
        if isinstance(before, PacketLog):
            assert_equal(before, after)
        elif isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            assert np.array_equal(before, after)
        else:
            assert before == after, field.name


@pytest.mark.parametrize("name", KINDS)
def test_a_remembered_index_is_the_same(
    make_video: MakeVideo, probed: list[Path], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = settled(make_video(name, **KINDS[name]))
    with caplog.at_level(logging.WARNING):
        first = VideoFile.open(path)
        jumps._told.clear()  # as in another process
        again = VideoFile.open(path)
    assert probed == [path]
    assert_equal(first.index, again.index)
    assert len(caplog.records) == 2 * first.index.is_mistimed  # slowness is said in each process
    assert first.index.is_mistimed == (name == "mistimed.mpg")
    assert np.array_equal(again.read([3, 50]), first.read([3, 50]))


def test_a_changed_file_or_library_is_probed_again(
    make_video: MakeVideo, probed: list[Path], read_counter: ReadCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = settled(make_video())
    assert VideoFile.open(path).frame_count == VideoFile.open(path).frame_count == 60
    settled(make_video(num_frames=30, first_number=100))
    video = VideoFile.open(path)
    assert (video.frame_count, read_counter(video.read([29])[0])) == (30, 129)
    assert len(probed) == 2
    monkeypatch.setattr("longvideo_reason_data.media.decoders.pyav.version", lambda: "another")
    VideoFile.open(path)
    assert len(probed) == 3


def test_a_changed_note_is_not_believed(make_video: MakeVideo, probed: list[Path], notes: Path) -> None:
    path = settled(make_video())
    right = VideoFile.open(path).index
    (note,) = notes.iterdir()
    content = json.loads(note.read_text())
    note.write_text(json.dumps({**content, "content": {**content["content"], "coded_width": 5}}))
    assert_equal(VideoFile.open(path).index, right)
    assert len(probed) == 2


def test_a_refused_file_is_refused_again(make_video: MakeVideo, probed: list[Path], notes: Path) -> None:
    path = make_video()
    path.write_bytes(path.read_bytes()[:-1000])
    settled(path)
    for _ in range(2):
        with pytest.raises(DataError, match="truncated"):
            VideoFile.open(path)
    assert len(probed) == 2
    assert not notes.exists()


def test_an_hour_of_uneven_frames_is_a_small_note(make_video: MakeVideo, notes: Path) -> None:
    path = settled(make_video())
    times = np.cumsum(np.random.default_rng(0).integers(300, 700, 90_000))
    hour = dataclasses.replace(VideoFile.open(path).index, times=times, key_times=times[::250].copy())
    (note,) = notes.iterdir()
    note.unlink()
    assert_equal(remembered_index(path, "pyav", ("1",), lambda: hour), hour)
    assert_equal(remembered_index(path, "pyav", ("1",), lambda: pytest.fail("probed again")), hour)
    (note,) = notes.iterdir()
    assert note.stat().st_size < 300_000
