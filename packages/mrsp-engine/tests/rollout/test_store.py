"""Real vLLM that reads the store itself: the same result as with embeddings in the request, however long a video is."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from mrsp_engine.embeddings import EmbeddingStore
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout import Rollout, SamplingSettings, require_rollouts
from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine
from mrsp_engine.rollout.vllm.long_media import MODEL_SUFFIX, VLLM_MODULES, allow_long_media
from mrsp_engine.rollout.vllm.process import confined_import
from mrsp_engine.testing.agreement import logprob_gaps
from mrsp_engine.testing.fixtures import NoiseVideo

pytest.importorskip("vllm", reason="vLLM isn't installed", exc_type=ImportError)

BLOCK_BYTES = 128 * 2 * 2 * 32 * 4  # tokens · keys and values · layers · one head of 32 · float32
MAX_MODEL_LEN = 640
SAMPLING = SamplingSettings(temperature=0.9, max_tokens=12, num_samples=3, seed=5)


@pytest.fixture(scope="module")
def policy(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    policy = load_policy(tiny_folder, store=EmbeddingStore(tmp_path_factory.mktemp("embeddings")))
    policy.freeze_vision()
    torch.set_num_threads(before)
    return policy


@pytest.fixture(scope="module")
def prompts(policy: Policy) -> list[Prompt]:
    # 60 frames are 360 tokens, more than a batch of the first test below.
    media = [policy.encode_video(NoiseVideo(seed=seed, frame_count=60), range(60)) for seed in (1, 2)]
    assert media[0].num_tokens == 360
    return [policy.build_prompt("Which shape left first?", [medium]) for medium in media]


def test_a_medium_may_fill_the_context_whatever_vllm_expects(tiny_folder: Path, prompts: list[Prompt]) -> None:
    with confined_import():
        from vllm.config import ModelConfig
        from vllm.multimodal import MULTIMODAL_REGISTRY

        assert all(allow_long_media(stem + MODEL_SUFFIX) for stem in VLLM_MODULES)
        assert not allow_long_media("Qwen2AudioForConditionalGeneration")
        config = ModelConfig(model=str(tiny_folder), max_model_len=MAX_MODEL_LEN)
        info = MULTIMODAL_REGISTRY.create_processor(config).info
    asked = (MAX_MODEL_LEN, {"video": 1})
    (medium,) = prompts[0].media
    assert super(type(info), info).get_mm_max_tokens_per_item(*asked)["video"] < medium.num_tokens
    assert info.get_mm_max_tokens_per_item(*asked) == {"image": MAX_MODEL_LEN, "video": MAX_MODEL_LEN}


@pytest.mark.slow
def test_reading_the_store_gives_what_carrying_the_embeddings_gives(
    tiny_folder: Path, policy: Policy, prompts: list[Prompt]
) -> None:
    results: list[list[list[Rollout]]] = []
    for read_store in (True, False):
        engine = VllmRolloutEngine(
            tiny_folder,
            policy.store,
            max_model_len=MAX_MODEL_LEN,
            memory_bytes=64 * BLOCK_BYTES,
            max_num_seqs=16,
            batch_tokens=128,
            read_store=read_store,
        )
        try:
            engine.update_weights(policy)
            results.append([require_rollouts(outcome) for outcome in engine.generate(prompts, SAMPLING)])
        finally:
            engine.close()
    by_name, carried = results
    assert logprob_gaps(policy, prompts, by_name, temperature=0.9).max() < 1e-4
    for ours, theirs in zip(by_name, carried, strict=True):
        assert [rollout.token_ids for rollout in ours] == [rollout.token_ids for rollout in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-6)


@pytest.mark.slow
def test_short_of_memory_it_computes_again_and_dying_it_says_so(
    tiny_folder: Path,
    policy: Policy,
    prompts: list[Prompt],
    count_tokens: Callable[[VllmRolloutEngine], AbstractContextManager[list[int]]],
) -> None:
    with pytest.raises(EngineUsageError, match="memory_bytes") as refused:
        VllmRolloutEngine(tiny_folder, policy.store, max_model_len=MAX_MODEL_LEN, memory_bytes=2 * BLOCK_BYTES)
    assert "\n" not in str(refused.value)

    engine = VllmRolloutEngine(
        tiny_folder, policy.store, max_model_len=MAX_MODEL_LEN, memory_bytes=8 * BLOCK_BYTES, max_num_seqs=8
    )
    try:
        engine.update_weights(policy)
        crowded = dataclasses.replace(SAMPLING, num_samples=6, max_tokens=200)
        with count_tokens(engine) as counts:
            group = require_rollouts(engine.generate(prompts[:1], crowded)[0])
        assert len(group) == 6
        assert logprob_gaps(policy, prompts[:1], [group], temperature=0.9).max() < 1e-4
        # All would be in the middle of their responses when the memory is full: some were preempted and restarted.
        shared = prompts[0].length // 128 * 128
        without_loss = shared + sum(prompts[0].length - shared + len(rollout.token_ids) - 1 for rollout in group)
        assert sum(counts) > without_loss

        def break_down(model: torch.nn.Module) -> None:
            def fail(*_: object) -> None:
                raise RuntimeError("out of memory\nand many more lines")

            model.register_forward_pre_hook(fail)

        engine._llm.apply_model(break_down)
        with pytest.raises(EngineError, match="out of memory") as died:
            engine.generate(prompts, SAMPLING)
        assert "\n" not in str(died.value)
        with pytest.raises(EngineError, match="start a new one"):
            engine.generate(prompts, SAMPLING)
        with pytest.raises(EngineError, match="start a new one"):
            engine.update_weights(policy)
    finally:
        engine.close()
