"""A frame read alone equals the frame from reading in sequence, whatever times the format stores."""

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longvideo_reason_data.media import jumps
from longvideo_reason_data.media.decoders.pyav_frames import FrameDecoder
from longvideo_reason_data.media.frame_index import index_video
from longvideo_reason_data.media.video_file import VideoFile

MakeVideo = Callable[..., Path]
ReadCounter = Callable[[np.ndarray], int]

NUM_FRAMES = 90
MPEG_1: dict[str, Any] = {"codec": "mpeg1video", "options": {"b": "600000"}}
MPEG_2: dict[str, Any] = {"codec": "mpeg2video", "options": {"b": "900000"}}
MPEG_4: dict[str, Any] = {"codec": "mpeg4", "options": {"b": "900000"}}
H264: dict[str, Any] = {"codec": "libx264", "options": {"preset": "ultrafast", "bf": "0"}}
HEVC: dict[str, Any] = {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": "log-level=none"}}


def with_b_frames(codec: dict[str, Any]) -> dict[str, Any]:
    return {**codec, "options": {**codec["options"], "bf": "2"}}


KINDS: dict[str, dict[str, Any]] = {
    **{
        f"{name}_{suffix}_{gop}": {**codec, "suffix": suffix, "gop": gop}
        for name, codec in {"mpeg1": MPEG_1, "mpeg1_b": with_b_frames(MPEG_1), "mpeg2_b": with_b_frames(MPEG_2)}.items()
        for suffix in ("mpg", "vob", "ts", "asf")
        for gop in (1, 12)
    },
    **{
        f"{name}_{suffix}": {**codec, "suffix": suffix, "gop": 12}
        for name, codec in {"h264": H264, "h264_b": with_b_frames(H264)}.items()
        for suffix in ("ts", "h264", "vob", "flv", "asf", "avi", "mxf", "mkv")
    },
    **{f"mpeg4_b_{suffix}": {**with_b_frames(MPEG_4), "suffix": suffix} for suffix in ("avi", "asf", "m4v", "ts")},
    **{f"hevc_{suffix}": {**HEVC, "suffix": suffix} for suffix in ("ts", "hevc")},
    "mpeg1_b_m1v": {**with_b_frames(MPEG_1), "suffix": "m1v"},
    "mpeg2_b_m2v": {**with_b_frames(MPEG_2), "suffix": "m2v"},
    "mpeg1_avi": {**MPEG_1, "suffix": "avi", "gop": 12},
    "wmv2": {"codec": "wmv2", "suffix": "wmv", "options": {"b": "600000"}},
    "flv1": {"codec": "flv", "suffix": "flv", "options": {"b": "600000"}},
    "vp8_ogg": {"codec": "libvpx", "suffix": "ogv", "options": {"cpu-used": "8", "deadline": "realtime"}},
}


@pytest.fixture(autouse=True)
def forget_what_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jumps, "_told", set())


def written(make_video: MakeVideo, name: str) -> Path:
    settings = dict(KINDS[name])
    return make_video(f"{name}.{settings.pop('suffix')}", num_frames=NUM_FRAMES, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_frame_alone_is_that_of_the_sequence(make_video: MakeVideo, read_counter: ReadCounter, name: str) -> None:
    video = VideoFile.open(written(make_video, name))
    assert video.frame_count == NUM_FRAMES
    assert [read_counter(frame) for frame in video.read(range(NUM_FRAMES))] == list(range(NUM_FRAMES))
    assert [read_counter(video.read([place])[0]) for place in range(NUM_FRAMES)] == list(range(NUM_FRAMES))
    asked = [random.Random(0).randrange(NUM_FRAMES) for _ in range(30)]
    assert [read_counter(frame) for frame in video.read(asked)] == asked


def test_falling_back_is_said_once(make_video: MakeVideo, caplog: pytest.LogCaptureFixture) -> None:
    path = written(make_video, "mpeg1_mpg_12")
    with caplog.at_level(logging.WARNING):
        videos = [VideoFile.open(path) for _ in range(2)]
        for video in videos:
            video.read([50, 3])
    assert [record.message.partition("; ")[0] for record in caplog.records] == [
        f"{path}: seeking gives other frames than reading in sequence"
    ]
    assert not any(video.index.seekable for video in videos)


@pytest.mark.parametrize("name", ["mpeg2_b_ts_12", "h264_b_ts", "flv1", "mpeg1_avi", "h264_mkv"])
def test_sound_files_are_still_jumped_in(make_video: MakeVideo, name: str, caplog: pytest.LogCaptureFixture) -> None:
    video = VideoFile.open(written(make_video, name))
    assert video.index.seekable
    with FrameDecoder(video.path, video.index, num_threads=1) as decoder:
        assert len(list(decoder.frames([80]))) == 1
        assert decoder.num_decoded < 40
    assert not caplog.records


def test_what_the_trials_missed_is_found_when_frames_are_read(
    make_video: MakeVideo, read_counter: ReadCounter, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(make_video, "mpeg1_mpg_12")
    video = VideoFile(path=path, index=index_video(path))  # no seek was tested
    assert [read_counter(video.read([place])[0]) for place in range(NUM_FRAMES)] == list(range(NUM_FRAMES))
    assert len(caplog.records) == 1
