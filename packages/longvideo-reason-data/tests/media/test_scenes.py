"""Scenes are found where the frames change, and their segments cover the video."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvideo_reason_data.errors import UsageError
from longvideo_reason_data.generation.settings import BuildSettings
from longvideo_reason_data.media.decoders.base import DecoderName
from longvideo_reason_data.media.scenes import SceneSettings, find_cuts, scene_segments, segments_from_cuts
from longvideo_reason_data.media.segments import check_segments
from longvideo_reason_data.media.video_file import VideoFile
from longvideo_reason_data.pipeline.build import build

MakeVideo = Callable[..., Path]

CUTS = (50, 60, 250)  # frames that begin a scene
WRITTEN = [40 * number if number < 200 else 8000 + 80 * (number - 200) for number in range(300)]  # milliseconds
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40))


@pytest.fixture
def film(make_video: MakeVideo) -> VideoFile:
    """Four scenes, each of one colour with a bar moving through it; half the frames stay twice as long."""
    numbers = iter(range(-1, len(WRITTEN)))  # the first call only asks for the size

    def paint(frame: np.ndarray) -> np.ndarray:
        number = max(0, next(numbers))
        painted = np.empty_like(frame)
        painted[:] = COLOURS[sum(number >= cut for cut in CUTS)]
        column = abs(number % 160 - 80)  # to and fro
        painted[:, column : column + 8] = 120
        return painted

    return VideoFile.open(make_video("film.mkv", num_frames=len(WRITTEN), times=WRITTEN, rate=1000, turn=paint))


def test_a_cut_is_the_first_frame_of_a_scene(film: VideoFile) -> None:
    pytest.importorskip("scenedetect")
    assert find_cuts(film, SceneSettings()) == list(CUTS)


def test_scenes_become_segments_at_the_containers_times(film: VideoFile) -> None:
    pytest.importorskip("scenedetect")
    segments = scene_segments(film, SceneSettings(min_seconds=1.0, max_seconds=6.0))
    check_segments(segments, film.duration_seconds)
    # The scene of 0.4 s is merged with the one after it; together they last 10 s and are cut in two.
    borders = [segment.start_seconds for segment in segments] + [segments[-1].end_seconds]
    assert borders == pytest.approx([0, 2, 7, 12, film.duration_seconds], abs=0.05)


def test_a_build_takes_scenes_and_a_decoder(film: VideoFile, server: Any, tmp_path: Path) -> None:
    pytest.importorskip("scenedetect")
    pytest.importorskip("decord")
    settings = BuildSettings(segments="scenes", scenes=SceneSettings(min_seconds=1.0, max_seconds=6.0))
    other = settings.model_copy(update={"decoder": DecoderName.DECORD})

    def run(name: str, settings: BuildSettings) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        output = tmp_path / name
        manifest = build([film.path], output, base_url=server.base_url, model="model", settings=settings)
        return manifest, [json.loads(line) for line in (output / "segments.jsonl").read_text().splitlines()]

    manifest, segments = run("one", settings)
    assert [segment["start_seconds"] for segment in segments] == pytest.approx([0, 2, 7, 12], abs=0.05)
    assert manifest["tools"].keys() == {"decoder", "scenes"}
    assert manifest["tools"]["decoder"].startswith("pyav")
    manifest, same = run("two", other)
    assert [segment["start_seconds"] for segment in same] == [segment["start_seconds"] for segment in segments]
    assert manifest["tools"]["decoder"].startswith("decord")


def test_a_still_picture_has_no_cuts(make_video: MakeVideo) -> None:
    pytest.importorskip("scenedetect")
    video = VideoFile.open(make_video(turn=np.zeros_like))
    assert find_cuts(video, SceneSettings()) == []
    assert len(scene_segments(video, SceneSettings())) == 1


@pytest.mark.slow
def test_without_the_extra_it_is_one_line(make_video: MakeVideo) -> None:
    code = "import sys; sys.modules['scenedetect'] = None; from longvideo_reason_data.media.scenes import *\n"
    code += "from longvideo_reason_data.media.video_file import VideoFile\n"
    code += "try:\n    find_cuts(VideoFile.open(sys.argv[1]), SceneSettings())\nexcept Exception as error: print(error)"
    finished = subprocess.run(
        [sys.executable, "-c", code, str(make_video())], capture_output=True, text=True, timeout=60, check=True
    )
    assert "install longvideo-reason-data[scenes] or use fixed windows" in finished.stdout
    assert finished.stdout.count("\n") == 1


@given(st.lists(st.floats(0.01, 30), min_size=1, max_size=40), st.floats(0.1, 5), st.floats(2, 10), st.floats(0, 1e-6))
def test_segments_of_any_cuts_keep_the_rules(
    lengths: list[float], min_seconds: float, factor: float, more: float
) -> None:
    *cuts, duration = np.cumsum(lengths).tolist()
    max_seconds = factor * min_seconds
    segments = segments_from_cuts(cuts, duration, min_seconds=min_seconds, max_seconds=max_seconds)
    check_segments(segments, duration)
    lasts = [segment.end_seconds - segment.start_seconds for segment in segments]
    assert max(lasts) <= max_seconds + 1e-6
    assert min(lasts) >= min_seconds - 1e-6 or len(segments) == 1


def test_times_of_late_scenes_are_seconds_and_not_ten_times_that() -> None:
    segments = segments_from_cuts([10.0, 3590.0], 3600.0, min_seconds=2, max_seconds=10)
    check_segments(segments, 3600.0)
    assert (segments[1].start_seconds, segments[1].end_seconds) == (10, 20)
    assert (segments[-1].start_seconds, segments[-1].end_seconds) == (3590, 3600)


@pytest.mark.parametrize("wrong", [{"min_seconds": 2, "max_seconds": 3}])
def test_scenes_that_can_not_be_cut_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="max_seconds is 3, expected at least twice min_seconds"):
        segments_from_cuts([], 20.0, **wrong)
