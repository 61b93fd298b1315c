"""Trainer and vLLM rotate by the same angles, with every supported rotary scaling."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mrsp_engine.embeddings import EmbeddingStore
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.families.qwen.sampler_media import Qwen25VlSamplerMedia
from mrsp_engine.rollout import Refusal, SamplingSettings
from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine
from mrsp_engine.rollout.vllm.rotary import rotary_frequencies
from mrsp_engine.testing.agreement import logprob_gaps
from mrsp_engine.testing.fixtures import NoiseVideo
from mrsp_engine.tiny.families import build_tiny

pytest.importorskip("vllm", reason="vLLM isn't installed", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("one_thread")
ORIGINAL, FACTOR = 128, 4
MAX_MODEL_LEN = ORIGINAL * FACTOR
SAMPLING = SamplingSettings(temperature=1.0, max_tokens=16, num_samples=2, seed=3)
YARN = {"type": "yarn", "factor": FACTOR, "original_max_position_embeddings": ORIGINAL}


def kind_of(rope: Mapping[str, Any]) -> str:
    return rope.get("rope_type", rope.get("type"))


def build_scaled(family: str, folder: Path, rope: Mapping[str, Any]) -> None:
    """A tiny checkpoint whose config.json has these rotary settings, written as in published files."""
    build_tiny(family, folder)
    path = folder / ("llm" if family == "vila" else "") / "config.json"
    config = json.loads(path.read_text())
    text = config.get("text_config", config)
    old = text.pop("rope_parameters")
    sections = {name: value for name, value in old.items() if name.startswith("mrope")}
    text["rope_scaling"], text["rope_theta"] = {**sections, **rope}, old["rope_theta"]
    text["max_position_embeddings"] = ORIGINAL if kind_of(rope) != "llama3" else MAX_MODEL_LEN  # as published
    path.write_text(json.dumps(config))


def open_policy(folder: Path) -> Policy:
    policy = load_policy(folder, store=EmbeddingStore(folder.parent / "embeddings"))
    policy.freeze_vision()
    return policy


def open_engine(folder: Path, policy: Policy) -> VllmRolloutEngine:
    return VllmRolloutEngine(folder, policy.store, max_model_len=MAX_MODEL_LEN, memory_bytes=32 * 1024**2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "rope"),
    [
        pytest.param("qwen2", YARN, marks=pytest.mark.long),
        pytest.param(
            "qwen3",
            {"rope_type": "yarn", **YARN, "beta_fast": None, "attention_factor": 1.1},
            marks=pytest.mark.long,
        ),
        ("qwen2_5_vl", YARN),
        pytest.param(
            "qwen2_5_vl", {**YARN, "beta_fast": 8, "beta_slow": 2.0, "truncate": False}, marks=pytest.mark.long
        ),
        pytest.param("qwen3_vl", YARN, marks=pytest.mark.long),
        pytest.param("vila", YARN, marks=pytest.mark.long),
        ("qwen2", {"type": "linear", "factor": FACTOR}),
        (
            "qwen3",
            {
                "rope_type": "llama3",
                "factor": FACTOR,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": ORIGINAL,
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else kind_of(value),
)
def test_prompts_longer_than_the_trained_positions_agree(family: str, rope: dict[str, Any], tmp_path: Path) -> None:
    build_scaled(family, tmp_path / "model", rope)
    policy = open_policy(tmp_path / "model")
    media = [] if policy.encoder is None else [policy.encode_video(NoiseVideo(), range(8))]
    prompt = policy.build_prompt("Which shape left first? " * 15, media)
    assert int(prompt.positions.max()) > 2 * ORIGINAL
    embedding: Any = policy.decoder.get_submodule("rotary_emb")
    found, scale = rotary_frequencies(embedding.config)
    assert torch.equal(found, embedding.inv_freq)
    assert scale == embedding.attention_scaling
    engine = open_engine(tmp_path / "model", policy)
    try:
        gaps = logprob_gaps(policy, [prompt], engine.generate([prompt], SAMPLING), temperature=1.0)
    finally:
        engine.close()
    assert gaps.mean() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "num_frames", "edge"),
    [("qwen2_5_vl", 60, 48), pytest.param("qwen2_vl", 60, 48, marks=pytest.mark.long), ("qwen3_vl", 4, 224)],
)
def test_what_counts_is_positions_not_tokens(family: str, num_frames: int, edge: int, tmp_path: Path) -> None:
    """An hour of video has more tokens than a model has positions, and fits, since the tokens of a frame share one."""
    build_tiny(family, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["max_position_embeddings"] = ORIGINAL
    path.write_text(json.dumps(config))
    policy = open_policy(tmp_path / "model")
    assert not policy.has_one_axis
    video = NoiseVideo(height=edge, width=edge, frame_count=num_frames)
    prompt = policy.build_prompt("Which shape left first?", [policy.encode_video(video, range(num_frames))])
    assert prompt.length > ORIGINAL
    assert prompt.positions.max() + SAMPLING.max_tokens < ORIGINAL
    long = policy.build_prompt("Which? " * 50, [])
    assert long.length + SAMPLING.max_tokens < MAX_MODEL_LEN
    engine = open_engine(tmp_path / "model", policy)
    try:
        answered, refusal = engine.generate([prompt, long], SAMPLING)
        gaps = logprob_gaps(policy, [prompt], [answered], temperature=1.0)
    finally:
        engine.close()
    assert gaps.mean() <= 1e-5
    assert isinstance(refusal, Refusal)
    assert f"{long.length} positions and max_tokens=16: expected at most {ORIGINAL}" in refusal.message


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen2"])
def test_yarn_stretches_what_turns_less_than_once_within_the_trained_length(family: str, tmp_path: Path) -> None:
    """As in the paper: pairs of channels that rotate 32 times keep their frequency, whatever vLLM precomputes."""
    build_scaled(family, tmp_path / "model", YARN)
    embedding: Any = open_policy(tmp_path / "model").decoder.get_submodule("rotary_emb")
    base = embedding.config.rope_parameters["rope_theta"]
    plain = base ** -(torch.arange(0, 32, 2) / 32)
    turns = ORIGINAL * plain / (2 * math.pi)
    torch.testing.assert_close(embedding.inv_freq[turns > 32], plain[turns > 32])
    torch.testing.assert_close(embedding.inv_freq[turns < 1], plain[turns < 1] / FACTOR)
    assert embedding.attention_scaling == pytest.approx(0.1 * math.log(FACTOR) + 1)


@pytest.mark.slow
def test_a_sampler_that_turns_otherwise_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_scaled("qwen2_5_vl", tmp_path / "model", YARN)
    policy = open_policy(tmp_path / "model")
    monkeypatch.setattr(Qwen25VlSamplerMedia, "kept_positions", 1)
    with pytest.raises(EngineError, match="vLLM computes other rotary frequencies than the trainer") as caught:
        open_engine(tmp_path / "model", policy)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_context_longer_than_the_settings_reach_is_refused(tmp_path: Path) -> None:
    build_scaled("qwen2", tmp_path / "model", YARN | {"factor": 2})
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": MAX_MODEL_LEN}))
    with pytest.raises(EngineUsageError, match=r"max_model_len=512: .* cover 256 positions; lower it"):
        open_engine(tmp_path / "model", open_policy(tmp_path / "model"))


def test_lengths_that_change_frequencies_are_refused_by_trainer_and_sampler(tmp_path: Path) -> None:
    build_scaled("qwen2", tmp_path / "model", {"type": "dynamic", "factor": 2.0})
    store = EmbeddingStore(tmp_path / "embeddings")
    for start in (
        lambda: load_policy(tmp_path / "model", store=store),
        lambda: VllmRolloutEngine(tmp_path / "model", store, max_model_len=MAX_MODEL_LEN),
    ):
        with pytest.raises(EngineUsageError, match=r"config\.json: rope_type='dynamic' in rope_scaling"):
            start()
