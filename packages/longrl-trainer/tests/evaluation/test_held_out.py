"""Evaluation while training: what it measures, that training doesn't notice, and which checkpoint stays."""

import importlib.util
import json
from contextlib import contextmanager

import pytest
from safetensors.torch import load_file

from longrl_trainer.config.effects import find_differences, named_settings
from longrl_trainer.config.stages import SftConfig
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.evaluation.evaluate import evaluate
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.export import export_model
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.runs.step_meter import PASSING
from longrl_trainer.sft import train_sft
from longrl_trainer.training.checkpoints import list_checkpoints
from mrsp_engine.testing.fixtures import run_on_ranks

ASKED = {"evaluation__every_steps": 2, "evaluation__num_questions": 6, "evaluation__max_response_tokens": 24}


class BreakError(Exception):
    """Stands for whatever ends a run."""


class BreakAfter(SilentProgress):
    """Ends a loop after so many steps."""

    def __init__(self, num_steps: int) -> None:
        self._left = num_steps
        self._is_loop = False

    @contextmanager
    def task(self, description, *, total, done=0):
        before, self._is_loop = self._is_loop, description in ("SFT", "GRPO")
        yield self
        self._is_loop = before

    def advance(self, amount=1, *, note=""):
        if self._is_loop:
            self._left -= 1
            if self._left < 0:
                raise BreakError


def lines_of(config):
    lines = read_json_lines(config.output / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in PASSING | {"frames_encoded"}} for line in lines]


def weights_of(config):
    return load_file(config.output / "model" / "model.safetensors")


def accuracies(config):
    return {line["step"]: line["evaluation"]["accuracy"] for line in lines_of(config) if "evaluation" in line}


def kept(config):
    return sorted(checkpoint.step for checkpoint in list_checkpoints(config.output))


@pytest.mark.parametrize(
    "vision", [pytest.param("frozen", marks=pytest.mark.slow), pytest.param("all", marks=pytest.mark.long)]
)
def test_grpo_is_the_same_with_and_without(started, tmp_path, vision):
    options = {"steps": 4, "max_response_tokens": 24, "train_vision": vision, "learning_rate": 1e-2}
    without = started.grpo(tmp_path / "without", **options)
    asked = started.grpo(tmp_path / "asked", **options, **ASKED, checkpoint_every_steps=100)
    train_grpo(without)
    train_grpo(asked)
    mine, others = weights_of(asked), weights_of(without)
    assert all(mine[name].equal(others[name]) for name in others)
    start, *lines = lines_of(asked)
    assert (start["step"], set(start)) == (0, {"step", "evaluation"})
    assert [line["step"] for line in lines if line.pop("evaluation", None)] == [2, 4]
    assert lines == lines_of(without)
    timed = read_json_lines(asked.output / "metrics.jsonl")
    assert ["evaluate" in line["seconds"] for line in timed] == [True, False, True, False, True]
    untrained = evaluate(started.evaluation(tmp_path / "untrained.json", max_response_tokens=24, limit=6))
    assert start["evaluation"]["accuracy"] == untrained.accuracy
    written = json.loads((asked.output / "evaluations" / "step-000000.json").read_text())
    assert [item["response"] for item in written["items"]] == [item.response for item in untrained.items]


@pytest.mark.slow
def test_sft_measures_what_the_command_measures_and_names_its_best(started, tmp_path):
    """The checkpoints of the steps evaluated last and best are there, and answer as they did in the run."""
    options = {"epochs": 6, "learning_rate": 1e-2, "sampler__engine": "transformers"}
    asked = ASKED | {"evaluation__every_steps": 3, "evaluation__split": "train_sft"}
    config = started.sft(tmp_path / "run", **options, **asked, checkpoint_every_steps=1000)
    train_sft(config)
    found = accuracies(config)
    assert list(found) == [0, 3, 6, 9, 12]
    del found[0]  # what the run began with is no checkpoint of it
    best = max(found, key=lambda step: (found[step], step))
    assert len(set(found.values())) > 1, "the test needs a model that changes"
    assert kept(config) == sorted({best, 12})

    assert export_model(config.output, tmp_path / "best", step="best") == best
    again = evaluate(
        started.evaluation(
            tmp_path / "again.json",
            model__folder=tmp_path / "best",
            data__split="train_sft",
            max_response_tokens=24,
            limit=6,
        )
    )
    line = next(line["evaluation"] for line in lines_of(config) if line["step"] == best)
    assert (line["accuracy"], line["accuracy_standard_error"]) == (again.accuracy, again.accuracy_standard_error)
    named = evaluate(
        started.evaluation(
            tmp_path / "named.json",
            model__folder=config.output,
            step="best",
            data__split="train_sft",
            max_response_tokens=24,
            limit=6,
        )
    )
    assert named.items == again.items
    assert [path.name for path in tmp_path.glob("named*")] == ["named.json"]  # the exported model is gone
    written = json.loads((config.output / "evaluations" / f"step-{best:06d}.json").read_text())
    assert [item["response"] for item in written["items"]] == [item.response for item in again.items]

    without = started.sft(tmp_path / "without", **options)
    train_sft(without)
    mine, others = weights_of(config), weights_of(without)
    assert all(mine[name].equal(others[name]) for name in others)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [0, 2, 5])
def test_a_run_that_goes_on_evaluates_the_same_and_keeps_the_same(started, tmp_path, num_steps):
    options = {"steps": 6, "max_response_tokens": 24, "learning_rate": 2e-2, "checkpoint_every_steps": 3, **ASKED}
    at_once, config = started.grpo(tmp_path / "at once", **options), started.grpo(tmp_path / "run", **options)
    train_grpo(at_once)
    with pytest.raises(BreakError):
        train_grpo(config, progress=BreakAfter(num_steps))
    first = (config.output / "evaluations" / "step-000000.json").stat()
    train_grpo(config)
    assert (config.output / "evaluations" / "step-000000.json").stat() == first  # it isn't repeated
    assert lines_of(config) == lines_of(at_once)
    assert kept(config) == kept(at_once)


def train_sft_from(values: str) -> None:
    train_sft(SftConfig.model_validate_json(values))


@pytest.mark.long
def test_ranks_with_spread_weights_measure_what_one_process_measures(started, tmp_path):
    options = {"dtype": "float64", "epochs": 1, "sampler__engine": "transformers", "learning_rate": 1e-2, **ASKED}
    alone, together = started.sft(tmp_path / "1", **options), started.sft(tmp_path / "2", **options)
    train_sft(alone)
    run_on_ranks(train_sft_from, 2, together.model_dump_json())
    assert [line["evaluation"] for line in lines_of(together) if "evaluation" in line] == [
        line["evaluation"] for line in lines_of(alone) if "evaluation" in line
    ]
    for name in ("items", "questions"):
        first, second = (
            json.loads((config.output / "evaluations" / "step-000002.json").read_text())[name]
            for config in (alone, together)
        )
        assert first == second
    assert kept(together) == kept(alone) == [2]


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_answers_as_plain_sampling_does_and_samples_on_as_if_nothing_had_been_asked(started, tmp_path):
    options = {"steps": 4, "max_response_tokens": 24, "learning_rate": 1e-2, "sampler__engine": "vllm"}
    asked, without = (started.grpo(tmp_path / name, **options, **more) for name, more in (("1", ASKED), ("2", {})))
    by_vllm = started.sft(tmp_path / "vllm", epochs=1, sampler__engine="vllm", **ASKED)
    plainly = started.sft(tmp_path / "plain", epochs=1, sampler__engine="transformers", **ASKED)
    with started.vllm() as engine:
        train_grpo(asked, engine=engine)
        train_grpo(without, engine=engine)
        train_sft(by_vllm, engine=engine)
    mine, others = weights_of(asked), weights_of(without)
    assert all(mine[name].equal(others[name]) for name in others)

    train_sft(plainly)
    assert lines_of(by_vllm) == lines_of(plainly)
    assert list(accuracies(by_vllm)) == [0, 2]


@pytest.mark.slow
def test_a_store_too_small_for_training_and_evaluation_holds_them_in_turn(started, tmp_path):
    options = {"steps": 4, "max_response_tokens": 24, "learning_rate": 1e-2, "prefetch_steps": 0, **ASKED}
    plenty, scarce, none = (
        started.grpo(tmp_path / name, model__store=tmp_path / f"{name} store", **size, **options)
        for name, size in (
            ("plenty", {}),
            ("scarce", {"model__store_bytes": 6 * 2720}),
            ("none", {"model__store_bytes": 3 * 2720}),
        )
    )
    train_grpo(plenty)
    train_grpo(scarce)
    assert lines_of(scarce) == lines_of(plenty)
    assert sum(path.stat().st_size for path in (tmp_path / "scarce store").rglob("*.safetensors")) <= 6 * 2720
    with pytest.raises(TrainerUsageError, match=r"store_bytes=8160: .*no room for all media of the 6 .*1 are lacking"):
        train_grpo(none)


def test_other_held_out_questions_are_another_run(started, tmp_path):
    config = started.grpo(tmp_path / "run", steps=2, **ASKED)
    train_grpo(config)
    lines = (config.output / "metrics.jsonl").read_text()
    other = json.loads(lines.splitlines()[-1])
    longer = started.grpo(tmp_path / "run", steps=4, **ASKED)
    for written in (other["evaluation"] | {"questions_digest": "0" * 64}, [1], None):
        line = json.dumps(other | {"evaluation": written})
        (config.output / "metrics.jsonl").write_text("".join(f"{text}\n" for text in [*lines.splitlines()[:-1], line]))
        with pytest.raises(TrainerUsageError, match=r"used other questions: the evaluation asks other .*questions_may"):
            train_grpo(longer)


def test_a_split_without_questions_is_refused_before_the_first_step(new_world, tmp_path):
    world = new_world(splits=("train_sft",))
    config = world.sft(tmp_path / "run", **ASKED, sampler__engine="transformers")
    with pytest.raises(TrainerUsageError, match="held_out"):
        train_sft(config)
    assert not (config.output / "metrics.jsonl").exists()


def test_a_run_from_before_there_were_evaluations_goes_on(world, tmp_path):
    config = world.sft(tmp_path / "run", evaluation__every_steps=5)
    saved = {name: value for name, value in named_settings(config).items() if name not in ("evaluation", "sampler")}
    assert [(change.setting, change.effect.value) for change in find_differences(saved, config)] == [
        ("evaluation.every_steps", "none")
    ]


def test_a_damaged_checkpoint_is_never_the_best(world, tmp_path):
    config = world.sft(tmp_path / "run", epochs=1, checkpoint_every_steps=1, checkpoints_kept=2)
    train_sft(config)
    first, last = sorted(list_checkpoints(config.output), key=lambda checkpoint: checkpoint.step)
    for checkpoint, accuracy in ((first, 0.9), (last, 0.1)):
        state = json.loads((checkpoint.folder / "state.json").read_text())
        (checkpoint.folder / "state.json").write_text(json.dumps(state | {"accuracy": accuracy}))
    assert export_model(config.output, tmp_path / "first", step="best") == first.step
    next(first.folder.glob("*.safetensors")).unlink()
    assert export_model(config.output, tmp_path / "last", step="best") == last.step


def test_a_reward_that_is_not_there_is_refused_before_a_model_is_loaded(world, tmp_path):
    config = world.sft(tmp_path / "run", model__folder=tmp_path / "never", evaluation__rewards={"answr": 1.0}, **ASKED)
    with pytest.raises(TrainerUsageError, match=r"^evaluation\.rewards\.answr: there is no such reward"):
        train_sft(config)
