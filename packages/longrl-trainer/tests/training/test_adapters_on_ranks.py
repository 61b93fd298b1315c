"""Adapters trained by two processes, which share the model's weights too, are those that one trains."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from longrl_trainer.config.sections import LoraSection
from longrl_trainer.config.stages import GrpoConfig, SftConfig
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.sft import take_gradients, train_sft
from longrl_trainer.training.adapters import LoraAdapters
from mrsp_engine.distributed.process_groups import create_sequence_group
from mrsp_engine.distributed.sharded_weights import whole_tensor
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.sharding import shard_policy
from mrsp_engine.testing.fixtures import run_on_ranks
from mrsp_engine.tiny.families import build_tiny

LORA = {"lora__rank": 4, "lora__alpha": 8, "dtype": "float64", "learning_rate": 1e-3}
CASES: dict[str, dict[str, Any]] = {
    "all layers": {},
    "queries": {"lora__targets": ["q_proj"]},
    "values and the way out of the last layer": {"lora__targets": ["v_proj", "layers.1.mlp.down_proj"]},
    "vision": {"lora__vision": True},
    "whole weights on every rank": {"sharding__kind": "none", "parallel__sequence_ranks": 2},
}


class BreakError(Exception):
    """Stands for whatever ends a run."""


def train_on_ranks(whole: list[str], broken: str, grpo: str) -> None:
    for values in whole:
        train_sft(SftConfig.model_validate_json(values))
    train_grpo(GrpoConfig.model_validate_json(grpo))

    calls = iter(range(1, 100))

    def take_two_gradients(*arguments: Any) -> float:
        if next(calls) == 3:
            raise BreakError
        return take_gradients(*arguments)

    with patch("longrl_trainer.sft.take_gradients", take_two_gradients), pytest.raises(BreakError):
        train_sft(SftConfig.model_validate_json(broken))


def gradients_with_and_without_a_reference(folder: str) -> list[list[Tensor]]:
    return [take_adapters_gradients(folder, has_reference=has_reference) for has_reference in (True, False)]


def take_adapters_gradients(folder: str, *, has_reference: bool) -> list[Tensor]:
    policy = load_policy(Path(folder), dtype=torch.bfloat16, store=EmbeddingStore(Path(folder).parent / "store"))
    adapters = LoraAdapters(policy, LoraSection(rank=4, alpha=8), seed=0)
    group = create_sequence_group(2)
    shard_policy(policy, group)
    prompt, branches = policy.build_prompt("Which?", []), [Branch(token_ids=tuple(range(10, 30)))]
    if has_reference:
        with torch.no_grad(), adapters.turned_off():
            score_branches(policy, prompt, branches, sequence_group=group)
    score_branches(policy, prompt, branches, sequence_group=group).logprobs[0].sum().backward()
    trained = [weight for weight in policy.model.parameters() if weight.requires_grad]
    return [whole_tensor(weight.grad) for weight in trained]


@pytest.mark.slow
def test_coarse_adapters_have_fine_gradients_though_a_reference_is_scored_first(tmp_path):
    build_tiny("qwen2", tmp_path / "model", 0)
    found, expected = run_on_ranks(gradients_with_and_without_a_reference, 2, str(tmp_path / "model"))[0]
    assert all(gradient.dtype == torch.float32 for gradient in found)
    assert any(gradient.any() for gradient in found)
    assert all(map(torch.equal, found, expected))


@pytest.mark.long
def test_two_processes_train_the_adapters_of_one(started, tmp_path):
    def sft(place: str, **changes: Any) -> SftConfig:
        values = LORA | {"epochs": 1, "rows_per_step": 2, "checkpoint_every_steps": 1} | changes
        return started.sft(tmp_path / place, **values)

    together = {name: sft(f"two/{name}", **changes) for name, changes in CASES.items()}
    broken = sft("two/broken off", epochs=2)
    options = LORA | {"dtype": "float32", "kl_coefficient": 0.1, "steps": 3, "max_response_tokens": 24}
    grpo = started.grpo(tmp_path / "grpo", **options)
    everything = [config.model_dump_json() for config in (*together.values(), broken, grpo)]
    run_on_ranks(train_on_ranks, 2, everything[:-2], *everything[-2:])

    assert len(read_json_lines(broken.output / "metrics.jsonl")) == 2
    train_sft(broken)  # two processes began it, one continues
    for name, found in {**together, "broken off": broken}.items():
        lora = {setting: value for setting, value in CASES.get(name, {}).items() if setting.startswith("lora")}
        alone = sft(f"one/{name}", epochs=found.epochs, **lora)
        train_sft(alone)
        journals = [read_json_lines(config.output / "metrics.jsonl") for config in (found, alone)]
        for entry in ("loss", "gradient_norm"):
            values = [[line[entry] for line in journal] for journal in journals]
            assert len(values[0]) == 2 * found.epochs
            assert values[0] == pytest.approx(values[1], rel=1e-8), (name, entry)
        learned = [load_file(config.output / "adapter" / "adapter_model.safetensors") for config in (found, alone)]
        assert learned[0].keys() == learned[1].keys()
        for matrix, tensor in learned[1].items():
            assert (learned[0][matrix] - tensor).abs().max() <= 1e-7, (name, matrix)

    lines = read_json_lines(grpo.output / "metrics.jsonl")
    assert len(lines) == 3
    assert max(line["logprob_gap"]["mean_abs"] for line in lines) <= 1e-5
    assert any(line["kl"] for line in lines)
