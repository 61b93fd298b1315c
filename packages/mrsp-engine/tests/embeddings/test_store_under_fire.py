"""Eight processes write and read the same entries while one after another is killed and files are damaged.

What a reader gets is compared with the expected values of the key, number by number. Readers use `read_rows` for rows,
which is safe against files that change in place while being read, and `get` for whole entries.
"""

import dataclasses
import os
import random
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mrsp_engine.embeddings import EmbeddingStore
from mrsp_engine.testing.fixtures import numbered_key as key

NUM_PROCESSES, NUM_KILLS, NUM_KEYS = 8, 50, 12
NUM_ROWS, ROW = 1500, 300  # two blocks
SILENCE_SECONDS = 20.0

# Fork after the imports: a new process in milliseconds instead of seconds. The parent is this script's, which knows one
# thread, and children end when it does.
NURSERY = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_store_under_fire import work
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        work(Path(sys.argv[1]), int(line))
        os._exit(0)
    os.write(1, f"born {child}\\n".encode())
"""


def content(number: int) -> torch.Tensor:
    return torch.arange(NUM_ROWS * ROW, dtype=torch.float32).view(NUM_ROWS, ROW) * (number + 1)


def work(folder: Path, seed: int) -> None:
    """Write and read at random until the parent is gone; one line per entry, "WRONG" if it has wrong values."""
    choose = random.Random(seed)
    parent = os.getppid()
    while os.getppid() == parent:
        store = EmbeddingStore(folder)
        number = choose.randrange(NUM_KEYS)
        start = choose.randrange(NUM_ROWS)
        stop = choose.randrange(start, NUM_ROWS) + 1
        if not store.contains(key(number)):
            store.put_chunks(key(number), NUM_ROWS, lambda number=number: content(number).split(400))
        whole = store.get(key(number)) if choose.random() < 0.5 else None
        rows = store.read_rows(key(number), start, stop)
        is_right = whole is None or torch.equal(whole, content(number))
        is_right = is_right and (rows is None or torch.equal(rows, content(number)[start:stop]))
        outcome = "read" if rows is not None else "missing"
        os.write(1, f"{outcome if is_right else 'WRONG'} {store.counters.damaged} {os.getpid()}\n".encode())


def damage(path: Path, choose: random.Random) -> None:
    """Flip a byte in place, truncate the file in place, or replace it with a shorter one."""
    kind = choose.randrange(3)
    size = path.stat().st_size
    if size == 0:
        return  # cut to nothing before
    if kind == 0:
        with path.open("r+b") as file:
            file.seek(choose.randrange(size))
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ (1 << choose.randrange(8))]))
    elif kind == 1:
        os.truncate(path, choose.randrange(size))
    else:
        shorter = path.with_suffix(".damage")
        shorter.write_bytes(path.read_bytes()[: choose.randrange(size)])
        shorter.replace(path)


@pytest.mark.slow
def test_no_wrong_embedding_and_nothing_hangs(tmp_path: Path) -> None:
    choose = random.Random(0)
    store = EmbeddingStore(tmp_path)
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(tmp_path), str(Path(__file__).parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    assert nursery.stderr is not None
    living: set[int] = set()
    outcomes = {"read": 0, "missing": 0, "WRONG": 0}
    reads_between_kills = {0: 0}
    num_kills = num_damaged = found_damaged = seed = 0
    selector = selectors.DefaultSelector()
    selector.register(nursery.stdout, selectors.EVENT_READ)
    unread = b""
    try:
        while num_kills < NUM_KILLS or reads_between_kills[num_kills] < NUM_KEYS:
            while seed - num_kills < NUM_PROCESSES:
                nursery.stdin.write(f"{seed}\n".encode())
                nursery.stdin.flush()
                seed += 1
            assert selector.select(SILENCE_SECONDS), "nobody reads any more"
            received = os.read(nursery.stdout.fileno(), 1 << 16)
            assert received, nursery.stderr.read().decode()
            *lines, unread = (unread + received).split(b"\n")
            for line in lines:
                word, *numbers = line.decode().split()
                if word == "born":
                    living.add(int(numbers[0]))
                    continue
                outcomes[word] += 1
                found_damaged += int(numbers[0])
                reads_between_kills[num_kills] += word == "read"
            if num_kills < NUM_KILLS and len(living) == NUM_PROCESSES and reads_between_kills[num_kills] >= 3:
                time.sleep(choose.random() * 0.01)
                victim = choose.choice(sorted(living))
                os.kill(victim, signal.SIGKILL)
                living.remove(victim)
                num_kills += 1
                reads_between_kills[num_kills] = 0
                entries = sorted(tmp_path.glob("??/*.safetensors"))
                if entries:
                    with suppress(FileNotFoundError):  # one that was found damaged is removed by its reader
                        damage(choose.choice(entries), choose)
                        num_damaged += 1
    finally:
        nursery.kill()
        nursery.communicate()
    assert outcomes["WRONG"] == 0
    assert outcomes["read"] >= 3 * NUM_KILLS
    assert num_damaged >= NUM_KILLS // 2
    assert found_damaged >= num_damaged // 4  # some are replaced before they are found, or by two finders at once
    # Everything is still there or can be recomputed, and killed processes left nothing behind.
    store = EmbeddingStore(tmp_path)
    for number in range(NUM_KEYS):
        if not store.contains(key(number)):
            store.put(key(number), content(number))
        found = store.get(key(number))
        assert found is not None
        assert torch.equal(found, content(number))
    deadline = time.monotonic() + 10.0
    while list(tmp_path.glob("??/.writing-*")) and time.monotonic() < deadline:
        time.sleep(0.1)  # the last children notice that their parent is gone
        EmbeddingStore(tmp_path)
    assert not list(tmp_path.glob("??/.writing-*"))
    assert dataclasses.astuple(EmbeddingStore(tmp_path).stats())[0] == NUM_KEYS
