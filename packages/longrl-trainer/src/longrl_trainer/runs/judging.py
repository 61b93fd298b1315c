"""The rewards at work in a run: opened before its model is loaded, their responses divided among its ranks.

Each response is judged once, by one rank, so that a nondeterministic judge can't make ranks disagree. A reward with
files of its own (`longrl_trainer.rewards.base.JournaledReward`) is opened by the first rank, which judges everything
with it.
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from longrl_trainer.rewards.base import JournaledReward, RewardRequest, RewardResult
from longrl_trainer.rewards.registry import ResponseScore, WeightedReward, combine_results
from longrl_trainer.training.ranks import ALONE, Ranks

REWARDS_NAME = "rewards"


@contextmanager
def open_rewards(rewards: Sequence[WeightedReward], folder: Path, ranks: Ranks = ALONE) -> Generator[None]:
    """Open the rewards that keep files within the block; all ranks call this together.

    Args:
        rewards: The recipe's rewards.
        folder: Gets a folder for each of them.
        ranks: The processes of the run.

    Raises:
        TrainerError: One of them can't judge.
    """
    with ExitStack() as opened:
        for weighted in rewards:
            if isinstance(reward := weighted.reward, JournaledReward):
                ranks.ask_first(partial(_open, opened, reward, folder / weighted.name))
        yield


def judge_responses(
    rewards: Sequence[WeightedReward], requests: Sequence[RewardRequest], ranks: Ranks = ALONE
) -> list[ResponseScore]:
    """Let every reward judge all responses, the same on every rank; all ranks call this together.

    Raises:
        StoppedError: A judge has been down for too long.
        TrainerError: A reward failed.
    """
    judged: dict[str, list[RewardResult]] = {}
    shared = [weighted for weighted in rewards if not isinstance(weighted.reward, JournaledReward)]

    def judge(share: Sequence[RewardRequest]) -> list[tuple[RewardResult, ...]]:
        return list(zip(*(weighted.judge(share) for weighted in shared), strict=True))

    if shared:
        rows = ranks.divide(requests, judge)
        judged |= {weighted.name: [row[place] for row in rows] for place, weighted in enumerate(shared)}
    for weighted in rewards:
        if weighted not in shared:
            judged[weighted.name] = ranks.ask_first(partial(weighted.judge, requests))
    return combine_results(rewards, judged, len(requests))


def _open(opened: ExitStack, reward: JournaledReward, folder: Path) -> None:
    opened.enter_context(reward.opened(folder))
