"""The largest training that fits: how many frames, and the weights themselves or adapters, by the planner.

More frames are tried before fewer, and all weights before adapters, except that adapters with many frames are better
than all weights with hardly any.
"""

from dataclasses import replace
from pathlib import Path

from longrl.errors import AppUsageError
from longrl.footage.material import Footage, Machine
from longrl.planning.videos import plan_video
from longrl_trainer.config.sections import FrameSettings
from longrl_trainer.questions.frames import PAPER_FRAME_PIXELS
from longvideo_reason_data.records.record import Split
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.planner.checkpoints import find_shape
from mrsp_engine.planner.search import PlanRequest, StepPlan, plan_step

__all__ = ["FittingStep", "fit_step"]

FRAMES = (128, 64, 32, 16, 8, 4)
FEW_FRAMES = 16
MOST_FRAMES_PER_SECOND = 2.0
LORA_RANK = 64
GROUP_SIZE = 8


FittingStep = tuple[PlanRequest, StepPlan]
"""What was asked of the planner, and what it found."""


def fit_step(model: Path, footage: Footage, machine: Machine) -> FittingStep:
    """Find the step of GRPO with the most frames that fits on one device.

    Args:
        model: The checkpoint.
        footage: The videos and questions.
        machine: The device.

    Raises:
        AppUsageError: The model doesn't see.
        EngineError: Nothing fits, or the planner doesn't know this kind of model; the message says what to change.
    """
    shape = find_shape(str(model))
    if shape.vision is None:
        raise AppUsageError(f"--model {model}: a model without vision; expected one that sees videos")
    shown = max(FRAMES[-1], min(footage.seconds * MOST_FRAMES_PER_SECOND, footage.seconds * footage.fps))
    counts = [count for count in FRAMES if count <= shown]
    many = [count for count in counts if count >= min(FEW_FRAMES, counts[0])]
    tries = [(0, count) for count in many] + [(LORA_RANK, count) for count in counts]
    tries += [(0, count) for count in counts if count not in many]
    refusal: EngineError | None = None
    for lora_rank, num_frames in tries:
        request = _request(model, footage, machine, num_frames)
        request = replace(request, shape=replace(shape, lora_rank=lora_rank))
        try:
            plan = plan_step(request)
        except EngineError as error:
            refusal = refusal or error
            continue
        positions = (plan.sizes.prompt_positions or 0) + plan.sizes.response_tokens
        if positions <= shape.max_positions and not plan.strategy.is_optimizer_offloaded:
            return request, plan
    raise refusal or EngineUsageError(
        f"{model}: no step of GRPO fits on one {machine.described}; expected a smaller model or a larger device"
    )


def _request(model: Path, footage: Footage, machine: Machine, num_frames: int) -> PlanRequest:
    shown = FrameSettings(num_frames=num_frames, frame_pixels=PAPER_FRAME_PIXELS)
    video = plan_video(shown, str(model), footage.height, footage.width, footage.seconds, footage.fps)
    wanted = 16 if machine.is_gpu else 4
    questions = wanted if footage.questions is None else footage.questions[Split.TRAIN_RL]
    return PlanRequest(
        shape=find_shape(str(model)),
        hardware=machine.hardware,
        num_devices=1,
        memory_bytes=machine.memory_bytes,
        num_frames=len(video.seconds),
        video=video,
        group_size=GROUP_SIZE,
        response_tokens=1024 if machine.is_gpu else 128,
        prompts_per_step=max(1, min(wanted, questions)),
        num_videos=footage.num_videos,
    )
