"""How often a question was answered rightly, and under which condition.

A condition is what a model is given besides the question. Answering under several of them shows what a question needs:
one that is right without the video, or from a single picture, teaches no watching; one that is wrong with everything in
view is mislabelled or can't be answered. Counts are kept instead of shares, so that chance can be told from skill.
"""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Count = Annotated[int, Field(ge=0)]


class Condition(StrEnum):
    """What the model is given besides the question."""

    BLIND = "blind"  # nothing
    CAPTIONS = "captions"  # descriptions of the segments, no picture
    SINGLE_FRAME = "single_frame"  # the picture in the middle of the video
    FEW_FRAMES = "few_frames"  # a few pictures spread over the video
    FULL = "full"  # many pictures spread over the video
    EVIDENCE = "evidence"  # pictures of the evidence intervals only
    SCRAMBLED = "scrambled"  # the same in another order and without their times
    REASONING = "reasoning"  # the recorded reasoning, no picture
    ROLLOUTS = "rollouts"  # as FULL, asked of the policy that is to be trained


class PassRate(BaseModel):
    """The answers of one model to one question under one condition.

    Attributes:
        condition: What the model was given.
        model: Who answered.
        num_asked: Answers that came, right or wrong; requests that failed aren't among them.
        num_right: Right ones.
        num_unanswered: Those that held no answer, or more than one.
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
