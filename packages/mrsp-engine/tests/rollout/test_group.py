"""Real vLLM on several ranks of a process group: one model split over them, or one each, in the trainer's processes."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from mrsp_engine.embeddings import EmbeddingStore
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout import SamplingSettings, require_rollouts
from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine
from mrsp_engine.testing.agreement import disturb_weights, logprob_gaps
from mrsp_engine.testing.fixtures import NoiseVideo, RankError, run_on_ranks
from mrsp_engine.tiny.qwen2_5_vl import create_tiny_qwen2_5_vl

pytest.importorskip("vllm", reason="vLLM isn't installed", exc_type=ImportError)

SAMPLING = SamplingSettings(temperature=1.0, max_tokens=8, num_samples=2, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "two-key-heads"
    create_tiny_qwen2_5_vl(
        folder,
        corpus=("Which shape left first?",),
        hidden_size=128,
        num_heads=4,
        num_key_value_heads=2,
        num_layers=2,
        intermediate_size=128,
    )
    return folder


def changed_policy(folder: Path, store: EmbeddingStore) -> Policy:
    policy = load_policy(folder, store=store)
    policy.freeze_vision()
    disturb_weights(policy, seed=1)
    return policy


def sample(policy: Policy, prompts: list[Prompt], engine: VllmRolloutEngine) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Draw responses; returns their gaps and their tokens."""
    groups = [require_rollouts(outcome) for outcome in engine.generate(prompts, SAMPLING)]
    gaps = logprob_gaps(policy, prompts, groups, temperature=SAMPLING.temperature)
    return gaps, [rollout.token_ids for group in groups for rollout in group]


def open_engine(folder: str, store: EmbeddingStore, tensor_parallel_size: int) -> VllmRolloutEngine:
    return VllmRolloutEngine(
        Path(folder),
        store,
        max_model_len=224,
        memory_bytes=8 * 1024**2,
        max_num_seqs=8,
        tensor_parallel_size=tensor_parallel_size,
    )


def split_over_ranks(folder: str, store_folder: str) -> dict[str, Any]:
    store = EmbeddingStore(Path(store_folder))
    policy = load_policy(Path(folder), store=store)
    medium = policy.encode_video(NoiseVideo(), range(8))
    prompts = [policy.build_prompt(text, [medium]) for text in ("Which shape left first?", "Which?")]
    wrong = ""
    try:
        open_engine(folder, store, 3)
    except EngineUsageError as error:
        wrong = str(error)
    engine = open_engine(folder, store, 2)
    rows = engine._llm.apply_model(
        lambda model: model.language_model.model.layers[0].mlp.down_proj.input_size_per_partition
    )
    start, _ = sample(policy, prompts, engine)
    engine.sleep()
    changed = changed_policy(Path(folder), store)
    sharded = changed_policy(Path(folder), store)
    fully_shard(sharded.model)
    engine.update_weights(sharded)
    after, tokens = sample(changed, prompts, engine)
    stale, _ = sample(policy, prompts, engine)
    engine.close()
    alive = torch.ones(1)
    dist.all_reduce(alive)  # the trainer's group is still there
    return {
        "wrong": wrong,
        "gaps": tuple(float(gaps.max()) for gaps in (start, after, stale)),
        "tokens": tokens,
        "rows": rows,
        "alive": alive.item(),
    }


def one_on_each_rank(folder: str, store_folder: str, message: str) -> None:
    rank = dist.get_rank()
    store = EmbeddingStore(Path(store_folder))
    policy = load_policy(Path(folder), store=store)
    prompts = [policy.build_prompt(f"Which shape left first? {index}", []) for index in range(3 * rank)]
    engine = open_engine(folder, store, 1)
    gaps, tokens = sample(policy, prompts, engine)  # rank 0 has nothing to ask
    assert (gaps < 1e-4).all()
    assert len(tokens) == 6 * rank
    same = policy.build_prompt("Which?", [])
    _, ours = sample(policy, [same], engine)
    everybody: list[Any] = [None, None]
    dist.all_gather_object(everybody, ours)
    assert everybody[0] != everybody[1]  # replicas have their own random numbers
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        engine.generate([same], SAMPLING)
    except EngineError as error:
        Path(message).write_text(str(error))
    os._exit(1)  # without the other rank there is no barrier to end at


@pytest.mark.slow
def test_a_model_split_over_ranks_agrees_before_and_after_an_update(folder: Path, tmp_path: Path) -> None:
    first, second = run_on_ranks(split_over_ranks, 2, str(folder), str(tmp_path), timeout_seconds=400)
    assert first == second
    assert first["rows"] == [64]  # half of 128
    assert "tensor_parallel_size=3" in first["wrong"]
    start, after, stale = first["gaps"]
    assert start < 1e-4
    assert after < 1e-4
    assert stale > 1e-2
    assert len(set(first["tokens"])) == 4
    assert first["alive"] == 2


@pytest.mark.long
def test_replicas_sample_together_and_a_killed_one_is_told_by_the_others(folder: Path, tmp_path: Path) -> None:
    message = tmp_path / "message"
    with pytest.raises(RankError, match="rank 1 failed: died without a report"):
        run_on_ranks(one_on_each_rank, 2, str(folder), str(tmp_path / "store"), str(message), timeout_seconds=400)
    line = message.read_text()
    assert "vLLM failed while sampling" in line
    assert "\n" not in line


def test_what_cannot_start_is_told_at_once(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineUsageError, match="torchrun"):
        open_engine(str(folder), EmbeddingStore(tmp_path), 2)
    with pytest.raises(EngineUsageError, match="bfloat16"):
        VllmRolloutEngine(folder, EmbeddingStore(tmp_path), max_model_len=64, dtype="bf16")
