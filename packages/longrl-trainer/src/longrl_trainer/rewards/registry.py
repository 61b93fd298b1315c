"""From names in a recipe to rewards, through the entry points of every installed package."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from inspect import isawaitable
from typing import Any

from pydantic import BaseModel, ValidationError

from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.rewards.base import BatchReward, Reward, RewardRequest, RewardResult, RewardStatus
from longrl_trainer.rewards.event_loop import wait_for
from longrl_trainer.rewards.trl import TrlReward
from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.record import QuestionRecord

ENTRY_POINT_GROUP = "longrl_trainer.rewards"
NOT_APPLICABLE = RewardResult(value=None, status=RewardStatus.NOT_APPLICABLE)
WITH_CONTROL_TOKEN = RewardResult(value=0.0, status=RewardStatus.CONTROL_TOKEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedReward:
    """A reward, its name in the recipe and its weight."""

    name: str
    reward: Reward | BatchReward
    weight: float

    @property
    def question_types(self) -> frozenset[QuestionType] | None:
        """The types of the questions that it is for; None for all."""
        return getattr(self.reward, "question_types", None)

    def is_for(self, record: QuestionRecord) -> bool:
        """Whether it judges responses to this question."""
        return self.question_types is None or record.question_type in self.question_types

    def judge(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """Judge responses in their order; those that it isn't for, or that hold a control token, it never sees.

        Raises:
            TrainerError: The reward failed, or didn't return one result for each.
        """
        asked = [each for each in requests if self.is_for(each.record) and not each.has_control_token]
        judged = iter(self._ask(asked) if asked else ())
        return [
            NOT_APPLICABLE
            if not self.is_for(each.record)
            else WITH_CONTROL_TOKEN
            if each.has_control_token
            else next(judged)
            for each in requests
        ]

    def _ask(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        try:
            if isinstance(self.reward, BatchReward):
                judged = self.reward.judge(requests)
                results = list(wait_for(judged) if isawaitable(judged) else judged)
            else:
                score = self.reward.score
                results = [score(each.response_text, finished=each.finished, record=each.record) for each in requests]
        except TrainerError:
            raise
        except Exception as error:
            raise TrainerError(f"rewards.{self.name}: failed ({type(error).__name__}: {error})") from error
        return check_results(self.name, results, num_expected=len(requests))


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseScore:
    """All judgements of one response and their weighted sum.

    There is no total when a reward that is for the question and has a weight couldn't judge.
    """

    terms: dict[str, RewardResult]
    total: float | None

    @property
    def has_control_token(self) -> bool:
        """Whether the response holds a control token of the model, and so got nothing."""
        return any(term.status is RewardStatus.CONTROL_TOKEN for term in self.terms.values())


def check_results(name: str, results: list[RewardResult], *, num_expected: int) -> list[RewardResult]:
    """What a reward returned, if that can be used.

    Raises:
        TrainerError: It isn't one result for each, or a value is no finite number.
    """
    if len(results) != num_expected:
        raise TrainerError(f"rewards.{name}: returned {len(results)} results for {num_expected} responses")
    for result in results:
        if result.value is not None and not math.isfinite(result.value):
            raise TrainerError(f"rewards.{name}: returned {result.value}, expected a finite number or None")
    return results


def known_rewards(group: str = ENTRY_POINT_GROUP) -> dict[str, EntryPoint]:
    """Every installed reward of a group of entry points by name."""
    return {entry_point.name: entry_point for entry_point in entry_points(group=group)}


def load_rewards(
    recipe: Mapping[str, float | Mapping[str, Any]], *, group: str = ENTRY_POINT_GROUP
) -> list[WeightedReward]:
    """The rewards in a recipe, in its order.

    Args:
        recipe: The weight, or the weight and the reward's own settings, by name.
        group: The entry points that name them.

    Raises:
        TrainerUsageError: A reward isn't installed, a setting is wrong, or none, or only unfit ones, have a weight.
    """
    known = known_rewards(group)
    loaded: list[WeightedReward] = []
    for name, entry in recipe.items():
        is_function = ":" in name
        if name not in known and not is_function:
            names = ", ".join(sorted(known)) or "none"
            raise TrainerUsageError(f"rewards.{name}: there is no such reward; installed: {names}")
        settings = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
        weight = settings.pop("weight")
        reward = _create_function(name, settings) if is_function else _create(name, known[name], settings)
        if weight and getattr(reward, "is_only_logged", False):
            raise TrainerUsageError(
                f"rewards.{name}: got {weight}, expected 0, because it is measured and never rewarded"
            )
        loaded.append(WeightedReward(name=name, reward=reward, weight=weight))
    if not any(weighted.weight for weighted in loaded):
        raise TrainerUsageError("rewards: at least one reward must have a weight other than 0")
    return loaded


def judged_types(rewards: Sequence[WeightedReward]) -> frozenset[QuestionType]:
    """The types of questions whose answers these rewards judge.

    Where some rewards are for certain types, these are the types that one of them has a weight for: the others, such as
    one for the form of a response, say nothing about answers. Otherwise all are.
    """
    bound = [weighted.question_types for weighted in rewards if weighted.question_types is not None and weighted.weight]
    return frozenset().union(*bound) if bound else frozenset(QuestionType)


def score_responses(rewards: Sequence[WeightedReward], requests: Sequence[RewardRequest]) -> list[ResponseScore]:
    """Let every reward judge all responses.

    Raises:
        TrainerError: A reward failed.
    """
    judged = {weighted.name: weighted.judge(requests) for weighted in rewards}
    return combine_results(rewards, judged, len(requests))


def combine_results(
    rewards: Sequence[WeightedReward], judged: Mapping[str, Sequence[RewardResult]], num_responses: int
) -> list[ResponseScore]:
    """The scores of responses from what every reward says about all of them."""
    scores: list[ResponseScore] = []
    for index in range(num_responses):
        terms = {weighted.name: judged[weighted.name][index] for weighted in rewards}
        scores.append(ResponseScore(terms=terms, total=_total(rewards, terms)))
    return scores


def _total(rewards: Sequence[WeightedReward], terms: Mapping[str, RewardResult]) -> float | None:
    total = 0.0
    for weighted in rewards:
        term = terms[weighted.name]
        if not weighted.weight or term.status is RewardStatus.NOT_APPLICABLE:
            continue
        if term.value is None:
            return None
        total += weighted.weight * term.value
    return total


def _create_function(name: str, settings: Mapping[str, Any]) -> BatchReward:
    """A reward by the name of a function."""
    if settings:
        raise TrainerUsageError(f"rewards.{name}.{next(iter(settings))}: a function has no settings but weight")
    return TrlReward(name)


def _create(name: str, entry_point: EntryPoint, settings: Mapping[str, Any]) -> Reward | BatchReward:
    """A reward with its settings."""
    try:
        reward_class: Any = entry_point.load()
    except ImportError as error:
        raise TrainerUsageError(f"rewards.{name}: cannot be loaded from {entry_point.value}: {error}") from error
    model: type[BaseModel] | None = getattr(reward_class, "Settings", None)
    if model is None:
        if settings:
            raise TrainerUsageError(f"rewards.{name}.{next(iter(settings))}: this reward has no settings but weight")
        return reward_class()
    try:
        return reward_class(model.model_validate(settings, extra="forbid"))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, ("rewards", name, *problem["loc"])))
        known = ", ".join(["weight", *model.model_fields])
        raise TrainerUsageError(f"{key}: {problem['msg']}; valid here: {known}") from None
