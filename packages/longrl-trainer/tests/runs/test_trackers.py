"""The numbers of a run in TensorBoard's files, also after an interruption; and trackers that aren't there."""

import json
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.trackers import TrackedJournal, flatten, require_tracker
from longrl_trainer.sft import train_sft

# A library as wandb and Trackio have it; the real ones speak to a server.
STAND_IN = """
import json, pathlib
FILE = pathlib.Path(__file__).with_name("said.jsonl")

def say(*words):
    with FILE.open("a") as file:
        file.write(json.dumps(words) + "\\n")

def init(**options):
    say("init", options["project"], options["name"], options["config"])

def log(numbers, step):
    say("log", step, numbers)

def finish():
    say("finish")
"""


def scalars(folder, name):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def test_a_trained_run_has_its_numbers_in_tensorboards_files(world, tmp_path):
    config = world.sft(tmp_path / "run", epochs=1)
    train_sft(config)
    lines = read_json_lines(config.output / "metrics.jsonl")
    assert len(lines) == 2
    for name in ("loss", "learning_rate"):
        assert scalars(config.output / "tensorboard", name) == [(line["step"], line[name]) for line in lines]


def test_steps_that_are_repeated_after_an_interruption_count_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = TrackedJournal(path, "tensorboard", {})
    for step in (1, 2, 3):
        first.append(step, {"rewards": {"answer": step}, "note": "text"})
    first.close()
    [events] = (tmp_path / "tensorboard").iterdir()  # a name begins with seconds, and a resumed run is another second's
    events.rename(events.with_name(events.name.replace(events.name.split(".")[3], "0000000000")))
    second = TrackedJournal(path, "tensorboard", {})
    second.keep_until(1)
    second.append(2, {"rewards": {"answer": 20}})
    second.close()
    assert scalars(tmp_path / "tensorboard", "rewards/answer") == [(1, 1.0), (2, 20.0)]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_project_gets_settings_numbers_and_its_end(name, tmp_path, monkeypatch):
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries" / f"{name}.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path / "libraries")
    require_tracker(name)
    journal = TrackedJournal(tmp_path / "run" / "metrics.jsonl", name, {"seed": 3})
    journal.append(1, {"loss": 2.0, "seconds": {"update": 1.5}})
    journal.close()
    sys.modules.pop(name)
    said = [json.loads(line) for line in (tmp_path / "libraries" / "said.jsonl").read_text().splitlines()]
    assert said[0][2].startswith("run-")
    assert said == [
        ["init", "longrl", said[0][2], {"seed": 3}],
        ["log", 1, {"loss": 2.0, "seconds.update": 1.5}],
        ["finish"],
    ]


def test_a_tracker_that_fails_to_open_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text("def init(**options):\n    raise RuntimeError('no key\\nfound')\n")
    monkeypatch.syspath_prepend(tmp_path)
    journal = TrackedJournal(tmp_path / "run" / "metrics.jsonl", "wandb", {})
    with pytest.raises(TrainerError, match=r"can't be opened \(RuntimeError: no key.{1,4}found\)") as caught:
        journal.append(1, {})
    sys.modules.pop("wandb")
    assert "\n" not in str(caught.value)


def test_a_library_that_is_not_installed_is_refused_before_anything_is_made(world, tmp_path):
    config = world.sft(tmp_path / "run", epochs=1, tracker="trackio")
    with pytest.raises(TrainerUsageError, match=r'tracker="trackio".*longrl-trainer\[trackio\]'):
        train_sft(config)
    assert not (tmp_path / "run").exists()


def test_other_ranks_track_nothing(tmp_path):
    journal = TrackedJournal(tmp_path / "metrics.jsonl", "tensorboard", {}, is_writer=False)
    journal.append(1, {"loss": 1.0})
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_place_of_the_trackers_folder_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TrainerError):
        TrackedJournal(tmp_path / "run" / "metrics.jsonl", "tensorboard", {}).append(1, {"loss": 1.0})
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_numbers_are_named_by_their_place():
    assert flatten({"a": {"b": 1, "c": True}, "d": "text", "e": [1], "f": None}) == {"a.b": 1}
