"""How often a question was answered correctly, under each condition.

A condition is what a model gets in addition to the question. Answers under several of them show what a question needs:
one that is answered without the video, or from a single frame, doesn't teach watching; one that is answered wrongly
with the full video is mislabelled or unanswerable. Counts are stored instead of shares, so that chance can be
distinguished from skill.
"""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Count = Annotated[int, Field(ge=0)]


class Condition(StrEnum):
    """What the model gets in addition to the question."""

    BLIND = "blind"  # nothing
    CAPTIONS = "captions"  # descriptions of the segments, no frames
    SINGLE_FRAME = "single_frame"  # the frame in the middle of the video
    FEW_FRAMES = "few_frames"  # a few frames spread over the video
    FULL = "full"  # many frames spread over the video
    EVIDENCE = "evidence"  # frames of the evidence intervals only
    SCRAMBLED = "scrambled"  # the same in another order and without their times
    REASONING = "reasoning"  # the recorded reasoning, no frames
    ROLLOUTS = "rollouts"  # like FULL, but answered by the policy to be trained


class PassRate(BaseModel):
    """The answers of one model to one question under one condition.

    Attributes:
        condition: What the model got.
        model: Name of the model.
        num_asked: Number of answers received, right or wrong, without failed requests.
        num_right: Number of right answers.
        num_unanswered: Number of responses with no answer, or more than one.
        num_chosen: How often each option was chosen, in the order of the record's options; empty for open questions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    condition: Condition
    model: Annotated[str, StringConstraints(min_length=1)]
    num_asked: Annotated[int, Field(ge=1)]
    num_right: Count
    num_unanswered: Count
    num_chosen: tuple[Count, ...] = ()

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.num_right + self.num_unanswered > self.num_asked:
            raise ValueError(
                f"{self.num_right} right and {self.num_unanswered} unanswered are more than {self.num_asked} asked"
            )
        if self.num_chosen and sum(self.num_chosen) + self.num_unanswered != self.num_asked:
            raise ValueError(f"the options were chosen {sum(self.num_chosen)} times in {self.num_asked} answers")
        return self

    @property
    def rate(self) -> float:
        """Share of right answers, from 0 to 1."""
        return self.num_right / self.num_asked
