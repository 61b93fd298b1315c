"""The store's tiers and slices: budgets, what is read for some rows, and a disk that is full."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mrsp_engine.embeddings import EmbeddingStore, StoreLimits
from mrsp_engine.embeddings.entry_layout import BLOCK_BYTES
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.testing.fixtures import numbered_key as key

KEY = key(0)
ROW = 256  # numbers in a row of float32: a kibibyte
HOST = torch.device("cpu")


def rows(num_rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, ROW, generator=torch.Generator().manual_seed(seed))


def pieces(tensor: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    return iter(tensor.split(size))


class TestRows:
    @pytest.mark.parametrize("size", [1, 700, 1024, 5000])
    def test_any_rows_of_an_entry_written_in_pieces(self, tmp_path: Path, size: int) -> None:
        store, tensor = EmbeddingStore(tmp_path, StoreLimits(host_bytes=0)), rows(3000)
        assert store.put_chunks(KEY, 3000, lambda: pieces(tensor, size))
        for start, stop in ((0, 3000), (0, 0), (3000, 3000), (1023, 1025), (1, 2), (2047, 3000)):
            found = store.read_rows(KEY, start, stop)
            assert found is not None
            assert torch.equal(found, tensor[start:stop])
        with safe_open(store.path(KEY), framework="pt") as file:  # an ordinary safetensors file for everybody else
            assert torch.equal(file.get_tensor("embeddings"), tensor)

    def test_a_rank_reads_its_share_of_the_file(self, tmp_path: Path) -> None:
        """The bytes that the process reads, as the system counts them, are proportional to the slice."""
        EmbeddingStore(tmp_path).put(KEY, rows(64 * 1024))
        total = 64 << 20

        def bytes_of_process() -> int:
            lines = Path("/proc/self/io").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("rchar")).split()[1])

        for num_ranks in (1, 4, 16):
            store = EmbeddingStore(tmp_path, StoreLimits(host_bytes=0))
            before = bytes_of_process()
            share = 64 * 1024 // num_ranks
            assert store.read_rows(KEY, share * (num_ranks - 1) + 5, share * num_ranks) is not None
            assert total // num_ranks - 5 * 1024 <= bytes_of_process() - before <= total // num_ranks + 2 * BLOCK_BYTES
            assert store.counters.bytes_read <= total // num_ranks + 2 * BLOCK_BYTES

    def test_damage_outside_the_rows_is_no_harm_and_inside_is_found(self, tmp_path: Path) -> None:
        store, tensor = EmbeddingStore(tmp_path, StoreLimits(host_bytes=0)), rows(4096)
        store.put(KEY, tensor)
        data = bytearray(store.path(KEY).read_bytes())
        data[-7] ^= 16
        store.path(KEY).write_bytes(bytes(data))
        found = store.read_rows(KEY, 0, 1024)
        assert found is not None
        assert torch.equal(found, tensor[:1024])
        assert store.read_rows(KEY, 3000, 4000) is None
        assert store.counters.damaged == 1
        assert not store.contains(KEY)

    def test_rows_an_embedding_does_not_have_are_one_line(self, tmp_path: Path) -> None:
        store = EmbeddingStore(tmp_path)
        store.put(KEY, rows(4))
        with pytest.raises(EngineError, match="has 4 rows, rows 2 to 5"):
            store.read_rows(KEY, 2, 5)
        assert store.get(KEY) is not None
        with pytest.raises(EngineError, match="has 4 rows, rows 2 to 5"):
            store.read_rows(KEY, 2, 5)

    def test_pieces_that_are_not_one_tensor_are_refused(self, tmp_path: Path) -> None:
        store = EmbeddingStore(tmp_path)
        for chunks in ([rows(3)], [rows(3), rows(3)], [rows(2), rows(2).double()], [rows(2), rows(2)[:, :5]], []):
            with pytest.raises(EngineError, match=r"expected 4|halfway"):
                store.put_chunks(KEY, 4, lambda chunks=chunks: chunks)
        with pytest.raises(EngineError, match="finite"):
            store.put_chunks(KEY, 4, lambda: [rows(2), rows(2) / 0])
        with pytest.raises(EngineError, match="int64"):
            store.put(KEY, torch.arange(4))
        assert store.stats().entries == 0
        assert not list(tmp_path.glob("??/.*"))


class TestBudgets:
    def test_memory_answers_without_the_disk_and_forgets_the_longest_unused(self, tmp_path: Path) -> None:
        store = EmbeddingStore(tmp_path, StoreLimits(host_bytes=2 * 100 * 1024))
        for number in range(3):
            store.put(key(number), rows(100, number))
        for number in (0, 1, 0, 2):  # 1 is evicted
            store.get(key(number))
            if number == 0:
                store.path(key(0)).unlink(missing_ok=True)
        before = store.counters.bytes_read
        for number in (0, 2):
            found = store.get(key(number))
            assert found is not None
            assert torch.equal(found, rows(100, number))
            part = store.read_rows(key(number), 10, 20)
            assert part is not None
            assert torch.equal(part, rows(100, number)[10:20])
        assert store.counters.bytes_read == before
        store.get(key(1))
        assert store.counters.bytes_read > before

    def test_the_disk_makes_no_room_by_removing_what_is_needed(self, tmp_path: Path) -> None:
        store = EmbeddingStore(tmp_path, StoreLimits(disk_bytes=4 * 100 * 1024))
        for number in range(3):
            store.put(key(number), rows(100, number))
        store.disk.is_needed = {key(0).digest, key(2).digest}.__contains__
        store.put(key(3), rows(100, 3))  # 1 goes, though 0 was used longest ago
        assert [store.disk.contains(key(number).digest) for number in range(4)] == [True, False, True, True]
        store.disk.is_needed = lambda _: True
        store.put(key(4), rows(100, 4))
        assert [store.disk.contains(key(number).digest) for number in range(5)] == [True, False, True, True, False]
        found = store.get(key(4))  # the memory has it
        assert found is not None
        assert torch.equal(found, rows(100, 4))

    def test_slices_are_kept_as_slices(self, tmp_path: Path) -> None:
        store = EmbeddingStore(tmp_path, StoreLimits(host_bytes=10 * 1024))
        store.put(KEY, rows(100))
        store.read_rows(KEY, 90, 100)
        before = store.counters.bytes_read
        found = store.read_rows(KEY, 90, 100)
        assert found is not None
        assert torch.equal(found, rows(100)[90:])
        assert store.counters.bytes_read == before

    @pytest.mark.slow
    def test_an_embedding_larger_than_the_memory_budget_is_mapped(self, tmp_path: Path) -> None:
        store = EmbeddingStore(tmp_path, StoreLimits(host_bytes=1 << 20))
        store.put(KEY, rows(32 * 1024))

        def anonymous_kibibytes() -> int:
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

        before = anonymous_kibibytes()
        found = store.get(KEY)
        assert found is not None
        assert anonymous_kibibytes() - before < 8 * 1024
        assert torch.equal(found, rows(32 * 1024))

    def test_the_device_keeps_what_it_was_given(self, tmp_path: Path) -> None:
        store = EmbeddingStore(tmp_path, StoreLimits(host_bytes=0, device_bytes=150 * 1024))
        store.put(key(0), rows(100, 0))
        store.put(key(1), rows(100, 1))
        first = store.get(key(0), device=HOST)
        before = store.counters.bytes_read
        again, part = store.get(key(0), device=HOST), store.read_rows(key(0), 3, 5, device=HOST)
        assert first is not None
        assert again is not None
        assert part is not None
        assert again.data_ptr() == first.data_ptr()
        assert torch.equal(part, first[3:5])
        assert store.counters.bytes_read == before
        store.get(key(1), device=HOST)  # takes its place
        store.get(key(0), device=HOST)
        assert store.counters.bytes_read > before + 2 * 100 * 1024

    def test_the_disk_holds_what_was_used_last(self, tmp_path: Path) -> None:
        store = EmbeddingStore(tmp_path, StoreLimits(host_bytes=0, disk_bytes=3 * 105 * 1024))
        for number in range(3):
            store.put(key(number), rows(100, number))
        store.get(key(0))
        store.put(key(3), rows(100, 3))
        assert [store.contains(key(number)) for number in range(4)] == [True, False, True, True]
        assert store.stats().bytes <= 3 * 105 * 1024

    def test_larger_than_the_disk_budget_stays_in_memory(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = EmbeddingStore(tmp_path, StoreLimits(disk_bytes=10_000))
        with caplog.at_level(logging.WARNING):
            assert store.put(KEY, rows(100))
        assert "larger than the budget of 10000" in caplog.text
        found = store.get(KEY)
        assert found is not None
        assert torch.equal(found, rows(100))
        assert (store.stats().entries, store.counters.encodes) == (0, 1)

    def test_without_a_disk_tier(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        store = EmbeddingStore(tmp_path, StoreLimits(disk_bytes=0))
        assert store.put(KEY, rows(100))
        assert not store.put(KEY, rows(100))
        assert store.contains(KEY)
        assert store.stats().entries == 0
        assert caplog.text == ""

    @pytest.mark.parametrize("name", ["device_bytes", "host_bytes", "disk_bytes"])
    def test_negative_budgets_are_refused(self, name: str) -> None:
        with pytest.raises(EngineUsageError, match=f"{name}=-1"):
            StoreLimits(**{name: -1})

    def test_lent_tensors_keep_their_gradient(self, tmp_path: Path) -> None:
        store = EmbeddingStore(tmp_path)
        live = rows(10).requires_grad_()
        with store.lend({KEY.digest: live}):
            assert store.contains(KEY)
            whole, part = store.get(KEY), store.read_rows(KEY, 2, 4)
            assert whole is live
            assert part is not None
            part.sum().backward()
        assert live.grad is not None
        assert live.grad.sum() == 2 * ROW
        assert not store.contains(KEY)


# A small file system of this process's own: a user namespace allows anybody to mount one, if the system permits it.
FULL_DISK = """
import logging, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from test_tiers import key, rows
from mrsp_engine.embeddings import EmbeddingStore
from mrsp_engine.errors import EngineError
logging.basicConfig(format="%(message)s", stream=sys.stderr)
store = EmbeddingStore(Path(sys.argv[1]))
for number in range(8):
    assert store.put(key(number), rows(100, number))
for number in range(8):
    assert torch.equal(store.get(key(number)), rows(100, number))
print(store.stats().entries, store.counters.encodes, len(list(Path(sys.argv[1]).glob("??/.*"))))
from mrsp_engine.embeddings import StoreLimits
logging.disable()
try:
    EmbeddingStore(Path(sys.argv[1]), StoreLimits(host_bytes=1000)).put(key(9), rows(100, 9))
except EngineError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["small file system", "limited file size"])
def test_a_full_disk_is_one_line_and_the_embeddings_stay_in_memory(tmp_path: Path, kind: str) -> None:
    python = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(Path(__file__).parent)]
    if kind == "small file system":
        mount = f"mount -t tmpfs -o size=400k tmpfs {tmp_path}"
        namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
        if subprocess.run([*namespace, mount], capture_output=True, check=False).returncode:
            pytest.skip("this system doesn't allow mounting a file system")
        command = [*namespace, f'{mount} && exec "$@"', "sh", *python]
    else:
        command = ["sh", "-c", 'ulimit -f 90; exec "$@"', "sh", *python]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    line = run.stderr.strip().splitlines()
    assert len(line) == 1, run.stderr
    assert str(tmp_path) in line[0]
    assert "choose another folder" in line[0]
    counts, refusal = run.stdout.strip().splitlines()
    on_disk, encodes, left_over = map(int, counts.split())
    assert on_disk == (3 if kind == "small file system" else 0)
    assert (encodes, left_over) == (8, 0)
    assert "(host_bytes)" in refusal


def test_loans_are_seen_by_other_stores_of_the_folder_in_this_thread_and_no_longer_than_they_last(tmp_path):
    lender, other, elsewhere = (EmbeddingStore(tmp_path / name) for name in ("a", "a", "b"))
    lent, own = torch.ones(2, 3), torch.zeros(2, 3)
    with lender.lend({KEY.digest: lent}):
        assert other.get(KEY) is lent
        assert elsewhere.get(KEY) is None
        with other.lend({KEY.digest: own}):
            assert (other.get(KEY) is own, lender.get(KEY) is lent) == (True, True)
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(other.get, KEY).result() is None
            assert thread.submit(lender.get, KEY).result() is lent
    assert other.get(KEY) is None
