"""The settings of measuring accuracy on held-out questions while training.

They are the settings of `longrl evaluate` that make sense during a run; the rest (model, dataset, what is shown of
media, dtype) is the run's own. Imports nothing heavy.
"""

from typing import Annotated

from pydantic import Field

from longrl_trainer.config.effects import Effect
from longrl_trainer.config.sections import DataSection, RewardWeights, Section, SplitName

RULES = ("answer", "numeric", "mean_relative_accuracy", "word_error_rate", "temporal_iou")
"""The rewards that compare an answer by a rule and need nothing besides, each for questions of one type."""


class HeldOutSection(Section):
    """How often, and on which questions, the model in training is evaluated."""

    every_steps: Annotated[int, Effect.NONE] = Field(default=0, ge=0)
    """Steps between evaluations on the same held-out questions; 0 for none. The first is before the first step. The
    state is saved with each after that, and the one with the highest accuracy stays. Training itself is the same with
    and without.
    """
    split: SplitName = "held_out"
    """The split of the dataset that is asked."""
    num_questions: int = Field(default=256, ge=1)
    """Ask at most this many questions, spread evenly over the split."""
    num_frames: int | None = Field(default=None, ge=1)
    """Frames per video, spread evenly; by default frames are chosen as for training."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 selects the most probable token."""
    max_response_tokens: int | None = Field(default=None, ge=1)
    """Maximum tokens of a response; by default as in training, and 1024 in sft."""
    rewards: RewardWeights = Field(default=dict.fromkeys(RULES, 1.0))
    """What judges the answers; the accuracy is the mean of their sum by weight."""

    def data_of(self, training: DataSection) -> DataSection:
        """The questions that are asked, given those that are trained on."""
        update: dict[str, object] = {"split": self.split}
        if self.num_frames is not None:
            update |= {"num_frames": self.num_frames, "fps": None, "min_frames": None, "max_frames": None}
        return training.model_copy(update=update)
