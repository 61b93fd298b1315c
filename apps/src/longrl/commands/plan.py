"""`longrl plan`: the predicted cost of a step, and the settings to run it with."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from longrl.errors import AppUsageError
from longrl.planning.settings import describe_rates, planned_settings, toml_lines
from longrl.planning.videos import plan_video
from longrl.sizes import read_bytes
from longrl_trainer.config.sections import FrameSettings

if TYPE_CHECKING:
    from mrsp_engine.planner.search import PlanRequest, StepPlan

__all__ = ["plan"]


def plan(
    model: str,
    frames: int | None = None,
    gpus: int = 8,
    gpu_memory: str | None = None,
    gpu: str = "H100",
    group_size: int = 8,
    response_tokens: int = 1024,
    prompts_per_step: int = 1,
    lora_rank: int | None = None,
    kl: Literal["none", "loss", "reward"] = "none",
    video_height: int = 720,
    video_width: int = 1280,
    video_seconds: float | None = None,
    video_fps: float = 30.0,
    shown: Annotated[FrameSettings, tyro.conf.arg(name="")] = FrameSettings(),  # noqa: B008 - shown as default
    videos: int = 1,
    output: Path | None = None,
) -> None:
    """Predict seconds, memory and traffic of a GRPO step, and recommend how to run it.

    Nothing is loaded or downloaded. If nothing fits, the error says what to change.

    The number of tokens of a video equals that of a run: the same functions plan frames and sizes.

    Example: longrl plan --model Qwen2.5-VL-7B --frames 3600 --frame-pixels 100352 --gpus 8 --gpu-memory 80GB

    Example: longrl plan --model checkpoints/mine --fps 1 --max-frames 512 --video-seconds 1800 --gpus 1 --gpu H200

    Args:
        model: Name of a public checkpoint, or a folder with a config.json.
        frames: Frames of a video, like --num-frames; 0 for a text-only model.
        gpus: Number of devices.
        gpu_memory: Memory of one device, such as 80GB; by default that of --gpu.
        gpu: A100, H100, H200 or CPU.
        group_size: Responses per question.
        response_tokens: Tokens of a response.
        prompts_per_step: Questions per step.
        lora_rank: Train adapters of this rank in all linear layers instead of the weights.
        kl: Where the divergence from a reference counts: a recipe's kl_place if its kl_coefficient isn't 0. It takes a
            pass of the reference, and in the reward one of the policy besides.
        video_height: Height of the videos' frames in pixels.
        video_width: Width of the videos' frames in pixels.
        video_seconds: Length of a video; by default one second per frame.
        video_fps: Frames per second of the files.
        shown: How many frames, and how large, like in a recipe.
        videos: Videos in the dataset, for the size of the embedding store.
        output: Also write the plan to this JSON file.
    """
    from mrsp_engine.planner.checkpoints import find_shape
    from mrsp_engine.planner.hardware import find_accelerator
    from mrsp_engine.planner.search import PlanRequest, plan_step

    hardware = find_accelerator(gpu)
    if frames is not None and shown.counts_frames:
        raise AppUsageError(f"--frames {frames}: means the same as --num-frames, --fps and --preset; omit one")
    video = None
    if frames != 0:
        settings = shown if frames is None else shown.model_copy(update={"num_frames": frames})
        video = plan_video(settings, model, video_height, video_width, video_seconds, video_fps)
    if lora_rank is not None and lora_rank < 1:
        raise AppUsageError(f"--lora-rank {lora_rank}: expected 1 or more")
    request = PlanRequest(
        shape=replace(find_shape(model), lora_rank=lora_rank or 0),
        hardware=hardware,
        num_devices=gpus,
        memory_bytes=hardware.memory_bytes if gpu_memory is None else read_bytes("--gpu-memory", gpu_memory),
        num_frames=0 if video is None else len(video.seconds),
        video=video,
        group_size=group_size,
        response_tokens=response_tokens,
        prompts_per_step=prompts_per_step,
        num_videos=videos,
        kl=kl,
    )
    found = plan_step(request)
    print("\n".join(_describe(request, found)))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found.as_json(), indent=2) + "\n", encoding="utf-8")
        print(output)


def _describe(request: "PlanRequest", plan: "StepPlan") -> list[str]:
    sizes, split, strategy, lora_rank = plan.sizes, plan.split, plan.strategy, request.shape.lora_rank
    divided = f"{split.head_ranks} by heads × {split.token_ranks} by tokens"
    if split.token_ranks > 1:
        divided += f" ({split.exchange})"
    groups_apart = request.num_devices // plan.sequence_ranks
    memory = f"{request.memory_bytes / 1e9:.0f} GB"
    lines = [
        f"{request.shape.name}, {request.num_devices} × {request.hardware.name} with {memory}: "
        f"{sizes.prompt_tokens} prompt tokens, {sizes.group_size} responses of {sizes.response_tokens}, "
        f"{request.prompts_per_step} per step" + (f", adapters of rank {lora_rank}" if lora_rank else ""),
        "",
        "recommended",
        f"  ranks per row          {plan.sequence_ranks}: {divided}",
        f"  rows at a time         {groups_apart}, of {plan.groups_per_row} question(s) each",
        f"  checkpointing          {'on' if strategy.is_checkpointed else 'off'}",
        f"  spread over ranks      {strategy.sharding}",
        f"  offloaded to the host  {_offloaded(strategy.is_optimizer_offloaded, strategy.are_activations_offloaded)}",
        f"  sampler                tensor parallel {plan.tensor_ranks}, "
        f"gpu_memory_utilization {plan.sampler_memory_share:.2f}",
        "",
    ]
    lines += _table("seconds per step", plan.seconds_by_stage, 1.0, "s")
    lines += _table("memory per rank, update", plan.update_bytes, 1e9, "GB")
    lines += _table("memory per rank, sampler", plan.sampler_bytes, 1e9, "GB")
    lines += _table("sent per rank and step", plan.moved_bytes, 1e9, "GB")
    lines.append(f"embedding store for {request.num_videos} video(s): {plan.store_bytes / 1e9:.2f} GB")
    lines += [
        "",
        "in a recipe of longrl grpo",
        *(f"  {line}".rstrip() for line in toml_lines(planned_settings(request, plan))),
    ]
    lines += ["", f"note: {describe_rates(request.hardware)}"]
    return lines + [f"note: {note}" for note in plan.notes]


def _offloaded(optimizer: bool, activations: bool) -> str:
    names = [name for name, is_there in (("optimizer", optimizer), ("activations", activations)) if is_there]
    return ", ".join(names) or "nothing"


def _table(title: str, figures: Mapping[str, float], unit: float, unit_name: str) -> list[str]:
    lines = [f"{title:<24} {sum(figures.values()) / unit:>9.2f} {unit_name}"]
    return [*lines, *(f"  {name:<22} {value / unit:>9.2f}" for name, value in figures.items()), ""]
