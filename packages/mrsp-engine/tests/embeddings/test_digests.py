"""Digests of files are cached as long as the file is unchanged."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from mrsp_engine.embeddings import FileDigests
from mrsp_engine.encoding.video import FileVideo
from mrsp_engine.errors import EngineError
from mrsp_engine.testing.fixtures import NoiseVideo


@pytest.fixture
def film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("longrl_files.file_notes.UNSETTLED_SECONDS", 0.05)
    path = tmp_path / "film.mp4"
    path.write_bytes(b"frames" * 1000)
    time.sleep(0.1)
    return path


def read_anew(folder: Path, path: Path) -> bool:
    """Whether a new process would have to read the file, the digest being right in any case."""
    digests = FileDigests(folder)
    assert digests.digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    return digests.num_read == 1


def test_a_file_is_read_once_in_all_runs(film: Path, tmp_path: Path) -> None:
    folder = tmp_path / "digests"
    assert [read_anew(folder, film) for _ in range(3)] == [True, False, False]


def test_every_change_is_seen(film: Path, tmp_path: Path) -> None:
    folder, times = tmp_path / "digests", film.stat()
    read_anew(folder, film)
    film.write_bytes(b"FRAMES" * 1000)
    os.utime(film, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same modification time
    time.sleep(0.1)
    assert [read_anew(folder, film) for _ in range(2)] == [True, False]
    other = tmp_path / "other"
    other.write_bytes(b"longer" * 1001)
    other.replace(film)
    time.sleep(0.1)
    assert [read_anew(folder, film) for _ in range(2)] == [True, False]


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"x")
    assert [read_anew(tmp_path / "digests", path) for _ in range(2)] == [True, True]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"content": 5}', b"\xff\xfe", b'{"content": {"sha256": "../../x"}}'])
def test_a_damaged_note_costs_a_reading(film: Path, tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "digests"
    read_anew(folder, film)
    (note,) = folder.iterdir()
    note.write_bytes(content)
    assert [read_anew(folder, film) for _ in range(2)] == [True, False]


def test_a_place_that_takes_no_notes_is_no_error(film: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert [read_anew(tmp_path / "file" / "digests", film) for _ in range(2)] == [True, True]
    with pytest.raises(EngineError, match=r"gone\.mp4: can't be read"):
        FileDigests(tmp_path).digest(tmp_path / "gone.mp4")


def test_a_reader_gets_the_digest_and_keeps_the_rest(film: Path, tmp_path: Path) -> None:
    video = NoiseVideo()
    known = FileVideo(video, film, FileDigests(tmp_path / "digests"))
    assert known.content_digest == hashlib.sha256(film.read_bytes()).hexdigest()
    assert (known.frame_count, known.height, known.width) == (video.frame_count, video.height, video.width)
    assert (known.timestamps == video.timestamps).all()
    assert (known.read([3]) == video.read([3])).all()


def planted(folder: Path, path: Path, change: dict[str, object] | None = None) -> None:
    """Make what is remembered of a file claim another digest, as somebody who can write there might."""
    read_anew(folder, path)
    (note,) = folder.iterdir()
    content = json.loads(note.read_text())
    note.write_text(json.dumps({**content, "content": {"sha256": "0" * 64}, **(change or {})}))


@pytest.mark.parametrize("seal", [None, "", 5, "0" * 64])
def test_a_planted_digest_is_not_believed(film: Path, tmp_path: Path, seal: object) -> None:
    folder = tmp_path / "digests"
    planted(folder, film)
    assert [read_anew(folder, film) for _ in range(2)] == [True, False]
    planted(folder, film, {"seal": seal})
    assert read_anew(folder, film)


def test_what_another_user_or_machine_remembered_is_read_again(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "digests"
    read_anew(folder, film)
    assert not read_anew(folder, film)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other_user"))
    assert [read_anew(folder, film) for _ in range(2)] == [True, False]
    monkeypatch.setattr("longrl_files.file_notes.platform.node", lambda: "elsewhere")
    assert [read_anew(folder, film) for _ in range(2)] == [True, False]


def test_a_note_of_another_file_is_not_believed(film: Path, tmp_path: Path) -> None:
    """Sealed by this user, but for another path, whose name it was given."""
    folder, other = tmp_path / "digests", tmp_path / "other.mp4"
    other.hardlink_to(film)
    time.sleep(0.1)
    read_anew(folder, film)
    (note,) = folder.iterdir()
    note.rename(folder / f"{hashlib.sha256(os.fsencode(other)).hexdigest()}.json")
    assert read_anew(folder, other)


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "large", "deep"])
def test_notes_that_are_no_files_cost_a_reading(film: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "digests"
    read_anew(folder, film)
    (note,) = folder.iterdir()
    note.rename(tmp_path / "note")
    if kind == "link":
        note.symlink_to(tmp_path / "note")
    elif kind == "fifo":
        os.mkfifo(note)
    elif kind == "folder":
        note.mkdir()
    else:
        note.write_text(" " * 2**17 + "{}" if kind == "large" else "[" * 1000)
    before = (tmp_path / "note").read_bytes()
    assert read_anew(folder, film)
    assert (tmp_path / "note").read_bytes() == before


def test_notes_are_not_written_through_a_link(film: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "digests").symlink_to(tmp_path / "outside")
    assert read_anew(tmp_path / "digests", film)
    assert not list((tmp_path / "outside").iterdir())


def test_what_is_no_file_has_no_digest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "film.mp4")
    with pytest.raises(EngineError, match="is a FIFO, expected a regular file"):
        FileDigests(tmp_path / "digests").digest(tmp_path / "film.mp4")
