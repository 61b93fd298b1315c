"""The inputs of a rollout engine, its outputs, and the interfaces it needs.

A rollout has the log-probability of each token under the distribution it was actually drawn from, after temperature and
top-p. A prompt that can't be sampled gets a refusal instead of rollouts, so that one bad sample doesn't lose the others
and every sample is accounted for. The module is independent of the sampling library.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from mrsp_engine.distributed.sharded_weights import whole_tensor
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.prompts import Prompt

__all__ = [
    "AdapterSource",
    "CountsWeights",
    "EmbeddingSource",
    "Refusal",
    "RefusalReason",
    "Rollout",
    "RolloutEngine",
    "SamplingSettings",
    "WeightSource",
    "count_received",
    "language_weights",
    "require_rollouts",
]

VISION_PREFIXES = ("visual.", "model.visual.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How responses are drawn.

    Attributes:
        temperature: Divides the logits; 0 always selects the most likely token.
        top_p: Draw from the smallest set of tokens with this share of the probability.
        max_tokens: Maximum tokens of a response.
        num_samples: Responses per prompt.
        seed: Makes one call of `generate` reproducible whatever came before; None continues the engine's own random
            sequence.
    """

    temperature: float
    max_tokens: int
    top_p: float = 1.0
    num_samples: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise EngineUsageError(f"temperature={self.temperature}: expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise EngineUsageError(f"top_p={self.top_p}: expected more than 0 and at most 1")
        for name in ("max_tokens", "num_samples"):
            if getattr(self, name) < 1:
                raise EngineUsageError(f"{name}={getattr(self, name)}: expected 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled response.

    Attributes:
        token_ids: Its tokens, the end token included if it was reached.
        logprobs: The log-probability of each token.
        text: The text without special tokens.
        finished: Whether the model ended the response itself, rather than reaching `max_tokens`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finished: bool


class RefusalReason(StrEnum):
    """Why a prompt got no responses."""

    PROMPT_TOO_LONG = "prompt_too_long"
    EMBEDDING_UNUSABLE = "embedding_unusable"
    SAMPLER_GAVE_UP = "sampler_gave_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What a prompt gets instead of responses.

    Attributes:
        reason: For counting.
        message: One line for people: what was found, what was expected, which setting to change.
    """

    reason: RefusalReason
    message: str


def require_rollouts(outcome: list[Rollout] | Refusal) -> list[Rollout]:
    """Return the responses of a prompt that must not be refused.

    Raises:
        EngineError: It was refused.
    """
    if isinstance(outcome, Refusal):
        raise EngineError(outcome.message)
    return outcome


class EmbeddingSource(Protocol):
    """Where a rollout engine finds the embeddings that a prompt refers to, such as `EmbeddingStore`."""

    @property
    def folder(self) -> Path:
        """The folder, named in messages."""
        ...

    def get(self, key: str, /) -> Tensor | None:
        """The embedding with this digest, or None."""
        ...


class WeightSource(Protocol):
    """Where a rollout engine gets new weights from, such as any `Policy`."""

    def sampler_weights(self) -> Iterable[tuple[str, Tensor]]:
        """Yield names as in the checkpoint, and tensors."""
        ...


@runtime_checkable
class AdapterSource(Protocol):
    """Where a rollout engine that keeps the base weights gets new adapters from, such as a `Policy` that has some."""

    def save_adapter(self, folder: Path, /) -> None:
        """Write them into an empty folder, in PEFT's layout."""
        ...


def language_weights(policy: WeightSource) -> Iterator[tuple[str, Tensor]]:
    """The weights needed to sample from embeddings: all except those of the vision tower, each one complete.

    A sharded weight is gathered when its turn comes, so all its ranks must iterate together.
    """
    for name, tensor in policy.sampler_weights():
        if not name.startswith(VISION_PREFIXES):
            yield name, whole_tensor(tensor.detach())


class RolloutEngine(Protocol):
    """Samples responses with the latest weights it received."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[list[Rollout] | Refusal]:
        """Draw `num_samples` responses to every prompt, or return a refusal, in the order of the prompts."""
        ...

    def update_weights(self, policy: WeightSource) -> None:
        """Load the policy's weights and discard everything computed with the old ones."""
        ...

    def sleep(self) -> None:
        """Release device memory while something else needs it; `update_weights` wakes the engine."""
        ...

    def close(self) -> None:
        """Free memory; the engine can't be used afterwards. Calling it twice is harmless."""
        ...


@runtime_checkable
class CountsWeights(Protocol):
    """A rollout engine that knows how much it was given."""

    @property
    def bytes_received(self) -> int | None:
        """Bytes of the weights, or of the adapters, of all updates so far; None if that isn't known."""
        ...


def count_received(engine: RolloutEngine) -> int | None:
    """Bytes that an engine got in all updates so far; None if it doesn't count them."""
    return engine.bytes_received if isinstance(engine, CountsWeights) else None
