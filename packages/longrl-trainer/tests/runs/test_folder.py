"""A run killed anywhere and restarted ends with the same bits; a finished or changed one is not touched."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longrl_trainer.config.stages import SftConfig, TrainingConfig
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.step_meter import PASSING
from longrl_trainer.sft import train_sft
from longrl_trainer.training.opening import open_policy
from mrsp_engine.errors import EngineError

# Trains like the command, and dies without warning when the progress bar has advanced a given number of times and all
# checkpoints of the steps before are complete.
WORKER = """
import json, os, signal, sys, time
from contextlib import contextmanager
import torch
from longrl_trainer.config.stages import GrpoConfig, SftConfig
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.config.recipes import parse_config
from longrl_trainer.runs.step_meter import PASSING
from longrl_trainer.sft import train_sft

stage, values, kill_after = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(int(sys.argv[4]))

class DeadlyProgress(SilentProgress):
    @contextmanager
    def task(self, description, *, total, done=0):
        self.is_loop = description == stage.upper()
        yield self

    def advance(self, amount=1, *, note=""):
        global kill_after
        kill_after -= self.is_loop
        if self.is_loop and kill_after == 0:
            while list((config.output / "checkpoints").glob("*.partial-*")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

config = parse_config(values, {"sft": SftConfig, "grpo": GrpoConfig}[stage], source="test")
{"sft": train_sft, "grpo": train_grpo}[stage](config, progress=DeadlyProgress())
"""


def kill_in_a_process(config: TrainingConfig, *, after: int) -> None:
    stage = "sft" if isinstance(config, SftConfig) else "grpo"
    command = [sys.executable, "-c", WORKER, stage, config.model_dump_json(), str(after), str(torch.get_num_threads())]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def shard_of(checkpoint: Path) -> Path:
    (shard,) = checkpoint.glob("*.safetensors")
    return shard


def weights(output: Path) -> dict[str, bytes]:
    files = sorted((output / "model").glob("*.safetensors"))
    assert files
    return {name: value.numpy().tobytes() for file in files for name, value in load_file(file).items()}


def journal_without_times(output: Path) -> list[dict[str, object]]:
    lines = read_json_lines(output / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in PASSING} for line in lines]


@pytest.fixture(scope="module")
def interrupted(world, tmp_path_factory) -> Path:
    """An SFT run that died in step 3 of 6, with a checkpoint after step 2. To be copied."""
    output = tmp_path_factory.mktemp("interrupted") / "run"
    kill_in_a_process(world.sft(output, epochs=3), after=3)
    assert [line["step"] for line in read_json_lines(output / "metrics.jsonl")] == [1, 2, 3]
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-000002"]
    return output


@pytest.fixture(scope="module")
def straight(world, tmp_path_factory) -> Path:
    """The same run without a break."""
    output = tmp_path_factory.mktemp("straight") / "run"
    train_sft(world.sft(output, epochs=3))
    start = load_file(next(world.model.glob("*.safetensors")))
    assert any(value.numpy().tobytes() != weights(output)[name] for name, value in start.items())
    return output


@pytest.mark.slow
def test_sft_killed_twice_ends_with_the_same_bits(world, interrupted, straight, tmp_path):
    config = world.sft(tmp_path / "run", epochs=3)
    shutil.copytree(interrupted, config.output)
    kill_in_a_process(config, after=1)  # step 3 again
    assert not (config.output / "result.json").exists()
    train_sft(config)
    assert weights(config.output) == weights(straight)
    assert journal_without_times(config.output) == journal_without_times(straight)
    assert [line["step"] for line in read_json_lines(config.output / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_grpo_killed_ends_with_the_same_bits(started, tmp_path):
    """Questions about a video that is gone are dropped on the way, before the kill and after it."""
    dataset = tmp_path / "dataset"
    shutil.copytree(started.dataset, dataset)
    (dataset / "videos" / "train_rl-green.mp4").unlink()
    options = {"steps": 5, "kl_coefficient": 0.01, "updates_per_batch": 2, "max_response_tokens": 24}
    options["data__dataset"] = dataset
    whole, broken = (started.grpo(tmp_path / name, **options) for name in ("whole", "broken"))
    train_grpo(whole)
    kill_in_a_process(broken, after=3)
    assert [line["step"] for line in read_json_lines(broken.output / "metrics.jsonl")] == [1, 2, 3]
    train_grpo(broken)
    assert weights(broken.output) == weights(whole.output)
    assert journal_without_times(broken.output) == journal_without_times(whole.output)
    assert (broken.output / "rollouts.jsonl").read_text() == (whole.output / "rollouts.jsonl").read_text() != ""
    assert (broken.output / "questions.json").read_text() == (whole.output / "questions.json").read_text()
    assert json.loads((broken.output / "questions.json").read_text())["dropped"] == {"unreadable_video": 2}
    assert any(line["gradient_norm"] > 0 for line in read_json_lines(whole.output / "metrics.jsonl")[2:])


@pytest.mark.slow
def test_a_half_written_checkpoint_is_not_taken_for_a_whole_one(world, interrupted, straight, tmp_path):
    config = world.sft(tmp_path / "run", epochs=3)
    shutil.copytree(interrupted, config.output)
    half = config.output / "checkpoints" / "step-000004.partial-4711"
    shutil.copytree(half.with_name("step-000002"), half)
    shard_of(half).write_bytes(b"half")
    train_sft(config)
    assert weights(config.output) == weights(straight)
    assert not half.exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_one_line(world, interrupted, tmp_path):
    config = world.sft(tmp_path / "run", epochs=3)
    shutil.copytree(interrupted, config.output)
    path = shard_of(config.output / "checkpoints" / "step-000002")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainerError, match=r"checkpoint .*step-000002 is damaged .*100 bytes, expected.* remove it"):
        train_sft(config)


@pytest.mark.slow
def test_a_loaded_policy_is_brought_to_the_checkpoint(world, interrupted, straight, tmp_path):
    config = world.sft(tmp_path / "run", epochs=3)
    shutil.copytree(interrupted, config.output)
    train_sft(config, policy=open_policy(config.model, "float32"))
    assert weights(config.output) == weights(straight)


@pytest.mark.slow
def test_a_finished_run_reports_its_result_and_trains_no_more(world, tmp_path):
    config = world.sft(tmp_path / "run", epochs=1)
    first = train_sft(config)
    stamp = (config.output / "metrics.jsonl").stat().st_mtime_ns
    assert train_sft(config) == first
    assert (config.output / "metrics.jsonl").stat().st_mtime_ns == stamp
    config = world.grpo(tmp_path / "grpo", steps=1)
    first_grpo = train_grpo(config)
    assert train_grpo(config) == first_grpo


def test_a_refused_start_leaves_the_folder_to_the_corrected_settings(world, tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "notes.txt").write_text("no model")
    with pytest.raises(EngineError, match="no checkpoint here"):
        train_sft(world.sft(tmp_path / "run", epochs=1, model__folder=tmp_path / "nothing"))
    train_sft(world.sft(tmp_path / "run", epochs=1))
    settings = (tmp_path / "run" / "settings.json").read_bytes()
    with pytest.raises(TrainerUsageError, match="contains another run"):
        train_sft(world.sft(tmp_path / "run", epochs=1, model__folder=tmp_path / "nothing"))
    assert (tmp_path / "run" / "settings.json").read_bytes() == settings


def test_inputs_may_move_but_not_change(world, tmp_path):
    config = world.sft(tmp_path / "run", epochs=1)
    first = train_sft(config)
    moved = tmp_path / "moved"
    shutil.copytree(world.model, moved)
    assert train_sft(world.sft(tmp_path / "run", epochs=1, model__folder=moved)) == first
    settings = json.loads((moved / "generation_config.json").read_text())
    (moved / "generation_config.json").write_text(json.dumps(settings | {"top_k": 7}))
    with pytest.raises(TrainerUsageError, match=r"contains another run: inputs\.model was"):
        train_sft(world.sft(tmp_path / "run", epochs=1, model__folder=moved))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"learning_rate": 0.5}, r"is finished: settings\.learning_rate was 0\.003 and is now 0\.5"),
        ({"weight_decay": 0.5}, r"settings\.weight_decay was 0\.0 and is now 0\.5"),
        ({"data__num_frames": 2}, r"settings\.data\.num_frames was 4 and is now 2"),
        ({"data__split": "train_rl"}, r"settings\.data\.split was"),
    ],
)
def test_other_settings_are_refused_naming_the_difference(world, tmp_path, changes, expected):
    train_sft(world.sft(tmp_path / "run", epochs=1))
    with pytest.raises(TrainerUsageError, match=expected) as caught:
        train_sft(world.sft(tmp_path / "run", epochs=1, **changes))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_folder_of_another_stage_or_with_other_files_is_refused(world, tmp_path):
    train_sft(world.sft(tmp_path / "run", epochs=1))
    with pytest.raises(TrainerUsageError, match=r'stage was "sft" and is now "grpo"|settings\.'):
        train_grpo(world.grpo(tmp_path / "run"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("…")
    (tmp_path / "file").write_text("…")
    for name in ("mine", "file"):
        with pytest.raises(TrainerUsageError, match=r"no run of this trainer|not the folder of a run"):
            train_sft(world.sft(tmp_path / name))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "…"


def test_a_place_that_cannot_hold_a_run_is_one_line(world, tmp_path):
    (tmp_path / "file").write_text("…")
    with pytest.raises(TrainerError, match=r"cannot write .*`output`"):
        train_sft(world.sft(tmp_path / "file" / "run"))


def test_missing_inputs_are_one_line(world, tmp_path):
    with pytest.raises(TrainerUsageError, match=r"does not exist; set `model\.folder`"):
        train_sft(world.sft(tmp_path / "run", model__folder=tmp_path / "no-model"))
    with pytest.raises(TrainerUsageError, match=r"does not exist; set `data\.dataset`"):
        train_sft(world.sft(tmp_path / "run", data__dataset=tmp_path / "no-dataset"))
