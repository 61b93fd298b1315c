"""Adapters trained by two processes are those that one trains, whichever layers have them."""

from typing import Any

import pytest
from safetensors.torch import load_file

from longrl_trainer.config.stages import GrpoConfig, SftConfig
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.sft import train_sft
from mrsp_engine.testing.fixtures import run_on_ranks

LORA = {"lora__rank": 4, "lora__alpha": 8, "dtype": "float64", "learning_rate": 1e-3}
CASES: dict[str, dict[str, Any]] = {
    "all layers": {},
    "queries": {"lora__targets": ["q_proj"]},
    "values and the way out of the last layer": {"lora__targets": ["v_proj", "layers.1.mlp.down_proj"]},
    "vision": {"lora__vision": True},
}


def train_all(sft_values: list[str], grpo_values: list[str]) -> None:
    for values in sft_values:
        train_sft(SftConfig.model_validate_json(values))
    for values in grpo_values:
        train_grpo(GrpoConfig.model_validate_json(values))


@pytest.mark.slow
def test_two_processes_train_the_adapters_of_one(started, tmp_path):
    def sft(place: str) -> list[SftConfig]:
        return [
            started.sft(tmp_path / place / name, epochs=1, rows_per_step=3, **LORA, **changes)
            for name, changes in CASES.items()
        ]

    run_on_ranks(train_all, 2, [config.model_dump_json() for config in sft("two")], [])
    for together, alone in zip(sft("two"), sft("one"), strict=True):
        train_sft(alone)
        lines = [read_json_lines(config.output / "metrics.jsonl") for config in (together, alone)]
        assert len(lines[0]) == len(lines[1]) == 2
        for name in ("loss", "gradient_norm"):
            values = [[line[name] for line in of_run] for of_run in lines]
            assert values[0] == pytest.approx(values[1], rel=1e-9), (alone.output.name, name)
        learned = [load_file(config.output / "adapter" / "adapter_model.safetensors") for config in (together, alone)]
        assert learned[0].keys() == learned[1].keys()
        for name, tensor in learned[1].items():
            assert (learned[0][name] - tensor).abs().max() <= 1e-7, (alone.output.name, name)
