"""Files and folders appear complete or not at all; journals survive a kill."""

import os
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from longrl_trainer.durable import make_partial, publish, remove_folder, remove_partial, write_json
from longrl_trainer.errors import TrainerError
from longrl_trainer.runs.journal import JsonLines, read_json_lines


def test_a_folder_that_failed_half_way_does_not_appear(tmp_path):
    (make_partial(tmp_path / "checkpoint") / "half").write_text("x")
    assert not (tmp_path / "checkpoint").exists()
    remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_replaces_the_one_before(tmp_path):
    for content in ("old", "new"):
        partial = make_partial(tmp_path / "checkpoint")
        (partial / content).write_text(content)
        publish(partial, tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["new"]


def test_remains_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    (tmp_path / "step-000002.partial-77" / "model").mkdir(parents=True)
    (tmp_path / "result.json.partial-77").write_text("{")
    (tmp_path / "step-000001").mkdir()
    remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainerError, match=r"cannot write .*file/x.json: .*`output`"):
        write_json(tmp_path / "file" / "x.json", {})


def test_a_full_disk_is_one_line(tmp_path):
    """The system refuses larger files than so many bytes, as it refuses more on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(TrainerError, match=r"cannot write .*metrics\.jsonl: File too large"):
            JsonLines(tmp_path / "metrics.jsonl").append(1, {"text": "x" * 100_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["link", "fifo", "device", "folder"])
def test_a_journal_is_a_file_of_its_own(tmp_path, kind):
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    (tmp_path / "outside").write_text('{"step": 1}\n{"step": 2}\n')
    {
        "link": lambda: path.symlink_to(tmp_path / "outside"),
        "fifo": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
    }[kind]()
    journal = JsonLines(path)
    for use in (lambda: journal.append(3, {}), journal.read, lambda: journal.keep_until(1)):
        with pytest.raises(TrainerError) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert (tmp_path / "outside").read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize(
    "line",
    ["[" * 10_000, "[]", "5", "{}", '{"step": "1"}', '{"step": true}', '{"step": 1e999}', "\ud800", '{"step": NaN}'],
)
def test_lines_that_are_no_steps_are_refused(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line.encode(errors="surrogatepass") + b"\n")
    before = path.read_bytes()
    for use in (JsonLines(path).read, lambda: JsonLines(path).keep_until(1)):
        with pytest.raises(TrainerError, match="is not a journal of this trainer"):
            use()
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_nothing_is_written_or_removed_through_a_link(tmp_path):
    outside, run = tmp_path / "outside", tmp_path / "run"
    for folder in (outside / "step-000002.partial-77", run):
        folder.mkdir(parents=True)
    (outside / "result.json.partial-77").write_text("mine")
    (run / "checkpoints").symlink_to(outside)
    (run / f"x.json.partial-{os.getpid()}").symlink_to(outside / "result.json.partial-77")
    (run / "step-000001.partial-77").symlink_to(outside)
    (run / "my.partial-notes").write_text("mine")
    (run / "x.json").symlink_to(outside / "result.json.partial-77")
    with pytest.raises(TrainerError, match="is a link"):
        remove_partial(run, "checkpoints")
    write_json(run / "x.json", {})
    remove_partial(run)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "my.partial-notes", "x.json"]
    assert sorted(path.name for path in outside.iterdir()) == ["result.json.partial-77", "step-000002.partial-77"]
    assert (outside / "result.json.partial-77").read_text() == "mine"


def test_a_journal_forgets_later_steps_and_a_torn_line(tmp_path):
    journal = JsonLines(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        journal.append(step, {"note": "line\u2028separator"})
    with journal.path.open("a") as file:
        file.write('{"step": 6, "no')
    assert [line["step"] for line in journal.read()] == [1, 2, 3, 4, 5]
    journal.keep_until(3)
    assert [line["step"] for line in journal.read()] == [1, 2, 3]
    journal.append(4, {})
    assert [line["step"] for line in read_json_lines(journal.path)] == [1, 2, 3, 4]


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("hello\n")
    with pytest.raises(TrainerError, match="not a journal"):
        read_json_lines(tmp_path / "metrics.jsonl")


def test_a_number_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        JsonLines(tmp_path / "metrics.jsonl").append(1, {"loss": float("nan")})


def test_a_folder_goes_away_whole(tmp_path):
    folder, seen = tmp_path / "folder", set[int]()
    folder.mkdir()
    for number in range(3000):
        (folder / str(number)).touch()

    def look() -> None:
        while folder.exists():
            with suppress(FileNotFoundError):
                found = len(os.listdir(folder))  # noqa: PTH208 - in one go
                seen.update({found} if folder.exists() else ())

    with ThreadPoolExecutor() as threads:
        looking = threads.submit(look)
        while not seen:
            pass
        remove_folder(folder)
        looking.result()
    assert seen == {3000}
    assert not list(tmp_path.iterdir())
