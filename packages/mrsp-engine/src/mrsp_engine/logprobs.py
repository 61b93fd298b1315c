"""Log-probabilities of responses, the prompt they share computed once.

The G branches of a group form one packed row after their prompt. Because attention is causal, the prompt's activations
do not depend on any branch, so one copy serves all of them, and gradients from the branches add up: the result equals
that of G separate rows exactly. `share_prompt=False` computes those separate rows instead; on one rank with the model's
ordinary forward pass, which is the reference that everything else is tested against.

With a sequence group every rank calls with the same arguments, computes the tokens it owns, and returns the complete
result. The caller computes the same loss on every rank and calls backward on every rank; each then holds its share of
the parameter gradients, and `collectives.sum_gradients` adds the shares. The loss must not be scaled.

Shape legend: S tokens of a row, L tokens this rank owns, N scored tokens, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mrsp_engine.attention.plan import SequenceShards, plan_attention
from mrsp_engine.attention.split import AttentionSettings
from mrsp_engine.distributed.collectives import gather_results, swap
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch, pack_rows
from mrsp_engine.prompts import Prompt
from mrsp_engine.rows import PackedRow, PromptGroup

LOGIT_BYTES = {"cpu": 64 << 20, "cuda": 128 << 20}
"""Maximum bytes of one chunk's logits; what is computed from them takes a few times as much. Lower values are bad on
CPUs: blocks below 32 MiB come from glibc's heap, which they fragment until the process holds many times the memory in
use.
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BranchScores:
    """One entry per branch, each over the branch's scored tokens.

    Attributes:
        logprobs: Log-probability of every scored token, differentiable.
        entropies: Entropy of the distribution of each, in nats, without gradient.
    """

    logprobs: list[Tensor]
    entropies: list[Tensor]


def score_branches(
    policy: Policy,
    prompt: Prompt,
    branches: Sequence[Branch],
    *,
    temperature: float = 1.0,
    share_prompt: bool = True,
    sequence_group: SequenceGroup | None = None,
    attention: AttentionSettings | None = None,
    chunk_tokens: int | None = None,
    prompt_embeddings: Tensor | None = None,
) -> BranchScores:
    """Score the tokens of every branch of one group; see `score_groups`."""
    group = PromptGroup(prompt=prompt, branches=branches, prompt_embeddings=prompt_embeddings)
    return score_groups(
        policy,
        [group],
        temperature=temperature,
        share_prompt=share_prompt,
        sequence_group=sequence_group,
        attention=attention,
        chunk_tokens=chunk_tokens,
    )[0]


def score_groups(
    policy: Policy,
    groups: Sequence[PromptGroup],
    *,
    temperature: float = 1.0,
    share_prompt: bool = True,
    row_tokens: int | None = None,
    sequence_group: SequenceGroup | None = None,
    attention: AttentionSettings | None = None,
    chunk_tokens: int | None = None,
) -> list[BranchScores]:
    """Score the tokens of every branch of every group.

    Args:
        policy: The model.
        groups: Prompts with their branches, of any lengths and with any media.
        temperature: Divides the logits, as when the branches were sampled.
        share_prompt: Compute a prompt once; otherwise once per branch.
        row_tokens: Pack groups into shared rows of at most this many tokens; None gives every group its own row.
        sequence_group: Ranks among which every row is split.
        attention: Settings; what isn't set is chosen per row.
        chunk_tokens: Scored tokens whose logits exist at the same time, chosen from the vocabulary size if None; with
            more tokens, logits are recomputed in the backward pass.

    Raises:
        EngineUsageError: The attention settings are impossible on these ranks.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: expected a positive number (score greedy samples at 1.0)")
    if sequence_group is None:
        groups = [_with_embeddings(policy, group) for group in groups]
    parts = groups if share_prompt else [replace(g, branches=[branch]) for g in groups for branch in g.branches]
    is_plain = not share_prompt and sequence_group is None and row_tokens is None
    scores: list[list[tuple[Tensor, Tensor]]] = [[] for _ in parts]
    for members in pack_rows([part.lengths.total for part in parts], row_tokens):
        row = PackedRow.of([parts[member] for member in members], policy.device)
        head = _Head(policy, temperature, chunk_tokens)
        logprobs_N, entropies_N = (
            _score_plain(policy, row, head) if is_plain else _score_packed(policy, row, head, sequence_group, attention)
        )
        of_branches = zip(logprobs_N.split(row.num_scored), entropies_N.split(row.num_scored), strict=True)
        for member in members:
            scores[member] = [next(of_branches) for _ in parts[member].branches]
    flat = iter([pair for of_part in scores for pair in of_part])
    of_groups = [[next(flat) for _ in group.branches] for group in groups]
    return [
        BranchScores(logprobs=[pair[0] for pair in pairs], entropies=[pair[1] for pair in pairs]) for pairs in of_groups
    ]


def token_logprobs(
    hidden: Tensor,
    targets: Tensor,
    head: nn.Module,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    num_chunks: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution: hidden [N, D], targets [N] to [N] and [N].

    Logits exist for `chunk_tokens` tokens at a time, in at least float32. With a single chunk they are kept for the
    backward pass; with more they are recomputed there. `num_chunks` sets their number, so that ranks with unequal N can
    call the head equally often.
    """
    num_chunks = max(1, -(-len(targets) // chunk_tokens)) if num_chunks is None else num_chunks
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    for of_hidden, of_targets in zip(hidden.tensor_split(num_chunks), targets.tensor_split(num_chunks), strict=True):
        entropy: list[Tensor] = []
        inputs = (of_hidden, of_targets, head, temperature, entropy)
        if num_chunks == 1:
            logprobs.append(_chunk_logprobs(*inputs))
        else:
            logprobs.append(checkpoint(_chunk_logprobs, *inputs, use_reentrant=False, preserve_rng_state=False))
        entropies += entropy[:1]
    return torch.cat(logprobs), torch.cat(entropies)


class _Head:
    """The policy's vocabulary projection with the settings it is used with."""

    def __init__(self, policy: Policy, temperature: float, chunk_tokens: int | None) -> None:
        self.module = policy.language_model_head
        self.temperature = temperature
        item_bytes = max(policy.dtype.itemsize, torch.float32.itemsize)
        budget = LOGIT_BYTES.get(policy.device.type, LOGIT_BYTES["cuda"])
        self.chunk_tokens = chunk_tokens or max(1, budget // (policy.vocab_size * item_bytes))

    def score(self, hidden: Tensor, targets: Tensor, most_tokens: int) -> tuple[Tensor, Tensor]:
        """See `token_logprobs`; `most_tokens` is the largest N of any rank."""
        num_chunks = max(1, -(-most_tokens // self.chunk_tokens))
        return token_logprobs(hidden, targets, self.module, self.temperature, num_chunks=num_chunks)


def _with_embeddings(policy: Policy, group: PromptGroup) -> PromptGroup:
    if group.prompt_embeddings is not None:
        return group
    return replace(group, prompt_embeddings=policy.embed(group.prompt))


def _score_plain(policy: Policy, row: PackedRow, head: _Head) -> tuple[Tensor, Tensor]:
    """One prompt with one branch, by the model's ordinary forward pass."""
    hidden = policy.hidden_states(row.embed(policy), row.positions)
    return head.score(hidden[row.predictors], row.targets, len(row.targets))


def _score_packed(
    policy: Policy,
    row: PackedRow,
    head: _Head,
    group: SequenceGroup | None,
    settings: AttentionSettings | None,
) -> tuple[Tensor, Tensor]:
    plan = plan_attention(
        row.layout, policy.attention_heads, group=group, settings=settings, device=policy.device, dtype=policy.dtype
    )
    if plan.shards is None:
        hidden = policy.hidden_states(row.embed(policy), row.positions, plan)
        return head.score(hidden[row.predictors], row.targets, len(row.targets))
    own = plan.shards.own_tokens
    hidden = policy.hidden_states(row.embed(policy, own), row.positions[:, own], plan)
    return _score_evenly(hidden, row, plan.shards, head)


def _score_evenly(hidden: Tensor, row: PackedRow, shards: SequenceShards, head: _Head) -> tuple[Tensor, Tensor]:
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
    logprobs_N, entropies_N = head.score(chosen, row.targets[own_share], max(lengths))
    whole = gather_results(torch.stack((logprobs_N, entropies_N.to(logprobs_N.dtype)), dim=1), lengths, group)
    return whole[:, 0], whole[:, 1].detach()


def _chunk_logprobs(
    hidden: Tensor, targets: Tensor, head: nn.Module, temperature: float, entropies: list[Tensor]
) -> Tensor:
    """Log-probabilities of a chunk. Entropies are appended only to an empty list, so recomputation adds none."""
    logits = head(hidden)  # [N, V]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        logits = logits / temperature
    distribution = torch.log_softmax(logits, dim=-1)
    if not entropies:
        with torch.no_grad():
            entropies.append(-distribution.exp().mul_(distribution).sum(-1))
    return distribution.gather(1, targets[:, None]).squeeze(1)
