"""Shared by the tests: videos whose frames carry their numbers, and a running scripted server."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import hypothesis
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for modules that several tests share

from scripted_server import ScriptedServer

# A busy machine is not a failure; tests about time measure processor time.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")

NUM_BITS = 12
BLOCK = 16


def paint_counter(number: int, width: int, height: int) -> np.ndarray:
    """Paint a frame: number in three rows of four blocks from the top left, a red bar at the right edge."""
    frame = np.full((height, width, 3), 90, dtype=np.uint8)
    for bit in range(NUM_BITS):
        row, column = divmod(bit, 4)
        value = 235 if number >> bit & 1 else 16
        frame[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK] = value
    frame[:, width - 8 :] = (220, 20, 20)
    return frame


def _read_counter(frame: np.ndarray) -> int:
    """Read the number of a decoded frame, and check that it is upright."""
    height, width, _ = frame.shape
    bar = frame[height // 2, width - 4].astype(int)
    assert bar[0] > bar[1] + 60, f"no red bar at the right edge: {bar}"
    number = 0
    for bit in range(NUM_BITS):
        row, column = divmod(bit, 4)
        number |= int(frame[row * BLOCK + 8, column * BLOCK + 8].mean() > 125) << bit
    return number


MakeVideo = Callable[..., Path]


@pytest.fixture
def make_video(tmp_path: Path) -> MakeVideo:
    """Give a function that writes a counter video."""

    def make(
        name: str = "video.mp4",
        *,
        num_frames: int = 60,
        codec: str = "libx264",
        pixel_format: str = "yuv420p",
        width: int = 96,
        height: int = 64,
        rate: int = 25,
        gop: int = 12,
        times: Sequence[int] | None = None,
        options: dict[str, str] | None = None,
        format_options: dict[str, str] | None = None,
        rotation: int | None = None,
        turn: Callable[[np.ndarray], np.ndarray] = lambda frame: frame,
        audio: bool = False,
        first_number: int = 0,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", options=format_options or {}) as container:
            stream = container.add_stream(codec, rate=rate, options=options or {})
            first = turn(paint_counter(0, width, height))
            stream.height, stream.width = first.shape[:2]
            stream.pix_fmt = pixel_format
            stream.gop_size = gop
            if rotation is not None:
                stream.set_display_rotation(rotation)
            sound = container.add_stream("aac", rate=16000, layout="mono") if audio else None
            for number in range(num_frames):
                frame = av.VideoFrame.from_ndarray(
                    np.ascontiguousarray(turn(paint_counter(first_number + number, width, height))), format="rgb24"
                )
                frame.pts = times[number] if times is not None else number
                frame.time_base = Fraction(1, 1000) if times is not None else Fraction(1, rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
            if sound is not None:
                _write_tone(container, sound)
        _leave_realtime()
        return path

    return make


def _leave_realtime() -> None:
    """Undo what the encoder SVT-AV1 does as root.

    It permanently gives the thread that opens it a real-time priority. All processes started later would inherit it,
    and two polling ones, such as gloo's threads, block a machine with two cores.
    """
    for thread in Path("/proc/self/task").iterdir():
        if os.sched_getscheduler(int(thread.name)) != os.SCHED_OTHER:
            os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))


def add_tone(container: av.container.OutputContainer) -> None:
    """Add a second of silence to a container."""
    stream = container.add_stream("aac", rate=16000, layout="mono")
    _write_tone(container, stream)


def _write_tone(container: av.container.OutputContainer, stream: av.AudioStream) -> None:
    for start in range(0, 16000, 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


@pytest.fixture
def read_counter() -> Callable[[np.ndarray], int]:
    """Give the function that reads the number of a decoded frame."""
    return _read_counter


@pytest.fixture
def sound_only(tmp_path: Path) -> Path:
    """Give an MP4 file with audio only."""
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        add_tone(container)
    return path


@pytest.fixture
def real_media() -> Path:
    """Give the folder of real recordings, or skip."""
    folder = Path(os.environ.get("LONGRL_MEDIA", Path(__file__).parents[4] / "shared" / "media"))
    if not folder.is_dir():
        pytest.skip("no folder of real recordings; set LONGRL_MEDIA")
    return folder


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """Give a running server."""
    running = ScriptedServer()
    yield running
    running.close()
