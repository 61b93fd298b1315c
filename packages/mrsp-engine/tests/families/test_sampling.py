"""Real vLLM samples what every family's policy computes, before and after an update of the weights."""

from pathlib import Path

import pytest

from mrsp_engine.embeddings import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout import SamplingSettings
from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine
from mrsp_engine.testing.agreement import gaps_around_an_update
from mrsp_engine.testing.fixtures import NoiseVideo
from mrsp_engine.tiny.families import TINY_FAMILIES, build_tiny
from mrsp_engine.tiny.published import write_published

pytest.importorskip("vllm", reason="vLLM isn't installed", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLING = SamplingSettings(temperature=0.9, max_tokens=16, num_samples=4, seed=5)
QUESTION = "Which shape left first?"


def prompts_of(policy: Policy) -> list[Prompt]:
    """Without media, with one video, and with videos and an image in any order."""
    blind = policy.build_prompt("Blind?", [])
    if policy.name in ("qwen2", "qwen3"):
        return [blind, policy.build_prompt(QUESTION, [], system="Be brief.")]
    long, short = (policy.encode_video(NoiseVideo(seed=seed), range(24 // seed)) for seed in (1, 4))
    image = policy.encode_image(NoiseVideo(seed=9, frame_count=1))
    assert long.num_tokens > 128  # vLLM's prefix cache works in blocks of 128
    return [blind, *(policy.build_prompt(QUESTION, media) for media in ([long], [short, image, short]))]


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
def test_the_sampler_agrees_with_the_trainer(family: str, tmp_path: Path) -> None:
    build_tiny(family, tmp_path / "model")
    policy = load_policy(tmp_path / "model", store=EmbeddingStore(tmp_path / "embeddings"))
    policy.freeze_vision()
    prompts = prompts_of(policy)
    engine = VllmRolloutEngine(tmp_path / "model", policy.store, max_model_len=512, memory_bytes=32 * 1024**2)
    try:
        before, stale, after = gaps_around_an_update(engine, policy, prompts, SAMPLING)
    finally:
        engine.close()
    assert before.mean() <= 1e-5
    assert stale.mean() > 1e-2
    assert after.mean() <= 1e-5


def test_media_beyond_the_embedding(tmp_path: Path) -> None:
    """NVILA-8B's tokens of media have no rows in its embedding, and vLLM takes no token that has none."""
    write_published("nvila_8b", tmp_path / "model")
    policy = load_policy(tmp_path / "model", store=EmbeddingStore(tmp_path / "embeddings"))
    policy.freeze_vision()
    videos = [policy.encode_video(NoiseVideo(seed=seed), range(4 * seed)) for seed in (1, 3)]
    prompts = [policy.build_prompt(QUESTION, media) for media in ([], videos[:1], videos)]
    assert max(prompts[1].expanded_ids) >= policy.vocab_size
    engine = VllmRolloutEngine(tmp_path / "model", policy.store, max_model_len=512, memory_bytes=32 * 1024**2)
    try:
        before, stale, after = gaps_around_an_update(engine, policy, prompts, SAMPLING)
    finally:
        engine.close()
    assert before.max() < 1e-4
    assert stale.mean() > 1e-2
    assert after.max() < 1e-4
