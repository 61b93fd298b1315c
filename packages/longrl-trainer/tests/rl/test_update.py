"""The gradient of an update against one written out from plain log-probabilities, for every term of an objective."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longrl_trainer.config.recipes import parse_config
from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.objectives.base import OverlongPenalty, build_objective
from longrl_trainer.questions.question import Question
from longrl_trainer.rewards.base import RewardResult, RewardStatus
from longrl_trainer.rewards.registry import ResponseScore
from longrl_trainer.rl.groups import RolloutGroup, choose_groups, compare_groups, penalise_length
from longrl_trainer.rl.update import PolicyUpdate, weigh_groups
from longrl_trainer.training.optimizer import Optimizer
from longrl_trainer.training.scoring import RowScoring
from longvideo_reason_data.records.record import QuestionRecord, Skill, Split
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.step_media import StepMedia
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.logprobs import score_groups
from mrsp_engine.rollout.base import Rollout
from mrsp_engine.testing.fixtures import use_exact_norms
from mrsp_engine.tiny.families import build_tiny
from mrsp_engine.tiny.language import LanguageSizes

pytestmark = pytest.mark.slow
SIZES = LanguageSizes(
    hidden_size=64, num_layers=1, num_heads=2, num_key_value_heads=1, intermediate_size=32, vocabulary_size=300
)
TOKENS = (((5, 7, 11), (13, 17, 19, 23, 29)), ((31, 37), (41, 43, 47, 53)))
REWARDS = ((1.0, 0.0), (0.5, 0.5))  # the second group has no spread
OFFSETS = (0.3, -0.2, 0.9, 0.0, -0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_tiny("qwen2", folder / "model", sizes=SIZES)
    return folder


def open_exact(folder: Path) -> Policy:
    policy = load_policy(folder / "model", dtype=torch.float64, store=EmbeddingStore(folder / "embeddings"))
    use_exact_norms(policy.model)
    return policy


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The responses of both groups, one after the other, scored one by one.

    Attributes:
        logprobs: By response, with a gradient.
        entropies: By response, with a gradient.
        weights: Of a token of each response.
    """

    logprobs: list[Tensor]
    entropies: list[Tensor]
    weights: list[float]


class Trial:
    """One update of a tiny model with an objective."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        values = {
            "output": str(folder / "run"),
            "steps": 1,
            "learning_rate": 1e-3,
            "dtype": "float64",
            "max_logprob_gap": 1e9,
            "max_response_tokens": 8,
            "model": {"folder": str(folder / "model")},
            "data": {"dataset": "dataset", "split": "train_rl", "num_frames": 2},
        }
        self.config = parse_config(values | settings, GrpoConfig, source="test")
        self.objective = build_objective(self.config)
        self.policy, self.reference = open_exact(folder), None
        if self.objective.needs_reference:
            self.reference = open_exact(folder)
            with torch.no_grad():
                for weight in self.reference.model.parameters():
                    weight.mul_(1.2)
        self.groups = self._groups()

    def _groups(self) -> list[RolloutGroup]:
        """Rollouts whose sampler differs from the trainer by known amounts."""
        record = QuestionRecord.model_construct(question_id="q", split=Split.TRAIN_RL, skill=next(iter(Skill)))
        prompts = [self.policy.build_prompt(text, []) for text in ("why", "where is it")]
        groups: list[RolloutGroup] = []
        for prompt, responses, rewards in zip(prompts, TOKENS, REWARDS, strict=True):
            rollouts = tuple(
                Rollout(token_ids=tokens, logprobs=(-5.0,) * len(tokens), text="", finished=True)
                for tokens in responses
            )
            scores = tuple(
                ResponseScore(terms={"answer": RewardResult(value=value, status=RewardStatus.OK)}, total=value)
                for value in rewards
            )
            groups.append(
                RolloutGroup(
                    question=Question(record=record, media=()),
                    prompt=prompt,
                    rollouts=rollouts,
                    scores=scores,
                    advantages=(),
                    weights=(1.0,),
                )
            )
        return compare_groups(groups, self.objective)

    def with_sampler_offsets(self) -> None:
        """Let the sampler's log-probabilities be the trainer's less known offsets."""
        responses = iter(self.plain().logprobs)
        groups: list[RolloutGroup] = []
        for group in self.groups:
            rollouts = tuple(
                Rollout(
                    token_ids=rollout.token_ids,
                    logprobs=tuple(
                        (next(responses).detach() - torch.tensor(OFFSETS)[: len(rollout.token_ids)]).tolist()
                    ),
                    text="",
                    finished=True,
                )
                for rollout in group.rollouts
            )
            groups.append(replace(group, rollouts=rollouts))
        self.groups = groups

    def plain(self, policy: Policy | None = None) -> Plain:
        scores = score_groups(
            policy or self.policy,
            [group.as_prompt_group() for group in self.groups],
            share_prompt=False,
            trains_entropy=True,
        )
        return Plain(
            logprobs=[logprobs_R for group in scores for logprobs_R in group.logprobs],
            entropies=[entropies_R for group in scores for entropies_R in group.entropies],
            weights=[weight for group in weigh_groups(self.groups, self.objective) for weight in group],
        )

    def advantages(self) -> list[float]:
        return [advantage for group in self.groups for advantage in group.advantages if advantage is not None]

    def update(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The gradient, which is ten times the first moment of an optimizer's first step, and the step's line."""
        optimizer = Optimizer(self.policy.model, weight_decay=0.0, max_gradient_norm=1e9)
        update = PolicyUpdate(
            policy=self.policy,
            optimizer=optimizer,
            objective=self.objective,
            scoring=RowScoring.of(self.config, self.policy),
            reference=self.reference,
            max_logprob_gap=self.config.logprob_gap_limit,
        )
        statistics = update.run(self.groups, StepMedia(self.policy, []), 0.0)
        moments = {name: value for name, value in optimizer.state_tensors().items() if name.startswith("exp_avg/")}
        return {name.removeprefix("exp_avg/"): 10 * value for name, value in moments.items()}, statistics.metrics()

    def assert_gradient_of(self, loss: Tensor, *, value: float | None = None) -> dict[str, Any]:
        """Compare the update's gradient with that of a loss, and its value, if it isn't another; returns its line."""
        self.policy.model.zero_grad()
        loss.backward()
        expected = {n: p.grad.clone() for n, p in self.policy.model.named_parameters() if p.grad is not None}
        self.policy.model.zero_grad()
        found, line = self.update()
        scale = max(float(gradient.abs().max()) for gradient in expected.values())
        assert scale > 1e-6
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6 * scale, msg=name)
        assert line["loss"] == pytest.approx(loss.item() if value is None else value, abs=1e-9)
        return line


def policy_loss(plain: Plain, advantages: list[Any], factors: list[Any] | None = None) -> Tensor:
    """At the first update: the weighted sum of -A ratio, with the ratio at 1."""
    factors = [1.0] * len(advantages) if factors is None else factors
    loss = torch.zeros((), dtype=torch.float64)
    for logprobs_R, weight, advantage, factor in zip(plain.logprobs, plain.weights, advantages, factors, strict=True):
        loss = loss - weight * (factor * advantage * torch.exp(logprobs_R - logprobs_R.detach())).sum()
    return loss


def test_an_entropy_bonus_acts_on_every_response(folder: Path) -> None:
    trial = Trial(folder, entropy_coefficient=0.3)
    plain = trial.plain()
    bonus = sum(weight * entropies.sum() for weight, entropies in zip(plain.weights, plain.entropies, strict=True))
    line = trial.assert_gradient_of(policy_loss(plain, trial.advantages()) - 0.3 * bonus)
    tokens = torch.cat(plain.entropies)
    assert line["entropy"] == pytest.approx(tokens.mean().item())


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_divergence_in_the_reward_lowers_it_by_all_its_tokens(folder: Path, estimator: str) -> None:
    trial = Trial(folder, kl_coefficient=0.5, kl_place="reward", kl_estimator=estimator, advantage="dr_grpo")
    plain = trial.plain()
    assert trial.reference is not None
    frozen = [logprobs_R.detach() for logprobs_R in trial.plain(trial.reference).logprobs]
    costs: list[float] = []
    for logprobs_R, reference_R in zip(plain.logprobs, frozen, strict=True):
        ratio_R = reference_R - logprobs_R.detach()
        by_name = {"k1": -ratio_R, "k2": ratio_R**2 / 2, "k3": ratio_R.exp() - ratio_R - 1}
        costs.append(float(by_name[estimator].sum()))
    lowered = [reward - 0.5 * cost for reward, cost in zip([r for group in REWARDS for r in group], costs, strict=True)]
    means = [sum(lowered[:2]) / 2, sum(lowered[2:]) / 2]
    advantages = [value - means[place // 2] for place, value in enumerate(lowered)]
    assert abs(advantages[2]) > 1e-6  # the second group's rewards are equal, its divergences aren't
    trial.assert_gradient_of(policy_loss(plain, advantages))


def test_reinforce_plus_plus_judges_a_token_by_the_divergences_that_follow(folder: Path) -> None:
    trial = Trial(folder, objective="reinforce_plus_plus", kl_coefficient=0.5)
    plain = trial.plain()
    frozen = trial.plain(trial.reference).logprobs
    returns: list[Tensor] = []
    for place, (logprobs_R, reference_R) in enumerate(zip(plain.logprobs, frozen, strict=True)):
        cost_R = 0.5 * (logprobs_R - reference_R).detach()
        reward = REWARDS[place // 2][place % 2]
        returns.append(torch.stack([reward - cost_R[start:].sum() for start in range(len(cost_R))]))
    tokens = torch.cat(returns)
    advantages = [(return_R - tokens.mean()) / (tokens.std() + 1e-6) for return_R in returns]
    trial.assert_gradient_of(policy_loss(plain, advantages))


def test_a_group_without_spread_is_trained_where_the_whole_step_is_compared(folder: Path) -> None:
    trial = Trial(folder, objective="reinforce_plus_plus")
    assert not trial.groups[1].has_spread
    assert all(trial.advantages()[2:])
    trial.assert_gradient_of(policy_loss(trial.plain(), trial.advantages()))


@pytest.mark.parametrize("name", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_importance_weights_multiply_the_policys_loss_alone(folder: Path, name: str) -> None:
    trial = Trial(folder, sampler_correction=name, sampler_correction_cap=1.5, kl_coefficient=0.1)
    trial.with_sampler_offsets()
    plain = trial.plain()
    factors: list[Tensor] = []
    for logprobs_R in plain.logprobs:
        free = torch.tensor(OFFSETS, dtype=torch.float64)[: len(logprobs_R)].exp()
        free = free.prod().expand(len(free)) if name.startswith("sequence") else free
        factors.append(free.clamp(max=1.5) if name.endswith("truncate") else torch.where(free > 1.5, 0.0, free))
    divergence = torch.zeros((), dtype=torch.float64)
    frozen = trial.plain(trial.reference).logprobs
    for logprobs_R, reference_R, weight in zip(plain.logprobs, frozen, plain.weights, strict=True):
        difference_R = reference_R.detach() - logprobs_R
        divergence = divergence + weight * (difference_R.exp() - difference_R - 1).sum()
    line = trial.assert_gradient_of(policy_loss(plain, trial.advantages(), factors) + 0.1 * divergence)
    used = torch.stack([factor[0] for factor in factors]) if name.startswith("sequence") else torch.cat(factors)
    assert line["effective_sample_fraction"] == pytest.approx((used.sum() ** 2 / (len(used) * (used**2).sum())).item())
    assert line["capped_weight_fraction"] > 0


def test_the_line_of_a_step_has_no_weights_without_a_correction(folder: Path) -> None:
    _, line = Trial(folder).update()
    assert line["effective_sample_fraction"] is None
    assert line["capped_weight_fraction"] is None


@pytest.mark.parametrize("objective", ["gspo", "cispo", "sapo", "dr_grpo", "rloo", "dapo", "gdpo"])
def test_every_objective_starts_with_its_policy_gradient(folder: Path, objective: str) -> None:
    trial = Trial(folder, objective=objective)
    plain, advantages = trial.plain(), trial.advantages()
    terms = list(zip(plain.weights, advantages, plain.logprobs, strict=True))
    values = {
        "cispo": -sum(weight * advantage * logprobs_R.sum().item() for weight, advantage, logprobs_R in terms),
        "sapo": -sum(  # whose gate is 2 / tau at ratio 1
            weight * advantage * len(logprobs_R) * 2 / (1.0 if advantage > 0 else 1.05)
            for weight, advantage, logprobs_R in terms
        ),
    }
    trial.assert_gradient_of(policy_loss(plain, advantages), value=values.get(objective))


def test_a_long_response_gets_a_reward_of_its_own() -> None:
    overlong = OverlongPenalty(weight=0.5, max_tokens=10, buffer_tokens=4)
    score = ResponseScore(terms={"answer": RewardResult(value=1.0, status=RewardStatus.OK)}, total=0.9)
    for num_tokens, total in ((6, 0.9), (8, 0.65), (10, 0.4)):
        rollout = Rollout(token_ids=(1,) * num_tokens, logprobs=(0.0,) * num_tokens, text="", finished=True)
        found = penalise_length(score, rollout, overlong)
        assert found.total == pytest.approx(total)
        value = found.terms["overlong"].value
        assert value is not None
        assert math.isclose(0.5 * value, total - 0.9, abs_tol=1e-12)
    unjudged = ResponseScore(terms={"answer": RewardResult(value=None, status=RewardStatus.VERIFIER_ERROR)}, total=None)
    assert penalise_length(unjudged, rollout, overlong).total is None


def test_groups_with_spread_are_chosen_and_compared_among_themselves(folder: Path) -> None:
    trial = Trial(folder, objective="reinforce_plus_plus")
    spread, even = trial.groups
    (chosen,) = choose_groups([even, even, spread, spread], 1, trial.objective)
    assert chosen.question is spread.question
    assert chosen.advantages == compare_groups([spread], trial.objective)[0].advantages != spread.advantages
    assert [group.rewards for group in choose_groups([even, spread, even], 2, trial.objective)] == [spread.rewards]
    assert [group.rewards for group in choose_groups([even, even, even], 2, trial.objective)] == [even.rewards] * 2
