"""What a rollout engine is given, what it returns, and what it needs of others.

A rollout carries the log-probability that each of its tokens had in the distribution it was really drawn from, after
temperature and nucleus. The module doesn't know which library samples.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from mrsp_engine.errors import EngineUsageError
from mrsp_engine.prompts import Prompt

__all__ = ["EmbeddingSource", "Rollout", "RolloutEngine", "SamplingSettings", "WeightSource", "language_weights"]

VISION_PREFIXES = ("visual.", "model.visual.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How responses are drawn.

    Attributes:
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_p: Draw from the smallest set of tokens that holds this share of the probability.
        max_tokens: Longest response.
        num_samples: Responses per prompt.
        seed: Makes one call of `generate` reproducible whatever came before; None continues the engine's own sequence.
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
        finished: Whether the model ended the response itself, rather than running out of tokens.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finished: bool


class EmbeddingSource(Protocol):
    """Where a rollout engine finds the embeddings a prompt refers to; `EmbeddingStore` is one."""

    @property
    def folder(self) -> Path:
        """Named in messages."""
        ...

    def get(self, key: str, /) -> Tensor | None:
        """The embedding with this digest, or None."""
        ...


class WeightSource(Protocol):
    """Where a rollout engine takes new weights from; every `Policy` is one."""

    def sampler_weights(self) -> Iterable[tuple[str, Tensor]]:
        """Names as in the checkpoint, and tensors."""
        ...


def language_weights(policy: WeightSource) -> Iterator[tuple[str, Tensor]]:
    """The weights that sampling from embeddings needs: all but those of the vision tower."""
    for name, tensor in policy.sampler_weights():
        if not name.startswith(VISION_PREFIXES):
            yield name, tensor.detach()


class RolloutEngine(Protocol):
    """Samples responses with the latest weights it was given."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[list[Rollout]]:
        """Draw `num_samples` responses to every prompt, in the order of the prompts."""
        ...

    def update_weights(self, policy: WeightSource) -> None:
        """Take over the policy's weights and forget everything computed with the old ones."""
        ...

    def close(self) -> None:
        """Free memory; the engine can't be used afterwards. Calling it twice is harmless."""
        ...
