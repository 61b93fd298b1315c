"""Rows of prompts with what continues them, scored as the recipe says, by all ranks of the run together."""

from collections.abc import Sequence

from longrl_trainer.config.stages import TrainingConfig
from longrl_trainer.training.ranks import Ranks
from mrsp_engine.attention.split import AttentionSettings
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import pack_rows
from mrsp_engine.logprobs import BranchScores, score_groups
from mrsp_engine.rows import PromptGroup


def plan_rows(groups: Sequence[PromptGroup], config: TrainingConfig) -> list[list[int]]:
    """Which groups share a row: their indices, row by row."""
    return pack_rows([group.lengths.total for group in groups], config.parallel.row_tokens)


def score_row(
    policy: Policy, groups: Sequence[PromptGroup], config: TrainingConfig, ranks: Ranks, *, temperature: float = 1.0
) -> list[BranchScores]:
    """Score the groups of one row; every rank gets all scores, and from their loss its share of the gradients."""
    parallel = config.parallel
    return score_groups(
        policy,
        groups,
        temperature=temperature,
        share_prompt=config.share_prompt,
        row_tokens=parallel.row_tokens,
        sequence_group=ranks.group,
        attention=AttentionSettings(head_ranks=parallel.head_ranks, exchange=parallel.exchange),
    )
