"""What a node looks at by itself before a run: its GPUs, memory and disk, checkpoint, dataset and embedding store.

Every finding is one line: what was found, what was expected, what to change. All are collected; none ends the look.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from longrl.launch.job import LaunchJob
from longrl.launch.preflight.checkpoint_files import find_checkpoint_problems
from longrl.machine.gpus import GpuReport
from longrl.machine.resources import find_unwritable, free_disk_bytes, free_memory_bytes
from longrl_files.folders import ForeignFolder
from longrl_files.messages import visible
from longrl_trainer.config.sections import DataSection, ModelSection, records_path
from longrl_trainer.config.stages import GrpoConfig, SftConfig
from longrl_trainer.durable import LOOK_PREFIX
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.questions.media import hearing_families
from longrl_trainer.runs.settings import refuse_other_contents
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.records.record import Split, iter_records
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineError
from mrsp_engine.families.checkpoint_folder import CheckpointFolder
from mrsp_engine.planner.checkpoints import find_shape

__all__ = ["StateBytes", "check_node", "expected_state"]

GB = 1e9
FREE_SHARE = 0.9
"""Share of a GPU's memory that has to be free; less is left where another program uses it."""
LEAST_DRIVERS = {"12": 525, "13": 580}
"""The oldest drivers for CUDA's major versions, by NVIDIA's compatibility guide."""
STATE_ITEM_BYTES = 12
"""A trained weight in float32 and its two moments."""
LEAST_DISK_BYTES = 2**30
MOST_NAMED = 3


class StateBytes:
    """What a run saves, in bytes.

    Args:
        config: The recipe.

    Attributes:
        checkpoint: One checkpoint: trained weights and moments.
        model: The final model.
    """

    def __init__(self, config: SftConfig | GrpoConfig) -> None:
        shape = find_shape(str(config.model.folder))
        shape = replace(shape, lora_rank=config.lora.rank or 0)
        self.checkpoint = STATE_ITEM_BYTES * shape.num_trained_parameters
        self.model = 2 * (shape.num_parameters + shape.num_vision_parameters)


def expected_state(job: LaunchJob) -> StateBytes | None:
    """What the run saves; None if it saves nothing, or the model's sizes can't be known."""
    if not isinstance(job.config, SftConfig | GrpoConfig):
        return None
    try:
        return StateBytes(job.config)
    except EngineError:
        return None


def check_node(job: LaunchJob, gpus: GpuReport) -> list[str]:
    """Everything that is wrong on this node.

    Args:
        job: What is to be started.
        gpus: The node's devices.
    """
    checks: list[Callable[[], Iterator[str]]] = [
        lambda: _check_gpus(job, gpus),
        lambda: _check_memory(job),
        lambda: _check_output(job),
        lambda: _check_disk(job),
        lambda: _check_model(job),
        lambda: _check_data(job),
        lambda: _check_store(job),
    ]
    problems: list[str] = []
    for check in checks:
        try:
            problems += check()
        except (EngineError, TrainerError, DataError) as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{error.filename or ''}: {error.strerror or error}")
    return list(dict.fromkeys(problems))


def _check_gpus(job: LaunchJob, report: GpuReport) -> Iterator[str]:
    if job.device == "cpu":
        return
    if torch.version.cuda is None:
        yield "torch is built without CUDA; install the one for GPUs, in a checkout with `uv run --only-group cuda`"
    if report.problem is not None:
        yield f"no GPU can be looked at: {report.problem}; install the driver, or set --device cpu"
        return
    if len(report.gpus) < job.processes:
        yield (
            f"{len(report.gpus)} GPUs are seen, expected --gpus {job.processes}; lower it, or look at "
            "CUDA_VISIBLE_DEVICES and at what the cluster has granted"
        )
    least = LEAST_DRIVERS.get((torch.version.cuda or "").partition(".")[0], 0)
    for gpu in report.gpus[: job.processes]:
        major = gpu.driver.partition(".")[0]
        if major.isdecimal() and int(major) < least:
            yield f"driver {gpu.driver}, expected {least} or newer for CUDA {torch.version.cuda}; update the driver"
        if gpu.free_bytes < FREE_SHARE * gpu.memory_bytes:
            yield (
                f"GPU {gpu.index}: {gpu.free_bytes / GB:.1f} of {gpu.memory_bytes / GB:.1f} GB are free, expected "
                f"{FREE_SHARE:.0%}; end the program that uses it (`nvidia-smi` lists it), or choose others with "
                "CUDA_VISIBLE_DEVICES"
            )


def _check_memory(job: LaunchJob) -> Iterator[str]:
    """A rank copies its part of a checkpoint into host memory, and writes the copy."""
    state = expected_state(job)
    if state is not None:
        needed, free = state.checkpoint / job.num_nodes, free_memory_bytes()
        if free < needed:
            yield (
                f"{free / GB:.1f} GB of memory are free, expected {needed / GB:.1f} for a copy of the checkpoint that "
                "is being written; ask for more memory, or use more --nodes"
            )


def _check_output(job: LaunchJob) -> Iterator[str]:
    """Nothing may be written into a folder of something else, not even logs."""
    if job.folder.exists() and not job.folder.is_dir():
        yield f"{job.folder} is a file, expected a folder; choose another `output`"
    elif job.saves and job.output.is_dir():
        refuse_other_contents(job.output)


def _check_disk(job: LaunchJob) -> Iterator[str]:
    unwritable = find_unwritable(job.folder)
    if unwritable is not None:
        yield f"{unwritable}; expected room for the run, free some space or choose another `output`"
        return
    needed, why = float(LEAST_DISK_BYTES), "the run"
    state = expected_state(job)
    if state is not None and isinstance(job.config, SftConfig | GrpoConfig):
        num_kept = job.config.checkpoints_kept + 2  # the best, and the one that is being written
        there = sum(path.stat().st_size for path in job.output.glob("checkpoints/**/*") if path.is_file())
        needed = max(needed, num_kept * state.checkpoint + state.model - there)
        why = f"{num_kept} checkpoints and the model"
    free = free_disk_bytes(job.folder)
    if free < needed:
        yield (
            f"{job.folder}: {free / GB:.1f} GB are free, expected {needed / GB:.1f} for {why}; free some space, lower "
            "checkpoints_kept, or choose another `output`"
        )


def _check_model(job: LaunchJob) -> Iterator[str]:
    model = job.config.model
    is_language_model = isinstance(model, ModelSection)
    allow = is_language_model and model.allow_pickle_weights
    if getattr(job.config, "step", None) is None:  # else a run's folder, whose checkpoint is exported
        yield from find_checkpoint_problems(model.folder, allow_pickle_weights=allow, needs_tokenizer=is_language_model)


def _check_data(job: LaunchJob) -> Iterator[str]:
    """The questions of the split and their files; those of prompts, or the folder of a benchmark."""
    data = getattr(job.config, "data", None)
    if isinstance(data, DataSection):
        paths = [
            [medium.path for medium in record.media]
            for record in iter_records(records_path(data))
            if record.split == Split(data.split)
        ]
        if not paths:
            yield f"{data.dataset}: has no questions in the split {data.split!r}; set another `data.split`"
        elif not getattr(job.config, "blind", False):
            yield from _check_media(data.dataset, dict.fromkeys(path for of_one in paths for path in of_one))
            yield from _check_hearing(job, data)
    for name in ("prompts", "held_out_prompts", "path"):
        place = getattr(job.config, name, None)
        if isinstance(place, Path) and not place.exists():
            yield f"{place}: there is no such file or folder; set `{name}`"


def _check_media(dataset: Path, paths: Collection[str]) -> Iterator[str]:
    """Whether the files can be opened; one line, however many can't."""
    folder, lacking = ForeignFolder(dataset, error=TrainerUsageError), list[str]()
    for path in paths:
        try:
            folder.open(path).close()
        except TrainerUsageError as error:
            lacking.append(str(error))
    if len(lacking) == 1:
        yield lacking[0]
    elif lacking:
        shown, others = "; ".join(lacking[:MOST_NAMED]), len(lacking) - MOST_NAMED
        more = f"; and {others} more" if others > 0 else ""
        yield f"{dataset}: {len(lacking)} of its {len(paths)} files are missing or can't be opened: {shown}{more}"


def _check_hearing(job: LaunchJob, data: DataSection) -> Iterator[str]:
    """Whether a model hears films, if it is to; those can of which a package opens the media."""
    model = job.config.model
    if not data.sound or not (model.folder / "config.json").is_file():
        return
    model_type = str(CheckpointFolder(model.folder).read("config.json").get("model_type"))
    if model_type not in hearing_families():
        yield (
            f"data.sound=true: no package here lets a model of type {visible(model_type, 60)} hear films; set it to "
            "false, or another `model.folder`"
        )


def _check_store(job: LaunchJob) -> Iterator[str]:
    model = job.config.model
    if isinstance(model, ModelSection):
        if model.store.is_dir() and any(not path.name.startswith(LOOK_PREFIX) for path in model.store.iterdir()):
            EmbeddingStore(model.store, is_read_only=True)  # nothing is written into a folder of something else
        unwritable = find_unwritable(model.store)
        if unwritable is not None:
            yield f"{unwritable}; expected an embedding store, free some space or set `model.store`"
