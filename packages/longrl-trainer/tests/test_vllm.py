"""The same loops with vLLM as the sampler."""

import importlib.util

import pytest

from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.evaluation.evaluate import evaluate
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.sft import train_sft
from mrsp_engine.testing.fixtures import run_on_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


@pytest.mark.slow
def test_grpo_and_evaluation_with_vllm(started, tmp_path):
    config = started.grpo(
        tmp_path / "run", steps=4, group_size=8, max_response_tokens=24, learning_rate=5e-3, sampler__engine="vllm"
    )
    result = train_grpo(config)
    lines = read_json_lines(config.output / "metrics.jsonl")
    assert len(lines) == 4
    assert sum(line["gradient_norm"] > 0 for line in lines) >= 2  # so later steps sample with changed weights
    assert result.logprob_gap_mean_abs <= 1e-4
    options = {"model__folder": result.model_folder, "max_response_tokens": 24}
    by_vllm = evaluate(started.evaluation(tmp_path / "vllm.json", sampler__engine="vllm", **options))
    plainly = evaluate(started.evaluation(tmp_path / "plain.json", **options))
    assert [item.response for item in by_vllm.items] == [item.response for item in plainly.items]
    blind = evaluate(started.evaluation(tmp_path / "blind.json", sampler__engine="vllm", blind=True, **options))
    assert blind.count == 8


def train_on_ranks(values: str) -> tuple[float, list[float]]:
    config = GrpoConfig.model_validate_json(values)
    result = train_grpo(config)
    return result.logprob_gap_mean_abs, [
        line["gradient_norm"] for line in read_json_lines(config.output / "metrics.jsonl")
    ]


@pytest.mark.slow
def test_two_processes_hold_one_sampler_and_one_model_together(started, tmp_path):
    """Whole weights pass from the shards of training to the shards of the sampler, one at a time."""
    config = started.grpo(
        tmp_path / "run",
        steps=3,
        group_size=8,
        max_response_tokens=24,
        learning_rate=5e-3,
        sampler__engine="vllm",
        sampler__tensor_ranks=2,
        sampler__memory_bytes=2**24,
    )
    first, second = run_on_ranks(train_on_ranks, 2, config.model_dump_json())
    assert first == second
    gap, norms = first
    assert gap <= 1e-5
    assert sum(norm > 0 for norm in norms[:-1]) >= 1  # so a later step samples with changed weights


@pytest.mark.long
def test_sft_grpo_and_evaluation_about_several_media_with_vllm(album, tmp_path):
    learned = train_sft(album.sft(tmp_path / "sft"))
    config = album.grpo(
        tmp_path / "run",
        model__folder=learned.model_folder,
        steps=3,
        prompts_per_step=10,
        max_response_tokens=24,
        learning_rate=5e-3,
        sampler__engine="vllm",
    )
    result = train_grpo(config)
    lines = read_json_lines(config.output / "metrics.jsonl")
    assert [line["prompts_refused"] for line in lines] == [{}] * 3
    assert sum(line["gradient_norm"] > 0 for line in lines) >= 1
    assert result.logprob_gap_mean_abs <= 1e-5
    options = {"model__folder": result.model_folder, "max_response_tokens": 24, "allow_seen_videos": True}
    by_vllm = evaluate(album.evaluation(tmp_path / "vllm.json", sampler__engine="vllm", **options))
    plainly = evaluate(album.evaluation(tmp_path / "plain.json", **options))
    assert by_vllm.count == 10
    assert [item.response for item in by_vllm.items] == [item.response for item in plainly.items]
