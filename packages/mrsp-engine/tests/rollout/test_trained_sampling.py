"""Real vLLM samples with each step's projector, for families with DeepStack or unknown to vLLM."""

from pathlib import Path

import pytest
import torch

from mrsp_engine.embeddings import EmbeddingStore
from mrsp_engine.encoding.parallel import PlannedMedium, encode_media
from mrsp_engine.encoding.step_media import StepMedia, rename_plans
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.rollout import SamplingSettings, require_rollouts
from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine
from mrsp_engine.testing.fixtures import NoiseVideo
from mrsp_engine.tiny.families import build_tiny

pytest.importorskip("vllm", reason="vLLM isn't installed", exc_type=ImportError)

SAMPLING = SamplingSettings(temperature=0.9, max_tokens=12, num_samples=4, seed=5)


def gap(engine: VllmRolloutEngine, policy: Policy, media: StepMedia) -> float:
    """Largest difference between the sampler's log-probs and the trainer's."""
    prompt = policy.build_prompt("Which shape left first?", [plan.reference for plan in media.plans])
    with media.lend():
        (outcome,) = engine.generate([prompt], SAMPLING)
        rollouts = require_rollouts(outcome)
        with torch.no_grad():
            branches = [Branch(token_ids=rollout.token_ids) for rollout in rollouts]
            scores = score_branches(policy, prompt, branches, temperature=SAMPLING.temperature)
    pairs = zip(rollouts, scores.logprobs, strict=True)
    return max(float((torch.tensor(rollout.logprobs) - scored).abs().max()) for rollout, scored in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_vl", "vila"])
def test_the_sampler_follows_a_trained_projector(family: str, tmp_path: Path) -> None:
    build_tiny(family, tmp_path / "model")
    policy = load_policy(tmp_path / "model", store=EmbeddingStore(tmp_path / "embeddings"))
    policy.freeze_vision()
    encoder = policy.encoder
    assert encoder is not None
    encoder.content = "features"
    video = NoiseVideo()
    medium = PlannedMedium(video=video, plan=encoder.plan(video, range(8)))
    encode_media(encoder, [medium], policy.store)
    policy.train_vision("projector")
    engine = VllmRolloutEngine(tmp_path / "model", policy.store, max_model_len=512, memory_bytes=32 * 1024**2)
    try:
        before = StepMedia(policy, rename_plans(policy, [medium.plan]))
        assert gap(engine, policy, before) < 1e-4
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        engine.update_weights(policy)
        after = StepMedia(policy, rename_plans(policy, [medium.plan]))
        assert after.plans[0].reference.key != before.plans[0].reference.key
        assert gap(engine, policy, after) < 1e-4
        rows: list[torch.Tensor] = []
        for media in (before, after):  # so different that old ones would have been noticed
            with media.lend():
                found = policy.store.get(media.plans[0].reference.key)
                assert found is not None
                rows.append(found)
        assert (rows[0] - rows[1]).abs().max() > 1e-2
        assert encoder.frames_encoded == video.num_read == 8
    finally:
        engine.close()
