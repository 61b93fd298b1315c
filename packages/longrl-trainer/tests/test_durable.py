"""Files and folders appear complete or not at all; journals survive a kill."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from longrl_trainer.durable import new_folder, remove_folder, remove_partial, write_json
from longrl_trainer.errors import TrainerError
from longrl_trainer.runs.journal import JsonLines, read_json_lines


def test_a_folder_that_failed_half_way_does_not_appear(tmp_path):
    def fill_half() -> None:
        with new_folder(tmp_path / "checkpoint") as folder:
            (folder / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_half()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_replaces_the_one_before(tmp_path):
    for content in ("old", "new"):
        with new_folder(tmp_path / "checkpoint") as folder:
            (folder / content).write_text(content)
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_one_line():
    with pytest.raises(TrainerError, match="No space left on device"):
        JsonLines(Path("/dev/full")).append(1, {"text": "x" * 100_000})


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
