"""Experts, whose matrices are transposed between published checkpoints and transformers' class."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.qwen.qwen3_vl_moe import EXPERT_WEIGHTS
from mrsp_engine.tiny.families import build_tiny


@pytest.mark.slow
@pytest.mark.parametrize("is_turned", [False, True], ids=["as published", "as transformers saves"])
@pytest.mark.parametrize("is_exact", [False, True])
def test_experts_are_saved_the_way_they_came(
    is_turned: bool, is_exact: bool, store: EmbeddingStore, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    build_tiny("qwen3_vl_moe", folder)
    original = load_file(folder / "model.safetensors")
    assert sum(name.endswith(EXPERT_WEIGHTS) for name in original) == 6
    if is_turned:
        for name in [name for name in original if name.endswith(EXPERT_WEIGHTS)]:
            original[name] = original[name].transpose(1, 2).contiguous()
        save_file(original, folder / "model.safetensors", metadata={"format": "pt"})
    policy = load_policy(folder, store=store)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(2)
    policy.save(tmp_path / "saved", exact=is_exact)
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == original.keys()
    for name, weight in original.items():
        assert saved[name].equal(weight * 2), name
