"""Stores from elsewhere: nothing outside is touched, nothing is swept that isn't a store's, nothing hangs."""

import os
import shutil
import stat
import time
from pathlib import Path

import pytest
import torch

from mrsp_engine.embeddings import EmbeddingStore, StoreLimits
from mrsp_engine.embeddings.disk import DiskTier
from mrsp_engine.embeddings.entry_folder import MARK_NAME
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.testing.hostile_stores import DAMAGED_ENTRIES, ENTRY, HOSTILE_STORES, fill_outside

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    fill_outside(tmp_path / "outside")
    return tmp_path / "outside"


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Names, kinds, times of change and contents."""
    found: dict[str, tuple[int, int, bytes]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_mtime_ns, content)
    return found


@pytest.mark.parametrize("name", HOSTILE_STORES)
def test_a_store_that_is_none_is_refused_and_left_alone(name: str, tmp_path: Path, outside: Path) -> None:
    folder = tmp_path / "store"
    HOSTILE_STORES[name](folder, outside)
    before = snapshot(folder), snapshot(outside)

    def use_to_write() -> None:
        store = EmbeddingStore(folder, StoreLimits(host_bytes=0))
        store.stats()
        store.put(ENTRY, torch.ones(8, 4))

    def use_to_read() -> None:
        disk = DiskTier(folder, None, is_read_only=True)
        disk.stats()
        disk.count_encodes()
        disk.verify()

    for use in (use_to_read, use_to_write):
        with pytest.raises(EngineUsageError) as caught:
            use()
        assert str(folder) in str(caught.value)
        assert len(str(caught.value)) < 400
        assert "\n" not in str(caught.value)
        assert snapshot(outside) == before[1]
        assert snapshot(folder) == before[0]


@pytest.mark.parametrize("name", DAMAGED_ENTRIES)
def test_a_damaged_entry_is_made_again(name: str, tmp_path: Path, outside: Path) -> None:
    folder = tmp_path / "store"
    DAMAGED_ENTRIES[name](folder, outside)
    assert DiskTier(folder, None, is_read_only=True).verify() == [ENTRY.digest]
    store = EmbeddingStore(folder, StoreLimits(host_bytes=0))
    assert store.get(ENTRY) is None
    assert store.put(ENTRY, torch.ones(8, 4))
    assert store.get(ENTRY) is not None


def test_reading_makes_locks_and_removes_nothing(tmp_path: Path) -> None:
    EmbeddingStore(tmp_path / "store").put(ENTRY, torch.ones(8, 4))
    shutil.rmtree(tmp_path / "store" / ENTRY.digest[:2])
    fill_old_parts(tmp_path / "store" / "ab")
    (tmp_path / "store" / ".lock").unlink()
    EmbeddingStore(tmp_path / "damaged").put(ENTRY, torch.ones(8, 4))
    path = tmp_path / "damaged" / ENTRY.digest[:2] / f"{ENTRY.digest}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "empty").mkdir()
    before = snapshot(tmp_path)
    for name in ("store", "damaged", "empty", "none"):
        store = EmbeddingStore(tmp_path / name, is_read_only=True)
        assert store.get(ENTRY) is None
        assert not store.contains(ENTRY)
        store.stats()
        store.verify()
        store.digests.digest(path)
        assert store.counters.encodes >= 0
        store.put(ENTRY, torch.ones(8, 4))  # into memory, for the disk refuses
        assert store.get(ENTRY) is not None
    assert snapshot(tmp_path) == before
    EmbeddingStore(tmp_path / "store")
    assert [path.name for path in (tmp_path / "store" / "ab").iterdir()] == []


def fill_old_parts(folder: Path) -> None:
    folder.mkdir()
    for name in (f"{'0' * 64}.part", ".writing-letter"):
        (folder / name).write_text("left behind")
        os.utime(folder / name, (time.time() - 1e6, time.time() - 1e6))


def test_what_becomes_a_store(tmp_path: Path) -> None:
    for name in ("new/below", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        EmbeddingStore(tmp_path / name)
        assert [path.name for path in (tmp_path / name).iterdir() if path.name != ".lock"] == [MARK_NAME]
    old = tmp_path / "old"
    EmbeddingStore(old).put(ENTRY, torch.ones(8, 4))
    (old / MARK_NAME).unlink()  # as stores were made before
    (old / "digests").mkdir()
    assert DiskTier(old, None, is_read_only=True).stats().entries == 1
    assert not (old / MARK_NAME).exists()
    assert EmbeddingStore(old).get(ENTRY) is not None
    assert (old / MARK_NAME).is_file()
    (old / "README").write_text("a store may hold more, once it is one")
    assert EmbeddingStore(old).get(ENTRY) is not None


def test_a_sweep_takes_nothing_but_what_a_store_leaves(tmp_path: Path, outside: Path) -> None:
    folder = tmp_path / "store"
    EmbeddingStore(folder)
    (folder / "ab").mkdir()
    kept = ["draft.part", "movie.mkv.part", ".writing-my letter", f"{'0' * 63}g.part"]
    for name in kept:
        (folder / "ab" / name).write_text("mine")
        os.utime(folder / "ab" / name, (0, 0))
    (folder / "ab" / ".writing-linked").symlink_to(outside / "notes")
    (folder / "ab" / f"{'0' * 64}.part").symlink_to(outside / "notes")
    os.mkfifo(folder / "ab" / ".writing-pipe")
    (folder / "my").mkdir()
    (folder / "my" / ".writing-letter").write_text("mine")
    before = snapshot(folder / "ab"), snapshot(folder / "my"), snapshot(outside)
    EmbeddingStore(folder)
    assert (snapshot(folder / "ab"), snapshot(folder / "my"), snapshot(outside)) == before
