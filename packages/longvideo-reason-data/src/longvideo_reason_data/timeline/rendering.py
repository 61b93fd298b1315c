"""Draws a world, frame by frame, into a real video file, with its sound if it has one.

Frames are drawn and encoded one at a time, and sound with them, so that a two-hour world takes no more memory than a
short one. The module doesn't decide what happens; it only renders it.
"""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from longvideo_reason_data.atomic_files import atomic_path
from longvideo_reason_data.timeline.tones import SAMPLE_RATE, render_tones
from longvideo_reason_data.timeline.world import Action, Scene, World

PALETTE = {
    "red": (214, 40, 40),
    "blue": (38, 84, 224),
    "green": (34, 160, 70),
    "yellow": (245, 205, 35),
    "purple": (150, 50, 190),
    "orange": (245, 130, 30),
}
GROUNDS = {"garden": (176, 226, 150), "market": (250, 214, 140), "harbour": (150, 206, 250), "mill": (228, 176, 214)}
MORNING, EVENING = 1.0, 0.55  # the light fades over the video, so that every frame shows its time
PARCEL = (20, 20, 20)
PLACE_CENTRES = {"garden": (0.25, 0.25), "market": (0.75, 0.25), "harbour": (0.25, 0.75), "mill": (0.75, 0.75)}
RADIUS = 0.1
PAIR_OFFSET = 0.115
WALK_FRACTION = 0.12
OVERSAMPLING = 2
AUDIO_FRAME_SAMPLES = 1024  # of AAC


def draw_frame(world: World, time_seconds: float) -> NDArray[np.uint8]:
    """The frame at one time: uint8 array [height, width, 3]."""
    size = world.settings.size_pixels * OVERSAMPLING
    image = Image.new("RGB", (size, size))
    canvas = ImageDraw.Draw(image)
    light = MORNING + (EVENING - MORNING) * time_seconds / world.settings.seconds
    for place, (x, y) in PLACE_CENTRES.items():
        ground = tuple(round(light * channel) for channel in GROUNDS[place])
        canvas.rectangle(((x - 0.25) * size, (y - 0.25) * size, (x + 0.25) * size, (y + 0.25) * size), fill=ground)
    for scene in world.scenes:
        if scene.start_seconds <= time_seconds < scene.end_seconds:
            _draw_scene(canvas, size, world, scene, time_seconds)
    final = world.settings.size_pixels
    return np.asarray(image.resize((final, final), Image.Resampling.BOX))


def render_frames(world: World) -> Iterator[NDArray[np.uint8]]:
    """All frames in order."""
    num_frames = round(world.settings.seconds * world.settings.frames_per_second)
    for index in range(num_frames):
        yield draw_frame(world, index / world.settings.frames_per_second)


def write_video(world: World, path: Path) -> None:
    """Encode the world as H.264 and AAC in an MP4 file, streamed to disk; the file appears complete or not at all.

    Without sound it has no second track.

    Raises:
        DataError: When the file can't be written.
    """
    sound = render_tones(world, AUDIO_FRAME_SAMPLES) if world.pitches else None
    with atomic_path(path) as unfinished:
        rate = world.settings.frames_per_second
        encode_frames(render_frames(world), unfinished, frames_per_second=rate, sound=sound)


def encode_frames(
    frames: Iterable[NDArray[np.uint8]],
    path: Path,
    *,
    frames_per_second: float,
    sound: Iterator[NDArray[np.float32]] | None = None,
) -> None:
    """Encode frames as H.264 in an MP4 file, one at a time, and the same ones always to the same bytes.

    Args:
        frames: Arrays [height, width, 3] with even sizes, which are those of the first; at least one.
        path: The file, whatever its suffix.
        frames_per_second: How fast they are played.
        sound: What is heard, in blocks as `SoundTrack` takes them; None for no second track.
    """
    rate = Fraction(frames_per_second).limit_denominator(1001)
    with av.open(path, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.pix_fmt = "yuv420p"
        stream.time_base = 1 / rate
        stream.thread_count = 1
        # The macroblock tree of x264 reads memory that it never wrote, so one story could give two files.
        keyframe_interval = str(round(frames_per_second * 8))
        stream.options = {"preset": "veryfast", "crf": "18", "g": keyframe_interval, "mbtree": "0"}
        track = None if sound is None else SoundTrack(container, sound)
        for number, picture in enumerate(frames, start=1):
            if not stream.codec_context.is_open:
                stream.height, stream.width, _ = picture.shape
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            if track is not None:
                track.write_until(number / frames_per_second)
        container.mux(stream.encode(None))
        if track is not None:
            track.finish()


class SoundTrack:
    """The AAC track of a file that is being written, one channel.

    Args:
        container: The file.
        blocks: Samples, `AUDIO_FRAME_SAMPLES` at a time.
    """

    def __init__(self, container: OutputContainer, blocks: Iterator[NDArray[np.float32]]) -> None:
        stream = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        assert isinstance(stream, AudioStream)
        stream.codec_context.thread_count = 1
        self._container = container
        self._stream = stream
        self._blocks = blocks
        self._num_samples = 0

    def write_until(self, seconds: float) -> None:
        """Write what sounds up to a time, in whole frames of the codec."""
        while self._num_samples < seconds * SAMPLE_RATE and self._write_block():
            pass

    def finish(self) -> None:
        """Write the rest."""
        while self._write_block():
            pass
        self._container.mux(self._stream.encode(None))

    def _write_block(self) -> bool:
        block_N = next(self._blocks, None)
        if block_N is None:
            return False
        frame = av.AudioFrame.from_ndarray(block_N[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, self._num_samples
        frame.time_base = Fraction(1, SAMPLE_RATE)
        self._container.mux(self._stream.encode(frame))
        self._num_samples += len(block_N)
        return True


def _draw_scene(canvas: ImageDraw.ImageDraw, size: int, world: World, scene: Scene, time_seconds: float) -> None:
    progress = (time_seconds - scene.start_seconds) / (scene.end_seconds - scene.start_seconds)
    spots = {scene.actor: _spot(scene.place, progress, 0.0 if scene.partner is None else -PAIR_OFFSET)}
    if scene.partner is not None:
        spots[scene.partner] = _spot(scene.place, progress, PAIR_OFFSET)
    for colour, (x, y) in spots.items():
        _draw_shape(canvas, world.shapes[colour], (x * size, y * size), RADIUS * size, PALETTE[colour])
    if scene.action is Action.TAKE:
        holder = spots[scene.actor] if progress > 0.5 else PLACE_CENTRES[scene.place]
        _draw_parcel(canvas, size, holder)
    elif scene.action is Action.BRING and scene.partner is not None:
        _draw_parcel(canvas, size, spots[scene.actor if progress < 0.5 else scene.partner])


def _spot(place: str, progress: float, offset: float) -> tuple[float, float]:
    """The position of an actor: walks in from the near edge, stays, walks off again."""
    x, y = PLACE_CENTRES[place]
    away = max(0.0, 1 - min(progress, 1 - progress) / WALK_FRACTION)
    return x + offset + (x - 0.5) * 1.6 * away, y + (y - 0.5) * 1.6 * away - 0.04


def _draw_parcel(canvas: ImageDraw.ImageDraw, size: int, holder: tuple[float, float]) -> None:
    x, y = holder[0] * size, (holder[1] + 0.16) * size
    half = 0.045 * size
    canvas.rectangle((x - 2 * half, y - half, x + 2 * half, y + half), fill=PARCEL)


def _draw_shape(
    canvas: ImageDraw.ImageDraw, shape: str, centre: tuple[float, float], radius: float, fill: tuple[int, int, int]
) -> None:
    x, y = centre
    if shape == "circle":
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        return
    corners, turn, stretch = {
        "square": (4, math.pi / 4, 1.2),
        "triangle": (3, -math.pi / 2, 1.25),
        "diamond": (4, 0.0, 1.25),
    }[shape]
    points = [
        (
            x + stretch * radius * math.cos(turn + 2 * math.pi * k / corners),
            y + stretch * radius * math.sin(turn + 2 * math.pi * k / corners),
        )
        for k in range(corners)
    ]
    canvas.polygon(points, fill=fill)
