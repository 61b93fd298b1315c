"""Log-probabilities of responses, the prompt they share computed once.

The G branches of a group form one packed row after their prompt. Because attention is causal, the prompt's activations
do not depend on any branch, so one copy serves all of them, and gradients from the branches add up: the result equals
that of G separate rows exactly. `share_prompt=False` computes those separate rows instead; on one rank with the model's
ordinary forward pass, which is the reference that everything else is tested against.

With a sequence group every rank calls with the same arguments, computes the tokens it owns, and returns the complete
result. The caller computes the same loss on every rank and calls backward on every rank; each then holds its share of
the parameter gradients, and `collectives.sum_gradients` adds the shares. The loss must not be scaled.

Every row is computed by the policy's `mrsp_engine.row_scorer.RowScorer`.

Shape legend: N scored tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from mrsp_engine.attention.split import AttentionSettings
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch, PackedLayout, pack_rows
from mrsp_engine.prompts import Prompt
from mrsp_engine.row_scorer import row_scorer_of
from mrsp_engine.rows import PackedRow, PromptGroup


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BranchScores:
    """One entry per branch, each over the branch's scored tokens.

    Attributes:
        logprobs: Log-probability of every scored token, differentiable.
        entropies: Entropy of the distribution of each, in nats; differentiable only if that was asked for.
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
    trains_entropy: bool = False,
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
        trains_entropy: Whether the entropies have a gradient too.

    Raises:
        EngineUsageError: The attention settings are impossible on these ranks.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: expected a positive number (score greedy samples at 1.0)")
    parts = _parts(groups, share_prompt)
    is_plain = not share_prompt and sequence_group is None and row_tokens is None
    scores: list[list[tuple[Tensor, Tensor]]] = [[] for _ in parts]
    for members in pack_rows([part.lengths.total for part in parts], row_tokens):
        row = PackedRow.of([parts[member] for member in members], policy.device)
        logprobs_N, entropies_N = _pass(
            policy,
            row,
            temperature=temperature,
            is_plain=is_plain,
            group=sequence_group,
            attention=attention,
            chunk_tokens=chunk_tokens,
            trains_entropy=trains_entropy,
        )
        of_branches = zip(logprobs_N.split(row.num_scored), entropies_N.split(row.num_scored), strict=True)
        for member in members:
            scores[member] = [next(of_branches) for _ in parts[member].branches]
    flat = iter([pair for of_part in scores for pair in of_part])
    of_groups = [[next(flat) for _ in group.branches] for group in groups]
    return [
        BranchScores(logprobs=[pair[0] for pair in pairs], entropies=[pair[1] for pair in pairs]) for pairs in of_groups
    ]


def pass_layouts(
    groups: Sequence[PromptGroup], *, share_prompt: bool = True, row_tokens: int | None = None
) -> list[PackedLayout]:
    """The rows that `score_groups` computes for these groups, one in each pass through the model."""
    lengths = [part.lengths for part in _parts(groups, share_prompt)]
    rows = pack_rows([of_part.total for of_part in lengths], row_tokens)
    return [PackedLayout(tuple(lengths[member] for member in row)) for row in rows]


def score_nothing(
    policy: Policy, *, sequence_group: SequenceGroup | None = None, attention: AttentionSettings | None = None
) -> Tensor:
    """One empty pass through the model: a zero, whose gradients are zeros.

    Sharded weights are gathered by all ranks together, layer by layer, so ranks with fewer rows take part in the passes
    of the others, forward and backward.
    """
    length = 2 * (1 if sequence_group is None else sequence_group.size)  # tokens for every rank, however they divide it
    branch = Branch(token_ids=(0,) * length, scored_from=length - 1)
    group = PromptGroup(prompt=policy.build_prompt(".", []), branches=[branch])
    row = PackedRow.of([group], policy.device)
    logprobs_N, _ = _pass(policy, row, group=sequence_group, attention=attention)
    return 0 * logprobs_N.sum()


def _parts(groups: Sequence[PromptGroup], share_prompt: bool) -> Sequence[PromptGroup]:
    return groups if share_prompt else [replace(g, branches=[branch]) for g in groups for branch in g.branches]


def _pass(policy: Policy, row: PackedRow, **settings: Any) -> tuple[Tensor, Tensor]:
    if policy.joint_passes is not None:
        return policy.joint_passes.forward(row, **settings)
    scorer = row_scorer_of(policy)
    result = cast(tuple[Tensor, Tensor], scorer(row, **settings))
    if isinstance(scorer, FSDPModule) and not torch.is_grad_enabled():
        scorer.reshard()  # which otherwise the backward pass does
    return result
