"""Which language model judges open answers, and what it may cost: settings of a reward, and of evaluations.

Imports nothing heavy, so that a command can show its settings at once.
"""

from pydantic import BaseModel, ConfigDict, Field


class JudgeLimits(BaseModel):
    """How a judge is asked, and what it may cost."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    patience_seconds: float = Field(default=900.0, gt=0, le=1e6)
    """The run saves its state and ends when no judgement has come for so long; with several processes it has to be less
    than `parallel.exchange_patience_seconds`, for which the others wait.
    """
    max_tokens: int = Field(default=1024, ge=1)
    """Most tokens of a judgement, with its reasoning."""
    num_parallel: int = Field(default=16, ge=1)
    """Most requests under way at a time."""
    num_attempts: int = Field(default=6, ge=1)
    """How often a request is sent before it counts as failed."""
    first_wait_seconds: float = Field(default=1.0, gt=0)
    """Wait before the second attempt, doubled each time."""
    timeout_seconds: float = Field(default=300.0, gt=0)
    """Longest wait for a judgement."""
    max_cost: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Most that all judgements of the run may cost; needs both prices."""
    prompt_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Price of a million tokens that the judge reads."""
    completion_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Price of a million tokens that it writes."""


class NamedJudge(BaseModel):
    """Where a judge is found."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    base_url: str
    """Address of the server up to and including `/v1`; its key is read from OPENAI_API_KEY."""
    model: str
    """Name of the model on the server."""


class JudgeSettings(JudgeLimits, NamedJudge):
    """A judge, and what it may cost."""
