"""Rows of prompts with their continuations, scored with the recipe's settings, by all ranks of the run together."""

from collections.abc import Sequence
from dataclasses import dataclass

from longrl_trainer.config.sections import ParallelSection
from longrl_trainer.config.stages import TrainingConfig
from longrl_trainer.training.ranks import ALONE, Ranks
from mrsp_engine.attention.split import AttentionSettings
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import pack_rows
from mrsp_engine.logprobs import BranchScores, score_groups
from mrsp_engine.rows import PromptGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScoring:
    """How rows are packed and scored; the same for a whole run.

    Attributes:
        parallel: Maximum length of a row, and how ranks divide it.
        share_prompt: Whether a prompt is computed once for all its continuations.
        temperature: Temperature of the log-probabilities.
        ranks: Processes that share every row.
    """

    parallel: ParallelSection
    share_prompt: bool = True
    temperature: float = 1.0
    ranks: Ranks = ALONE

    @classmethod
    def of(cls, config: TrainingConfig, ranks: Ranks = ALONE, *, temperature: float = 1.0) -> "RowScoring":
        """The recipe's settings."""
        return cls(parallel=config.parallel, share_prompt=config.share_prompt, temperature=temperature, ranks=ranks)

    def plan(self, groups: Sequence[PromptGroup]) -> list[list[int]]:
        """Which groups share a row: their indices, row by row."""
        return pack_rows([group.lengths.total for group in groups], self.parallel.row_tokens)

    def score(self, policy: Policy, groups: Sequence[PromptGroup]) -> list[BranchScores]:
        """Score the groups of one row; every rank gets all scores, and its share of the gradients of their loss."""
        return score_groups(
            policy,
            groups,
            temperature=self.temperature,
            share_prompt=self.share_prompt,
            row_tokens=self.parallel.row_tokens,
            sequence_group=self.ranks.group,
            attention=AttentionSettings(head_ranks=self.parallel.head_ranks, exchange=self.parallel.exchange),
        )
