"""What of the vision is trained, and how the videos of a step get embeddings when the store has none to give.

With frozen vision the store holds embeddings, and questions refer to them for the whole run. Otherwise it holds what
the weights under training don't change: features where the projector is trained, frames where the tower is too. A step
then makes the embeddings it needs, once, and its questions refer to those.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from longrl_trainer.config.sections import VisionName
from longrl_trainer.config.stages import TrainingConfig
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.questions.question import Question, QuestionSet
from longrl_trainer.training.ranks import Ranks
from mrsp_engine.encoding.frame_encoder import ContentChoice
from mrsp_engine.encoding.step_media import StepMedia, rename_plans
from mrsp_engine.families.base import Policy


@contextmanager
def storing(policy: Policy, config: TrainingConfig) -> Generator[None]:
    """Let the store keep, of videos that are loaded within the block, what the recipe needs of them.

    Raises:
        TrainerUsageError: The recipe asks for two things at once.
        EngineUsageError: The model has no such part to train.
    """
    if config.train_vision != "frozen" and config.stored != "embeddings":
        raise TrainerUsageError(
            f'stored="{config.stored}" with train_vision="{config.train_vision}", which decides what is stored; '
            "leave `stored` away, or freeze the vision"
        )
    policy.train_vision(config.train_vision)  # refused before a video is opened
    policy.freeze_vision()
    if policy.encoder is None:
        yield
        return
    contents: dict[VisionName, ContentChoice] = {"frozen": config.stored, "projector": "features", "all": "frames"}
    policy.encoder.content = contents[config.train_vision]
    try:
        yield
    finally:
        policy.encoder.content = "embeddings"


def open_step(
    policy: Policy, rows: Sequence[Sequence[Question]], known: QuestionSet, ranks: Ranks
) -> tuple[list[list[Question]], StepMedia]:
    """Make the embeddings that the questions of a step need and the store doesn't have; all ranks call it together.

    Args:
        policy: The model under training.
        rows: The questions of the step.
        known: Where they are from.
        ranks: Processes that share the work.

    Returns:
        The rows, their questions referring to embeddings of this step's weights, and what makes and lends these.
    """
    media = [medium for row in rows for question in row for medium in question.media]
    keys = dict.fromkeys(medium.key for medium in media if medium.key in known.plans)
    plans = rename_plans(policy, [known.plans[key] for key in keys])
    references = {key: plan.reference for key, plan in zip(keys, plans, strict=True)}
    renamed = [
        [replace(item, media=tuple(references.get(medium.key, medium) for medium in item.media)) for item in row]
        for row in rows
    ]
    return renamed, StepMedia(policy, plans, ranks.group)


def count_frames_encoded(policy: Policy) -> int:
    """Frames that have gone through the policy's tower so far, in this process."""
    return 0 if policy.encoder is None else policy.encoder.frames_encoded
