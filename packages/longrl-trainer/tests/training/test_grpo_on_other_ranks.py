"""GRPO goes on with another number of processes, divided and sharded otherwise, as if nothing had changed."""

import dataclasses
import json
import os
import signal
from contextlib import contextmanager
from typing import Any

import pytest
from safetensors.torch import load_file

from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.errors import StoppedError
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.seeds import derive_seed
from longrl_trainer.training.opening import open_policy
from mrsp_engine.rollout.transformers import TransformersRolloutEngine
from mrsp_engine.testing.fixtures import run_on_ranks

OPTIONS: dict[str, Any] = {
    "steps": 5,
    "prompts_per_step": 3,
    "max_response_tokens": 16,
    "dtype": "float64",
    "kl_coefficient": 0.1,
    "warning_signal": "SIGUSR2",
}
FSDP2 = {"sharding__kind": "fsdp2"}
LEGS: list[tuple[int, dict[str, Any]]] = [
    (2, FSDP2 | {"parallel__sequence_ranks": 1}),
    (1, {}),
    (4, {"parallel__sequence_ranks": 2, "sharding__kind": "none"}),
    (4, FSDP2 | {"parallel__sequence_ranks": 2, "sharding__shard_ranks": 2}),
]


class SeededByPrompt(TransformersRolloutEngine):
    """Draws for a prompt the same random numbers on every rank, wherever its other prompts are."""

    def generate(self, prompts: Any, sampling: Any) -> Any:
        return [
            super(SeededByPrompt, self).generate(
                [prompt], dataclasses.replace(sampling, seed=derive_seed(0, *prompt.token_ids))
            )[0]
            for prompt in prompts
        ]


class StoppingAfterAStep(SilentProgress):
    """Asks its own process to save and end after the first step."""

    @contextmanager
    def task(self, description: str, *, total: int, done: int = 0) -> Any:
        self._is_loop = description == "GRPO"
        yield self

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        if self._is_loop:
            os.kill(os.getpid(), signal.SIGUSR2)


def train(values: str, is_whole: bool = False) -> bool:
    """Train all steps, or one that is left. Whether the run is finished."""
    config = GrpoConfig.model_validate_json(values)
    policy, sampled = (open_policy(config.model, config.dtype) for _ in range(2))
    sampled.store = policy.store
    try:
        progress = None if is_whole else StoppingAfterAStep()
        train_grpo(config, policy=policy, engine=SeededByPrompt(sampled), progress=progress)
    except StoppedError:
        return False
    return True


@pytest.mark.long
@pytest.mark.parametrize("lora", [{}, {"lora__rank": 4, "lora__alpha": 8}], ids=["weights", "adapters"])
def test_a_grpo_run_goes_on_with_other_ranks_split_and_sharded_otherwise(started, tmp_path, lora):
    config, whole = (started.grpo(tmp_path / run, **OPTIONS, **lora) for run in ("run", "whole"))
    for num_ranks, changes in LEGS:
        values = started.grpo(config.output, **OPTIONS, **lora, **changes).model_dump_json()
        if num_ranks == 1:
            assert not train(values)
        else:
            assert run_on_ranks(train, num_ranks, values) == [False] * num_ranks
    assert train(config.model_dump_json(), is_whole=True)
    assert train(whole.model_dump_json(), is_whole=True)
    journals = [read_json_lines(run.output / "metrics.jsonl") for run in (config, whole)]
    assert [line["step"] for line in journals[0]] == [1, 2, 3, 4, 5]
    assert any(line["gradient_norm"] for line in journals[0][1:])
    for entry in ("loss", "reward", "kl", "gradient_norm"):
        values_of = [[line[entry] for line in journal] for journal in journals]
        # The model's norms round to float32 inside, whatever its dtype.
        assert values_of[0] == pytest.approx(values_of[1], rel=1e-4, abs=1e-7), entry
    rollouts = [(run.output / "rollouts.jsonl").read_text().splitlines() for run in (config, whole)]
    texts = [[[r["text"] for r in json.loads(line)["responses"]] for line in lines] for lines in rollouts]
    assert texts[0] == texts[1]
    before, *ends = (
        load_file(folder / "model.safetensors")
        for folder in (started.model, config.output / "model", whole.output / "model")
    )
    moved = sum((ends[1][name] - before[name]).norm() ** 2 for name in before) ** 0.5
    apart = sum((ends[1][name] - ends[0][name]).norm() ** 2 for name in before) ** 0.5
    assert apart < 1e-3 * moved
