"""The group record: one question, one prompt that refers to its media, G responses, their rewards and advantages.

It contains everything that is passed from the sampler to the optimizer. Media are references to the embedding store;
they are not repeated per response.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from longrl_trainer.objectives.advantages import has_spread
from longrl_trainer.objectives.base import Objective
from longrl_trainer.questions.question import Question
from longrl_trainer.rewards.base import RewardRequest
from longrl_trainer.rewards.registry import ResponseScore, WeightedReward, score_responses
from longrl_trainer.training.ranks import ALONE, Ranks
from mrsp_engine.layout import Branch
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout.base import Rollout
from mrsp_engine.rows import PromptGroup


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RolloutGroup:
    """All responses to one question in one step."""

    question: Question
    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    scores: tuple[ResponseScore, ...]
    advantages: tuple[float | None, ...]
    """None where the response could not be judged; such a response is not used in training."""

    @property
    def rewards(self) -> tuple[float | None, ...]:
        """Weighted sum of every response's rewards."""
        return tuple(score.total for score in self.scores)

    @property
    def has_spread(self) -> bool:
        """Whether there is anything to learn: some responses were better than others."""
        return has_spread(self.rewards)

    def judged(self) -> list[tuple[Rollout, float]]:
        """The responses used in training, with their advantages."""
        pairs = zip(self.rollouts, self.advantages, strict=True)
        return [(rollout, advantage) for rollout, advantage in pairs if advantage is not None]

    def branches(self) -> list[Branch]:
        """The judged responses as branches of the shared prompt; every token is scored."""
        return [Branch(token_ids=rollout.token_ids) for rollout, _ in self.judged()]

    def as_prompt_group(self) -> PromptGroup:
        """The group in the engine's form, for scoring."""
        return PromptGroup(prompt=self.prompt, branches=self.branches())


def judge_groups(
    answered: Sequence[tuple[Question, Prompt, Sequence[Rollout]]],
    *,
    rewards: Sequence[WeightedReward],
    objective: Objective,
    ranks: Ranks = ALONE,
) -> list[RolloutGroup]:
    """Score the responses to every question and compare them with each other; only one rank judges a response.

    Args:
        answered: Questions with their prompts and responses.
        rewards: The recipe's rewards.
        objective: Compares the responses to one question.
        ranks: Processes that share the work; each response is judged once, so a nondeterministic judge can't make them
            disagree.
    """

    def judge(share: Sequence[tuple[Question, Prompt, Sequence[Rollout]]]) -> list[tuple[ResponseScore, ...]]:
        requests = [
            RewardRequest(response_text=rollout.text, finished=rollout.finished, record=question.record)
            for question, _, rollouts in share
            for rollout in rollouts
        ]
        scores = iter(score_responses(rewards, requests))
        return [tuple(next(scores) for _ in rollouts) for _, _, rollouts in share]

    return [
        RolloutGroup(
            question=question,
            prompt=prompt,
            rollouts=tuple(rollouts),
            scores=scores,
            advantages=tuple(objective.compare([score.total for score in scores])),
        )
        for (question, prompt, rollouts), scores in zip(answered, ranks.divide(answered, judge), strict=True)
    ]
