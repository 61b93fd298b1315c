"""How long it takes to read some frames of an hour of video, side by side with torchcodec's exact mode.

The hours are made here: thirty seconds of textures that move, with noise and cuts, encoded once per codec and size;
their packets are repeated 120 times. Each reading runs in a process of its own, the readers in turn: torchcodec with
one thread, this package with one thread, and with two. Seconds of the processor and of the clock include opening the
file; torchcodec's exact mode then reads all packets, this package an index that it remembered. Frames are compared by
digest.
torchcodec is given the FFmpeg inside PyAV's wheel, so that both use the same decoders. Medians are reported as JSON.

    python benchmarks/frames_of_long_videos.py --codecs h264 --output result.json
    python benchmarks/frames_of_long_videos.py --codecs hevc av1 vp9 --frames 64 256
"""

import argparse
import hashlib
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from longvideo_reason_data.media.decoders.base import decoder_version
from longvideo_reason_data.media.video_file import VideoFile, sample_frames

RATE, SECONDS, REPETITIONS, SECONDS_OF_SCENE = 25, 30, 120, 5
GROUP = 250
X265 = "log-level=none:pools=1:frame-threads=1"
CODECS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", "mp4", {"preset": "medium"}),
    "hevc": ("libx265", "mp4", {"preset": "fast", "x265-params": f"{X265}:open-gop=0"}),
    "av1": ("libsvtav1", "mkv", {"preset": "8", "svtav1-params": "lp=1"}),
    "vp9": ("libvpx-vp9", "webm", {"cpu-used": "5", "deadline": "good", "b": "0", "crf": "34", "threads": "1"}),
}
READERS = {"torchcodec": 1, "longrl, one thread": 1, "longrl, two threads": 2}
FFMPEG_LIBRARY = re.compile(r"(lib(?:av\w+|sw\w+))-[0-9a-f]+(\.so\.\d+)\..*")


def draw_texture(draw: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draw a texture with details of every size."""
    canvas = np.zeros((height, width, 3))
    for step in (4, 8, 16, 32, 64, 128):
        coarse = draw.normal(size=(height // step + 2, width // step + 2, 3)).astype(np.float32)
        layers = [Image.fromarray(coarse[..., channel]) for channel in range(3)]
        large = [np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC)) for layer in layers]
        canvas += np.stack(large, axis=-1) * step**0.6
    return ((canvas - canvas.mean()) / canvas.std() * 45 + 120).clip(0, 255).astype(np.uint8)


def draw_frames(width: int, height: int) -> Iterator[np.ndarray]:
    """Draw scenes in which the camera pans and four things move, with a camera's noise."""
    draw = np.random.default_rng(0)
    noise = draw.normal(scale=2, size=(height + 64, width + 64, 1)).round().astype(np.int16)
    for _ in range(SECONDS // SECONDS_OF_SCENE):
        background = draw_texture(draw, 2 * width, 2 * height)
        things = [
            (draw_texture(draw, width // 4, height // 4), draw.uniform(0, height / 2, 2), draw.uniform(-4, 4, 2))
            for _ in range(4)
        ]
        pan = draw.uniform(-1, 1, 2) * (height, width) / GROUP
        for number in range(SECONDS_OF_SCENE * RATE):
            top, left = (np.array([height, width]) / 2 + pan * number).astype(int)
            frame = background[top : top + height, left : left + width].copy()
            for thing, place, speed in things:
                row, column = (place + speed * number).astype(int) % (height * 3 // 4, width * 3 // 4)
                frame[row : row + thing.shape[0], column : column + thing.shape[1]] = thing
            row, column = draw.integers(0, 64, 2)
            noisy = frame.astype(np.int16) + noise[row : row + height, column : column + width]
            yield noisy.clip(0, 255).astype(np.uint8)


def make_hour(path: Path, codec: str, width: int, height: int) -> None:
    """Encode half a minute and write its packets again and again."""
    name, _, options = CODECS[codec]
    partial = path.with_stem(f".{path.stem}")
    with av.open(str(partial), "w") as container:
        stream = container.add_stream(name, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", GROUP
        stream.codec_context.thread_count = 1
        packets: list[Any] = []
        for number, pixels in enumerate(draw_frames(width, height)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for repetition in range(REPETITIONS):
            for packet in packets:
                shift = repetition * round(SECONDS / packet.time_base)
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts, copy.duration = packet.pts + shift, packet.dts + shift, packet.duration
                copy.time_base, copy.is_keyframe, copy.stream = packet.time_base, packet.is_keyframe, stream
                container.mux(copy)
    partial.replace(path)


def processor_seconds() -> float:
    """Seconds of the processor that this process used, in all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def read(reader: str, path: Path, num_frames: int) -> dict[str, Any]:
    """Open a file and read its frames, in this process."""
    digest = hashlib.sha256()
    if reader == "torchcodec":
        import torch
        from torchcodec.decoders import VideoDecoder

        torch.set_num_threads(1)
        before, begin = processor_seconds(), time.perf_counter()
        decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, seek_mode="exact", dimension_order="NHWC")
        opened, opening = processor_seconds(), time.perf_counter() - begin
        total = len(decoder)
        plan = [(2 * place + 1) * total // (2 * num_frames) for place in range(num_frames)]
        for start in range(0, num_frames, 16):
            for frame in decoder.get_frames_at(plan[start : start + 16]).data.numpy():
                digest.update(frame[::16].tobytes())
    else:
        VideoFile.open(path).index.times.sum()  # loads the libraries
        before, begin = processor_seconds(), time.perf_counter()
        video = VideoFile.open(path, num_threads=READERS[reader])
        opened, opening = processor_seconds(), time.perf_counter() - begin
        for _, frame in video.frames(sample_frames(video, num_frames=num_frames)):
            digest.update(frame[::16].tobytes())
    return {
        "seconds": time.perf_counter() - begin,
        "processor_seconds": processor_seconds() - before,
        "opening_seconds": opening,
        "opening_processor_seconds": opened - before,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "digest": digest.hexdigest(),
    }


def link_libraries(folder: Path) -> str:
    """Give the libraries of FFmpeg in PyAV's wheel their usual names; gives a library path."""
    bundled = Path(av.__file__).parent.with_name("av.libs")
    for library in bundled.glob("lib*.so.*"):
        if match := FFMPEG_LIBRARY.fullmatch(library.name):
            (folder / f"{match[1]}{match[2]}").symlink_to(library)
    return os.pathsep.join([str(folder), str(bundled)])


def measure(path: Path, num_frames: int, num_repeats: int, library_path: str) -> dict[str, dict[str, Any]]:
    """Read a file with each reader in turn, several times; gives medians."""
    runs: dict[str, list[dict[str, Any]]] = {reader: [] for reader in READERS}
    environment = {**os.environ, "LD_LIBRARY_PATH": library_path}
    for _ in range(num_repeats):
        for reader, found in runs.items():
            command = [sys.executable, __file__, "--read", reader, str(path), str(num_frames)]
            run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(run.stdout))
    digests = {run["digest"] for found in runs.values() for run in found}
    if len(digests) > 1:
        raise SystemExit(f"{path.name}: the readers' frames differ")
    return {
        reader: {key: statistics.median(run[key] for run in found) for key in found[0] if key != "digest"}
        for reader, found in runs.items()
    }


def first_opening_seconds(path: Path) -> float:
    """Seconds of the processor for opening a file that nothing is remembered of."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "--open", str(path)]
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure_all(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measure every codec, size and number of frames."""
    links = folder / "libraries"
    links.mkdir()
    library_path = link_libraries(links)
    rows: list[dict[str, Any]] = []
    for codec in options.codecs:
        for size in options.sizes:
            width, height = (int(side) for side in size.split("x"))
            path = (options.media or folder) / f"{codec}_{height}.{CODECS[codec][1]}"
            if not path.exists():
                make_hour(path, codec, width, height)
            time.sleep(max(0.0, path.stat().st_ctime + 3 - time.time()))  # what just changed isn't remembered
            first = first_opening_seconds(path)
            VideoFile.open(path)
            for num_frames in options.frames:
                medians = measure(path, num_frames, max(1, options.repeats * 64 // num_frames), library_path)
                theirs, ours, divided = (medians[reader] for reader in READERS)
                row = {
                    "codec": codec,
                    "size": size,
                    "frames": num_frames,
                    "load": os.getloadavg()[0],
                    "processor_ratio": theirs["processor_seconds"] / ours["processor_seconds"],
                    "clock_ratio_of_two_threads": ours["seconds"] / divided["seconds"],
                    "first_opening_processor_seconds": first,
                    "readers": medians,
                }
                rows.append(row)
                print(json.dumps({key: value for key, value in row.items() if key != "readers"}), file=sys.stderr)
    return rows


def read_options() -> argparse.Namespace:
    """Read what was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument("--sizes", nargs="+", default=["640x360", "1280x720"])
    parser.add_argument("--frames", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=4, help="for 64 frames; fewer for more, at least one")
    parser.add_argument("--media", type=Path, help="an existing folder where the hours are kept")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and report."""
    options = read_options()
    if options.read:
        reader, path, num_frames = options.read
        print(json.dumps(read(reader, Path(path), int(num_frames))))
        return
    if options.open:
        before = processor_seconds()
        VideoFile.open(options.open)
        print(processor_seconds() - before)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_all(options, Path(folder))
    result = {
        "command": " ".join(["python", "benchmarks/frames_of_long_videos.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": [decoder_version("pyav"), f"torchcodec {version('torchcodec')}"],
        "rows": rows,
    }
    text = json.dumps(result, indent=1) + "\n"
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
