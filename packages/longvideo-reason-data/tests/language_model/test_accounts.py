"""Files that only grow: whatever interrupts a writer, what was written stays and what wasn't leaves no trace."""

import asyncio
import os
import resource
from pathlib import Path

import pytest

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.language_model.accounts.journal import Journal
from longvideo_reason_data.language_model.accounts.ledger import Ledger
from longvideo_reason_data.language_model.accounts.prices import TokenUsage
from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache, StoredResponse
from longvideo_reason_data.language_model.requests import Outcome


def response(key: str, call: str = "") -> StoredResponse:
    text = f"Ünïcode, \n and lines of {key}"
    return StoredResponse(key=key, model="m", text=text, finish="stop", prompt_tokens=3, completion_tokens=2, call=call)


@pytest.mark.slow
def test_a_journal_cut_anywhere_keeps_every_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    with ResponseCache(path) as cache:
        for key in "abc":
            cache.put(response(key))
    content = path.read_bytes()
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        with ResponseCache(path) as cache:
            num_whole = content[:size].count(b"\n")
            assert [key for key in "abc" if cache.get(key) == response(key)] == list("abc"[:num_whole])
            assert cache.total_tokens() == (3 * num_whole, 2 * num_whole)
            cache.put(response("d"))
            assert cache.get("d") == response("d")
        assert path.read_bytes()[: size - len(content[:size].rpartition(b"\n")[2])] in content
        assert len(path.read_bytes().splitlines()) == num_whole + 1


def test_a_last_line_longer_than_a_block_is_cut_off_too(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"whole\n" + b"x" * 200_000)
    lines: list[tuple[int, bytes]] = []
    Journal(path, lambda offset, line: lines.append((offset, line))).close()
    assert lines == [(0, b"whole\n")]
    path.write_bytes(b"\0" * 70_000)
    Journal(path, lambda offset, line: lines.append((offset, line))).close()
    assert len(lines) == 1


def test_answers_of_one_moment_go_to_the_disk_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    real = os.fsync

    def counted(descriptor: int) -> None:
        syncs.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", counted)

    async def run(cache: ResponseCache) -> None:
        async def store(number: int) -> None:
            await cache.store(response(str(number)))
            assert cache.get(str(number)) == response(str(number))

        await asyncio.gather(*(store(number) for number in range(200)))

    with ResponseCache(tmp_path / "responses.jsonl") as cache:
        asyncio.run(run(cache))
        assert len(cache) == 200
    assert 1 <= len(syncs) <= 4
    with ResponseCache(tmp_path / "responses.jsonl") as cache:
        assert all(cache.get(str(number)) == response(str(number)) for number in range(200))


def test_a_full_disk_is_one_clear_line_and_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"

    async def run(cache: ResponseCache) -> None:
        await cache.store(response("a"))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
        try:
            with pytest.raises(DataError, match=r"can't be written.*free space"):
                await cache.store(response("b"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with ResponseCache(path) as cache:
        asyncio.run(run(cache))
        assert path.read_bytes().count(b"\n") == 1
        assert path.read_bytes().endswith(b"\n")
        assert cache.get("b") is None


def ledger_with_calls(path: Path, *, num_ended: int, num_started: int) -> None:
    with Ledger(path=path) as ledger:
        for number in range(num_started):
            started = ledger.start(key=f"k{number}", model="m", attempt=1, most_prompt=10, most_completion=5)
            if number < num_ended:
                usage = TokenUsage(prompt_tokens=4, completion_tokens=1)
                ledger.end(started, Outcome.ANSWERED, usage, is_confirmed=True, latency_seconds=0.1)


def test_a_call_whose_end_is_missing_is_completed_from_its_answer(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    ledger_with_calls(path, num_ended=1, num_started=3)
    with ResponseCache(tmp_path / "responses.jsonl") as cache:
        cache.put(response("k1", call="2-k1"))
        cache.put(response("k2", call="99-k2"))  # the answer of another call to the same request
        for _ in range(2):
            with Ledger(path=path) as ledger:
                ledger.complete_from(cache)
                assert ledger.usage == TokenUsage(prompt_tokens=7, completion_tokens=3)
                assert ledger.num_unconfirmed == 1
                assert ledger.num_made == 0  # by this run


def test_a_ledger_is_held_by_one_and_its_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    ledger_with_calls(path, num_ended=1, num_started=1)
    with Ledger(path=path), pytest.raises(UsageError, match="another build"), Ledger(path=path):
        pass
    started, ended = path.read_text().splitlines()
    for wrong in ("[]", "{}", ended + "\n" + ended, started.replace("10", "-10"), "\udcff"):
        path.write_text(f"{started}\n{wrong}\n", errors="surrogateescape")
        with pytest.raises(DataError, match=r"calls.jsonl: line \d is damaged"), Ledger(path=path):
            pass
