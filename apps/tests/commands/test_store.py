"""`longrl store` on a real store."""

import os
from pathlib import Path

import pytest
import torch

from longrl.cli import main
from mrsp_engine.embeddings import EmbeddingStore
from mrsp_engine.testing.fixtures import numbered_key as key
from mrsp_engine.testing.hostile_stores import HOSTILE_STORES, fill_outside


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    store = EmbeddingStore(tmp_path / "embeddings")
    for number in range(3):
        store.put(key(number), torch.full((1000, 100), float(number)))
        os.utime(store.path(key(number)), (number, number))  # used in this order, long ago
    return store


def test_stats(store: EmbeddingStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "stats", str(store.folder)]) == 0
    assert "3 embeddings, 1.2 MB; 3 encoded so far" in capsys.readouterr().out


def test_verify_names_what_is_damaged_and_removes_it(store: EmbeddingStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "verify", str(store.folder)]) == 0
    assert "3 embeddings, all sound" in capsys.readouterr().out
    data = bytearray(store.path(key(1)).read_bytes())
    data[-1] ^= 1
    store.path(key(1)).write_bytes(bytes(data))
    assert main(["store", "verify", str(store.folder)]) == 1
    said = capsys.readouterr()
    assert str(store.path(key(1))) in said.out
    assert "1 of 3 embeddings damaged" in said.err
    assert store.path(key(1)).exists()
    assert main(["store", "verify", str(store.folder), "--remove"]) == 1
    assert "1 of 3 embeddings damaged; removed" in capsys.readouterr().err
    assert main(["store", "verify", str(store.folder)]) == 0


def test_prune_keeps_what_was_used_last(store: EmbeddingStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "prune", str(store.folder), "--keep", "0.9MB"]) == 0
    assert "removed 1 embeddings, 0.4 MB; 2 left, 0.8 MB" in capsys.readouterr().out
    assert [store.path(key(number)).exists() for number in range(3)] == [False, True, True]


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["stats", str(tmp_path / "none")], "no such folder"),
        (["prune", str(tmp_path), "--keep", "some"], "--keep 'some': expected a number"),
    ):
        assert main(["store", *arguments]) == 2
        errors = capsys.readouterr().err.strip().splitlines()
        assert len(errors) == 1
        assert expected in errors[0]
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", HOSTILE_STORES)
def test_stores_from_elsewhere_are_refused_and_left_alone(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, outside = tmp_path / "store", tmp_path / "outside"
    fill_outside(outside)
    HOSTILE_STORES[name](folder, outside)

    def listed() -> list[tuple[str, int]]:
        return sorted((str(path), path.lstat().st_mtime_ns) for path in tmp_path.rglob("*"))

    before = listed()
    for arguments in (["stats"], ["verify"], ["verify", "--remove"], ["prune", "--keep", "0B"]):
        assert main(["store", arguments[0], str(folder), *arguments[1:]]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert len(line) < 400
        assert listed() == before
