"""The length and the positions of a prompt are known without building it, for every family and kind of medium."""

from pathlib import Path

import pytest
import torch

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.testing.fixtures import NoiseVideo
from mrsp_engine.tiny.families import build_tiny

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "vila")
SHAPES = {"landscape": (90, 160), "portrait": (160, 90), "tiny": (6, 10)}


@pytest.fixture(scope="module", params=FAMILIES)
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tmp_path_factory.mktemp(request.param)
    build_tiny(request.param, folder / "model")
    policy = load_policy(folder / "model", store=EmbeddingStore(folder / "store"))
    policy.freeze_vision()
    return policy


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_frames", [1, 2, 7, 64, 256, 1024])
def test_one_video_of_any_length_and_shape(seeing: Policy, num_frames: int, shape: str) -> None:
    height, width = SHAPES[shape]
    video = NoiseVideo(frame_count=num_frames, height=height, width=width, frames_per_second=0.7)
    assert seeing.encoder is not None
    medium = seeing.encoder.plan(video, range(num_frames)).reference
    for text, system in (("Which shape left first?", None), ("Why?\nA. red", "Look closely.")):
        built = seeing.build_prompt(text, [medium], system=system)
        assert seeing.prompt_length(text, [medium], system=system) == built.length
        assert seeing.prompt_positions(text, [medium], system=system) == built.positions.max() + 1
    assert built.length > medium.num_tokens
    assert video.num_read == 0


def test_several_media_and_none(seeing: Policy) -> None:
    assert seeing.encoder is not None
    videos = [NoiseVideo(seed=seed, frame_count=frames) for seed, frames in enumerate((3, 40))]
    media = [seeing.encoder.plan(video, range(video.frame_count)).reference for video in videos]
    picture = seeing.encoder.plan_image(NoiseVideo(frame_count=1)).reference
    for shown in ([], media, [picture], [media[0], picture, media[1]], [media[0], media[0]]):
        built = seeing.build_prompt("Which?", shown)
        assert seeing.prompt_length("Which?", shown) == built.length
        assert seeing.prompt_positions("Which?", shown) == built.positions.max() + 1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "qwen3", *FAMILIES])
def test_positions_are_those_of_the_language_model(family: str, tmp_path: Path) -> None:
    build_tiny(family, tmp_path / "model")
    policy = load_policy(tmp_path / "model", dtype=torch.bfloat16, store=EmbeddingStore(tmp_path / "store"))
    assert policy.max_positions == 32768
    config = policy.model.config.get_text_config()  # type: ignore[operator,union-attr]
    assert policy.key_value_bytes == 2 * config.num_hidden_layers * config.num_key_value_heads * 32 * 2
    config.rope_parameters = {**config.rope_parameters, "rope_type": "yarn", "factor": 4.0}
    assert policy.max_positions == 32768  # counted in the positions already
    config.rope_parameters = {**config.rope_parameters, "rope_type": "linear", "factor": 4.0}
    assert policy.max_positions == 4 * 32768
    config.model_max_length = 1000
    assert policy.max_positions == 4000
