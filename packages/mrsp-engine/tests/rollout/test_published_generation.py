"""A checkpoint's own generation settings affect nothing that is sampled here except where a response ends."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.rollout import RolloutEngine, SamplingSettings, require_rollouts
from mrsp_engine.rollout.transformers import TransformersRolloutEngine
from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine
from mrsp_engine.testing.agreement import logprob_gaps
from mrsp_engine.testing.fixtures import NoiseVideo
from mrsp_engine.tiny.families import build_tiny

pytestmark = pytest.mark.usefixtures("one_thread")
PUBLISHED = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-6, "top_k": 1, "top_p": 0.001}
SAMPLING = SamplingSettings(temperature=1.0, max_tokens=40, num_samples=48, seed=3)


@pytest.fixture(params=["qwen2_5_vl", "vila"])
def folder(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint whose files require the same token every time, and name two end tokens."""
    folder = tmp_path / "model"
    if request.param == "vila":
        build_tiny("vila", folder)
    else:
        shutil.copytree(tiny_folder, folder)
    path = next(folder.rglob("generation_config.json"))
    values = json.loads(path.read_text())
    ends = [values["eos_token_id"], values["bos_token_id"]]
    path.write_text(json.dumps(values | PUBLISHED | {"eos_token_id": ends}))
    return folder


def open_vllm(folder: Path, policy: Policy) -> RolloutEngine:
    pytest.importorskip("vllm", reason="vLLM isn't installed", exc_type=ImportError)
    return VllmRolloutEngine(folder, policy.store, max_model_len=320, memory_bytes=64 * 1024**2)


def open_plain(_: Path, policy: Policy) -> RolloutEngine:
    return TransformersRolloutEngine(policy)


@pytest.mark.slow
@pytest.mark.parametrize("open_engine", [open_plain, open_vllm])
def test_only_the_end_tokens_count(
    folder: Path, open_engine: Callable[[Path, Policy], RolloutEngine], tmp_path: Path
) -> None:
    policy = load_policy(folder, store=EmbeddingStore(tmp_path / "store"))
    policy.freeze_vision()
    assert len(policy.end_token_ids) == 2
    with torch.no_grad():  # so that both ends are drawn often
        head = policy.language_model_head.get_parameter("weight")
        head[list(policy.end_token_ids)] = head[list(policy.end_token_ids)] * 0 + head.mean(0) * 4
    prompt = policy.build_prompt("Which shape left first?", [policy.encode_video(NoiseVideo(), range(4))])
    engine = open_engine(folder, policy)
    try:
        engine.update_weights(policy)
        rollouts = require_rollouts(engine.generate([prompt], SAMPLING)[0])
        greedy = require_rollouts(
            engine.generate([prompt], SamplingSettings(temperature=0, max_tokens=24, num_samples=1))[0]
        )[0]
    finally:
        engine.close()
    # Neither the temperature nor the top-p of the files: responses differ, and have the trainer's probabilities.
    assert len({rollout.token_ids for rollout in rollouts}) > 40
    assert logprob_gaps(policy, [prompt], [rollouts], temperature=1.0).max() <= 1e-4
    # No penalty either: the most likely token has the trainer's log-probability, repeated or not.
    assert logprob_gaps(policy, [prompt], [[greedy]], temperature=1.0).max() <= 1e-4
    last = {rollout.token_ids[-1] for rollout in rollouts if rollout.finished}
    assert last == set(policy.end_token_ids)
    for rollout in rollouts:
        assert not set(rollout.token_ids[:-1]) & set(policy.end_token_ids)
        assert rollout.finished == (rollout.token_ids[-1] in policy.end_token_ids)
