"""Weights that ranks read only in part are, bit for bit, those of models that were read whole and spread afterwards."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from mrsp_engine.distributed.process_groups import create_sequence_group
from mrsp_engine.distributed.sharded_weights import whole_tensor
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.sharding import shard_policy
from mrsp_engine.testing.fixtures import NoiseVideo, run_on_ranks
from mrsp_engine.tiny.families import TINY_FAMILIES, build_tiny
from mrsp_engine.tiny.published import write_published

PUBLISHED = ("qwen2_5_vl_3b", "qwen2_5_vl_7b", "qwen3_vl_30b_a3b", "nvila_8b", "longvila_r1_7b")


def open_policy(folder: Path, dtype: torch.dtype, **options: Any) -> Policy:
    policy = load_policy(folder, dtype=dtype, store=EmbeddingStore(folder.parent / "store"), **options)
    policy.freeze_vision()
    return policy


def describe(policy: Policy) -> dict[str, Any]:
    """Everything that training can see of a model."""
    found: dict[str, Any] = {
        name: (whole_tensor(weight), weight.requires_grad)
        for name, weight in policy.model.named_parameters(remove_duplicate=False)
    }
    found |= dict(policy.model.named_buffers())
    prompt = policy.build_prompt("Which shape left first?", [])
    group = create_sequence_group(dist.get_world_size())
    with torch.no_grad():
        (logprobs,) = score_branches(policy, prompt, [Branch(token_ids=(3, 4, 5))], sequence_group=group).logprobs
    if policy.encoder is not None:
        found["embeddings"] = policy.encoder.plan(NoiseVideo(frame_count=32), range(32)).key
    settings = policy.causal_model.generation_config.to_dict()  # type: ignore[union-attr, operator]
    return found | {"logprobs": logprobs, "end": policy.end_token_ids, "settings": settings, "dtype": policy.dtype}


def compare_reading(folders: list[str], dtypes: list[torch.dtype], shard_ranks: int | None = None) -> list[str]:
    """What differs between reading in part and reading whole."""
    group = create_sequence_group(dist.get_world_size())
    differences: list[str] = []
    for folder in map(Path, folders):
        for dtype in dtypes:
            seen: list[dict[str, Any]] = []
            for is_spread_later in (True, False):
                policy = open_policy(folder, dtype, is_spread_later=is_spread_later)
                assert (policy.unread is not None) == is_spread_later
                shard_policy(policy, group, shard_ranks=shard_ranks)
                assert policy.is_sharded
                assert policy.unread is None
                seen.append(describe(policy))
            first, second = seen
            assert first.keys() == second.keys()
            differences += [f"{folder.name} {dtype} {name}" for name in first if not equal(first[name], second[name])]
    return differences


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, tuple) and isinstance(first[0], torch.Tensor):
        return equal(first[0], second[0]) and first[1:] == second[1:]
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return bool(first == second)


@pytest.mark.slow
def test_two_ranks_read_their_parts_of_tied_and_untied_models(tmp_path: Path) -> None:
    kinds = ("qwen2_5_vl_3b", "qwen2_5_vl_7b")
    for kind in kinds:
        write_published(kind, tmp_path / kind, 0)
    assert run_on_ranks(compare_reading, 2, [str(tmp_path / kind) for kind in kinds], [torch.bfloat16]) == [[], []]


@pytest.mark.long
def test_ranks_read_their_parts_of_every_family(tmp_path: Path) -> None:
    for family in TINY_FAMILIES:
        build_tiny(family, tmp_path / family, 0)
    for kind in PUBLISHED:
        write_published(kind, tmp_path / kind, 0)
    folders = [str(tmp_path / name) for name in (*TINY_FAMILIES, *PUBLISHED)]
    assert run_on_ranks(compare_reading, 3, folders, [torch.bfloat16, torch.float64]) == [[]] * 3
    # Two copies of two parts each.
    assert run_on_ranks(compare_reading, 4, folders[:2], [torch.float32], 2) == [[]] * 4


def test_weights_are_looked_for_before_anything_is_spread(tmp_path: Path) -> None:
    write_published("qwen2_5_vl_7b", tmp_path / "model", 0)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    file = tmp_path / "model" / index["weight_map"]["model.norm.weight"]
    weights = load_file(file)
    for name, changed in {"absent": {}, "short": {"model.norm.weight": weights["model.norm.weight"][1:]}}.items():
        shutil.copytree(tmp_path / "model", tmp_path / name)
        others = {key: weight for key, weight in weights.items() if key != "model.norm.weight"}
        save_file(others | changed, tmp_path / name / file.name, metadata={"format": "pt"})
        with pytest.raises(EngineUsageError, match="1 weights are missing or of another shape, first model") as e:
            open_policy(tmp_path / name, torch.float32, is_spread_later=True)
        assert "\n" not in str(e.value)


def test_a_tied_head_with_numbers_of_its_own_is_read_as_always(tmp_path: Path) -> None:
    build_tiny("qwen2_5_vl", tmp_path / "model", 0)
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    (embedding,) = (weight for name, weight in weights.items() if name.endswith("embed_tokens.weight"))
    save_file(weights | {"lm_head.weight": embedding + 1}, file, metadata={"format": "pt"})
    found, expected = (
        open_policy(tmp_path / "model", torch.float32, is_spread_later=is_spread_later).model.state_dict()
        for is_spread_later in (True, False)
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_model_that_nobody_has_read_computes_nothing(tmp_path: Path) -> None:
    build_tiny("qwen2", tmp_path / "model", 0)
    policy = open_policy(tmp_path / "model", torch.float32, is_spread_later=True)
    with pytest.raises(AssertionError, match="wasn't spread"):
        score_branches(policy, policy.build_prompt("Which?", []), [Branch(token_ids=(3,))])
