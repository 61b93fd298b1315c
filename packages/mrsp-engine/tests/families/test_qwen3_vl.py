"""Qwen3-VL against transformers itself: logits from pixels, positions, sizes and the text between frames."""

from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForCausalLM, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from transformers.video_utils import VideoMetadata

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.qwen.qwen3_vl import Qwen3VlPolicy
from mrsp_engine.testing.fixtures import NoiseVideo
from mrsp_engine.tiny.families import TINY_SIZES, build_tiny

QUESTION = "Which shape left first?"
NUM_LEVELS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny("qwen3_vl", folder)
    return folder


@pytest.fixture
def policy(folder: Path, store: EmbeddingStore) -> Qwen3VlPolicy:
    policy = load_policy(folder, store=store)
    policy.freeze_vision()
    assert isinstance(policy, Qwen3VlPolicy)
    return policy


def processed(folder: Path, video: NoiseVideo, num_frames: int) -> dict[str, torch.Tensor]:
    processor = Qwen3VLProcessor.from_pretrained(folder)
    frames = torch.from_numpy(video.read(list(range(num_frames)))).permute(0, 3, 1, 2)
    return processor.video_processor(videos=[frames], do_sample_frames=False, return_tensors="pt")


def test_cached_equals_live(policy: Qwen3VlPolicy, folder: Path) -> None:
    """Logits from the store equal those of transformers' whole model from pixels, at its own positions."""
    video, other = NoiseVideo(), NoiseVideo(seed=1, height=64, width=128)
    picture = NoiseVideo(seed=2, frame_count=1, height=120, width=70)
    media = [policy.encode_video(video, range(7)), policy.encode_image(picture), policy.encode_video(other, range(4))]
    prompt = policy.build_prompt(QUESTION, media)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = Qwen3VLProcessor.from_pretrained(folder)
    videos = [processed(folder, video, 7), processed(folder, other, 4)]
    image = processor.image_processor(
        images=[torch.from_numpy(picture.read([0])[0]).permute(2, 0, 1)], return_tensors="pt"
    )
    ids = torch.tensor([prompt.expanded_ids])
    kinds = (ids == model.config.image_token_id).int() + 2 * (ids == model.config.video_token_id).int()
    inputs = {
        "pixel_values_videos": torch.cat([inputs["pixel_values_videos"] for inputs in videos]),
        "video_grid_thw": torch.cat([inputs["video_grid_thw"] for inputs in videos]),
        "pixel_values": image["pixel_values"],
        "image_grid_thw": image["image_grid_thw"],
    }
    with torch.no_grad():
        live = model(input_ids=ids, mm_token_type_ids=kinds, **inputs).logits[0]
        cached = policy.language_model_head(policy.hidden_states(policy.embed(prompt), prompt.positions))
        positions, _ = model.model.get_rope_index(
            ids, kinds, image_grid_thw=inputs["image_grid_thw"], video_grid_thw=inputs["video_grid_thw"]
        )
    assert prompt.positions.equal(positions[:, 0])
    torch.testing.assert_close(cached, live, atol=1e-5, rtol=1e-5)


def test_a_row_holds_what_every_level_saw(policy: Qwen3VlPolicy) -> None:
    prompt = policy.build_prompt(QUESTION, [policy.encode_video(NoiseVideo(), range(4))])
    embeddings = policy.embed(prompt)
    width = TINY_SIZES.hidden_size
    assert embeddings.shape == (prompt.length, width * (1 + NUM_LEVELS))
    is_text = torch.tensor([token not in policy._placeholder_ids for token in prompt.expanded_ids])
    assert not embeddings[is_text, width:].any()
    with torch.no_grad():
        hidden = policy.hidden_states(embeddings, prompt.positions)
        for level in range(1, 1 + NUM_LEVELS):
            without = embeddings.clone()
            without[:, level * width : (level + 1) * width] = 0
            assert (policy.hidden_states(without, prompt.positions) - hidden).abs().max() > 1e-3


def test_times_stand_between_the_frames(policy: Qwen3VlPolicy, folder: Path) -> None:
    """As the processor writes them, without the second pair of markers around everything."""
    video = NoiseVideo(frames_per_second=0.4)
    medium = policy.encode_video(video, range(5))
    assert medium.grid_seconds == (1.25, 6.25, 10.0)
    text = policy.tokenizer.decode(policy.build_prompt(QUESTION, [medium]).expanded_ids)
    processor = Qwen3VLProcessor.from_pretrained(folder)
    inputs = processed(folder, video, 5) | {
        "video_metadata": [VideoMetadata(total_num_frames=5, fps=0.4, frames_indices=list(range(5)))]
    }
    written = processor.replace_video_token(inputs, 0)
    assert written.count("seconds>") == 3
    assert f"user\n{written}{QUESTION}<|im_end|>" in text


@pytest.mark.slow
@pytest.mark.parametrize("num_frames", [1, 2, 5, 24])
@pytest.mark.parametrize("size", [(84, 112), (300, 33), (20, 20), (480, 640)])
def test_size_is_foreseen(policy: Qwen3VlPolicy, folder: Path, num_frames: int, size: tuple[int, int]) -> None:
    """The grid, computed without decoding, equals the processor's; it refuses single frames."""
    video = NoiseVideo(height=size[0], width=size[1])
    assert policy.encoder is not None
    grid = policy.encoder.plan(video, range(num_frames)).layout.grid_thw
    if num_frames > 1:
        assert grid == tuple(processed(folder, video, num_frames)["video_grid_thw"][0].tolist())
    assert grid[0] == -(-num_frames // 2)


@pytest.mark.slow
def test_reading_alone_is_qwen3(tmp_path: Path, store: EmbeddingStore) -> None:
    build_tiny("qwen3", tmp_path / "model")
    policy = load_policy(tmp_path / "model", store=store)
    prompt = policy.build_prompt(QUESTION, [])
    model = Qwen3ForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([prompt.expanded_ids])).logits[0]
        ours = policy.language_model_head(policy.hidden_states(policy.embed(prompt), prompt.positions))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
