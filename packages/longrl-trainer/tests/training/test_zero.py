"""Runs under DeepSpeed: their checkpoints are those of any other sharding; samplers and exports get whole weights."""

import json
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from longrl_trainer.config.sections import ShardingSection
from longrl_trainer.config.stages import GrpoConfig, SftConfig
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.export import export_model
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.sft import take_gradients, train_sft
from longrl_trainer.training.opening import create_optimizer, open_training_policy
from longrl_trainer.training.ranks import join_ranks
from mrsp_engine.distributed.sharded_weights import whole_tensor
from mrsp_engine.logprobs import score_nothing
from mrsp_engine.testing.fixtures import run_on_ranks

pytestmark = pytest.mark.long

CHAINS = {
    "full weights": (("fsdp2", "zero3", "zero2", "none"), {}),
    "full weights, back": (("none", "zero2", "zero3", "fsdp2"), {}),
    "adapters": (("zero3", "fsdp2", "zero2", "zero3"), {"lora__rank": 4, "lora__alpha": 8}),
}
"""Each kind of sharding makes one step, from the checkpoint of the one before."""


class BreakError(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture(autouse=True)
def _deepspeed() -> None:
    pytest.importorskip("deepspeed", reason="longrl-trainer[deepspeed] isn't installed")


def make_one_step(values: str) -> None:
    calls = iter((True, False))

    def take_gradients_once(*arguments: Any) -> float:
        if not next(calls):
            raise BreakError
        return take_gradients(*arguments)

    with patch("longrl_trainer.sft.take_gradients", take_gradients_once):
        try:
            train_sft(SftConfig.model_validate_json(values))
        except BreakError:
            return


def make_steps(chains: list[list[str]]) -> None:
    for of_chain in chains:
        for values in of_chain:
            make_one_step(values)


def train_in_turn(runs: list[str]) -> None:
    for values in runs:
        train_grpo(GrpoConfig.model_validate_json(values))


def step_without_numbers(values: str) -> list[str]:
    """The refusals of a step whose gradients are no numbers, after a good one; it changes no weight."""
    found: list[str] = []
    config = SftConfig.model_validate_json(values)
    ranks = join_ranks(config.model)
    for kind in ("zero2", "zero3"):
        for dtype in ("float32", "bfloat16"):
            changed = config.model_copy(update={"dtype": dtype, "sharding": ShardingSection(kind=kind)})
            policy = open_training_policy(changed)
            optimizer = create_optimizer(policy, changed, ranks)
            with pytest.raises(TrainerUsageError, match="under DeepSpeed already"):
                open_training_policy(changed, policy=policy)
            assert policy.joint_passes is not None
            policy.joint_passes.backward(score_nothing(policy))
            assert optimizer.step(1e-3) == 0.0
            before = [whole_tensor(weight).clone() for weight in policy.model.parameters()]
            policy.joint_passes.backward(score_nothing(policy) * float("nan"))
            with pytest.raises(TrainerError) as refused:
                optimizer.step(1e-3)
            found.append(str(refused.value))
            after = [whole_tensor(weight) for weight in policy.model.parameters()]
            assert all(old.equal(new) for old, new in zip(before, after, strict=True))
    return found


def weights_of(folder: Any) -> torch.Tensor:
    tensors = load_file(folder / "model.safetensors")
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def test_a_run_continues_under_any_other_sharding(started, tmp_path):
    def sft(place: str, **changes: Any) -> SftConfig:
        values = {"epochs": 2, "rows_per_step": 2, "checkpoint_every_steps": 1, "learning_rate": 1e-4}
        return started.sft(tmp_path / place, **(values | changes))

    chains = {
        name: [sft(f"chain/{name}", sharding__kind=kind, **changes) for kind in kinds]
        for name, (kinds, changes) in CHAINS.items()
    }
    run_on_ranks(
        make_steps,
        2,
        [[config.model_dump_json() for config in of_chain] for of_chain in chains.values()],
        timeout_seconds=400,
    )
    for name, of_chain in chains.items():
        alone = sft(f"alone/{name}", **CHAINS[name][1])
        train_sft(alone)
        journals = [read_json_lines(config.output / "metrics.jsonl") for config in (of_chain[0], alone)]
        assert len(journals[0]) == len(journals[1]) == 4
        for entry in ("loss", "gradient_norm", "learning_rate"):
            found, expected = ([line[entry] for line in journal] for journal in journals)
            assert found == pytest.approx(expected, rel=2e-5), (name, entry)
        ends = [weights_of(config.output / "model") for config in (of_chain[0], alone)]
        assert (ends[0] - ends[1]).abs().max() <= 1e-5, name
        export_model(of_chain[0].output, tmp_path / "exported" / name, step=4)
        assert weights_of(tmp_path / "exported" / name).equal(ends[0])


def test_responses_are_sampled_with_the_weights_of_training(started, tmp_path):
    """The runs stop if sampler and trainer differ; with the same weights their random numbers are the same."""
    options = {
        "steps": 3,
        "prompts_per_step": 2,
        "kl_coefficient": 0.1,
        "updates_per_batch": 2,
        "learning_rate": 1e-4,
        "max_logprob_gap": 1e-5,
    }
    runs = {kind: started.grpo(tmp_path / kind, sharding__kind=kind, **options) for kind in ("fsdp2", "zero2", "zero3")}
    run_on_ranks(train_in_turn, 2, [config.model_dump_json() for config in runs.values()], timeout_seconds=400)
    ends = {kind: weights_of(config.output / "model") for kind, config in runs.items()}
    begun = weights_of(started.model)
    for kind in ("zero2", "zero3"):
        texts = [(runs[name].output / "rollouts.jsonl").read_text() for name in ("fsdp2", kind)]
        assert [json.loads(line)["responses"][0]["text"] for line in texts[1].splitlines()] == [
            json.loads(line)["responses"][0]["text"] for line in texts[0].splitlines()
        ]
        assert (ends[kind] - ends["fsdp2"]).norm() < 1e-2 * (ends[kind] - begun).norm()


def test_gradients_that_are_no_numbers_stop_the_run_before_any_weight_changes(started, tmp_path):
    found = run_on_ranks(step_without_numbers, 2, started.sft(tmp_path).model_dump_json(), timeout_seconds=300)
    assert found[0] == found[1]
    assert found[0] == 4 * ["the gradient's norm is inf; lower `learning_rate` or check the data of this step"]
