"""vLLM samples with the adapters of the latest update, merged or by themselves, as PEFT's files hold them."""

import importlib.util

import pytest

from longrl_trainer.config.sections import LoraSection
from longrl_trainer.errors import TrainerError
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.training.adapters import LoraAdapters
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.rollout.base import SamplingSettings
from mrsp_engine.rollout.vllm.adapter import SamplerAdapter
from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine
from mrsp_engine.testing.agreement import disturb_weights, logprob_gaps
from mrsp_engine.tiny.families import build_tiny

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


def options_of(lora_sync: str, **changes):
    return {
        "steps": 3,
        "group_size": 8,
        "max_response_tokens": 24,
        "learning_rate": 5e-3,
        "kl_coefficient": 0.1,  # so that every step has a gradient, whatever the rewards are
        "checkpoint_every_steps": 1,
        "sampler": {"engine": "vllm", "lora_sync": lora_sync},
        "lora__rank": 4,
        "lora__alpha": 16,
        **changes,
    }


def read_gaps(config):
    return [line["logprob_gap"]["mean_abs"] for line in read_json_lines(config.output / "metrics.jsonl")]


def test_merged_weights_arrive_in_every_step(started, tmp_path):
    config = started.grpo(tmp_path / "run", **options_of("merged"))
    train_grpo(config)
    assert len(read_gaps(config)) == 3
    assert max(read_gaps(config)) <= 1e-5


def test_adapters_arrive_in_every_step_and_after_a_pause_and_lacking_ones_are_noticed(started, tmp_path, monkeypatch):
    config = started.grpo(tmp_path / "run", **options_of("adapter"))
    train_grpo(config)

    renew = SamplerAdapter.renew

    def renew_once(self, llm, policy):
        return renew(self, llm, policy) if self.request is None else 0

    monkeypatch.setattr(SamplerAdapter, "renew", renew_once)
    with pytest.raises(TrainerError, match="sampler and trainer disagree"):
        train_grpo(started.grpo(tmp_path / "run", **options_of("adapter", steps=6)))
    gaps = read_gaps(config)
    assert 4 <= len(gaps) < 6  # the step after the pause has the checkpoint's adapter
    assert max(gaps) <= 1e-5


def test_layers_are_named_as_the_checkpoint_names_them(tmp_path):
    """VLLM passes over layers that it doesn't know; the thinker's have other names in the checkpoint than here."""
    build_tiny("qwen2_5_omni", tmp_path / "model")
    policy = load_policy(tmp_path / "model", store=EmbeddingStore(tmp_path / "embeddings"))
    adapters = LoraAdapters(policy, LoraSection(rank=4, alpha=8), seed=0)
    disturb_weights(policy)
    prompts, sampling = [policy.build_prompt("Which left first?", [])], SamplingSettings(temperature=1.0, max_tokens=12)
    adapter = SamplerAdapter(adapters.rank, adapters.sampled_layers)
    engine = VllmRolloutEngine(
        tmp_path / "model", policy.store, max_model_len=512, memory_bytes=32 * 1024**2, adapter=adapter
    )
    try:
        before = logprob_gaps(policy, prompts, engine.generate(prompts, sampling), temperature=1.0)
        engine.update_weights(policy)
        after = logprob_gaps(policy, prompts, engine.generate(prompts, sampling), temperature=1.0)
    finally:
        engine.close()
    assert before.mean() > 1e-2
    assert after.mean() <= 1e-5


@pytest.mark.parametrize(
    ("rank", "config", "message"),
    [
        (513, {}, r"rank 513: vLLM takes ranks from 1 to 512"),
        (4, {"text_config": {"num_experts": 4}}, r"a model with experts: on CPUs"),
    ],
)
def test_adapters_that_vllm_does_not_take(rank, config, message):
    from mrsp_engine.errors import EngineUsageError

    with pytest.raises(EngineUsageError, match=message):
        SamplerAdapter(rank, ["q_proj"]).engine_options(config)
    assert SamplerAdapter(9, ["a.q_proj", "b.q_proj"]).engine_options({})["max_lora_rank"] == 16
