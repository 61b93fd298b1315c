"""Qwen3.5 against transformers itself: logits from pixels and positions; and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLProcessor,
)

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families import load_policy
from mrsp_engine.families.qwen.qwen3_5 import Qwen35Policy
from mrsp_engine.rollout import SamplingSettings
from mrsp_engine.rollout.transformers import TransformersRolloutEngine
from mrsp_engine.testing.agreement import gaps_around_an_update
from mrsp_engine.testing.fixtures import NoiseVideo
from mrsp_engine.tiny.families import build_tiny

QUESTION = "Which shape left first?"
SAMPLING = SamplingSettings(temperature=0.9, max_tokens=16, num_samples=4, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny("qwen3_5", folder)
    return folder


@pytest.fixture
def policy(folder: Path, store: EmbeddingStore) -> Qwen35Policy:
    policy = load_policy(folder, store=store)
    policy.freeze_vision()
    assert isinstance(policy, Qwen35Policy)
    return policy


def test_cached_equals_live(policy: Qwen35Policy, folder: Path) -> None:
    """Logits from the store equal those of transformers' whole model from pixels, at its own positions."""
    video, other = NoiseVideo(), NoiseVideo(seed=1, height=64, width=128)
    prompt = policy.build_prompt(QUESTION, [policy.encode_video(video, range(7)), policy.encode_video(other, range(4))])
    model = Qwen3_5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = Qwen3VLProcessor.from_pretrained(folder)
    inputs = [
        processor.video_processor(
            videos=[torch.from_numpy(shown.read(list(range(number)))).permute(0, 3, 1, 2)],
            do_sample_frames=False,
            return_tensors="pt",
        )
        for shown, number in ((video, 7), (other, 4))
    ]
    ids = torch.tensor([prompt.expanded_ids])
    kinds = 2 * (ids == model.config.video_token_id).int()
    grids = torch.cat([of_video["video_grid_thw"] for of_video in inputs])
    pixels = torch.cat([of_video["pixel_values_videos"] for of_video in inputs])
    with torch.no_grad():
        live = model(input_ids=ids, mm_token_type_ids=kinds, pixel_values_videos=pixels, video_grid_thw=grids).logits[0]
        cached = policy.language_model_head(policy.hidden_states(policy.embed(prompt), prompt.positions))
        positions, _ = model.model.get_rope_index(ids, kinds, video_grid_thw=grids)
    assert prompt.positions.equal(positions[:, 0])
    torch.testing.assert_close(cached, live, atol=1e-5, rtol=1e-5)


def test_the_sampler_of_transformers_agrees(policy: Qwen35Policy, folder: Path) -> None:
    """It repeats the prompt's state for every sample, and then goes on token by token."""
    prompts = [policy.build_prompt(QUESTION, media) for media in ([], [policy.encode_video(NoiseVideo(), range(8))])]
    engine = TransformersRolloutEngine(load_policy(folder, store=policy.store))
    before, stale, after = gaps_around_an_update(engine, policy, prompts, SAMPLING)
    assert before.max() <= 1e-5
    assert stale.mean() > 1e-2
    assert after.max() <= 1e-5


def test_only_softmax_layers_have_keys_and_values(policy: Qwen35Policy) -> None:
    heads = policy.attention_heads
    assert policy.key_value_bytes == 2 * heads.key * heads.channels * 4  # one layer of three


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("vision_config", {"deepstack_visual_indexes": [0]}, "supported without DeepStack"),
        ("text_config", {"attn_output_gate": False}, "attn_output_gate=false"),
        ("text_config", {"linear_num_key_heads": 2}, "linear_num_value_heads=3"),
        ("text_config", {"layer_types": ["linear_attention", "full_attention"]}, "layer_types"),
        ("text_config", {"layer_types": ["linear_attention", "full_attention", "conv"]}, "layer_types"),
        ("text_config", {"linear_conv_kernel_dim": "4"}, "linear_conv_kernel_dim='4'"),
        ("text_config", {"linear_value_head_dim": 1 << 15}, "weights"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type='yarn'"),
    ],
)
def test_what_isnt_supported_is_refused_in_one_line(
    folder: Path, tmp_path: Path, section: str, values: dict[str, object], message: str
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config[section] |= values
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineUsageError) as raised:
        load_policy(tmp_path, store=EmbeddingStore(tmp_path / "embeddings"))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_experts_that_are_named_one_by_one_are_refused(tmp_path: Path) -> None:
    build_tiny("qwen3_5_moe", tmp_path / "model")
    config = Qwen3_5MoeConfig.from_pretrained(tmp_path / "model")
    Qwen3_5MoeForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    with pytest.raises(EngineUsageError, match="expected the experts of a layer in one tensor") as raised:
        load_policy(tmp_path / "model", store=EmbeddingStore(tmp_path / "embeddings"))
    assert "\n" not in str(raised.value)
