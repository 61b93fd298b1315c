"""Builds against a server in another process: killed twenty times, and with very many videos in bounded memory.

The server's own log shows what was requested twice. The killed processes are forks of one that has loaded everything,
so that the kills hit the build and not the loading of libraries.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from longvideo_reason_data.inspection.check import check_dataset

MakeVideo = Callable[..., Path]
PROGRAM = "import sys; from longvideo_reason_data.cli import main; sys.exit(main(sys.argv[1:]))"
NUM_PARALLEL = 3
FILTERS = ("--filters.conditions", "blind", "full")
NUM_MANY = int(os.environ.get("LONGRL_MANY_VIDEOS", "300"))

# Reads lists of arguments from its input; for each it forks a child that runs the command, prints its id, waits for its
# end and prints how it ended.
FORKING_PROGRAM = """
import json, os, sys
import openai, longvideo_reason_data.cli, longvideo_reason_data.pipeline.filter, longvideo_reason_data.pipeline.build

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(longvideo_reason_data.cli.main(json.loads(line)))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Judge:
    """The server's log."""

    def __init__(self, log: Path, base_url: str) -> None:
        self._log, self.base_url = log, base_url

    def answered(self) -> list[str]:
        return self._log.read_text().split()


@pytest.fixture
def judge(tmp_path: Path) -> Iterator[Judge]:
    log = tmp_path / "answered.log"
    program = Path(__file__).parents[1] / "answering_server.py"
    with subprocess.Popen([sys.executable, program, log], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield Judge(log, process.stdout.readline().strip())
        process.kill()


class Launcher:
    """Starts the command in forks."""

    def __init__(self, arguments: list[str]) -> None:
        self._line = json.dumps(arguments) + "\n"
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORKING_PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(self._line)
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self) -> int:
        assert self._process.stdout
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def arguments_of(films: Path, output: Path, judge: Judge, *quotas: int) -> list[str]:
    given = {"--videos": films, "--output": output, "--base-url": judge.base_url, "--model": "model"}
    given |= {"--window-seconds": 1, "--num-parallel": NUM_PARALLEL, "--first-wait-seconds": 0.01}
    given |= {"--filters.num-samples": 2, "--filters.num-full-frames": 4}
    skills = ("temporal", "goal", "spatial", "plot")
    given |= {f"--questions.quotas.{skill}": quota for skill, quota in zip(skills, quotas, strict=True)}
    return ["build", *(str(word) for pair in given.items() for word in pair), *FILTERS]


def is_alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def num_kept(output: Path) -> int:
    """Count the answers that are completely on disk."""
    journal = output / "responses.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.long
def test_killed_twenty_times(judge: Judge, make_video: MakeVideo, tmp_path: Path) -> None:
    for number in range(4):
        make_video(f"films/film {number}.mp4", num_frames=60 + number, first_number=100 * number)
    films, output = tmp_path / "films", tmp_path / "dataset"
    undisturbed = Launcher(arguments_of(films, tmp_path / "undisturbed", judge, 1, 2, 2, 1))
    undisturbed.start()
    assert undisturbed.end() == 0
    undisturbed.close()
    expected = json.loads((tmp_path / "undisturbed" / "manifest.json").read_text())
    assert expected["kept"] == {"videos": 4, "segments": 12, "questions": 24}
    num_before = len(judge.answered())

    generator = random.Random(0)
    launcher = Launcher(arguments_of(films, output, judge, 1, 2, 2, 1))
    num_kills = num_kills_midway = num_lost = 0
    while num_kills < 20:
        process = launcher.start()
        wanted = len(judge.answered()) + generator.randrange(1, 10)
        # The last ones hit any moment of a build, also one that has no question left to ask.
        longest = generator.uniform(0, 0.4) if num_kills >= 16 or num_kept(output) == num_before else 60
        deadline = time.monotonic() + longest
        while is_alive(process) and len(judge.answered()) < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.01))
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        ended = launcher.end()
        assert ended in (0, -signal.SIGKILL)
        num_kills += ended != 0
        num_kills_midway += ended != 0 and num_kept(output) < num_before
        # Answers missing from the journal were pending when the client died: at most one request per slot.
        lost_now = len(judge.answered()) - num_before - num_kept(output) - num_lost
        assert 0 <= lost_now <= NUM_PARALLEL
        num_lost += lost_now
    assert num_kills_midway >= 12
    launcher.start()
    assert launcher.end() == 0
    launcher.close()

    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["dataset_hash"] == expected["dataset_hash"]
    for same in ("input", "kept", "dropped", "stages", "tokens"):
        assert manifest[same] == expected[same]
    assert {**manifest["filter"], "calls": None} == {**expected["filter"], "calls": None}
    assert check_dataset(output) == []
    asked = judge.answered()[num_before:]
    num_repeated = sum(count - 1 for count in Counter(asked).values())
    assert num_repeated == num_lost  # and nothing in the journal was requested again
    assert len(set(asked)) == num_kept(output)


MEASURING_PROGRAM = """
import resource, sys
from longvideo_reason_data.cli import main

code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def paint(film: int, frame: np.ndarray) -> np.ndarray:
    """Paint blocks over a frame that no other video has at that time."""
    generator = np.random.default_rng([film, zlib.crc32(frame.tobytes())])
    return generator.integers(0, 256, (4, 6, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)


@pytest.mark.long
def test_many_videos_need_no_more_memory_than_a_tenth_of_them(
    judge: Judge, make_video: MakeVideo, tmp_path: Path
) -> None:
    peaks: dict[int, int] = {}
    for number in (NUM_MANY // 10, NUM_MANY):
        films, output = tmp_path / f"films {number}", tmp_path / f"dataset {number}"
        for place in range(number):
            make_video(
                f"{films.name}/film {place:04}.mp4", num_frames=8, rate=4, codec="mpeg4", turn=partial(paint, place)
            )
        arguments = arguments_of(films, output, judge, 1, 0, 0, 0)
        result = subprocess.run(
            [sys.executable, "-c", MEASURING_PROGRAM, *arguments], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        manifest = json.loads((output / "manifest.json").read_text())
        assert manifest["kept"] == {"videos": number, "segments": 2 * number, "questions": number}
        assert manifest["filter"]["pass_rates"]["full"] == {
            "questions": number,
            "answers": 2 * number,
            "right_rate": 1.0,
            "unanswered_rate": 0.0,
        }
        peaks[number] = int(result.stderr.split()[-1])
    print(f"peak resident memory in KiB: {peaks}")
    few, many = peaks.values()
    # Memory per video: the positions of its answers in the journal, its fingerprint, its records while written.
    assert many - few < 100 * (NUM_MANY - NUM_MANY // 10)
