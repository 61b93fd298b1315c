"""Exact frames from every container, and clear errors for other files."""

import itertools
import os
import pickle
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.containers import find_videos
from longvideo_reason_data.media.decoders.pyav_frames import FrameDecoder
from longvideo_reason_data.media.video_file import VideoFile, digest_file, sample_frames

MakeVideo = Callable[..., Path]
ReadCounter = Callable[[np.ndarray], int]

B_FRAMES = {"bf": "3", "b-pyramid": "normal", "preset": "fast"}
VARIABLE = [0, 40, 80, 500, 520, 540, 1500, *range(1600, 1600 + 53 * 33, 33)]

VARIANTS: dict[str, dict[str, Any]] = {
    "mp4": {"options": B_FRAMES},
    "mp4_faststart": {"options": B_FRAMES, "format_options": {"movflags": "faststart"}},
    "mp4_fragmented": {"options": B_FRAMES, "format_options": {"movflags": "frag_keyframe+empty_moov"}},
    "mp4_mpeg4": {"codec": "mpeg4", "options": {"bf": "2", "b": "900000"}},
    "mp4_hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=1:bframes=3"}},
    "mp4_open_gop": {"options": {"bf": "3", "x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0"}},
    "mp4_variable_rate": {"times": VARIABLE, "rate": 1000, "options": B_FRAMES},
    "mp4_late_start": {"times": [1000 + 40 * number for number in range(60)], "options": B_FRAMES},
    "mp4_one_key_frame": {"gop": 1000, "options": B_FRAMES},
    "mp4_only_key_frames": {"gop": 1},
    "mp4_with_sound": {"audio": True, "options": B_FRAMES},
    "mp4_ten_bit": {"pixel_format": "yuv420p10le", "options": B_FRAMES},
    "mp4_odd_size": {"width": 97, "height": 65, "pixel_format": "yuv444p", "options": B_FRAMES},
    "mkv": {"suffix": "mkv", "options": B_FRAMES},
    "mkv_variable_rate": {"suffix": "mkv", "times": VARIABLE, "rate": 1000},
    "mkv_late_start": {"suffix": "mkv", "times": [5000 + 40 * number for number in range(60)]},
    "mkv_ffv1_odd_size": {"suffix": "mkv", "codec": "ffv1", "width": 91, "height": 59},
    "mov": {"suffix": "mov", "options": B_FRAMES},
    "avi_mpeg4": {"suffix": "avi", "codec": "mpeg4", "options": {"b": "900000"}},
    "avi_mpeg4_b_frames": {"suffix": "avi", "codec": "mpeg4", "options": {"bf": "2", "b": "900000"}},
    "avi_h264_b_frames": {"suffix": "avi", "options": B_FRAMES},
    "avi_mjpeg": {"suffix": "avi", "codec": "mjpeg", "pixel_format": "yuvj420p"},
    "webm_vp9": {"suffix": "webm", "codec": "libvpx-vp9", "width": 99, "height": 63, "options": {"cpu-used": "8"}},
    "webm_vp8_hidden_frames": {
        "suffix": "webm",
        "codec": "libvpx",
        "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "4"},
    },
    "webm_av1": {"suffix": "webm", "codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "loglevel=0"}},
    "transport_stream": {"suffix": "ts", "options": B_FRAMES},
    "mpeg2_program_stream": {"suffix": "mpg", "codec": "mpeg2video", "options": {"bf": "2", "b": "900000"}},
}


@pytest.fixture(params=sorted(VARIANTS))
def variant(request: pytest.FixtureRequest, make_video: MakeVideo) -> tuple[Path, dict[str, Any]]:
    settings = dict(VARIANTS[request.param])
    return make_video(f"video.{settings.pop('suffix', 'mp4')}", **settings), settings


@pytest.mark.slow
def test_every_frame_is_the_one_asked_for(variant: tuple[Path, dict[str, Any]], read_counter: ReadCounter) -> None:
    path, settings = variant
    video = VideoFile.open(path)
    assert video.frame_count == 60
    assert (video.width, video.height) == (settings.get("width", 96), settings.get("height", 64))
    frames = video.read(range(60))
    assert frames.shape == (60, video.height, video.width, 3)
    assert frames.dtype == np.uint8
    assert [read_counter(frame) for frame in frames] == list(range(60))

    generator = random.Random(0)
    for num_asked in (1, 1, 2, 5, 9):
        asked = [generator.randrange(60) for _ in range(num_asked)]
        assert [read_counter(frame) for frame in video.read(asked)] == asked
        assert np.array_equal(video.read(asked), frames[asked])


def test_times_are_the_containers(variant: tuple[Path, dict[str, Any]]) -> None:
    path, settings = variant
    video = VideoFile.open(path)
    times = settings.get("times", [40 * number for number in range(60)])
    expected = np.array([time - times[0] for time in times]) / 1000
    assert video.timestamps.dtype == np.float64
    assert np.allclose(video.timestamps, expected, atol=1e-3)
    assert video.presentation_times[0] == 0
    assert [float(time) for time in video.presentation_times] == pytest.approx(video.timestamps.tolist(), abs=1e-12)
    assert np.all(np.diff(video.timestamps) > 0)
    assert expected[-1] < video.duration_seconds <= expected[-1] + 0.045


def test_times_are_exact_rationals(make_video: MakeVideo) -> None:
    video = VideoFile.open(make_video(rate=30, num_frames=10))
    assert video.presentation_times == tuple(Fraction(number, 30) for number in range(10))
    assert video.duration_seconds == 10 / 30


@pytest.mark.parametrize(
    ("rotation", "turn"),
    [
        (90, lambda frame: np.rot90(frame, -1)),
        (-90, lambda frame: np.rot90(frame, 1)),
        (180, lambda frame: np.rot90(frame, 2)),
        (0, lambda frame: frame),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_rotated_videos_are_read_upright(
    make_video: MakeVideo, read_counter: ReadCounter, rotation: int, turn: Callable[..., np.ndarray], suffix: str
) -> None:
    video = VideoFile.open(make_video(f"turned.{suffix}", rotation=rotation, turn=turn, num_frames=30))
    assert (video.width, video.height) == (96, 64)
    assert [read_counter(frame) for frame in video.read([3, 29, 0])] == [3, 29, 0]


def test_a_long_gap_is_jumped_over(make_video: MakeVideo, read_counter: ReadCounter) -> None:
    path = make_video(num_frames=1200, gop=30, options={"preset": "ultrafast"})
    video = VideoFile.open(path)
    asked = [1199, 5, 600, 601, 40]
    assert [read_counter(frame) for frame in video.read(asked)] == asked
    with FrameDecoder(path, video.index, num_threads=1) as decoder:
        (found,) = decoder.frames([1199])
        assert found[0] == 1199
        assert decoder.num_decoded <= 30


def test_a_probed_video_can_be_sent_to_another_process(make_video: MakeVideo, read_counter: ReadCounter) -> None:
    video = pickle.loads(pickle.dumps(VideoFile.open(make_video())))
    assert read_counter(video.read([33])[0]) == 33


def test_an_edit_list_hides_frames(make_video: MakeVideo, read_counter: ReadCounter, tmp_path: Path) -> None:
    whole, cut = make_video("whole.mp4", options=B_FRAMES), tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is None:
                continue
            packet.pts -= 5 * 512  # starts before zero: the writer marks the first frames as not shown
            packet.dts -= 5 * 512
            packet.stream = stream
            target.mux(packet)
    video = VideoFile.open(cut)
    assert [read_counter(frame) for frame in video.read(range(video.frame_count))] == list(range(5, 60))


def test_frames_before_the_first_key_frame_are_not_counted(
    make_video: MakeVideo, read_counter: ReadCounter, tmp_path: Path
) -> None:
    whole, cut = make_video("whole.mp4", gop=10), tmp_path / "cut.mkv"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(source.streams.video[0])):
            if packet.dts is None or number < 4:
                continue
            packet.stream = stream
            target.mux(packet)
    video = VideoFile.open(cut)
    numbers = [read_counter(frame) for frame in video.read(range(video.frame_count))]
    assert numbers == list(range(10, 60))


# Files that aren't complete videos.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v.mp4", "v.mov", "v.mkv", "v.webm", "v.avi", "faststart.mp4"])
@pytest.mark.parametrize("kept", [0.03, 0.5, 0.9, 0.999])
def test_truncated(make_video: MakeVideo, name: str, kept: float) -> None:
    codec = {"webm": "libvpx", "avi": "mpeg4"}.get(name.split(".")[-1], "libx264")
    path = make_video(name, codec=codec, format_options={"movflags": "faststart"} if "faststart" in name else {})
    size = path.stat().st_size
    os.truncate(path, int(size * kept))
    with pytest.raises(DataError, match=r"(truncated|not a video|damaged)") as raised:
        VideoFile.open(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_damage_in_the_middle_is_found_and_stays_in_its_group(make_video: MakeVideo) -> None:
    path = make_video(num_frames=60, gop=10, options={"bf": "3", "x264-params": "scenecut=0"})
    clean = VideoFile.open(path).read(range(60))
    with av.open(str(path)) as container:
        (start, size) = next((p.pos, p.size) for p in container.demux(video=0) if p.is_keyframe and p.pts == 30 * 512)
    content = bytearray(path.read_bytes())
    content[start + 12 : start + size] = random.Random(0).randbytes(size - 12)
    path.write_bytes(content)
    video = VideoFile.open(path)
    lost: list[int] = []
    for number in range(60):
        try:
            assert np.array_equal(video.read([number])[0], clean[number])
        except DataError:
            lost.append(number)
    # The last frames of the group before are still inside the decoder when it fails, and may be lost with it.
    assert set(range(30, 40)) <= set(lost) <= set(range(27, 40))
    with pytest.raises(DataError, match=r"frame (27|28|29|30) "):
        video.read(range(60))


def test_missing_and_empty_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        VideoFile.open(tmp_path / "none.mp4")
    with pytest.raises(UsageError, match="a folder"):
        VideoFile.open(tmp_path)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(DataError, match="empty"):
        VideoFile.open(tmp_path / "empty.mp4")


@pytest.mark.parametrize("name", ["notes.txt", "notes.mp4", "notes.mkv", "list.m3u8", "subtitles.srt"])
def test_text_is_no_video(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("#EXTM3U\n#EXTINF:10,\nother.ts\n" if name.endswith("m3u8") else "A plain text.\n" * 100)
    with pytest.raises(DataError, match=name):
        VideoFile.open(path)


def test_a_picture_is_no_video(make_video: MakeVideo, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8)).to_image().save(path)
    with pytest.raises(DataError, match="not a video"):
        VideoFile.open(path)


def test_sound_only(sound_only: Path) -> None:
    with pytest.raises(DataError, match="contains audio only"):
        VideoFile.open(sound_only)


def test_real_sound_only(real_media: Path) -> None:
    with pytest.raises(DataError, match="contains audio only"):
        VideoFile.open(real_media / "nasa_13013.mp3")


def test_real_footage_is_what_the_decoder_says(real_media: Path) -> None:
    path = real_media / "nasa_13013.mp4"
    video = VideoFile.open(path)
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert video.frame_count == len(expected)
    asked = sample_frames(video, num_frames=7)
    assert np.array_equal(video.read(asked), np.stack([expected[number] for number in asked]))
    assert video.duration_seconds == pytest.approx(13.0)


@pytest.mark.parametrize("index", [-1, 60, 10_000])
def test_an_index_outside_is_refused(make_video: MakeVideo, index: int) -> None:
    with pytest.raises(DataError, match=f"frame {index} requested, expected 0 to 59"):
        VideoFile.open(make_video()).read([0, index])


def test_nothing_asked_for_gives_nothing(make_video: MakeVideo) -> None:
    assert VideoFile.open(make_video()).read([]).shape == (0, 64, 96, 3)


def test_the_digest_follows_the_bytes(make_video: MakeVideo) -> None:
    path = make_video()
    video = VideoFile.open(path)
    before = video.content_digest
    assert before == digest_file(path)
    assert len(before) == 64
    path.write_bytes(path.read_bytes() + b"\0")
    assert video.content_digest != before


# Sampling plans.


def _times(seconds: list[float], duration: float) -> Any:
    return SimpleNamespace(frame_count=len(seconds), timestamps=np.array(seconds), duration_seconds=duration)


def test_plans_of_a_constant_rate() -> None:
    video = _times([number / 10 for number in range(40)], 4.0)
    assert sample_frames(video, num_frames=4) == (5, 15, 25, 35)
    assert sample_frames(video, num_frames=20) == tuple(range(1, 40, 2))
    assert sample_frames(video, num_frames=1) == (20,)
    assert sample_frames(video, num_frames=40) == sample_frames(video, num_frames=99) == tuple(range(40))
    assert sample_frames(video, frames_per_second=1) == (5, 15, 25, 35)
    assert sample_frames(video, frames_per_second=5, num_frames=4) == (5, 15, 25, 35)
    assert sample_frames(video, frames_per_second=0.01) == (20,)
    assert len(sample_frames(video, frames_per_second=1000, max_frames=7)) == 7


def test_plans_of_a_variable_rate_follow_the_time() -> None:
    # Nine seconds of one frame, then a busy second.
    video = _times([0.0, *(9 + number / 10 for number in range(10))], 10.0)
    assert sample_frames(video, num_frames=2) == (0, 1)
    assert sample_frames(video, num_frames=1) == (0,)
    still = _times([number / 10 for number in range(10)] + [1.0], 20.0)
    assert sample_frames(still, num_frames=2) == (9, 10)


@given(
    st.lists(st.floats(0.001, 100), min_size=1, max_size=60),
    st.integers(1, 80),
    st.one_of(st.none(), st.floats(0.01, 100)),
    st.integers(1, 50),
)
def test_a_plan_is_strictly_ascending_and_inside(
    gaps: list[float], num_frames: int, frames_per_second: float | None, max_frames: int
) -> None:
    ends = np.cumsum(gaps)
    video = _times([0.0, *ends[:-1].tolist()], float(ends[-1]))
    plan = sample_frames(video, num_frames=num_frames, frames_per_second=frames_per_second, max_frames=max_frames)
    assert all(before < after for before, after in itertools.pairwise(plan))
    assert 0 <= plan[0] <= plan[-1] < len(gaps)
    if frames_per_second is None:
        assert len(plan) == min(num_frames, max_frames, len(gaps))


@pytest.mark.parametrize(
    "wrong", [{}, {"num_frames": 0}, {"frames_per_second": -1.0}, {"num_frames": 2, "max_frames": 0}]
)
def test_plans_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        sample_frames(_times([0.0], 1.0), **wrong)


# Finding videos.


def test_find_videos(tmp_path: Path) -> None:
    for name in ("b.MP4", "a/c.webm", "a/notes.txt", ".hidden/x.mp4", "a/._b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_videos([tmp_path]) == [tmp_path / "a/c.webm", tmp_path / "b.MP4"]
    odd = tmp_path / "a" / "notes.txt"
    assert find_videos([odd, tmp_path / "b.MP4", tmp_path]) == [odd, tmp_path / "b.MP4", tmp_path / "a/c.webm"]


def test_find_videos_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no videos in this folder"):
        find_videos([tmp_path])
    with pytest.raises(UsageError, match="no such file or folder"):
        find_videos([tmp_path / "none"])
