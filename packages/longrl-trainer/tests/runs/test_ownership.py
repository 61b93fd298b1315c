"""Two runs in one folder: the second is refused at once, whichever stage they are, and the first is not disturbed."""

import json
import subprocess
import sys

import pytest

from longrl_trainer.evaluation.evaluate import evaluate
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.sft import train_sft
from longvideo_reason_data.errors import UsageError

# Trains, and stays in the middle of a step until a line is written to it.
WORKER = """
import json, sys
from contextlib import contextmanager
from longrl_trainer.config.recipes import parse_config
from longrl_trainer.config.stages import SftConfig
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.sft import train_sft

class WaitingProgress(SilentProgress):
    @contextmanager
    def task(self, description, *, total, done=0):
        self.is_loop = description == "SFT"
        yield self

    def advance(self, amount=1, *, note=""):
        if self.is_loop:
            print("step", flush=True)
            sys.stdin.readline()

train_sft(parse_config(json.loads(sys.argv[1]), SftConfig, source="test"), progress=WaitingProgress())
"""


@pytest.mark.slow
def test_the_second_run_is_refused_and_the_first_ends_as_if_alone(world, started, tmp_path):
    config = world.sft(tmp_path / "run", epochs=1)
    command = [sys.executable, "-c", WORKER, config.model_dump_json()]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "step\n"
    for train, again in ((train_sft, config), (train_grpo, started.grpo(tmp_path / "run"))):
        with pytest.raises(UsageError, match=f"run is in use by process {first.pid} on .* since .*") as caught:
            train(again)
        assert caught.value.exit_code == 2
    first.communicate("\n" * 10)
    assert first.returncode == 0
    assert [line["step"] for line in read_json_lines(config.output / "metrics.jsonl")] == [1, 2]
    assert not (config.output / ".owner").exists()


@pytest.mark.slow
def test_a_killed_run_is_continued_at_once(world, tmp_path):
    config = world.sft(tmp_path / "run", epochs=1)
    command = [sys.executable, "-c", WORKER, config.model_dump_json()]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    first.stdout.readline()
    first.kill()
    first.communicate()
    assert (config.output / ".owner").exists()
    assert train_sft(config).num_steps == 2


def test_a_failed_run_gives_its_folder_back(new_world, tmp_path):
    world = new_world(splits=["train_sft"])
    for film in (world.dataset / "videos").iterdir():
        film.unlink()
    for _ in range(2):
        with pytest.raises(Exception, match="none of the 8 questions"):
            train_sft(world.sft(tmp_path / "run"))


def test_two_evaluations_do_not_write_one_file(world, tmp_path):
    config = world.evaluation(tmp_path / "accuracy.json", limit=1)
    holder = (
        "import sys; from pathlib import Path; from longvideo_reason_data.ownership import own_file\n"
        "with own_file(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-c", holder, str(config.output)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    first.stdout.readline()
    with pytest.raises(UsageError, match=rf"accuracy\.json is in use by process {first.pid}"):
        evaluate(config)
    first.communicate("\n")
    evaluate(config)
    assert json.loads(config.output.read_text())["count"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["accuracy.json"]
