"""Sampling with plain transformers: drawn from the distribution that the trainer scores."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch

from mrsp_engine.embeddings import EmbeddingStore
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout import Refusal, RefusalReason, RolloutEngine, SamplingSettings, require_rollouts
from mrsp_engine.rollout.transformers import TransformersRolloutEngine, draw
from mrsp_engine.testing.agreement import logprob_gaps
from mrsp_engine.testing.fixtures import NoiseVideo

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLING = SamplingSettings(temperature=0.8, max_tokens=20, num_samples=5, seed=1)


@pytest.fixture
def engine(policy: Policy) -> RolloutEngine:
    return TransformersRolloutEngine(policy)


@pytest.fixture
def prompts(policy: Policy, video: NoiseVideo) -> list[Prompt]:
    medium = policy.encode_video(video, [0, 2, 4, 6])
    return [policy.build_prompt("Which shape left first?", [medium]), policy.build_prompt("Blind?", [])]


def test_logprobs_are_those_of_the_trainer(engine: RolloutEngine, policy: Policy, prompts: list[Prompt]) -> None:
    groups = engine.generate(prompts, SAMPLING)
    assert [len(group) for group in groups] == [5, 5]
    assert logprob_gaps(policy, prompts, groups, temperature=SAMPLING.temperature).max() <= 1e-9


def test_seed_makes_a_call_reproducible(engine: RolloutEngine, prompts: list[Prompt]) -> None:
    first = engine.generate(prompts, SAMPLING)
    free = dataclasses.replace(SAMPLING, seed=None)
    assert engine.generate(prompts, free) != engine.generate(prompts, free)
    assert engine.generate(prompts, SAMPLING) == first
    assert len({rollout.token_ids for rollout in first[0]}) == 5


def test_a_response_stops_at_its_end_token(engine: RolloutEngine, policy: Policy, prompts: list[Prompt]) -> None:
    sampling = dataclasses.replace(SAMPLING, num_samples=12)
    seen = Counter(rollout.token_ids[3] for rollout in engine.generate(prompts, sampling)[0])
    policy.end_token_ids = (*policy.end_token_ids, seen.most_common(1)[0][0])
    rollouts = engine.generate(prompts, sampling)[0]
    assert any(rollout.finished for rollout in rollouts)
    for rollout in rollouts:
        assert len(rollout.token_ids) == len(rollout.logprobs)
        assert not set(rollout.token_ids[:-1]) & set(policy.end_token_ids)
        assert rollout.finished == (rollout.token_ids[-1] in policy.end_token_ids)
        assert rollout.finished or len(rollout.token_ids) == 20
        assert "<|im_end|>" not in rollout.text


def test_sampled_frequencies_follow_temperature_and_nucleus() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(20_000, -1)
    for temperature, top_p, kept in ((1.0, 1.0, 4), (0.5, 1.0, 4), (1.0, 0.7, 2), (2.0, 0.85, 3)):
        sampling = SamplingSettings(temperature=temperature, top_p=top_p, max_tokens=1)
        tokens, logprobs = draw(logits, sampling, torch.Generator().manual_seed(0))
        weights = (logits[0] / temperature).softmax(0)
        weights[kept:] = 0
        expected = weights / weights.sum()
        frequencies = torch.bincount(tokens, minlength=4) / len(tokens)
        assert torch.allclose(frequencies, expected, atol=0.015)
        assert torch.allclose(logprobs.exp(), expected[tokens], atol=1e-6)


def test_weights_of_another_policy_are_taken_over(
    engine: RolloutEngine, tiny_folder: Path, tmp_path: Path, prompts: list[Prompt]
) -> None:
    before = engine.generate(prompts[1:], SAMPLING)
    other = load_policy(tiny_folder, dtype=torch.float64, store=EmbeddingStore(tmp_path / "other"))
    with torch.no_grad():
        other.language_model_head.weight.mul_(3)
    engine.update_weights(other)
    after = engine.generate(prompts[1:], SAMPLING)
    assert after != before
    assert after == TransformersRolloutEngine(other).generate(prompts[1:], SAMPLING)


def test_a_sample_without_its_embedding_is_refused_alone(engine: RolloutEngine, prompts: list[Prompt]) -> None:
    absent = dataclasses.replace(prompts[0].media[0], key="0" * 64)
    refused, answered = engine.generate([dataclasses.replace(prompts[0], media=(absent,)), prompts[1]], SAMPLING)
    assert isinstance(refused, Refusal)
    assert refused.reason == RefusalReason.EMBEDDING_UNUSABLE
    assert "0" * 12 in refused.message
    assert "\n" not in refused.message
    assert len(require_rollouts(answered)) == 5


def test_closed_engine_says_so(engine: RolloutEngine, prompts: list[Prompt]) -> None:
    engine.sleep()
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.sleep()
    with pytest.raises(EngineError, match="closed"):
        engine.generate(prompts, SAMPLING)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_tokens": 0}, {"num_samples": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(EngineUsageError, match=next(iter(wrong))):
        dataclasses.replace(SAMPLING, **wrong)
