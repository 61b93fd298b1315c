"""Real vLLM agrees with every family's policy, before and after a weight update."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mrsp_engine.embeddings import EmbeddingStore
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.families.qwen.qwen2_5_omni import Qwen25OmniPolicy
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout import SamplingSettings
from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine
from mrsp_engine.testing.agreement import disturb_weights, gaps_around_an_update, logprob_gaps
from mrsp_engine.testing.fixtures import NoiseSound, NoiseVideo
from mrsp_engine.tiny.families import TINY_FAMILIES, build_tiny
from mrsp_engine.tiny.published import write_published

pytest.importorskip("vllm", reason="vLLM isn't installed", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLING = SamplingSettings(temperature=0.9, max_tokens=16, num_samples=4, seed=5)
QUESTION = "Which shape left first?"
WITH_EXPERTS = "qwen3_vl_moe"
WITH_STATES = ("qwen3_5", "qwen3_5_moe")


def prompts_of(policy: Policy) -> list[Prompt]:
    """Without media, with one video, and with videos, an image and recordings in any order."""
    blind = policy.build_prompt("Blind?", [])
    if policy.name in ("qwen2", "qwen3"):
        return [blind, policy.build_prompt(QUESTION, [], system="Be brief.")]
    long, short = (policy.encode_video(NoiseVideo(seed=seed), range(24 // seed)) for seed in (1, 4))
    image = policy.encode_image(NoiseVideo(seed=9, frame_count=1))
    assert long.num_tokens > 128  # vLLM's prefix cache works in blocks of 128
    shown = [[long], [short, image, short]]
    if isinstance(policy, Qwen25OmniPolicy):
        heard, brief = (policy.encode_audio(NoiseSound(seed, 150_000 // seed)) for seed in (1, 4))
        shown += [[*heard], [*brief, short, *heard, image]]
        slow = policy.encode_video(NoiseVideo(seed=5, frame_count=8, frames_per_second=0.7), range(8))
        films = [
            (video, policy.encode_film_sound(NoiseSound(6, length))) for video in (long, slow) for length in (70_000,)
        ]
        shown += [[*films[0]], [*films[1], image, *films[0]]]
    return [blind, *(policy.build_prompt(QUESTION, media) for media in shown)]


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(TINY_FAMILIES.keys() - {WITH_EXPERTS, *WITH_STATES}))
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "most"), [("qwen3_5", 3e-3), pytest.param("qwen3_5_moe", 6e-3, marks=pytest.mark.long)]
)
def test_the_sampler_agrees_on_layers_with_states(family: str, most: float, tmp_path: Path) -> None:
    """In bfloat16, all that vLLM computes these layers in on CPUs; prompts in pieces, and found in its cache.

    Rounding may pick other experts.
    """
    build_tiny(family, tmp_path / "model")
    store = EmbeddingStore(tmp_path / "embeddings")
    policy = load_policy(tmp_path / "model", store=store, dtype=torch.bfloat16)
    policy.freeze_vision()
    prompts = prompts_of(policy)
    settings: dict[str, Any] = {"max_model_len": 512, "memory_bytes": 64 * 1024**2}
    with pytest.raises(EngineUsageError, match="bfloat16 only"):
        VllmRolloutEngine(tmp_path / "model", store, **settings)
    engine = VllmRolloutEngine(
        tmp_path / "model", store, dtype="bfloat16", batch_tokens=128, max_num_seqs=16, **settings
    )
    try:
        before, stale, after = gaps_around_an_update(engine, policy, prompts, SAMPLING, strength=0.02)
        again = logprob_gaps(policy, prompts, engine.generate(prompts, SAMPLING), temperature=SAMPLING.temperature)
    finally:
        engine.close()
    assert max(before.mean(), after.mean(), again.mean()) <= most
    assert stale.mean() > 5e-2


@contextmanager
def least_lead(policy: Policy) -> Iterator[list[float]]:
    """The smallest margin, at every layer, of the last selected expert over the next one."""
    leads: list[float] = []

    def note(router: Any, _: object, output: tuple[Tensor, ...]) -> None:
        last, following = output[0].topk(router.top_k + 1).values[..., -2:].unbind(-1)
        leads.append(float((last - following).min()))

    routers = [module for module in policy.decoder.modules() if type(module).__name__.endswith("TopKRouter")]
    handles = [router.register_forward_hook(note) for router in routers]
    try:
        yield leads
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.slow
def test_the_sampler_picks_the_experts_of_the_trainer(tmp_path: Path) -> None:
    """Within rounding, the selection of experts is random: prompts with such a token don't count."""
    build_tiny(WITH_EXPERTS, tmp_path / "model")
    policy = load_policy(tmp_path / "model", store=EmbeddingStore(tmp_path / "embeddings"))
    policy.freeze_vision()
    prompts = prompts_of(policy)
    engine = VllmRolloutEngine(tmp_path / "model", policy.store, max_model_len=512, memory_bytes=32 * 1024**2)

    def measure() -> list[Tensor]:
        """The gaps of every prompt that counts."""
        counted: list[Tensor] = []
        for prompt, outcome in zip(prompts, engine.generate(prompts, SAMPLING), strict=True):
            with least_lead(policy) as leads:
                gaps = logprob_gaps(policy, [prompt], [outcome], temperature=SAMPLING.temperature)
            if min(leads) > 1e-6:
                counted.append(gaps)
        assert len(counted) >= len(prompts) - 1
        return counted

    try:
        before = measure()
        disturb_weights(policy)
        stale = measure()
        engine.update_weights(policy)
        after = measure()
    finally:
        engine.close()
    assert max(gaps.max() for gaps in (*before, *after)) <= 1e-5
    assert min(gaps.mean() for gaps in stale) > 1e-2


@pytest.mark.slow
def test_media_beyond_the_embedding(tmp_path: Path) -> None:
    """NVILA-8B's media tokens have no rows in its embedding, and vLLM accepts no such token."""
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3_vl_4b", "qwen3_vl_8b", "nvila_lite_2b", "longvila_r1_7b"])
def test_long_videos_of_published_models(kind: str, tmp_path: Path) -> None:
    """256 frames; heads tied and not, and files that set another temperature, few tokens and a penalty."""
    write_published(kind, tmp_path / "model")
    [generation] = (tmp_path / "model").rglob("generation_config.json")
    assert {"temperature", "top_k", "top_p", "repetition_penalty"} <= json.loads(generation.read_text()).keys()
    policy = load_policy(tmp_path / "model", store=EmbeddingStore(tmp_path / "embeddings"))
    policy.freeze_vision()
    is_tied = policy.language_model_head.get_parameter("weight") is policy.decoder.get_parameter("embed_tokens.weight")
    assert is_tied == (kind in ("qwen3_vl_4b", "nvila_lite_2b"))
    video = policy.encode_video(NoiseVideo(frame_count=256, height=32, width=32), range(256))
    prompts = [policy.build_prompt(QUESTION, media) for media in ([], [video])]
    assert len(prompts[1].expanded_ids) > 1000
    engine = VllmRolloutEngine(tmp_path / "model", policy.store, max_model_len=4096, memory_bytes=64 * 1024**2)
    try:
        before, stale, after = gaps_around_an_update(engine, policy, prompts, SAMPLING)
    finally:
        engine.close()
    assert before.mean() <= 1e-5
    assert stale.mean() > 1e-2
    assert after.mean() <= 1e-5
