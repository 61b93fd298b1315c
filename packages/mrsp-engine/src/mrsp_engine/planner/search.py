"""The search for settings that fit: the fastest of all divisions and memory strategies, or a clear refusal."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from mrsp_engine.attention.split import RowSplit
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.planner.costs import (
    SCORING_STAGES,
    KlPlace,
    Sizes,
    embedding_bytes,
    moved_bytes,
    predict_stages,
    row_split,
)
from mrsp_engine.planner.hardware import Accelerator
from mrsp_engine.planner.memory import Strategy, memory_by_part, rollout_bytes
from mrsp_engine.planner.shapes import ModelShape
from mrsp_engine.planner.videos import PlannedVideo

__all__ = ["RESIDENT_PARTS", "STRATEGIES", "PlanRequest", "StepPlan", "plan_step"]

USABLE_SHARE = 0.92
"""Usable share of a device's memory; the rest is lost to fragmentation."""
RESIDENT_PARTS = ("weights", "reference", "optimizer")
"""The parts of training that stay on the device while the sampler works; the others exist only during the update."""
HOST_COPY_SECONDS = 1 / 25e9
"""Seconds per byte between device and host."""
STRATEGIES = tuple(
    Strategy(
        is_checkpointed=checkpointed,
        sharding=sharding,
        is_optimizer_offloaded=optimizer,
        are_activations_offloaded=activations,
    )
    for activations, optimizer, sharding, checkpointed in product(
        (False, True), (False, True), ("none", "optimizer", "everything"), (False, True)
    )
    if checkpointed or not activations
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What to train, on which devices.

    Attributes:
        shape: The model.
        hardware: The devices.
        num_devices: Number of devices.
        memory_bytes: Memory of one device.
        num_frames: Frames of a video.
        frame_pixels: Pixels of a frame, used where no video is given.
        video: The video, whose tokens are counted exactly; it has `num_frames` timestamps.
        group_size: Responses per question.
        response_tokens: Tokens of a response.
        prompts_per_step: Questions per step.
        num_videos: Videos in the dataset, for the size of the store.
        kl: Where the divergence from a reference counts, if it does.
        strategies: How memory may be saved, from the simplest on.
    """

    shape: ModelShape
    hardware: Accelerator
    num_devices: int
    memory_bytes: float
    num_frames: int
    frame_pixels: int = 128 * 28 * 28
    video: PlannedVideo | None = None
    group_size: int = 8
    response_tokens: int = 1024
    prompts_per_step: int = 1
    num_videos: int = 1
    kl: KlPlace = "none"
    strategies: Sequence[Strategy] = STRATEGIES

    def __post_init__(self) -> None:
        for name in ("num_devices", "group_size", "response_tokens", "prompts_per_step", "num_videos", "frame_pixels"):
            if getattr(self, name) < 1:
                raise EngineUsageError(f"{name}={getattr(self, name)}: expected 1 or more")
        if self.num_frames < 0 or (self.num_frames and self.shape.vision is None):
            raise EngineUsageError(
                f"num_frames={self.num_frames} for {self.shape.name}: expected 0 for a text-only model, "
                "otherwise 0 or more"
            )
        if self.memory_bytes <= 0:
            raise EngineUsageError(f"memory_bytes={self.memory_bytes:.0f}: expected more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """The recommended settings, and their predicted cost.

    Attributes:
        sizes: Tokens of a question and its responses.
        sequence_ranks: Ranks that share a row; the others compute other questions.
        split: How these ranks divide attention.
        groups_per_row: Questions packed into one row (the micro-batch).
        strategy: How memory is saved.
        tensor_ranks: Ranks that share the sampler's weights.
        sampler_memory_share: Share of a device's memory for the sampler (vLLM's gpu_memory_utilization).
        seconds_by_stage: Seconds of a step, by stage.
        update_bytes: Bytes of a rank during the update, by part.
        sampler_bytes: Bytes of a rank's sampler during the rollout, by part, in addition to the weights and optimizer
            of training.
        moved_bytes: Bytes that a rank sends in a step.
        store_bytes: Bytes of the embedding store, for all videos.
        notes: Further remarks.
    """

    sizes: Sizes
    sequence_ranks: int
    split: RowSplit
    groups_per_row: int
    strategy: Strategy
    tensor_ranks: int
    sampler_memory_share: float
    seconds_by_stage: dict[str, float]
    update_bytes: dict[str, float]
    sampler_bytes: dict[str, float]
    moved_bytes: dict[str, float]
    store_bytes: float
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return asdict(self)


def plan_step(request: PlanRequest) -> StepPlan:
    """Find the fastest settings that fit.

    Raises:
        EngineUsageError: Nothing fits; the message names the part that doesn't and what to change.
    """
    shape, sizes = request.shape, _sizes(request)
    _, row = sizes.rows("shared")
    usable = request.memory_bytes * USABLE_SHARE
    candidates: list[tuple[float, int, Strategy, dict[str, float], dict[str, float]]] = []
    smallest: dict[str, float] = {}
    for ranks in (n for n in range(1, request.num_devices + 1) if request.num_devices % n == 0):
        for strategy in request.strategies:
            held = _held(request, sizes, ranks, strategy, 1)
            if not smallest or sum(held.values()) < sum(smallest.values()):
                smallest = held
            if sum(held.values()) <= usable:
                seconds = _step_seconds(request, sizes, ranks, strategy)
                candidates.append((sum(seconds.values()), ranks, strategy, held, seconds))
    if not candidates:
        raise EngineUsageError(_refusal(request, sizes, smallest))
    # Of equals, the first saves the least memory, because strategies are listed from the simplest on.
    _, ranks, strategy, held, seconds = min(candidates, key=lambda candidate: candidate[0])
    split = row_split(shape, row, ranks, request.hardware)
    resident = sum(held[part] for part in RESIDENT_PARTS)
    tensor_ranks, sampler = _place_sampler(request, sizes, usable - resident)
    groups = 1
    waiting = -(-request.prompts_per_step * ranks // request.num_devices)
    while groups * 2 <= waiting and sum(_held(request, sizes, ranks, strategy, groups * 2).values()) <= usable:
        groups *= 2
    share = min(0.95, sum(sampler.values()) * 1.1 / request.memory_bytes)
    return StepPlan(
        sizes=sizes,
        sequence_ranks=ranks,
        split=split,
        groups_per_row=groups,
        strategy=strategy,
        tensor_ranks=tensor_ranks,
        sampler_memory_share=round(share, 2),
        seconds_by_stage=seconds,
        update_bytes=held if groups == 1 else _held(request, sizes, ranks, strategy, groups),
        sampler_bytes=sampler,
        moved_bytes=moved_bytes(shape, sizes, split, request.kl),
        store_bytes=embedding_bytes(shape, sizes) * request.num_videos,
        notes=_notes(request, sizes, strategy),
    )


def _sizes(request: PlanRequest) -> Sizes:
    return Sizes.of(
        request.shape,
        num_frames=request.num_frames,
        frame_pixels=request.frame_pixels,
        group_size=request.group_size,
        response_tokens=request.response_tokens,
        video=request.video,
    )


def _held(request: PlanRequest, sizes: Sizes, ranks: int, strategy: Strategy, groups: int) -> dict[str, float]:
    _, row = sizes.rows("shared")
    return memory_by_part(
        request.shape,
        sizes,
        row,
        rows_tokens=row.total * groups,
        sequence_ranks=ranks,
        all_ranks=request.num_devices,
        strategy=strategy,
        has_reference=request.kl != "none",
    )


def _step_seconds(request: PlanRequest, sizes: Sizes, ranks: int, strategy: Strategy) -> dict[str, float]:
    """Seconds of a step by stage: the questions of one group of ranks in sequence, and the cost of saving memory.

    Sharded weights are gathered in each pass and their gradients scattered in one, 2 bytes per weight each;
    an offloaded optimizer moves gradients to the host and weights back, 4 bytes per trained weight; offloaded
    activations are moved out and back once.
    """
    shape, hardware = request.shape, request.hardware
    turns = -(-request.prompts_per_step * ranks // request.num_devices)
    seconds = predict_stages(
        shape, sizes, hardware, num_ranks=ranks, mode="shared", is_checkpointed=strategy.is_checkpointed
    )
    scoring = SCORING_STAGES[request.kl]
    absent = {stage for stage in SCORING_STAGES["reward"] if stage not in scoring}
    seconds = {stage: value * turns for stage, value in seconds.items() if stage not in absent}
    if strategy.sharding == "everything":
        gathered = 2 * shape.num_parameters / hardware.link_bandwidth * turns
        scattered = 2 * shape.num_trained_parameters / hardware.link_bandwidth * turns
        for stage in scoring:
            seconds[stage] += gathered
        seconds["update"] += 2 * gathered + scattered
    elif strategy.sharding == "optimizer":
        seconds["update"] += 2 * shape.num_trained_parameters / hardware.link_bandwidth
    if strategy.is_optimizer_offloaded:
        seconds["update"] += 4 * shape.num_trained_parameters * HOST_COPY_SECONDS
    if strategy.are_activations_offloaded:
        _, row = sizes.rows("shared")
        inputs = row.total / ranks * shape.num_layers * shape.hidden_size * 2
        seconds["update"] += 2 * inputs * HOST_COPY_SECONDS * turns
    return seconds


def _place_sampler(request: PlanRequest, sizes: Sizes, usable: float) -> tuple[int, dict[str, float]]:
    """The smallest number of ranks that can hold the sampler and that divides its heads."""
    shape, held = request.shape, dict[str, float]()
    for ranks in (n for n in range(1, request.num_devices + 1) if request.num_devices % n == 0):
        if shape.heads.query % ranks:
            continue
        held = rollout_bytes(shape, sizes, ranks)
        if sum(held.values()) <= usable:
            return ranks, held
    part = max(held, key=lambda name: held[name])
    raise EngineUsageError(
        f"{shape.name} can't sample from {sizes.prompt_tokens} prompt tokens on these devices: a rank needs "
        f"{sum(held.values()) / 1e9:.0f} GB of {usable / 1e9:.0f} that training leaves, "
        f"{held[part] / 1e9:.0f} GB of it {part}; use more devices or more memory, or lower --frames or --group-size"
    )


def _refusal(request: PlanRequest, sizes: Sizes, held: dict[str, float]) -> str:
    part = max(held, key=lambda name: held[name])
    cure = {
        "activations": "use more devices, or lower --frames, --frame-pixels or --response-tokens",
        "embeddings": "use more devices, or lower --frames or --frame-pixels",
        "runtime": "use devices with more memory",
        "logits": "use devices with more memory",
    }.get(part, "use more devices or more memory, or a smaller model")
    usable = request.memory_bytes * USABLE_SHARE
    return (
        f"{request.shape.name} with {sizes.prompt_tokens} prompt tokens doesn't fit on {request.num_devices} devices "
        f"of {request.memory_bytes / 1e9:.0f} GB: with everything sharded, recomputed and offloaded a rank still needs "
        f"{sum(held.values()) / 1e9:.1f} GB of {usable / 1e9:.1f} usable, most of it {part} "
        f"({held[part] / 1e9:.1f} GB); {cure}"
    )


def _notes(request: PlanRequest, sizes: Sizes, strategy: Strategy) -> tuple[str, ...]:
    notes: list[str] = []
    longest = (sizes.prompt_positions or 0) + sizes.response_tokens
    if longest > request.shape.max_positions:
        notes.append(
            f"{longest} positions are more than the {request.shape.max_positions} {request.shape.name} was "
            "trained for, so a run drops such questions; lower the number of frames or their pixels"
        )
    if strategy.sharding != "none":
        kind = "zero2" if strategy.sharding == "optimizer" else "fsdp2"
        setting = f'sharding.kind = "{kind}"'
        if strategy.is_optimizer_offloaded:
            setting = f'sharding.kind = "{kind.replace("fsdp2", "zero3")}" and sharding.offload = "optimizer"'
        notes.append(f"{strategy.sharding} sharded over the ranks ({setting})")
    if request.hardware.name == "CPU":
        notes.append("the rates are those of one core; measured ones are in the output of longrl benchmark step")
    return tuple(notes)
