"""Log-probabilities of responses, the prompt they share computed once.

The G branches of a group form one packed row behind their prompt. Because attention is causal, what the prompt computes
does not depend on any branch, so the one copy serves all of them, and gradients arriving from the branches add up: the
result equals G separate rows exactly. `share_prompt=False` computes those separate rows with the model's ordinary
forward pass instead; it is the oracle the other path is tested against.

With a sequence group every rank calls with the same arguments, computes the tokens it owns, and returns the complete
result. The caller computes the same loss on every rank and calls backward on every rank; each then holds its share of
the parameter gradients, and `collectives.sum_gradients` adds the shares. No factor is to be applied to the loss.

Shape legend: P prompt tokens, S tokens of a row, N scored tokens, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mrsp_engine.attention.plan import SequenceShards, plan_attention
from mrsp_engine.collectives import gather_results
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch, PackedLayout
from mrsp_engine.positions import continue_positions
from mrsp_engine.process_groups import SequenceGroup
from mrsp_engine.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BranchScores:
    """One entry per branch, each over the branch's scored tokens.

    Attributes:
        logprobs: Log-probability of every scored token, differentiable.
        entropies: Entropy of the distribution it was drawn from, in nats, without gradient.
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
    chunk_tokens: int = 1024,
    prompt_embeddings: Tensor | None = None,
) -> BranchScores:
    """Score the tokens of every branch.

    Args:
        policy: The model.
        prompt: What all branches continue.
        branches: Their tokens, in any lengths.
        temperature: Divides the logits, as it did when the branches were sampled.
        share_prompt: Compute the prompt once; otherwise once per branch.
        sequence_group: Ranks among which the row is split; needs `share_prompt`.
        chunk_tokens: Scored tokens whose logits exist at the same time; with more, logits are recomputed in backward.
        prompt_embeddings: Used instead of `policy.embed(prompt)`, [P, D], to take gradients with respect to them.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: expected a positive number (score greedy samples at 1.0)")
    embeddings = policy.embed(prompt) if prompt_embeddings is None else prompt_embeddings
    if embeddings.shape[0] != prompt.length:
        raise ValueError(f"{embeddings.shape[0]} prompt embeddings for a prompt of {prompt.length} tokens")
    groups = [branches] if share_prompt else [[branch] for branch in branches]
    if not share_prompt and sequence_group is not None:
        raise ValueError("a sequence group splits a packed row; use share_prompt=True")
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    for members in groups:
        row = _PackedRow.of(prompt, members, policy.device)
        if share_prompt:
            of_row = _score_packed(policy, embeddings, row, temperature, sequence_group, chunk_tokens)
        else:
            of_row = _score_plain(policy, embeddings, row, temperature, chunk_tokens)
        logprobs += of_row[0].split(row.num_scored)
        entropies += of_row[1].split(row.num_scored)
    return BranchScores(logprobs=logprobs, entropies=entropies)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _PackedRow:
    """A row as tensors: its branch tokens [S-P], positions [3, S], and N pairs of predicting row index and target."""

    layout: PackedLayout
    branch_ids: Tensor
    positions: Tensor
    predictors: Tensor
    targets: Tensor
    num_scored: list[int]

    @classmethod
    def of(cls, prompt: Prompt, branches: Sequence[Branch], device: torch.device) -> "_PackedRow":
        layout = PackedLayout.of(prompt.length, branches)
        predictors: list[int] = []
        targets: list[int] = []
        for branch, where in zip(branches, layout.branches, strict=True):
            # A token is predicted by the one before it; the first of every branch by the prompt's last token.
            before = [prompt.length - 1, *range(where.start, where.end - 1)] if len(where) else []
            predictors += before[branch.scored_from :]
            targets += branch.token_ids[branch.scored_from :]
        branch_ids = [token for branch in branches for token in branch.token_ids]
        return cls(
            layout=layout,
            branch_ids=torch.tensor(branch_ids, dtype=torch.int64, device=device),
            positions=continue_positions(prompt.positions, layout.branch_lengths).to(device),
            predictors=torch.tensor(predictors, dtype=torch.int64, device=device),
            targets=torch.tensor(targets, dtype=torch.int64, device=device),
            num_scored=[len(branch.token_ids) - branch.scored_from for branch in branches],
        )


def _score_plain(
    policy: Policy, prompt_embeddings: Tensor, row: _PackedRow, temperature: float, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    embeddings = torch.cat([prompt_embeddings, policy.embed_tokens(row.branch_ids)])
    hidden = policy.hidden_states(embeddings, row.positions)
    head = policy.language_model_head
    return token_logprobs(hidden[row.predictors], row.targets, head, temperature, chunk_tokens)


def _score_packed(
    policy: Policy,
    prompt_embeddings: Tensor,
    row: _PackedRow,
    temperature: float,
    group: SequenceGroup | None,
    chunk_tokens: int,
) -> tuple[Tensor, Tensor]:
    plan = plan_attention(row.layout, group=group, device=policy.device)
    embeddings = torch.cat([prompt_embeddings, policy.embed_tokens(row.branch_ids)])
    head = policy.language_model_head
    if plan.shards is None:
        hidden = policy.hidden_states(embeddings, row.positions, plan)
        return token_logprobs(hidden[row.predictors], row.targets, head, temperature, chunk_tokens)
    own = plan.shards.own_tokens
    hidden = policy.hidden_states(embeddings[own], row.positions[:, own], plan)
    return _score_own_pairs(hidden, row, plan.shards, head, temperature, chunk_tokens)


def _score_own_pairs(
    hidden: Tensor, row: _PackedRow, shards: SequenceShards, head: nn.Module, temperature: float, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Score the pairs whose predicting token this rank owns and exchange the results."""
    owners = shards.owners[row.predictors]
    own_pairs = torch.nonzero(owners == shards.group.rank).squeeze(1)
    local_index = torch.empty_like(shards.owners)
    local_index[shards.own_tokens] = torch.arange(len(shards.own_tokens), device=local_index.device)
    # A rank may own no pair; it still takes part in every exchange, forward and backward, through its empty slice.
    chosen = hidden[local_index[row.predictors[own_pairs]]]
    logprobs, entropies = token_logprobs(chosen, row.targets[own_pairs], head, temperature, chunk_tokens)
    lengths: list[int] = torch.bincount(owners, minlength=shards.group.size).tolist()
    rank_order = torch.argsort(owners, stable=True)
    back = torch.argsort(rank_order)
    whole = gather_results(torch.stack((logprobs, entropies.to(logprobs.dtype)), dim=1), lengths, shards.group)[back]
    return whole[:, 0], whole[:, 1].detach()


def token_logprobs(
    hidden: Tensor, targets: Tensor, head: nn.Module, temperature: float = 1.0, chunk_tokens: int = 1024
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution: hidden [N, D], targets [N] to [N] and [N].

    Logits exist for `chunk_tokens` tokens at a time, in float32 at least. With a single chunk they are kept for
    backward; with more they are computed again there.
    """
    if len(targets) <= chunk_tokens:
        return _chunk_logprobs(hidden, targets, head, temperature)
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    for of_hidden, of_targets in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True):
        part = checkpoint(_chunk_logprobs, of_hidden, of_targets, head, temperature, use_reentrant=False)
        logprobs.append(part[0])
        entropies.append(part[1])
    return torch.cat(logprobs), torch.cat(entropies)


def _chunk_logprobs(hidden: Tensor, targets: Tensor, head: nn.Module, temperature: float) -> tuple[Tensor, Tensor]:
    logits = head(hidden)  # [N, V]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        logits = logits / temperature
    distribution = torch.log_softmax(logits, dim=-1)
    with torch.no_grad():
        entropies = -(distribution.exp() * distribution).sum(-1)
    return distribution.gather(1, targets[:, None]).squeeze(1), entropies
