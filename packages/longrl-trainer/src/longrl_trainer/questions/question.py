"""A question with its encoded media, the reasons for dropping one, and its prompt."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from longvideo_reason_data.records.answers import format_prompt
from longvideo_reason_data.records.record import QuestionRecord
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.encoding.frame_encoder import EncodingPlan
from mrsp_engine.families.base import Policy
from mrsp_engine.prompts import Prompt


class DropReason(StrEnum):
    """Why a question was dropped."""

    UNREADABLE_VIDEO = "unreadable_video"
    """A video or image is missing, outside the dataset, of another kind, or damaged."""
    DIGEST_MISMATCH = "digest_mismatch"
    """A file is not the one that the question was written for."""
    NO_REWARD = "no_reward"
    """No reward of the recipe judges answers to questions of its type."""
    UNFIT_MEDIUM = "unfit_medium"
    """The model can't accept a video or image, because of its kind, its shape or its number of frames."""
    PROMPT_TOO_LONG = "prompt_too_long"
    """With its response, longer than the model was trained for, or than the sampler has memory for."""
    CONTROL_TOKEN = "control_token"
    """A text contains a control token of the model."""
    MALFORMED_RESPONSE = "malformed_response"
    """Reasoning and answer don't make a well-formed response to learn from; the reasoning may be empty."""

    @classmethod
    def _missing_(cls, value: object) -> "DropReason | None":
        return cls.NO_REWARD if value == "open_ended" else None  # its name in runs of earlier versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A record and its encoded media in the order in which they are shown; no media when it is asked blind."""

    record: QuestionRecord
    media: tuple[MediaReference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedQuestion:
    """A question that was dropped."""

    question_id: str
    reason: DropReason
    detail: str
    found_before_step: int | None = None
    """The step (from 1) that would have used it; None for what was dropped before the first step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedMedium:
    """Why no question about a file can be used."""

    reason: DropReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSet:
    """The questions of a split."""

    kept: tuple[Question, ...]
    dropped: tuple[DroppedQuestion, ...]
    plans: Mapping[str, EncodingPlan]
    """Plans for encoding media whose embeddings aren't stored, by the key of their references."""
    longest_prompt: int
    """Tokens of the longest prompt built from them."""

    def counts(self) -> dict[str, Any]:
        """Number of questions: `input` = `kept` + the sum of `dropped` over its reasons."""
        return {
            "input": len(self.kept) + len(self.dropped),
            "kept": len(self.kept),
            "dropped": dict(sorted(Counter(str(question.reason) for question in self.dropped).items())),
        }

    def report(self) -> dict[str, Any]:
        """The counts, and every dropped question with its reason."""
        return {**self.counts(), "dropped_questions": [asdict(question) for question in self.dropped]}


def build_question_prompt(policy: Policy, question: Question, system: str | None) -> Prompt:
    """The prompt of one question, used by both sampler and trainer."""
    record = question.record
    return policy.build_prompt(format_prompt(record.question, record.options), question.media, system=system)
