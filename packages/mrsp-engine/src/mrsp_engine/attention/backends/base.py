"""Backends of attention: one block of queries against one block of keys, with its log-sum-exp, forward and backward.

The log-sum-exp is what lets blocks be joined exactly. The backward pass receives the output and log-sum-exp of the
*joined* result: with them each block's probabilities are its share of the whole, and the gradients of the blocks simply
add up.

A backend is a class without arguments behind an entry point of the group `mrsp_engine.attention`. Among those that
support the given tensors, the one with the highest preference is used, unless one is named.

Shape legend: K key heads, N query heads per key head, Q queries, T keys, C head channels.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Protocol, cast

from torch import Tensor

from mrsp_engine.errors import EngineUsageError

ENTRY_POINT_GROUP = "mrsp_engine.attention"

Part = tuple[Tensor, Tensor]
"""The result of a block: output [K, N, Q, C] and log-sum-exp [K, N, Q]."""

Gradients = tuple[Tensor, Tensor, Tensor]
"""Gradients of query, key and value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Queries, and the keys and values they attend to.

    Attributes:
        query: [K, N, Q, C].
        key: [K, T, C].
        value: [K, T, C].
        causal: Whether a query attends only to keys up to its own position; queries and keys are then the same tokens.
        scale: Factor of the scores.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    causal: bool
    scale: float


class AttentionBackend(Protocol):
    """Forward and backward of one block."""

    @property
    def preference(self) -> int:
        """Among the backends that support the tensors, the highest wins."""
        ...

    def refusal(self, query: Tensor) -> str | None:
        """Why tensors like this (device, dtype, channels) can't be computed here; None if they can."""
        ...

    def forward(self, block: Block) -> Part:
        """The block's own output and log-sum-exp."""
        ...

    def backward(self, block: Block, gradient: Tensor, output: Tensor, logsumexp: Tensor) -> Gradients:
        """The block's part of the gradients, given `gradient`, `output` and `logsumexp` of the joined result."""
        ...


def choose_backend(query: Tensor, name: str | None = None) -> AttentionBackend:
    """Return the backend called `name`, or the best one for tensors like `query`.

    Raises:
        EngineUsageError: There is no such backend, or none supports the tensors.
    """
    backends = load_backends()
    if name is not None:
        if name not in backends:
            raise EngineUsageError(f"attention backend {name!r}: expected one of {', '.join(sorted(backends))}")
        reason = backends[name].refusal(query)
        if reason is not None:
            raise EngineUsageError(f"attention backend {name!r} {reason}; set another backend, or none to choose one")
        return backends[name]
    accepting = [backend for backend in backends.values() if backend.refusal(query) is None]
    if not accepting:
        raise EngineUsageError(
            f"no attention backend for {query.dtype} on {query.device.type} with {query.shape[-1]} channels; "
            f"installed are {', '.join(sorted(backends))}"
        )
    return max(accepting, key=lambda backend: backend.preference)


@cache
def load_backends() -> dict[str, AttentionBackend]:
    """Every installed backend by the name of its entry point."""
    return {entry.name: cast(AttentionBackend, entry.load()()) for entry in entry_points(group=ENTRY_POINT_GROUP)}
