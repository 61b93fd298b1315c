"""The clock test: every decoder gives the same frames of every format, or refuses the file; none gives wrong ones.

The clock is the number that is painted into each frame, together with the times at which the frames were written.
"""

import random
import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.decoders.base import DecoderName, check_times, decoder_version
from longvideo_reason_data.media.segments import Segment, check_segments, fixed_windows, frames_in_segment
from longvideo_reason_data.media.video_file import VideoFile, sample_frames

MakeVideo = Callable[..., Path]
ReadCounter = Callable[[np.ndarray], int]

NUM_FRAMES = 60
B_FRAMES = {"bf": "3", "preset": "fast"}
VARIABLE = [0, 40, 80, 500, 520, 540, 1500, *range(1600, 1600 + 53 * 33, 33)]
HIGH_RANGE = "log-level=none:colorprim=bt2020:colormatrix=bt2020nc:transfer="
HEVC_TEN_BIT: dict[str, Any] = {"suffix": "mkv", "codec": "libx265", "pixel_format": "yuv420p10le"}
VP9: dict[str, Any] = {"suffix": "webm", "codec": "libvpx-vp9", "options": {"cpu-used": "8"}}
NO_FIRST_KEY = 4  # number of omitted packets, including the key frame; the next key frame is number 12

FORMATS: dict[str, dict[str, Any]] = {
    "mp4": {"options": B_FRAMES},
    "mp4_open_groups": {"options": {"bf": "3", "x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0"}},
    "mkv": {"suffix": "mkv", "options": B_FRAMES},
    "mov": {"suffix": "mov", "options": B_FRAMES},
    "webm_vp9": VP9,
    "webm_av1": {
        "suffix": "webm",
        "codec": "libsvtav1",
        "options": {"preset": "12", "svtav1-params": "loglevel=0"},
    },
    "avi_mpeg4": {"suffix": "avi", "codec": "mpeg4", "options": {"b": "900000"}},
    "avi_h264_b_frames": {"suffix": "avi", "options": B_FRAMES},
    "rotated_right": {"rotation": -90, "turn": lambda frame: np.rot90(frame, 1)},
    "rotated_left": {"rotation": 90, "turn": lambda frame: np.rot90(frame, -1)},
    "upside_down": {"rotation": 180, "turn": lambda frame: np.rot90(frame, 2)},
    "variable_rate_mp4": {"times": VARIABLE, "rate": 1000, "options": B_FRAMES},
    "variable_rate_mkv": {"suffix": "mkv", "times": VARIABLE, "rate": 1000},
    "late_start_mp4": {"times": [1000 + 40 * number for number in range(NUM_FRAMES)], "options": B_FRAMES},
    "late_start_mkv": {"suffix": "mkv", "times": [5000 + 40 * number for number in range(NUM_FRAMES)]},
    "odd_size": {"width": 97, "height": 65, "pixel_format": "yuv444p"},
    "odd_size_webm": {**VP9, "width": 99, "height": 63},
    "ten_bit_h264": {"pixel_format": "yuv420p10le", "options": B_FRAMES},
    "ten_bit_hevc": {**HEVC_TEN_BIT, "options": {"x265-params": "log-level=none:open-gop=0"}},
    "high_range_pq": {**HEVC_TEN_BIT, "options": {"x265-params": HIGH_RANGE + "smpte2084"}},
    "high_range_hlg": {**HEVC_TEN_BIT, "options": {"x265-params": HIGH_RANGE + "arib-std-b67"}},
    "no_first_key_frame_mp4": {"num_missing": NO_FIRST_KEY},
    "no_first_key_frame_mkv": {"suffix": "mkv", "num_missing": NO_FIRST_KEY},
    "no_first_key_frame_mov": {"suffix": "mov", "num_missing": NO_FIRST_KEY},
    "no_first_key_frame_webm": {**VP9, "num_missing": NO_FIRST_KEY},
    "no_first_key_frame_avi": {"suffix": "avi", "codec": "mpeg4", "num_missing": NO_FIRST_KEY},
}

# What the extras can't read exactly, and their messages.
NO_TIMES = "has no presentation times"
HIDDEN = "it counts 56 frames, not 48"
REFUSED: dict[str, dict[str, str]] = {
    "pyav": {},
    "decord": {
        "mp4_open_groups": "stored after a key frame but shown before it",
        "webm_av1": "it can't open it",
        "avi_h264_b_frames": NO_TIMES,
        "high_range_pq": "its dynamic range is pq",
        "high_range_hlg": "its dynamic range is hlg",
        **{f"no_first_key_frame_{suffix}": HIDDEN for suffix in ("mp4", "mkv", "mov", "webm", "avi")},
    },
    "torchcodec": {
        "avi_h264_b_frames": NO_TIMES,
        "high_range_pq": "its dynamic range is pq",
        "high_range_hlg": "its dynamic range is hlg",
        "no_first_key_frame_avi": "it can't open it",
    },
}
SIZE = (("width", 96), ("height", 64))


@pytest.fixture(params=list(DecoderName))
def decoder(request: pytest.FixtureRequest) -> str:
    try:
        decoder_version(request.param)
    except UsageError as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture
def clock(make_video: MakeVideo) -> Callable[[str], tuple[Path, list[int], list[Fraction]]]:
    """Give a function that writes a format: the file, the numbers of its frames, and their times from the first."""

    def make(name: str) -> tuple[Path, list[int], list[Fraction]]:
        settings = dict(FORMATS[name])
        num_missing = settings.pop("num_missing", 0)
        path = make_video(f"{name}.{settings.pop('suffix', 'mp4')}", **settings)
        times = [Fraction(time, 1000) for time in settings.get("times", range(0, 40 * NUM_FRAMES, 40))]
        first = 12 if num_missing else 0
        if num_missing:
            path = without_first_packets(path, num_missing)
        return path, list(range(first, NUM_FRAMES)), [time - times[first] for time in times[first:]]

    return make


def without_first_packets(path: Path, num_missing: int) -> Path:
    """Copy a video without its first packets, like a recording cut out of a stream."""
    cut = path.with_stem(path.stem + "_cut")
    with av.open(str(path)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(source.streams.video[0])):
            if packet.dts is not None and number >= num_missing:
                packet.stream = stream
                target.mux(packet)
    return cut


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_every_frame_segment_and_interval_is_where_the_clock_says(
    clock: Callable[[str], tuple[Path, list[int], list[Fraction]]],
    read_counter: ReadCounter,
    name: str,
    decoder: str,
) -> None:
    path, numbers, times = clock(name)
    if name in REFUSED[decoder]:
        with pytest.raises(DataError, match=f"decoder {decoder} can't read it exactly .*{REFUSED[decoder][name]}"):
            VideoFile.open(path, decoder=decoder)
        return
    video = VideoFile.open(path, decoder=decoder)
    assert video.decoder == decoder
    assert (video.width, video.height) == tuple(FORMATS[name].get(side, size) for side, size in SIZE)
    assert video.frame_count == len(numbers)
    assert np.allclose(video.timestamps, [float(time) for time in times], atol=1e-3)

    assert [read_counter(frame) for frame in video.read(range(len(numbers)))] == numbers
    generator = random.Random(0)
    for num_asked in (1, 1, 2, 9):  # each time opened again and out of order: seeks must not miss
        asked = [generator.randrange(len(numbers)) for _ in range(num_asked)]
        assert [read_counter(frame) for frame in video.read(asked)] == [numbers[place] for place in asked]

    def clock_agrees(plan: tuple[int, ...], centres: list[float]) -> None:
        shown = [numbers.index(read_counter(frame)) for frame in video.read(plan)]
        ends = [*times[1:], times[-1] + 1]
        for place, centre in zip(shown, centres, strict=True):
            assert times[place] - Fraction(1, 1000) <= centre < ends[place] + Fraction(1, 1000)

    segments = fixed_windows(video.duration_seconds, window_seconds=0.5)
    check_segments(segments, video.duration_seconds)
    half = Segment(number=0, start_seconds=0.71, end_seconds=1.13)  # like evidence, across segments
    for segment in (*segments, half):
        centre = (segment.start_seconds + segment.end_seconds) / 2
        clock_agrees(frames_in_segment(video, segment, num_frames=1), [centre])
    clock_agrees(sample_frames(video, num_frames=1), [video.duration_seconds / 2])


def test_real_footage_is_the_same_for_all(real_media: Path, decoder: str) -> None:
    path = real_media / "nasa_13013.mp4"
    if decoder == DecoderName.DECORD:  # an edit list hides 65 frames of this file
        with pytest.raises(DataError, match=r"decord can't read it exactly \(it counts 390 frames, not 325\)"):
            VideoFile.open(path, decoder=decoder)
        return
    video = VideoFile.open(path, decoder=decoder)
    with av.open(str(path)) as container:
        shown = [frame.to_ndarray(format="rgb24").astype(np.int16) for frame in container.decode(video=0)]
    plan = sample_frames(video, num_frames=24)
    for place, frame in zip(plan, video.read(plan), strict=True):
        differences = [np.abs(frame - other).mean() for other in shown[max(0, place - 2) : place + 3]]
        assert min(differences) == np.abs(frame - shown[place]).mean() < 1


def test_a_large_plan_is_read_in_one_pass(make_video: MakeVideo, read_counter: ReadCounter, decoder: str) -> None:
    video = VideoFile.open(make_video(), decoder=decoder)
    assert [(place, read_counter(frame)) for place, frame in video.frames([3, 40, 41])] == [(3, 3), (40, 40), (41, 41)]
    assert list(video.frames([])) == []
    with pytest.raises(UsageError, match="frame 3 is requested after 3"):
        next(video.frames([3, 3]))


def test_a_decoders_versions_are_named(decoder: str) -> None:
    assert decoder_version(decoder).startswith(f"{decoder} ")


def test_an_unknown_decoder_is_refused(make_video: MakeVideo) -> None:
    with pytest.raises(UsageError, match="decoder is 'opencv', expected one of pyav, decord, torchcodec"):
        VideoFile.open(make_video(), decoder="opencv")


@pytest.mark.parametrize("name", ["decord", "torchcodec"])
def test_a_missing_decoder_is_one_line_and_nothing_takes_its_place(
    name: str, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_no_version(distribution: str) -> str:
        raise PackageNotFoundError(distribution)

    monkeypatch.setitem(sys.modules, name, None)  # so that an import fails
    monkeypatch.setattr(f"longvideo_reason_data.media.decoders.{name}.version_of", find_no_version)
    path = make_video()
    for work in (lambda: decoder_version(DecoderName(name)), lambda: VideoFile.open(path, decoder=name)):
        with pytest.raises(UsageError, match=r"^the decoder .* can't be loaded .*; install .* the decoder pyav$") as it:
            work()
        assert f"install longvideo-reason-data[{name}]" in str(it.value)


def test_a_decoder_with_other_times_is_refused(make_video: MakeVideo) -> None:
    video = VideoFile.open(make_video(rate=30))
    seconds = np.array([3, 4]) / 30
    check_times(video.path, video.index, seconds, [3, 4], "x")
    with pytest.raises(DataError, match=r"x can't read it exactly \(it shows frame 5 at 0\.133 s, not at 0\.167 s\)"):
        check_times(video.path, video.index, seconds, [3, 5], "x")


# High dynamic range.


def nits_of_pq(signal: np.ndarray) -> np.ndarray:
    """Candela per square metre of a signal: ITU-R BT.2100, table 4."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    return 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def nits_of_hlg(signal: np.ndarray) -> np.ndarray:
    """Candela per square metre of a grey signal on a screen of 1000: ITU-R BT.2100, table 5."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return 1000 * light**1.2


@pytest.mark.slow
@pytest.mark.parametrize(("curve", "nits"), [("pq", nits_of_pq), ("hlg", nits_of_hlg)])
def test_high_range_becomes_what_an_ordinary_screen_shows(tmp_path: Path, curve: str, nits: Any) -> None:
    path = tmp_path / "ramp.mkv"
    transfer = {"pq": "smpte2084", "hlg": "arib-std-b67"}[curve]
    signal = np.linspace(0.1, 0.9, 96)
    luma = np.tile(np.rint(64 + 876 * signal).astype(np.uint16), (64, 1))
    grey = np.concatenate([luma, np.full((32, 96), 512, np.uint16)])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25, options={"x265-params": HIGH_RANGE + transfer, "crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p10le"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="yuv420p10le")))
        container.mux(stream.encode(None))
    video = VideoFile.open(path)
    assert video.dynamic_range == curve
    assert video.index.bits_per_channel == 10
    shown = video.read([1])[0]
    assert np.array_equal(video.read([1])[0], shown)
    linear = np.minimum(nits(signal) / 203, 1)
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.max(np.abs(shown[32].astype(float) - expected[:, None])) < 6


def test_ordinary_videos_are_flagged_as_such(make_video: MakeVideo) -> None:
    assert VideoFile.open(make_video()).dynamic_range == "standard"


def with_exif(jpeg: bytes, orientation: int) -> bytes:
    """Add what a camera writes into each frame: one field, the orientation (EXIF 2.32, section 4.6)."""
    field = struct.pack("<HHII", 0x0112, 3, 1, orientation)
    content = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + field + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_cameras_notes_beside_a_picture_are_no_error(
    make_video: MakeVideo, tmp_path: Path, read_counter: ReadCounter, decoder: str, orientation: int
) -> None:
    # What undoes each orientation of EXIF, from upright to stored.
    turns = [
        *(lambda f: f, lambda f: f[:, ::-1], lambda f: f[::-1, ::-1], lambda f: f[::-1]),
        *(
            lambda f: f.swapaxes(0, 1),
            lambda f: np.rot90(f),
            lambda f: f[::-1, ::-1].swapaxes(0, 1),
            lambda f: np.rot90(f, -1),
        ),
    ]
    plain = make_video("plain.avi", codec="mjpeg", pixel_format="yuvj420p", num_frames=20, turn=turns[orientation - 1])
    path = tmp_path / "camera.avi"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                noted = av.Packet(with_exif(bytes(packet), orientation))
                noted.stream, noted.pts, noted.dts, noted.time_base = stream, packet.pts, packet.dts, packet.time_base
                noted.is_keyframe = True
                target.mux(noted)
    if decoder != DecoderName.PYAV and orientation != 1:  # older libraries don't rotate them
        with pytest.raises(DataError, match="use the decoder pyav"):
            VideoFile.open(path, decoder=decoder)
        return
    video = VideoFile.open(path, decoder=decoder)
    assert [read_counter(frame) for frame in video.read([7, 0, 19])] == [7, 0, 19]
