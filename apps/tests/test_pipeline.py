"""The stages alone: what is reused, what is redone and why, and what a kill leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from longrl.errors import AppUsageError
from longrl.pipeline import Stage, digest_json, measure, open_pipeline, read_finished
from longvideo_reason_data.errors import DataError, UsageError


class Work:
    """Two stages that copy a setting into a file, and record how often they ran."""

    def __init__(self, folder):
        self.folder = folder
        self.ran = []
        self.said = []
        self.fail_in = None

    def run(self, *, first=1, second=1):
        self.ran.clear()
        self.said.clear()
        with open_pipeline(self.folder, self.said.append) as pipeline:
            for stage in (
                Stage(name="a", settings={"value": first}, outputs=("a.txt",), run=lambda: self.write("a", first)),
                Stage(
                    name="b",
                    settings={"value": second, "nested": {"x": 1}},
                    after=("a",),
                    outputs=("b",),
                    notes=("b/notes",),
                    run=lambda: self.write("b/b", second),
                ),
            ):
                pipeline.run(stage)
            return pipeline.result("b")

    def write(self, name, value):
        self.ran.append(name[0])
        path = self.folder / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        before = path.read_text() if path.exists() else ""
        path.write_text(f"{before}{value}")
        if self.fail_in == name[0]:
            raise RuntimeError("broken")
        return {"written": value}


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path / "out")


def test_a_finished_stage_is_reused(work):
    assert work.run() == {"written": 1}
    assert work.ran == ["a", "b"]
    assert work.run() == {"written": 1}
    assert work.ran == []
    assert work.said == ["a: reused", "b: reused"]


def test_a_changed_setting_redoes_the_stage_and_those_after_it(work):
    work.run()
    work.run(first=2)
    assert work.ran == ["a", "b"]
    assert work.said[0] == "a: redo: value was 1 and is now 2"
    assert work.said[2] == "b: redo: a changed"
    assert (work.folder / "a.txt").read_text() == "2"  # cleared, not appended to


def test_a_changed_setting_leaves_the_stages_before_it_alone(work):
    work.run()
    work.run(second=5)
    assert work.ran == ["b"]
    assert work.said[:2] == ["a: reused", "b: redo: value was 1 and is now 5"]


@pytest.mark.parametrize("damage", ["missing", "shorter", "more"])
def test_damaged_outputs_are_made_again(work, damage):
    work.run()
    if damage == "missing":
        (work.folder / "b" / "b.txt").unlink()
    elif damage == "shorter":
        (work.folder / "b" / "b.txt").write_text("")
    else:
        (work.folder / "b" / "c.txt").write_text("?")
    work.run()
    assert work.ran == ["b"]
    assert work.said[1].startswith("b: redo: b has changed (1 files, 1 bytes, now ")
    assert measure(work.folder / "b") == {"files": 1, "bytes": 1}


def test_notes_of_later_stages_are_no_change_and_go_with_the_stage(work):
    work.run()
    notes = work.folder / "b" / "notes"
    notes.mkdir()
    (notes / "seen.json").write_text("{}")
    work.run()
    assert work.said == ["a: reused", "b: reused"]
    assert (notes / "seen.json").exists()
    work.run(second=5)
    assert not notes.exists()


def test_an_interrupted_stage_continues_with_what_it_left(work):
    work.fail_in = "b"
    with pytest.raises(RuntimeError):
        work.run()
    assert read_finished(work.folder, "b") is None
    work.fail_in = None
    work.run()
    assert work.ran == ["b"]
    assert work.said[1].startswith("b: continues after")
    assert (work.folder / "b" / "b.txt").read_text() == "11"


def test_an_interrupted_stage_starts_over_when_its_settings_changed(work):
    work.fail_in = "b"
    with pytest.raises(RuntimeError):
        work.run()
    work.fail_in = None
    work.run(second=7)
    assert work.said[1] == "b: redo: value was 1 and is now 7"
    assert (work.folder / "b" / "b.txt").read_text() == "7"


def test_a_stage_of_another_format_is_redone(work):
    work.run()
    path = work.folder / "stages" / "a.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 0}))
    work.run()
    assert work.ran == ["a"]


def test_somebody_elses_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(AppUsageError, match=r"contains something else \(thesis.txt\); choose another --output"):
        Work(tmp_path).run()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AppUsageError, match="can't be written"):
        Work(tmp_path / "file").run()


def test_the_digest_does_not_depend_on_the_order_of_keys():
    assert digest_json({"a": 1, "b": [1, 2]}) == digest_json({"b": [1, 2], "a": 1}) != digest_json({"a": 1})


SLEEPER = """
import sys, time
from pathlib import Path
from longrl.pipeline import Stage, open_pipeline
folder = Path(sys.argv[1])
def work():
    with (folder / "log").open("a") as log:
        log.write("x")
    (folder / "ready").touch()
    time.sleep(float(sys.argv[2]))
    return {}
with open_pipeline(folder, print) as pipeline:
    pipeline.run(Stage(name="sleep", settings={}, outputs=("log",), run=work))
"""


def wait_for(path, seconds=60.0):
    limit = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < limit, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.slow
def test_sigkill_keeps_the_time_spent_and_frees_the_folder(tmp_path):
    folder = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", SLEEPER, folder, "100"], stdout=subprocess.DEVNULL)
    wait_for(folder / "ready")
    with pytest.raises(UsageError, match=f"is in use by process {process.pid} on .* since .*; wait for it to end"):
        Work(folder).run()
    time.sleep(2.5)  # one beat
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert read_finished(folder, "sleep") is None
    second = subprocess.run([sys.executable, "-c", SLEEPER, folder, "0"], capture_output=True, text=True, check=True)
    assert "sleep: continues after" in second.stdout
    finished = read_finished(folder, "sleep")
    assert finished is not None
    assert finished.seconds >= 1.9
    assert finished.peak_memory_bytes > 10 * 1024**2
    assert (folder / "log").read_text() == "xx"
    assert not list((folder / "stages").glob("*.started.json"))


@pytest.mark.parametrize("file", ["a.json", "b.started.json"])
@pytest.mark.parametrize(
    "content",
    ["[]", "[" * 100_000, "{", '{"format_version": 1}', '{"format_version": 1, "digest": []}', None, "fifo", "link"],
)
def test_files_of_stages_from_elsewhere_are_refused_in_one_line(work, tmp_path, file, content):
    work.run()
    path, outside = work.folder / "stages" / file, tmp_path / "outside"
    outside.write_text("{}")
    path.unlink(missing_ok=True)
    if content == "fifo":
        os.mkfifo(path)
    elif content == "link":
        path.symlink_to(outside)
    elif content is None:
        path.mkdir()
    else:
        path.write_text(content)
    if file.startswith("b"):
        (work.folder / "stages" / "b.json").unlink()
    with pytest.raises(AppUsageError) as caught:
        work.run()
    assert "\n" not in str(caught.value)
    assert outside.read_text() == "{}"


def test_nothing_is_cleared_through_a_link(work, tmp_path):
    work.run()
    outside = tmp_path / "outside"
    (work.folder / "b").rename(outside)
    (work.folder / "b").symlink_to(outside)
    with pytest.raises(DataError, match="is a link"):
        work.run(second=2)
    (work.folder / "b").unlink()
    (work.folder / "b").mkdir()
    (work.folder / "b" / "deep").symlink_to(outside)
    work.run(second=2)
    assert [path.name for path in outside.iterdir()] == ["b.txt"]
