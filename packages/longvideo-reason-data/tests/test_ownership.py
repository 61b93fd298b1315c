"""A folder has one owner: the second is told who the first is, and an owner's death frees the folder at once."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.filtering.by_answers import FilterModels
from longvideo_reason_data.filtering.settings import FilterSettings
from longvideo_reason_data.ownership import OWNER_NAME, own_file, own_folder
from longvideo_reason_data.pipeline.build import build
from longvideo_reason_data.pipeline.filter import filter_folder
from longvideo_reason_data.records.splits import SplitFractions, count_videos
from longvideo_reason_data.timeline.dataset import write_timeline_dataset
from longvideo_reason_data.timeline.world import WorldSettings

# Owns a folder until it is told to end, with a forked child that outlives it and has all that it had open.
OWNER = """
import os, sys, time
from pathlib import Path
from longvideo_reason_data.ownership import own_folder
with own_folder(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)  # it has given up by now what its parent holds
        time.sleep(60)
        os._exit(0)
    sys.stdin.readline()
"""


@pytest.fixture
def start_owner() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    started: list[tuple[subprocess.Popen[str], int]] = []

    def start(folder: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", OWNER, str(folder)]
        owner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert owner.stdout is not None
        started.append((owner, int(owner.stdout.readline())))
        return owner

    yield start
    for owner, child in started:
        os.kill(child, signal.SIGKILL)
        owner.kill()
        owner.wait()
        for stream in (owner.stdin, owner.stdout):
            assert stream is not None
            stream.close()


def test_the_second_is_told_who_the_first_is(tmp_path, start_owner):
    owner = start_owner(tmp_path / "run")
    expected = rf"run is in use by process {owner.pid} on {socket.gethostname()} since \d{{4}}-\d\d-\d\d .* UTC; wait"
    with pytest.raises(UsageError, match=expected) as caught, own_folder(tmp_path / "run"):
        pass
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    with own_folder(tmp_path / "other"):
        pass


def test_an_orderly_end_leaves_nothing(tmp_path, start_owner):
    owner = start_owner(tmp_path / "run")
    assert owner.stdin is not None
    owner.stdin.close()
    assert owner.wait() == 0
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(RuntimeError), own_folder(tmp_path / "run"):
        raise RuntimeError
    assert list((tmp_path / "run").iterdir()) == []


def test_a_killed_owner_frees_the_folder_though_a_child_of_it_lives(tmp_path, start_owner):
    owner = start_owner(tmp_path / "run")
    owner.kill()
    owner.wait()
    assert json.loads((tmp_path / "run" / OWNER_NAME).read_text())["process"] == owner.pid
    with own_folder(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / OWNER_NAME).read_text())["process"] == os.getpid()


def test_one_process_does_not_own_a_folder_twice(tmp_path):
    with (
        own_folder(tmp_path),
        pytest.raises(UsageError, match=f"in use by process {os.getpid()} on"),
        own_folder(tmp_path),
    ):
        pass


def test_of_many_at_once_one_owns(tmp_path):
    """Owners come and go, and remove the file as they go; never are there two."""
    worker = """
import os, sys
from pathlib import Path
from longvideo_reason_data.errors import UsageError
from longvideo_reason_data.ownership import own_folder
folder, owned = Path(sys.argv[1]), 0
while owned < 50:
    try:
        with own_folder(folder):
            os.mkdir(folder / "mine")
            os.rmdir(folder / "mine")
            owned += 1
    except UsageError:
        pass
"""
    workers = [subprocess.Popen([sys.executable, "-c", worker, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in workers] == [0, 0, 0]


def test_a_file_has_one_owner_and_its_folder_others(tmp_path):
    path = tmp_path / "results" / "accuracy.json"
    with (
        own_file(path),
        own_folder(path.parent),
        own_file(path.with_name("other.json")),
        pytest.raises(UsageError, match=r"accuracy\.json is in use by"),
        own_file(path),
    ):
        pass
    assert list(path.parent.iterdir()) == []


def test_a_place_that_takes_no_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("…")
    expected = r"file.run: can't be written \(.*\); choose another output folder"
    with pytest.raises(DataError, match=expected), own_folder(tmp_path / "file" / "run"):
        pass


def test_commands_refuse_a_dataset_at_work_before_they_touch_it(tmp_path, start_owner):
    dataset, films = tmp_path / "dataset", tmp_path / "films"
    world = WorldSettings(seconds=16.0, num_scenes=3)
    shares = count_videos(1, SplitFractions())
    write_timeline_dataset(films, world, videos=shares, questions_per_video=1, seed=0)
    start_owner(dataset)
    address = "http://127.0.0.1:9/v1"
    with pytest.raises(UsageError, match="dataset is in use by process"):
        build([films], dataset, base_url=address, model="m")
    with pytest.raises(UsageError, match="dataset is in use by process"):
        filter_folder(dataset, base_url=address, models=FilterModels(answerer="m"), settings=FilterSettings())
    with pytest.raises(UsageError, match="dataset is in use by process"):
        write_timeline_dataset(dataset, world, videos=shares, questions_per_video=1, seed=0)
    assert [path.name for path in dataset.iterdir()] == [OWNER_NAME]
