"""A question on its way to becoming a record, as a language model proposes it.

A model's output is validated here before it is used.
"""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.record import NUM_OPTIONS, Interval

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class ReasoningStep(Interval):
    """An observation in a time range, and the conclusion from it."""

    thought: Text


class _QuestionFields(BaseModel):
    """A question with four options and a letter as its answer, or without options and with free text."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    question: Text
    evidence: Annotated[tuple[Interval, ...], Field(min_length=1)]
    options: tuple[Text, ...] = ()
    answer: Text

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.options and len(self.options) != NUM_OPTIONS:
            raise ValueError(f"{len(self.options)} options, expected {NUM_OPTIONS} or none")
        if self.options and self.answer not in tuple(LETTERS[:NUM_OPTIONS]):
            raise ValueError(f"answer {self.answer!r}, expected one letter of {LETTERS[:NUM_OPTIONS]}")
        return self


class QuestionProposal(_QuestionFields):
    """The reasoner's output, with reasoning grouped by time range."""

    reasoning: Annotated[tuple[ReasoningStep, ...], Field(min_length=1)]


class QuestionDraft(_QuestionFields):
    """A question whose reasoning is one text."""

    reasoning: Text
