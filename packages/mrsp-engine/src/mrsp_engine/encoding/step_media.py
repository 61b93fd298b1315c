"""The media of one step whose embeddings are computed in the step, because the store keeps features or frames instead.

That is the case where the projector or the tower is trained, and where frames are kept because they are smaller. Each
medium is encoded once: the sampler and every pass over every row use the same embeddings. Rows are differentiated one
after the other, so their gradients first add up in the embeddings and then go through the encoder together, once.

The name of a step's embeddings depends on that step's weights, so a sampler that caches by name never uses old ones.

Shape legend: N embedding rows of a medium, D their width.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.frame_encoder import EncodingPlan, FrameEncoder
from mrsp_engine.encoding.parallel import encode_stored

__all__ = ["HasEncoder", "StepMedia", "rename_plans"]


class HasEncoder(Protocol):
    """What this module needs of a policy: its encoder, None for text models, and its store."""

    @property
    def encoder(self) -> FrameEncoder | None:
        """Encodes frames with the current weights."""
        ...

    @property
    def store(self) -> EmbeddingStore:
        """Keeps the features or frames that embeddings are computed from, and lends the embeddings."""
        ...


def rename_plans(policy: HasEncoder, plans: Sequence[EncodingPlan]) -> list[EncodingPlan]:
    """The same plans, with the names that the embeddings have under the encoder's current weights."""
    if policy.encoder is None or not plans:
        return []
    fingerprint = policy.encoder.fingerprint()
    return [replace(plan, embedding_key=replace(plan.embedding_key, encoder_fingerprint=fingerprint)) for plan in plans]


class StepMedia:
    """The embeddings of a step, computed when the object is created. Without plans, all methods do nothing.

    Args:
        policy: Its encoder computes the embeddings; its store holds what they are computed from and lends them.
        plans: What to encode, and under which names. Another policy than the one in training, such as the reference,
            may use the same plans: it then lends its own embeddings under the names that the step's prompts use.
        group: The ranks that share the work; all must call the same methods.

    Raises:
        EngineError: The store has lost what an embedding is made from.
    """

    def __init__(self, policy: HasEncoder, plans: Sequence[EncodingPlan], group: SequenceGroup | None = None) -> None:
        self._policy = policy
        self.plans = tuple(plans)
        self._group = group
        self.encode()

    @classmethod
    def joined(cls, parts: Sequence["StepMedia"], names: Collection[str]) -> "StepMedia":
        """Those of the media of several objects of one policy that have these names, without encoding them again."""
        if len(parts) == 1:
            return parts[0]
        whole = cls(parts[0]._policy, [], parts[0]._group)
        plans = {plan.reference.key: plan for part in parts for plan in part.plans}
        whole.plans = tuple(plan for name, plan in plans.items() if name in names)
        for part in parts:
            whole._made |= {name: rows for name, rows in part._made.items() if name in names}
            whole._lent |= {name: rows for name, rows in part._lent.items() if name in names}
        return whole

    def encode(self) -> None:
        """Recompute the embeddings [N, D] under the same names, after the weights have changed within the step."""
        self._made: dict[str, Tensor] = {}
        encoder = self._policy.encoder
        if encoder is not None and self.plans:
            is_trained = any(parameter.requires_grad for parameter in encoder.parts.parameters())
            with torch.set_grad_enabled(is_trained and torch.is_grad_enabled()):
                self._made = encode_stored(encoder, self.plans, self._policy.store, self._group)
        self._lent = {name: rows.detach().requires_grad_(rows.requires_grad) for name, rows in self._made.items()}

    def lend(self, *, with_gradients: bool = False) -> AbstractContextManager[None]:
        """Lend the embeddings to the store within a `with` block, and collect their gradients if requested."""
        lent = self._lent if with_gradients else {name: rows.detach() for name, rows in self._lent.items()}
        return self._policy.store.lend(lent)

    def backward(self) -> None:
        """Propagate the collected gradients through the encoder, on all ranks together."""
        trained = [(rows, self._lent[name]) for name, rows in self._made.items() if rows.requires_grad]
        if not trained:
            return
        # Without a gradient on this rank there may be one on another, and all have to take part.
        gradients = [torch.zeros_like(lent) if lent.grad is None else lent.grad for _, lent in trained]
        torch.autograd.backward([rows for rows, _ in trained], gradients)
        for _, lent in trained:
            lent.grad = None
