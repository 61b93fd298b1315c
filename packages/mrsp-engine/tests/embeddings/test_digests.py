"""Digests of files are cached as long as the file is unchanged."""

import hashlib
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
    monkeypatch.setattr("mrsp_engine.embeddings.digests.UNSETTLED_SECONDS", 0.05)
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


@pytest.mark.parametrize("content", [b"", b"[]", b'{"sha256": 5}', b"\xff\xfe", b'{"sha256": "../../x"}'])
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
