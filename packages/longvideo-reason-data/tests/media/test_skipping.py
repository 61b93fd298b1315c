"""On the way to a wanted frame, pictures that nothing refers to aren't decoded; the wanted ones are the same."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.decoders.av1_headers import Av1Pictures
from longvideo_reason_data.media.decoders.pyav_frames import FrameDecoder
from longvideo_reason_data.media.frame_index import open_video
from longvideo_reason_data.media.video_file import VideoFile

MakeVideo = Callable[..., Path]

NUM_FRAMES, GROUP = 120, 40
PYRAMID: dict[str, Any] = {"options": {"bf": "3", "b-pyramid": "normal", "x264-params": "scenecut=0:b-adapt=0"}}
X265 = f"log-level=none:bframes=4:b-adapt=0:keyint={GROUP}:min-keyint={GROUP}:"
AV1: dict[str, Any] = {"codec": "libsvtav1", "options": {"preset": "10", "svtav1-params": "lp=1:hierarchical-levels=3"}}
KINDS: dict[str, dict[str, Any]] = {
    "closed.mp4": PYRAMID,
    "open.mkv": {"options": {"bf": "3", "x264-params": f"open-gop=1:keyint={GROUP}:min-keyint={GROUP}:scenecut=0"}},
    "fields.mp4": {"height": 96, "options": {"bf": "3", "x264-params": "interlaced=1:scenecut=0:b-adapt=0"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": X265 + "open-gop=0"}},
    "hevc_open.mkv": {"codec": "libx265", "options": {"x265-params": X265 + "open-gop=1"}},
    "av1.mkv": AV1,
    "av1_grain.mp4": {**AV1, "options": {"preset": "12", "svtav1-params": "lp=1:film-grain=20"}},
    "av1_low_delay.mkv": {**AV1, "options": {"preset": "10", "svtav1-params": "lp=1:pred-struct=1"}},
    # Nothing is skipped in these:
    "hevc_layers.mp4": {"codec": "libx265", "options": {"x265-params": X265 + "temporal-layers=3"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "lag-in-frames": "16"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "b": "900000"}},
}
SKIPS_NOTHING = {"hevc_layers.mp4", "vp9.webm", "mpeg4.avi"}


def moving(frame: np.ndarray) -> np.ndarray:
    """Add texture that differs from frame to frame, so that pictures depend on each other everywhere."""
    number = int((frame[8:48:16, 8:64:16, 0] > 125).ravel() @ (1 << np.arange(12)))
    texture = np.random.default_rng(0).integers(0, 200, (frame.shape[0], 8, 3), dtype=np.uint8)
    frame = frame.copy()
    frame[:, 66:74] = np.roll(texture, 2 * number, axis=0)
    return frame


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_pictures_are_the_same_bit_for_bit(make_video: MakeVideo, name: str) -> None:
    video = VideoFile.open(make_video(name, num_frames=NUM_FRAMES, gop=GROUP, turn=moving, **KINDS[name]))
    everything = video.read(range(NUM_FRAMES))  # all are wanted, so nothing is skipped
    draw, key_frames = random.Random(0), video.index.times.searchsorted(video.index.key_times)
    num_decoded = num_passed = 0
    for num_frames in (1, 1, 1, 1, 2, 5, 20, 60):
        plan = sorted(draw.sample(range(NUM_FRAMES), num_frames))
        assert np.array_equal(video.read(plan), everything[plan])
    for target in (GROUP - 3, GROUP - 2, 2 * GROUP - 1, NUM_FRAMES - 1):
        with FrameDecoder(video.path, video.index, num_threads=1) as decoder:
            assert len(list(decoder.frames([target]))) == 1
            num_decoded += decoder.num_decoded
            num_passed += target - key_frames[key_frames <= target][-1]
    assert (num_decoded < 0.9 * num_passed) == (name not in SKIPS_NOTHING)


def damage(path: Path, is_chosen: Callable[[int, bool], bool]) -> int:
    """Overwrite a picture in the second half of a group; gives its time in frames.

    Args:
        path: A video of H.264.
        is_chosen: Decides by the time and by whether other pictures refer to it.
    """
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            number = (packet.pts or 0) // 512
            if packet.size and is_chosen(number, bool(bytes(packet)[4] >> 5)):
                assert packet.pos is not None
                start = packet.pos + 5
                content[start : start + packet.size - 5] = random.Random(0).randbytes(packet.size - 5)
                path.write_bytes(content)
                return number
    raise AssertionError


@pytest.mark.parametrize("is_referred_to", [True, False])
def test_damage_is_noticed_wherever_it_could_change_a_wanted_picture(
    make_video: MakeVideo, is_referred_to: bool
) -> None:
    path = make_video(num_frames=NUM_FRAMES, gop=GROUP, turn=moving, **PYRAMID)
    clean = VideoFile.open(path).read(range(NUM_FRAMES))
    damaged = damage(path, lambda number, is_reference: number > 20 and is_reference == is_referred_to)
    video = VideoFile.open(path)
    with pytest.raises(DataError, match=f"frame {damaged} .* is damaged"):
        video.read([damaged])
    with pytest.raises(DataError, match="can't be decoded; it is damaged"):
        video.read(range(GROUP))
    if is_referred_to:
        with pytest.raises(DataError, match=f"frame {GROUP - 1} .* is damaged"):
            video.read([GROUP - 1])
    else:
        assert np.array_equal(video.read([GROUP - 1])[0], clean[GROUP - 1])
    assert np.array_equal(video.read([3, GROUP, NUM_FRAMES - 1]), clean[[3, GROUP, NUM_FRAMES - 1]])


def test_two_frames_at_one_time_are_told_apart(make_video: MakeVideo, tmp_path: Path) -> None:
    plain = make_video("plain.mkv", num_frames=NUM_FRAMES, gop=GROUP, turn=moving, **PYRAMID)
    path = tmp_path / "two.mkv"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size and packet.pts is not None:
                packet.pts -= 40 * (packet.pts == 30 * 40)  # at the time of the frame before
                packet.stream = stream
                target.mux(packet)
    video, expected = VideoFile.open(path), VideoFile.open(plain).read([29, 30, 31, 39])
    assert video.index.times[29] == video.index.times[30]
    assert np.array_equal(video.read([29, 30, 31, 39]), expected)
    assert np.array_equal(video.read([30])[0], expected[1])


def test_damaged_headers_of_av1_are_no_error(make_video: MakeVideo) -> None:
    with open_video(make_video("av1.mkv", num_frames=20, **AV1)) as (container, stream):
        configuration = stream.codec_context.extradata
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
    pictures, draw = Av1Pictures.of(configuration), random.Random(0)
    assert pictures is not None
    assert any(pictures.count_needed_bytes(memoryview(packet)) < len(packet) for packet in packets)
    for _ in range(2000):
        content = bytearray(draw.choice([*packets, b"\x12\x00\x32"]))
        for _ in range(draw.randrange(4)):
            content[draw.randrange(min(24, len(content)))] = draw.randrange(256)
        content = content[: draw.randrange(1, len(content) + 1)]
        assert 0 <= pictures.count_needed_bytes(memoryview(content)) <= len(content)
        Av1Pictures.of(bytes(content))
