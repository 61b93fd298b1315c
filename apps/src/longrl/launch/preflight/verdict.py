"""What arithmetic says of a job before it starts: whether it fits, and how it would run best (`mrsp_engine.planner`).

Of a video only the number of frames is known then; it is taken to have 720 lines and a frame per second, as `longrl
plan` does. The step's own code at full size is rehearsed on request only, because that takes minutes.
"""

from collections.abc import Sequence
from dataclasses import replace

from longrl.launch.job import LaunchJob
from longrl.machine.gpus import GpuReport
from longrl.machine.resources import free_memory_bytes
from longrl.planning.videos import plan_video
from longrl_trainer.config.stages import GrpoConfig, SftConfig
from mrsp_engine.errors import EngineError
from mrsp_engine.planner.checkpoints import find_shape
from mrsp_engine.planner.hardware import HARDWARE, Accelerator, recognise_accelerator
from mrsp_engine.planner.memory import Strategy
from mrsp_engine.planner.search import STRATEGIES, PlanRequest, StepPlan, plan_step

__all__ = ["plan_job", "plan_recipe", "rehearse_job"]

GB = 1e9
DEFAULT_GPU = "H100"
HEIGHT, WIDTH, FPS = 720, 1280, 30.0
SECONDS = 3600.0
"""Length of a video where the recipe counts frames by its length."""
IMITATED_TOKENS = 512


def device_bytes(job: LaunchJob, gpus: GpuReport) -> float:
    """Memory of the smallest device that a rank of this node gets."""
    if job.device == "cuda" and gpus.gpus:
        return float(min(gpu.memory_bytes for gpu in gpus.gpus[: job.processes]))
    return free_memory_bytes() / job.processes


def plan_recipe(
    config: SftConfig | GrpoConfig,
    *,
    model: str,
    hardware: Accelerator,
    num_devices: int,
    memory_bytes: float,
    strategies: Sequence[Strategy] = STRATEGIES,
) -> StepPlan:
    """What the planner says of a recipe's step; in SFT the answers to the questions of a row are its responses.

    Args:
        config: The recipe.
        model: Name of a public checkpoint, or a folder.
        hardware: The devices.
        num_devices: How many.
        memory_bytes: Memory of one.
        strategies: How memory may be saved.

    Raises:
        EngineUsageError: The model is unknown, or nothing fits.
    """
    shape, video = find_shape(model), None
    if not config.blind and shape.vision is not None:
        length = SECONDS if config.data.num_frames is None else None
        video = plan_video(config.data, model, HEIGHT, WIDTH, length, FPS)
    is_grpo = isinstance(config, GrpoConfig)
    kl_place = config.parts.kl_place if is_grpo and config.kl_coefficient else "none"
    return plan_step(
        PlanRequest(
            shape=replace(shape, lora_rank=config.lora.rank or 0),
            hardware=hardware,
            num_devices=num_devices,
            memory_bytes=memory_bytes,
            num_frames=0 if video is None else len(video.seconds),
            video=video,
            group_size=config.group_size if is_grpo else config.questions_per_row,
            response_tokens=config.max_response_tokens if is_grpo else IMITATED_TOKENS,
            prompts_per_step=config.prompts_per_step if is_grpo else config.rows_per_step,
            kl=kl_place,
            strategies=strategies,
        )
    )


def plan_job(job: LaunchJob, gpus: GpuReport) -> tuple[str, list[str]]:
    """A line on how the job would run best, and the problem if it can't; nothing of what the planner doesn't know."""
    config = job.config
    if not isinstance(config, SftConfig | GrpoConfig):
        return "", []
    model = str(config.model.folder)
    try:
        find_shape(model)
    except EngineError:
        return "", []  # the checkpoint's own check tells
    known = recognise_accelerator(gpus.gpus[0].name) if gpus.gpus else None
    hardware = HARDWARE["CPU"] if job.device == "cpu" else known or HARDWARE[DEFAULT_GPU]
    memory_bytes = device_bytes(job, gpus)
    try:
        plan = plan_recipe(config, model=model, hardware=hardware, num_devices=job.num_ranks, memory_bytes=memory_bytes)
    except EngineError as error:
        return "", [f"planner: {error}"]
    held = sum(plan.update_bytes.values())
    ranks = "one rank computes a row" if plan.sequence_ranks == 1 else f"{plan.sequence_ranks} ranks share a row"
    line = (
        f"planner: a step of {plan.sizes.prompt_tokens} prompt tokens fits: {held / GB:.1f} of {memory_bytes / GB:.1f} "
        f"GB of each device, if {ranks}{' and activations are recomputed' if plan.strategy.is_checkpointed else ''}"
    )
    return line, []


def rehearse_job(job: LaunchJob, gpus: GpuReport) -> tuple[str, list[str]]:
    """Run the job's step on shapes alone, as every rank: a line on its peak, and the problem if it doesn't fit.

    Raises:
        AppUsageError: Such a recipe can't be rehearsed.
        EngineUsageError: The ranks would wait for each other forever.
    """
    from longrl.errors import AppUsageError
    from longrl.rehearsal.request import RehearsedStage, RehearsedVideos, StepLimits
    from longrl.rehearsal.run import rehearse

    config = job.config
    if not isinstance(config, SftConfig | GrpoConfig):
        raise AppUsageError(
            f"--rehearse with `longrl {job.command}`: expected a recipe of `longrl sft` or `longrl grpo`"
        )
    memory_bytes = device_bytes(job, gpus)
    found = rehearse(
        RehearsedStage(name=job.command, config=config, model=str(config.model.folder)),
        num_ranks=job.num_ranks,
        memory_bytes=memory_bytes,
        videos=RehearsedVideos(
            height=HEIGHT, width=WIDTH, seconds=SECONDS if config.data.num_frames is None else None, fps=FPS
        ),
        limits=StepLimits(num_layers=None, num_rows=None, response_tokens=IMITATED_TOKENS),
    )
    peak = f"rehearsal: {found.peak_bytes / GB:.1f} of {memory_bytes / GB:.1f} GB on a device at most"
    if found.peak_bytes > memory_bytes:
        return "", [f"{peak}; use more --gpus or --nodes, or lower data.num_frames, data.frame_pixels or group_size"]
    return peak, []
