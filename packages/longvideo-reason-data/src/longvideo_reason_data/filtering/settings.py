"""The settings of the filters, as strict models that load nothing heavy."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from longvideo_reason_data.records.pass_rates import Condition

Rate = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[int, Field(ge=1)]


class Thresholds(BaseModel):
    """Which pass rates a question may have.

    Guessing one of four options is right six times of eight in 4 of 1,000 questions, and five times in 27; so five of
    eight still counts as a question that couldn't be answered.

    Attributes:
        max_blind_rate: Maximum share of right answers without the video.
        max_single_frame_rate: Maximum share of right answers from the middle frame.
        max_captions_rate: Maximum share of right answers from descriptions; 1 to only measure it.
        min_seen_rate: Minimum share of right answers with the better of the full video and the evidence.
        min_rival_rate: Minimum share of answers for a second option that makes the question ambiguous, if together with
            the right one it has at least nine tenths of the answers.
        min_reasoning_rate: Minimum share of the judge's answers that must follow from the reasoning.
        fewest_right_rollouts: With fewer right ones a question is too hard for reinforcement learning.
        most_right_rollouts: With more right ones it is too easy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_blind_rate: Rate = 0.625
    max_single_frame_rate: Rate = 0.625
    max_captions_rate: Rate = 1.0
    min_seen_rate: Rate = 0.75
    min_rival_rate: Rate = 0.25
    min_reasoning_rate: Rate = 0.75
    fewest_right_rollouts: Annotated[int, Field(ge=0)] = 1
    most_right_rollouts: Number = 7

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.fewest_right_rollouts > self.most_right_rollouts:
            raise ValueError(
                f"fewest_right_rollouts is {self.fewest_right_rollouts}, expected at most most_right_rollouts "
                f"({self.most_right_rollouts})"
            )
        return self


class FilterSettings(BaseModel):
    """Settings of the filters that have a default.

    Attributes:
        conditions: Conditions under which questions are answered; by default those that can drop a question under the
            thresholds. Named ones are measured whether they decide or not; decisive ones come first, whatever the order
            here.
        num_samples: Answers per question and condition; the options are rotated by one position for each.
        num_judge_samples: Answers of the judge per reasoning.
        num_rollouts: Answers of the policy per question.
        num_full_frames: Frames of the whole video.
        num_few_frames: Frames of the whole video in the condition with few frames.
        num_evidence_frames: Frames of all evidence intervals together, at least one for each.
        max_side: Longest side of a frame in pixels; larger ones are shrunk.
        jpeg_quality: JPEG quality of a frame, up to 100.
        max_tokens: Maximum tokens of an answer, including reasoning.
        temperature: Sampling temperature; 0 for the most likely answer.
        rollout_temperature: Sampling temperature of the policy's answers, as in training.
        thresholds: Which pass rates a question may have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    conditions: tuple[Condition, ...] | None = None
    num_samples: Number = 8
    num_judge_samples: Number = 4
    num_rollouts: Number = 8
    num_full_frames: Annotated[int, Field(ge=1, le=8192)] = 64
    num_few_frames: Annotated[int, Field(ge=1, le=8192)] = 8
    num_evidence_frames: Annotated[int, Field(ge=1, le=8192)] = 16
    max_side: Annotated[int, Field(ge=32, le=4096)] = 448
    jpeg_quality: Annotated[int, Field(ge=10, le=95)] = 85
    max_tokens: Number = 1024
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    rollout_temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    thresholds: Thresholds = Thresholds()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        others = {Condition.REASONING, Condition.ROLLOUTS}.intersection(self.conditions or ())
        if others:
            raise ValueError(
                f"conditions names {', '.join(sorted(others))}, which are measured with a judge and a policy; name "
                "those with --judge and --policy"
            )
        if self.thresholds.most_right_rollouts > self.num_rollouts:
            raise ValueError(
                f"most_right_rollouts is {self.thresholds.most_right_rollouts}, expected at most num_rollouts "
                f"({self.num_rollouts})"
            )
        return self

    @property
    def asked_conditions(self) -> frozenset[Condition]:
        """The conditions that are asked for, apart from those of a judge and a policy."""
        return self.deciding_conditions if self.conditions is None else frozenset(self.conditions)

    @property
    def deciding_conditions(self) -> frozenset[Condition]:
        """Those of them that can drop a question; a share of right answers is never above 1."""
        limits = {
            Condition.BLIND: self.thresholds.max_blind_rate,
            Condition.SINGLE_FRAME: self.thresholds.max_single_frame_rate,
            Condition.CAPTIONS: self.thresholds.max_captions_rate,
        }
        never = {condition for condition, most in limits.items() if most >= 1}
        return frozenset({*limits, Condition.FULL, Condition.EVIDENCE} - never)

    @property
    def asks_reasoning(self) -> bool:
        """Whether a judge's answers from the reasoning can drop a question."""
        return self.thresholds.min_reasoning_rate > 0
