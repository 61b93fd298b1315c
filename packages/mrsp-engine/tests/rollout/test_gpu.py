"""Real vLLM on CUDA devices: asleep it frees memory, awake it has the trainer's weights; one model on two devices."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mrsp_engine.embeddings import EmbeddingStore
from mrsp_engine.errors import EngineError
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout import SamplingSettings
from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine
from mrsp_engine.testing.agreement import logprob_gaps
from mrsp_engine.testing.fixtures import NoiseVideo, run_on_ranks
from mrsp_engine.tiny.qwen2_5_vl import create_tiny_qwen2_5_vl

pytest.importorskip("vllm", reason="vLLM isn't installed", exc_type=ImportError)
pytestmark = pytest.mark.gpu

MEMORY_BYTES = 2 * 1024**3
MEAN_GAP = 0.02  # bfloat16
SAMPLING = SamplingSettings(temperature=1.0, max_tokens=24, num_samples=8, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "heads-of-64"
    create_tiny_qwen2_5_vl(
        folder, corpus=("Which shape left first?",), hidden_size=256, num_heads=4, num_key_value_heads=2
    )
    return folder


def mean_gap(policy: Policy, prompts: list[Prompt], engine: VllmRolloutEngine) -> float:
    outcomes = engine.generate(prompts, SAMPLING)
    return float(logprob_gaps(policy, prompts, outcomes, temperature=SAMPLING.temperature).mean())


def sleep_and_wake(folder: str, store_folder: str, tensor_parallel_size: int) -> dict[str, Any]:
    store = EmbeddingStore(Path(store_folder))
    device = torch.device("cuda", torch.cuda.current_device())
    policy = load_policy(Path(folder), dtype=torch.bfloat16, store=store, device=device)
    policy.freeze_vision()
    medium = policy.encode_video(NoiseVideo(frame_count=120), range(120))
    prompts = [policy.build_prompt(text, [medium]) for text in ("Which shape left first?", "Which?")]
    engine = VllmRolloutEngine(
        Path(folder),
        store,
        max_model_len=2048,
        memory_bytes=MEMORY_BYTES,
        batch_tokens=512,
        dtype="bfloat16",
        tensor_parallel_size=tensor_parallel_size,
    )
    gaps = [mean_gap(policy, prompts, engine)]
    freed: list[int] = []
    for _ in range(2):
        before, _ = torch.cuda.mem_get_info()
        engine.sleep()
        freed.append(torch.cuda.mem_get_info()[0] - before)
        with pytest.raises(EngineError, match="update_weights"):
            engine.generate(prompts, SAMPLING)
        with torch.no_grad():
            policy.language_model_head.weight.mul_(1.5)
        engine.update_weights(policy)
        gaps.append(mean_gap(policy, prompts, engine))
    engine.close()
    return {"gaps": gaps, "freed": freed}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_asleep_it_frees_its_memory_and_awake_it_agrees(folder: Path, tmp_path: Path) -> None:
    result = sleep_and_wake(str(folder), str(tmp_path), 1)
    assert max(result["gaps"]) < MEAN_GAP
    assert min(result["freed"]) > 0.9 * MEMORY_BYTES


def on_own_device(folder: str, store_folder: str) -> dict[str, Any]:
    torch.cuda.set_device(torch.distributed.get_rank())
    return sleep_and_wake(folder, store_folder, 2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_one_model_on_two_devices(folder: Path, tmp_path: Path) -> None:
    first, second = run_on_ranks(on_own_device, 2, str(folder), str(tmp_path), timeout_seconds=500)
    assert max(first["gaps"] + second["gaps"]) < MEAN_GAP
    assert min(first["freed"] + second["freed"]) > 0.9 * MEMORY_BYTES
