"""A packed row as tensors: its embeddings, its positions, and which position predicts which token.

All of it is computed once for the whole row, before ranks take their shares, so that shards can't disagree on positions
or labels.

Shape legend: P prompt tokens, S tokens of the row, L tokens this rank owns, N scored tokens, D width of embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch, GroupLengths, PackedLayout, TokenRange
from mrsp_engine.positions import continue_positions
from mrsp_engine.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptGroup:
    """A prompt and its continuations.

    Attributes:
        prompt: The prompt that all branches continue.
        branches: The continuations, of any lengths.
        prompt_embeddings: Used instead of the policy's own, [P, D], for gradients with respect to them.
    """

    prompt: Prompt
    branches: Sequence[Branch]
    prompt_embeddings: Tensor | None = None

    def __post_init__(self) -> None:
        if self.prompt_embeddings is not None and self.prompt_embeddings.shape[0] != self.prompt.length:
            raise ValueError(
                f"{self.prompt_embeddings.shape[0]} prompt embeddings for a prompt of {self.prompt.length} tokens"
            )

    @property
    def lengths(self) -> GroupLengths:
        """Number of tokens of the prompt and the branches."""
        return GroupLengths(self.prompt.length, tuple(len(branch.token_ids) for branch in self.branches))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedRow:
    """One row.

    Attributes:
        groups: The groups of the row.
        layout: The position of each group.
        positions: Rotary positions [3, S] (or [1, S]).
        predictors: Row indices of the tokens that predict a scored one, int64 [N], on the CPU; a prompt's last token
            occurs once for every branch that is scored from its first token.
        targets: The scored tokens, int64 [N].
        num_scored: Scored tokens of every branch of every group.
    """

    groups: Sequence[PromptGroup]
    layout: PackedLayout
    positions: Tensor
    predictors: Tensor
    targets: Tensor
    num_scored: list[int]

    @classmethod
    def of(cls, groups: Sequence[PromptGroup], device: torch.device) -> "PackedRow":
        """Lay out groups one after the other."""
        layout = PackedLayout(tuple(group.lengths for group in groups))
        predictors: list[int] = []
        targets: list[int] = []
        for group, where in zip(groups, layout.ranges, strict=True):
            for branch, run in zip(group.branches, where.branches, strict=True):
                # A token is predicted by the one before it; the first of every branch by the prompt's last token.
                before = [where.prompt.end - 1, *range(run.start, run.end - 1)] if len(run) else []
                predictors += before[branch.scored_from :]
                targets += branch.token_ids[branch.scored_from :]
        positions = [continue_positions(group.prompt.positions, group.lengths.branches) for group in groups]
        return cls(
            groups=groups,
            layout=layout,
            positions=torch.cat(positions, dim=1).to(device),
            predictors=torch.tensor(predictors, dtype=torch.int64),
            targets=torch.tensor(targets, dtype=torch.int64, device=device),
            num_scored=[len(branch.token_ids) - branch.scored_from for group in groups for branch in group.branches],
        )

    def embed(self, policy: Policy, own_tokens: Tensor | None = None) -> Tensor:
        """Input embeddings of the whole row [S, D], or of the given row indices [L] in ascending order [L, D]."""
        pieces: list[Tensor] = []
        for group, where in zip(self.groups, self.layout.ranges, strict=True):
            pieces.append(_embed_prompt(policy, group, _places(own_tokens, where.prompt)))
            token_ids = [token for branch in group.branches for token in branch.token_ids]
            responses = torch.tensor(token_ids, dtype=torch.int64, device=policy.device)
            places = _places(own_tokens, where.responses)
            pieces.append(policy.embed_tokens(responses if places is None else responses[places]))
        width = max(piece.shape[1] for piece in pieces)
        # Where media have more channels than tokens (DeepStack), tokens have zeros there.
        return torch.cat([functional.pad(piece, (0, width - piece.shape[1])) for piece in pieces])


def _embed_prompt(policy: Policy, group: PromptGroup, places: Tensor | None) -> Tensor:
    if group.prompt_embeddings is not None:
        return group.prompt_embeddings if places is None else group.prompt_embeddings.index_select(0, places)
    return policy.embed(group.prompt) if places is None else policy.embed_rows(group.prompt, places)


def _places(own_tokens: Tensor | None, run: TokenRange) -> Tensor | None:
    """This rank's tokens within `run`, counted from its start."""
    if own_tokens is None:
        return None
    return own_tokens[(own_tokens >= run.start) & (own_tokens < run.end)] - run.start
