"""The forward pass of training as one module: embed a packed row, run the decoder, score the tokens that count.

Whatever attaches to modules (sharded weights, adapters, recomputation, compilation) acts in the `forward` of a module
and sees nothing that is called past it. So all training goes through `RowScorer.forward`, and nothing outside calls the
embedding, the decoder or the head one by one.

Shape legend: S tokens of a row, L tokens this rank owns, N scored tokens, D hidden size, V vocabulary.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mrsp_engine.attention.plan import SequenceShards, plan_attention
from mrsp_engine.attention.split import AttentionSettings
from mrsp_engine.distributed.collectives import gather_results, swap
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.families.base import Policy
from mrsp_engine.rows import PackedRow

LOGIT_BYTES = {"cpu": 64 << 20, "cuda": 128 << 20}
"""Maximum bytes of one chunk's logits; what is computed from them takes a few times as much. Lower values are bad on
CPUs: blocks below 32 MiB come from glibc's heap, which they fragment until the process holds many times the memory in
use.
"""


class RowScorer(nn.Module):
    """Scores packed rows with a policy's model, which it owns like any module its parts.

    Args:
        policy: The model, and how it embeds prompts.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.model = policy.model
        self._policy = policy
        self._recomputed: list[nn.Module] = []

    def recompute_layers(self, *, offload: bool = False) -> None:
        """Recompute each decoder layer's activations in the backward pass, from its input.

        Args:
            offload: Keep these inputs in pinned host memory.
        """
        model = cast(Any, self._policy.causal_model)
        model.gradient_checkpointing_enable(offload=offload)
        # By default a frozen embedding's output also gets a gradient, which costs memory and is needed by nobody.
        model.disable_input_require_grads()
        self._recomputed = list(self._policy.decoder.get_submodule("layers").children())

    def forward(
        self,
        row: PackedRow,
        *,
        temperature: float = 1.0,
        is_plain: bool = False,
        group: SequenceGroup | None = None,
        attention: AttentionSettings | None = None,
        chunk_tokens: int | None = None,
        trains_entropy: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of every scored token of the row, and entropy of the distribution of each: [N] and [N].

        Args:
            row: The row, the same on every rank of the group.
            temperature: Divides the logits.
            is_plain: Run the model's ordinary forward pass, without the engine's attention: one prompt with one branch.
            group: Ranks among which the row is split.
            attention: How they divide it; what isn't set is chosen.
            chunk_tokens: Scored tokens whose logits exist at the same time; chosen from the vocabulary size if None.
            trains_entropy: Whether the entropies have a gradient too.

        Raises:
            EngineUsageError: The attention settings are impossible on these ranks, or the row is too short for them.
        """
        policy = self._policy
        assert policy.unread is None, "a model that was loaded with `is_spread_later` wasn't spread"
        plan = None
        if not is_plain:
            plan = plan_attention(
                row.layout,
                policy.attention_heads,
                group=group,
                settings=attention,
                device=policy.device,
                device_type=policy.device_type,
                dtype=policy.dtype,
            )
        shards = None if plan is None else plan.shards
        num_chunks = _count_chunks(policy, len(row.targets), 1 if shards is None else shards.group.size, chunk_tokens)
        if shards is None:
            with self._recomputing():
                hidden = policy.hidden_states(row.embed(policy), row.positions, plan)
            return token_logprobs(
                hidden[row.predictors],
                row.targets,
                policy.language_model_head,
                temperature,
                num_chunks=num_chunks,
                trains_entropy=trains_entropy,
            )
        own = shards.own_tokens
        with self._recomputing():
            hidden = policy.hidden_states(row.embed(policy, own), row.positions[:, own], plan)
        head = policy.language_model_head
        return _score_evenly(hidden, row, shards, head, temperature, num_chunks, trains_entropy)

    @contextmanager
    def _recomputing(self) -> Generator[None]:
        """Transformers recomputes layers in training mode only, in which they would lose a sampler's cache."""
        modes = [layer.training for layer in self._recomputed]
        for layer in self._recomputed:
            layer.training = True  # of the layer alone: nothing inside drops anything
        try:
            yield
        finally:
            for layer, mode in zip(self._recomputed, modes, strict=True):
                layer.training = mode


def row_scorer_of(policy: Policy) -> RowScorer:
    """The policy's only scorer, which exists from the first call on."""
    if not isinstance(policy.row_scorer, RowScorer) or policy.row_scorer.model is not policy.model:
        policy.row_scorer = RowScorer(policy)
    return policy.row_scorer


def token_logprobs(
    hidden: Tensor,
    targets: Tensor,
    head: nn.Module,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    num_chunks: int | None = None,
    *,
    trains_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution: hidden [N, D], targets [N] to [N] and [N].

    Logits exist for `chunk_tokens` tokens at a time, in at least float32. With a single chunk they are kept for the
    backward pass; with more they are recomputed there. `num_chunks` sets their number, so that ranks with unequal N can
    call the head equally often. The entropies have a gradient with `trains_entropy` only.
    """
    num_chunks = max(1, -(-len(targets) // chunk_tokens)) if num_chunks is None else num_chunks
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    for of_hidden, of_targets in zip(hidden.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True):
        entropy: list[Tensor] = []
        inputs = (of_hidden, of_targets, head, temperature, None if trains_entropy else entropy)
        if num_chunks == 1:
            of_chunk, differentiable = _score_chunk(*inputs)
        else:
            of_chunk, differentiable = checkpoint(_score_chunk, *inputs, use_reentrant=False, preserve_rng_state=False)
        logprobs.append(of_chunk)
        entropies.append(entropy[0] if differentiable is None else differentiable)
    return torch.cat(logprobs), torch.cat(entropies)


def _count_chunks(policy: Policy, num_pairs: int, num_shares: int, chunk_tokens: int | None) -> int:
    """How often the head is called for the largest share of the tokens; equally often on ranks that gather it."""
    if chunk_tokens is None:
        item_bytes = max(policy.dtype.itemsize, torch.float32.itemsize)
        budget = LOGIT_BYTES.get(policy.device_type, LOGIT_BYTES["cuda"])
        chunk_tokens = max(1, budget // (policy.vocab_size * item_bytes))
    num_chunks = max(1, -(-num_pairs // (num_shares * chunk_tokens)))
    return num_chunks if policy.joint_passes is None else policy.joint_passes.largest(num_chunks)


def _score_evenly(
    hidden: Tensor,
    row: PackedRow,
    shards: SequenceShards,
    head: nn.Module,
    temperature: float,
    num_chunks: int,
    trains_entropy: bool,
) -> tuple[Tensor, Tensor]:
    """Score an equal share of the tokens on every rank, wherever their hidden states [L, D] are, and exchange results.

    A rank may own no predicting token, or score none; it still takes part in every exchange, forward and backward.
    """
    group, num_pairs = shards.group, len(row.targets)
    bounds = [num_pairs * rank // group.size for rank in range(group.size + 1)]
    shares = [slice(bounds[rank], bounds[rank + 1]) for rank in range(group.size)]
    owners = shards.owners[row.predictors]
    local = torch.searchsorted(shards.own_tokens.cpu(), row.predictors)
    pieces = [hidden[local[share][owners[share] == group.rank].to(hidden.device)] for share in shares]
    own_share = shares[group.rank]
    rows: list[int] = torch.bincount(owners[own_share], minlength=group.size).tolist()
    # They arrive rank by rank; `arrival` restores their order.
    arrival = torch.argsort(torch.argsort(owners[own_share], stable=True)).to(hidden.device)
    chosen = torch.cat(swap(pieces, rows, group)).index_select(0, arrival)
    lengths = [share.stop - share.start for share in shares]
    logprobs_N, entropies_N = token_logprobs(
        chosen, row.targets[own_share], head, temperature, num_chunks=num_chunks, trains_entropy=trains_entropy
    )
    whole = gather_results(torch.stack((logprobs_N, entropies_N.to(logprobs_N.dtype)), dim=1), lengths, group)
    entropies = whole[:, 1].clone()
    return whole[:, 0].clone(), entropies if trains_entropy else entropies.detach()


def _score_chunk(
    hidden: Tensor, targets: Tensor, head: nn.Module, temperature: float, entropies: list[Tensor] | None
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of a chunk, and entropies with a gradient if there is no list for them.

    They are appended only to an empty list, so recomputation adds none.
    """
    logits = head(hidden)  # [N, V]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        logits = logits / temperature
    distribution = torch.log_softmax(logits, dim=-1)
    differentiable = None
    if entropies is None:
        differentiable = -(distribution.exp() * distribution).sum(-1)
    elif not entropies:
        with torch.no_grad():
            entropies.append(-distribution.exp().mul_(distribution).sum(-1))
    return distribution.gather(1, targets[:, None]).squeeze(1), differentiable
