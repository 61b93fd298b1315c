"""A note about a file holds as long as the file is unchanged, and only for the user and machine that wrote it."""

import json
import os
import time
from pathlib import Path

import pytest

from longrl_files import file_notes
from longrl_files.file_notes import FileNotes, user_cache

SUBJECT = {"version": "1"}


@pytest.fixture
def film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(file_notes, "UNSETTLED_SECONDS", 0.05)
    path = tmp_path / "film.mp4"
    path.write_bytes(b"frames" * 1000)
    time.sleep(0.1)
    return path


def noted(folder: Path, path: Path, subject: dict[str, str] = SUBJECT) -> bool:
    """Whether a note about the file is found; if not, it is written."""
    notes, status = FileNotes(folder, max_bytes=2000), path.stat()
    known = notes.recall(path, status, subject)
    if known is None:
        notes.remember(path, status, subject, {"length": 3})
    return known == {"length": 3}


def test_a_note_holds_until_the_file_or_the_subject_changes(film: Path, tmp_path: Path) -> None:
    folder, times = tmp_path / "notes", film.stat()
    assert [noted(folder, film) for _ in range(3)] == [False, True, True]
    film.write_bytes(b"FRAMES" * 1000)
    os.utime(film, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same modification time
    time.sleep(0.1)
    assert [noted(folder, film) for _ in range(2)] == [False, True]
    assert [noted(folder, film, {"version": "2"}) for _ in range(2)] == [False, True]
    assert len(list(folder.iterdir())) == 1


def test_nothing_is_noted_of_a_file_that_just_changed_or_changes_meanwhile(film: Path, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    new = tmp_path / "new.mp4"
    new.write_bytes(b"x")
    assert [noted(folder, new) for _ in range(2)] == [False, False]
    before = film.stat()
    film.touch()
    FileNotes(folder, max_bytes=2000).remember(film, before, SUBJECT, {"length": 3})
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["content", "seal", "link", "fifo", "large", "deep", "list"])
def test_a_note_that_this_user_did_not_write_is_not_believed(film: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "notes"
    noted(folder, film)
    (note,) = folder.iterdir()
    written = json.loads(note.read_text())
    note.unlink()
    if kind == "link":
        (tmp_path / "elsewhere").write_text(json.dumps(written))
        note.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(note)
    else:
        planted = {"content": {**written, "content": {"length": 4}}, "seal": {**written, "seal": "0" * 64}, "list": []}
        text = {"large": " " * 3000 + json.dumps(written), "deep": "[" * 1000}
        note.write_text(text.get(kind) or json.dumps(planted[kind]))
    assert [noted(folder, film) for _ in range(2)] == [False, True]


def test_what_another_user_or_machine_noted_is_not_believed(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "notes"
    assert [noted(folder, film) for _ in range(2)] == [False, True]
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other_user"))
    assert [noted(folder, film) for _ in range(2)] == [False, True]
    monkeypatch.setattr(file_notes.platform, "node", lambda: "elsewhere")
    assert [noted(folder, film) for _ in range(2)] == [False, True]


def test_a_place_that_takes_no_notes_is_no_error(film: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert [noted(tmp_path / "file" / "notes", film) for _ in range(2)] == [False, False]


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "longrl"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/somewhere")
    assert user_cache() == Path("/somewhere/.cache/longrl")
