"""Rows of prompts with their continuations, scored with the recipe's settings, by all ranks of the run together."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from longrl_trainer.config.sections import ParallelSection
from longrl_trainer.config.stages import TrainingConfig
from longrl_trainer.training.division import RowCosts, divide_by_cost
from longrl_trainer.training.ranks import ALONE, Ranks
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import PackedLayout, pack_rows
from mrsp_engine.logprobs import BranchScores, pass_layouts, score_groups, score_nothing
from mrsp_engine.planner.costs import forward_operations
from mrsp_engine.planner.shapes import ModelShape
from mrsp_engine.rows import PromptGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One row of every data rank, computed at the same time.

    Attributes:
        members: Indices of the groups in the row of this data rank; none if it has fewer rows than others.
        passes: The row of every data rank, cut into the passes through the model in which it is computed.
    """

    members: tuple[int, ...]
    passes: tuple[tuple[PackedLayout, ...], ...]

    @property
    def num_passes(self) -> int:
        """Passes that the data rank with most of them makes."""
        return max(map(len, self.passes))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What a step computes, by all ranks together.

    Attributes:
        logical_tokens: Tokens of the prompts with their continuations, each prompt counted once per continuation.
        computed_tokens: Tokens of the rows of one pass over the step, in which a shared prompt is there once.
        waiting_tokens: How many tokens more there would be if every row were as long as the longest one computed at the
            same time: for so long data ranks wait for each other.
        operations: Floating-point operations of the language model in all passes.
    """

    logical_tokens: int
    computed_tokens: int
    waiting_tokens: int
    operations: float

    @classmethod
    def of(
        cls, turns: Sequence[Turn], shape: ModelShape, *, num_trained: int, num_scored: int = 0, has_adapters: bool
    ) -> "StepWork":
        """Count the passes of a step: over all its rows, the same every time.

        A forward pass has the operations that the planner counts (`mrsp_engine.planner.costs.forward_operations`). A
        backward pass has twice as many: one product for the gradients of the inputs, one for those of the weights, of
        which only the first is needed in linear layers if their adapters are trained. What is computed again to save
        memory doesn't count, and neither does the encoder of media.

        Args:
            turns: The rows.
            shape: The language model.
            num_trained: Forward passes with a backward pass.
            num_scored: Forward passes without one.
            has_adapters: Whether adapters are trained, and not the weights.
        """
        logical = computed = waiting = 0
        linear = attention = 0.0
        for turn in turns:
            lengths = [sum(layout.total for layout in of_rank) for of_rank in turn.passes]
            computed += sum(lengths)
            waiting += sum(max(lengths) - length for length in lengths)
            for layout in (layout for of_rank in turn.passes for layout in of_rank):
                logical += sum(sum(group.prompt + branch for branch in group.branches) for group in layout.groups)
                parts = forward_operations(shape, layout, sum(sum(group.branches) for group in layout.groups))
                linear, attention = linear + parts[0], attention + parts[1]
        backward = (1 if has_adapters else 2) * linear + 2 * attention
        return cls(
            logical_tokens=logical,
            computed_tokens=computed,
            waiting_tokens=waiting,
            operations=(num_trained + num_scored) * (linear + attention) + num_trained * backward,
        )

    @property
    def padding_fraction(self) -> float:
        """Share of waiting in the time of all data ranks, as if every token took equally long."""
        return self.waiting_tokens / (self.computed_tokens + self.waiting_tokens)


NO_WORK = StepWork(logical_tokens=0, computed_tokens=0, waiting_tokens=0, operations=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScores:
    """The scores of a turn on this data rank.

    Attributes:
        groups: Scores of the groups of its row.
        idle: A zero to add to the loss: its backward pass takes part in what ranks with sharded weights do together
            while this one has no row. None if there is nothing to take part in.
        policy: What was scored.
    """

    groups: list[BranchScores]
    idle: Tensor | None
    policy: Policy

    def backward(self, loss: Tensor | None) -> float:
        """The backward pass of the row's loss (None without a row), by all ranks together; returns the loss."""
        parts = [part for part in (loss, self.idle) if part is not None]
        if parts:
            total = torch.stack(parts).sum()
            total.backward() if self.policy.joint_passes is None else self.policy.joint_passes.backward(total)
        return 0.0 if loss is None else loss.item()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScoring:
    """How rows are packed, divided among ranks, and scored; the same for a whole run.

    Attributes:
        parallel: Maximum length of a row, and how ranks divide it.
        costs: The cost of rows, by which they are divided.
        share_prompt: Whether a prompt is computed once for all its continuations.
        temperature: Temperature of the log-probabilities.
        ranks: Processes that share the work.
    """

    parallel: ParallelSection
    costs: RowCosts
    share_prompt: bool = True
    temperature: float = 1.0
    ranks: Ranks = ALONE

    @classmethod
    def of(
        cls, config: TrainingConfig, policy: Policy, ranks: Ranks = ALONE, *, temperature: float = 1.0
    ) -> "RowScoring":
        """The recipe's settings, for its model."""
        return cls(
            parallel=config.parallel,
            costs=RowCosts.of(policy, config, sharding="everything" if policy.is_sharded else "none"),
            share_prompt=config.share_prompt,
            temperature=temperature,
            ranks=ranks,
        )

    def plan(self, groups: Sequence[PromptGroup]) -> list[Turn]:
        """Which groups share a row, and which rows are computed at the same time; all ranks plan the same groups.

        Data ranks get groups of about the same total cost, and compute their most expensive rows first.

        Raises:
            EngineUsageError: The ranks that share a row can't divide one of the rows.
        """
        shares = [list(range(len(groups)))]
        if self.ranks.num_data_ranks > 1:
            shares = divide_by_cost([self._seconds([group]) for group in groups], self.ranks.num_data_ranks)
        rows_of_shares: list[list[list[int]]] = []
        for share in shares:
            packed = pack_rows([groups[index].lengths.total for index in share], self.parallel.row_tokens)
            rows = [[share[place] for place in row] for row in packed]
            if len(shares) > 1:
                rows.sort(key=lambda row: -self._seconds([groups[index] for index in row]))
            rows_of_shares.append(rows)
        turns: list[Turn] = []
        for at_once in zip_longest(*rows_of_shares, fillvalue=()):
            passes = [self._passes([groups[index] for index in row]) for row in at_once]
            for layout in (layout for of_row in passes for layout in of_row):
                self.costs.check(layout, self.ranks.sequence_ranks)
            turns.append(Turn(members=tuple(at_once[self.ranks.data_rank]), passes=tuple(map(tuple, passes))))
        return turns

    def score(
        self, policy: Policy, groups: Sequence[PromptGroup], num_passes: int, *, trains_entropy: bool = False
    ) -> RowScores:
        """Score the groups of this data rank's row in one turn; all ranks call this together.

        Every rank of the row gets all its scores, and its share of the gradients of their loss. Entropies have a
        gradient with `trains_entropy` only.
        """
        found: list[BranchScores] = []
        if groups:
            found = score_groups(
                policy,
                groups,
                temperature=self.temperature,
                share_prompt=self.share_prompt,
                row_tokens=self.parallel.row_tokens,
                sequence_group=self.ranks.sequence_group,
                attention=self.costs.settings,
                trains_entropy=trains_entropy,
            )
        num_missing = num_passes - len(self._passes(groups)) if policy.is_joint else 0
        idle = [
            score_nothing(policy, sequence_group=self.ranks.sequence_group, attention=self.costs.settings)
            for _ in range(num_missing)
        ]
        return RowScores(groups=found, idle=torch.stack(idle).sum() if idle else None, policy=policy)

    def _seconds(self, groups: Sequence[PromptGroup]) -> float:
        return self.costs.seconds(PackedLayout(tuple(group.lengths for group in groups)), self.ranks.sequence_ranks)

    def _passes(self, groups: Sequence[PromptGroup]) -> list[PackedLayout]:
        return pass_layouts(groups, share_prompt=self.share_prompt, row_tokens=self.parallel.row_tokens)
