"""Which part of the vision is trained, and how a step's videos get embeddings when the store has none.

With frozen vision the store holds embeddings, and questions refer to them for the whole run. Otherwise it holds what
doesn't depend on trained weights: features where the projector is trained, frames where the tower is trained too. A
step then computes the embeddings it needs, once, and its questions refer to those.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from longrl_trainer.config.sections import VisionName
from longrl_trainer.config.stages import TrainingConfig
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.questions.question import Question
from longrl_trainer.training.ranks import Ranks
from mrsp_engine.encoding.frame_encoder import ContentChoice, EncodingPlan
from mrsp_engine.encoding.step_media import StepMedia, rename_plans
from mrsp_engine.families.base import Policy


@contextmanager
def storing(policy: Policy, config: TrainingConfig) -> Generator[None]:
    """Within the block the recipe's vision is trained, and the store keeps what it needs, planned in any thread.

    Whatever training does to the weights, embeddings that no step has renamed have the names of the weights as they are
    at the start.

    Raises:
        TrainerUsageError: The recipe's settings contradict each other.
        EngineUsageError: The model has no such part to train.
    """
    if config.trained_vision != "frozen" and config.stored != "embeddings":
        cause = "lora.vision=true" if config.lora.vision else f'train_vision="{config.train_vision}"'
        raise TrainerUsageError(
            f'stored="{config.stored}" with {cause}, which determines what is stored; '
            "omit `stored`, or freeze the vision"
        )
    policy.train_vision(config.train_vision)  # refused before a video is opened
    policy.freeze_vision()
    if policy.encoder is None:
        train_parts(policy, config)
        yield
        return
    contents: dict[VisionName, ContentChoice] = {"frozen": config.stored, "projector": "features", "all": "frames"}
    policy.encoder.content = contents[config.trained_vision]
    policy.encoder.planned_fingerprint = policy.encoder.fingerprint()
    try:
        train_parts(policy, config)
        yield
    finally:
        policy.encoder.content, policy.encoder.planned_fingerprint = "embeddings", None


def train_parts(policy: Policy, config: TrainingConfig) -> None:
    """Train from now on what the recipe trains, in the vision and in the language model."""
    policy.train_vision(config.train_vision)
    if policy.adapters is not None:
        policy.adapters.train()


def open_step(
    policy: Policy, rows: Sequence[Sequence[Question]], known: Mapping[str, EncodingPlan], ranks: Ranks
) -> tuple[list[list[Question]], StepMedia]:
    """Compute the embeddings that a step's questions need and the store lacks; all ranks call this together.

    Args:
        policy: The model in training.
        rows: The questions of the step.
        known: Plans of media whose embeddings aren't stored, by the key of their references.
        ranks: Processes that share the work.

    Returns:
        The rows, with questions that refer to embeddings under this step's weights, and the object that computes and
        lends these.
    """
    media = [medium for row in rows for question in row for medium in question.media]
    keys = dict.fromkeys(medium.key for medium in media if medium.key in known)
    plans = rename_plans(policy, [known[key] for key in keys])
    references = {key: plan.reference for key, plan in zip(keys, plans, strict=True)}
    renamed = [
        [replace(item, media=tuple(references.get(medium.key, medium) for medium in item.media)) for item in row]
        for row in rows
    ]
    return renamed, StepMedia(policy, plans, ranks.group)


def count_frames_encoded(policy: Policy) -> int:
    """Number of frames that have gone through the policy's tower in this thread."""
    return 0 if policy.encoder is None else policy.encoder.frames_encoded
