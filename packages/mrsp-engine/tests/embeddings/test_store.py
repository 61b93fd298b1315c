"""The embedding store: whole entries or none, whatever happens to the writers, the disk and the files."""

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mrsp_engine.embeddings import EmbeddingKey, EmbeddingStore, StoreLimits, encoder_fingerprint
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.testing.fixtures import numbered_key

KEY = EmbeddingKey(
    content_digest="a" * 64,
    frame_indices=(0, 4, 8),
    timestamps=(0, 160_000, 320_000),
    height=112,
    width=140,
    processor_digest="b" * 64,
    encoder_fingerprint="c" * 64,
    dtype="float32",
    family="qwen2_5_vl",
)
OTHER_VALUES = {
    "content_digest": "d" * 64,
    "frame_indices": (0, 4, 9),
    "timestamps": (0, 160_000, 320_001),
    "height": 113,
    "width": 141,
    "processor_digest": "d" * 64,
    "encoder_fingerprint": "d" * 64,
    "dtype": "bfloat16",
    "family": "other",
    "content": "features",
}

# Several processes run this: "put the entries from `first` to `last`, each a tensor filled with its number".
WRITER = """
import sys
from pathlib import Path
import torch
from mrsp_engine.embeddings import EmbeddingStore
from mrsp_engine.testing.fixtures import numbered_key
folder, first, last, size = Path(sys.argv[1]), *map(int, sys.argv[2:])
store = EmbeddingStore(folder)
for number in range(first, last):
    store.put(numbered_key(number), torch.full((size,), float(number)))
    print(number, flush=True)
"""


DISK_ONLY = StoreLimits(host_bytes=0)


def start_writer(folder: Path, first: int, last: int, size: int, *, prelude: str = "") -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", prelude + WRITER, str(folder), str(first), str(last), str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_key_covers_every_field() -> None:
    assert OTHER_VALUES.keys() == {field.name for field in dataclasses.fields(EmbeddingKey)}
    digests = {dataclasses.replace(KEY, **{name: value}).digest for name, value in OTHER_VALUES.items()}
    assert len(digests | {KEY.digest}) == len(OTHER_VALUES) + 1
    assert KEY.digest == dataclasses.replace(KEY).digest


def test_fingerprint_sees_every_bit_name_shape_and_dtype() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    seen = {encoder_fingerprint(module)}
    assert encoder_fingerprint(module) in seen
    with torch.no_grad():
        weight = module[0].weight
        weight.view(-1)[5] = torch.nextafter(weight.view(-1)[5], torch.tensor(9.0))
    seen.add(encoder_fingerprint(module))
    module[0].weight.data = module[0].weight.data.reshape(3, 4)
    seen.add(encoder_fingerprint(module))
    seen.add(encoder_fingerprint(module.double()))
    seen.add(encoder_fingerprint(nn.ModuleDict({"a": module[0], "b": module[1]})))
    assert len(seen) == 5


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
def test_what_goes_in_comes_out(tmp_path_factory: pytest.TempPathFactory, shape: list[int], dtype: torch.dtype) -> None:
    store = EmbeddingStore(tmp_path_factory.mktemp("store"))
    tensor = torch.randn(shape).to(dtype)
    assert store.get(KEY) is None
    assert not store.contains(KEY)
    assert store.put(KEY, tensor)
    for found in (store.get(KEY), store.get(KEY.digest), EmbeddingStore(store.folder).get(KEY)):
        assert found is not None
        assert found.dtype == dtype
        assert torch.equal(found, tensor)
    assert store.contains(KEY.digest)


def test_counters_and_stats(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    other = dataclasses.replace(KEY, height=1)
    store.put(KEY, torch.zeros(10, 4))
    assert not store.put(KEY, torch.zeros(10, 4))
    store.put(other, torch.zeros(10, 4).T)  # not contiguous
    store.get(KEY)
    store.get(dataclasses.replace(KEY, height=2))
    assert (store.counters.encodes, store.counters.hits, store.counters.damaged) == (2, 1, 0)
    assert EmbeddingStore(tmp_path).counters.encodes == 2
    assert store.stats().entries == 2
    assert store.stats().bytes >= 2 * 10 * 4 * 4
    # A writer killed between the entry and its line in the journal.
    (tmp_path / "encodes.log").write_text(f"{KEY.digest}\n")
    assert store.counters.encodes == 2


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    if kind == "bit":
        data[-3] ^= 1
    elif kind == "key":
        data = bytearray(bytes(data).replace(b'\\"height\\":112', b'\\"height\\":113'))
        assert data != path.read_bytes()
    elif kind == "cut":
        data = data[:-1]
    elif kind == "empty":
        data = bytearray()
    elif kind == "foreign":
        data = bytearray(b"not an entry at all" * 10)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("kind", ["bit", "key", "cut", "empty", "foreign"])
@pytest.mark.parametrize("in_new_process", [True, False])
def test_damaged_entry_is_removed_counted_and_written_again(tmp_path: Path, kind: str, in_new_process: bool) -> None:
    store = EmbeddingStore(tmp_path, DISK_ONLY)
    tensor = torch.randn(10, 4)
    store.put(KEY, tensor)
    assert store.get(KEY) is not None
    assert store.contains(KEY)
    damage(store.path(KEY), kind)
    if in_new_process:
        store = EmbeddingStore(tmp_path, DISK_ONLY)
    assert store.verify() == [KEY.digest]
    assert store.get(KEY) is None
    assert store.counters.damaged == 1
    assert not store.path(KEY).exists()
    assert store.put(KEY, tensor)
    assert store.counters.encodes == 2
    assert store.verify() == []
    found = store.get(KEY)
    assert found is not None
    assert torch.equal(found, tensor)


def test_put_replaces_a_damaged_entry(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    store.put(KEY, torch.ones(4))
    damage(store.path(KEY), "bit")
    assert EmbeddingStore(tmp_path).put(KEY, torch.ones(4))
    assert store.verify() == []


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    with pytest.raises(EngineError, match="finite"):
        store.put(KEY, torch.tensor([1.0, float("nan")]))
    assert store.stats().entries == 0


@pytest.mark.slow
def test_many_processes_write_the_same_entries(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, 0, 20, 1000) for _ in range(3)]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
    store = EmbeddingStore(tmp_path)
    assert store.counters.encodes == store.stats().entries == 20
    assert store.verify() == []
    assert len((tmp_path / "encodes.log").read_text().splitlines()) == 20
    assert not list(tmp_path.glob("??/.writing-*"))


@pytest.mark.slow
def test_killed_writer_leaves_whole_entries_only(tmp_path: Path) -> None:
    writer = start_writer(tmp_path, 0, 10_000, 500_000)
    assert writer.stdout is not None
    for _ in range(5):
        writer.stdout.readline()
    time.sleep(0.003)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    store = EmbeddingStore(tmp_path)
    entries = store.stats().entries
    assert entries >= 5
    assert store.verify() == []
    assert store.counters.encodes == entries
    for number in range(entries):
        found = store.get(numbered_key(number))
        assert found is not None
        assert torch.equal(found, torch.full((500_000,), float(number)))


def test_what_a_killed_writer_left_is_swept_and_a_living_writers_file_kept(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    store.put(KEY, torch.ones(4))
    folder = store.path(KEY).parent
    abandoned = folder / ".writing-abandoned"
    abandoned.write_bytes(b"x")
    seen: list[list[Path]] = []

    def chunks() -> Iterator[torch.Tensor]:
        yield torch.ones(2)
        seen.append(list(tmp_path.glob("??/.writing-*")))
        EmbeddingStore(tmp_path)
        seen.append(list(tmp_path.glob("??/.writing-*")))
        yield torch.ones(2)

    assert store.put_chunks(dataclasses.replace(KEY, height=1), 4, chunks)
    assert abandoned in seen[0]
    assert len(seen[0]) == 2
    assert seen[1] == [path for path in seen[0] if path != abandoned]
    assert EmbeddingStore(tmp_path).stats().entries == 2


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(EngineUsageError, match="file"):
        EmbeddingStore(file)
    with pytest.raises(EngineUsageError, match="hexadecimal"):
        EmbeddingStore(tmp_path / "store").get("../../etc/passwd")
