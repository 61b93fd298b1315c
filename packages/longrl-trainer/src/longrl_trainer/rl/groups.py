"""The group record: one question, one prompt that refers to its media, G responses, their rewards and advantages.

It contains everything that is passed from the sampler to the optimizer. Media are references to the embedding store;
they are not repeated per response.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from longrl_trainer.config.stages import OVERLONG_REWARD
from longrl_trainer.objectives.advantages import GroupRewards, has_spread
from longrl_trainer.objectives.base import Objective, OverlongPenalty
from longrl_trainer.questions.question import Question
from longrl_trainer.rewards.base import RewardRequest, RewardResult, RewardStatus
from longrl_trainer.rewards.registry import ResponseScore, WeightedReward
from longrl_trainer.runs.judging import judge_responses
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
    """None where the response could not be judged; such a response is not used in training. Where the divergence from
    the reference counts in the reward, these are the advantages without it."""
    weights: tuple[float, ...] = ()
    """Weights of the rewards, in the order of a score's terms."""
    prompt_weight: float = 1.0
    """What the advantages are multiplied by in the loss, after all comparisons."""

    @property
    def rewards(self) -> tuple[float | None, ...]:
        """Weighted sum of every response's rewards."""
        return tuple(score.total for score in self.scores)

    @property
    def has_spread(self) -> bool:
        """Whether some responses were better than others."""
        return has_spread(self.rewards)

    @property
    def has_advantages(self) -> bool:
        """Whether there is anything to learn: some response should become more or less likely."""
        return any(self.advantages)

    def as_rewards(self) -> GroupRewards:
        """The rewards of all responses, for comparing them."""
        names = list(self.scores[0].terms) if self.scores else []
        return GroupRewards(
            totals=self.rewards,
            terms=[[score.terms[name].value for score in self.scores] for name in names],
            weights=self.weights,
            lengths=[len(rollout.token_ids) for rollout in self.rollouts],
        )

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
    control_tokens: frozenset[int] = frozenset(),
) -> list[RolloutGroup]:
    """Score the responses to every question and compare them with each other; only one rank judges a response.

    Args:
        answered: Questions with their prompts and responses.
        rewards: The recipe's rewards.
        objective: Compares the responses to one question.
        ranks: Processes that share the work; each response is judged once, so a nondeterministic judge can't make them
            disagree.
        control_tokens: Tokens of the model that no response may contain.
    """
    requests = [
        RewardRequest(
            response_text=rollout.text,
            finished=rollout.finished,
            record=question.record,
            has_control_token=not control_tokens.isdisjoint(rollout.token_ids),
        )
        for question, _, rollouts in answered
        for rollout in rollouts
    ]
    scores = iter(judge_responses(rewards, requests, ranks))
    judged = [tuple(next(scores) for _ in rollouts) for _, _, rollouts in answered]
    weights = tuple(weighted.weight for weighted in rewards)
    overlong = objective.overlong
    if overlong is not None:
        judged = [
            tuple(penalise_length(score, rollout, overlong) for score, rollout in zip(scores, rollouts, strict=True))
            for (_, _, rollouts), scores in zip(answered, judged, strict=True)
        ]
        weights = (*weights, overlong.weight)
    groups = [
        RolloutGroup(
            question=question,
            prompt=prompt,
            rollouts=tuple(rollouts),
            scores=scores,
            advantages=(None,) * len(scores),
            weights=weights,
        )
        for (question, prompt, rollouts), scores in zip(answered, judged, strict=True)
    ]
    return compare_groups(groups, objective)


def compare_groups(groups: Sequence[RolloutGroup], objective: Objective) -> list[RolloutGroup]:
    """The groups with the advantages that their responses have among those of these groups."""
    compared = objective.compare([group.as_rewards() for group in groups])
    return [replace(group, advantages=tuple(of_group)) for group, of_group in zip(groups, compared, strict=True)]


def choose_groups(groups: Sequence[RolloutGroup], num_wanted: int, objective: Objective) -> list[RolloutGroup]:
    """The first groups with spread, as many as wanted, compared anew; the first groups at all if none has spread.

    Dynamic sampling: DAPO (arXiv 2503.14476), section 3.2.
    """
    chosen = [group for group in groups if group.has_spread][:num_wanted]
    return compare_groups(chosen or groups[:num_wanted], objective)


def penalise_length(score: ResponseScore, rollout: Rollout, overlong: OverlongPenalty) -> ResponseScore:
    """The score with the penalty for a long response as one more reward."""
    value = overlong(len(rollout.token_ids))
    return replace(
        score,
        terms=score.terms | {OVERLONG_REWARD: RewardResult(value=value, status=RewardStatus.OK)},
        total=None if score.total is None else score.total + overlong.weight * value,
    )
