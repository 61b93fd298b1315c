"""How long the commands take over a very large dataset, and how much memory at most.

The datasets are made here: a few small rendered videos, hard-linked into each, and any number of questions about them,
worded in one of several ways. Each command runs in a process of its own, several times over; medians are reported as
JSON, of the clock and of the processor, with the most memory that the process ever had. A command may have so much time
and memory and no more.

    python benchmarks/large_datasets.py --questions 100000 --output result.json
    python benchmarks/large_datasets.py --program OTHER/bin/longvideo-data --before result.json   # two releases
"""

import argparse
import json
import os
import platform
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import (
    Interval,
    QuestionRecord,
    Skill,
    Split,
    list_media,
    read_records,
    write_records,
)
from longvideo_reason_data.timeline.dataset import write_timeline_dataset
from longvideo_reason_data.timeline.world import WorldSettings

SECONDS = 16.0
KITCHEN = ("on the stove", "in the sink", "under the table", "by the window")
Wording = Callable[[random.Random, int], dict[str, Any]]


def draw_words(draw: random.Random, num_words: int) -> str:
    """Draw words of which a few are frequent and most are rare."""
    return " ".join(f"word{int(20_000 * draw.random() ** 3)}" for _ in range(num_words))


WORDINGS: dict[str, Wording] = {
    "different": lambda draw, number: {"question": f"{draw_words(draw, 14)}?"},
    "alike": lambda draw, number: {"question": f"Where does the old cook put the heavy pan number {number}?"},
    "alike at other times": lambda draw, number: {"evidence": (span(draw.uniform(0, SECONDS - 0.001), 0.001),)},
    "a word in common": lambda draw, number: {
        "question": f"where a{number} b{number} c{number} d{number} e{number} f{number}?"
    },
    "half of the words in common": lambda draw, number: {
        "question": f"Where does he put the pan after a{number} b{number} c{number}?"
    },
    "filled templates": lambda draw, number: {
        "question": f"What does w{draw.randrange(300)} do near x{draw.randrange(300)} when y{draw.randrange(300)} sits?"
    },
}


def span(start: float, seconds: float) -> Interval:
    """Make an interval of evidence."""
    return Interval(start_seconds=start, end_seconds=start + seconds)


def make_records(media: list[RecordMedium], num_questions: int, wording: Wording) -> Iterator[QuestionRecord]:
    """Make questions about each medium in turn."""
    draw = random.Random(0)
    splits = [Split.TRAIN_SFT, Split.TRAIN_RL, Split.HELD_OUT]
    for number in range(num_questions):
        place = number % len(media)
        fields: dict[str, Any] = {
            "question": "Where does the old cook put the heavy pan after washing it?",
            "options": KITCHEN,
            "evidence": (span(number % 12, 3.0),),
        }
        yield QuestionRecord(
            question_id=f"question-{number:08d}",
            media=(media[place],),
            split=splits[place % 3],
            skill=list(Skill)[number % 4],
            answer="ABCD"[number // len(media) % 4],
            reasoning=f"At 3 s the cook washes the pan. {draw_words(draw, 60)}. At 5 s he lowers it down.",
            source="benchmark",
            license="CC0-1.0",
            **fields | wording(draw, number),
        )


def write_published(records: list[QuestionRecord], path: Path) -> None:
    """Write questions as Video-R1 publishes them."""
    with path.open("w", encoding="utf-8") as file:
        for number, record in enumerate(records):
            row = {
                "problem": record.question,
                "options": [f"{letter}. {option}" for letter, option in zip("ABCD", record.options, strict=True)],
                "path": record.media[0].path,
                "data_type": "video",
                "problem_type": record.skill,
                "solution": f"<answer>{record.answer}</answer>",
                "process": f"<think>{record.reasoning}</think>",
            }
            file.write(("[" if number == 0 else ",\n") + json.dumps(row))
        file.write("]\n")


def run(arguments: list[str], most_bytes: int, timeout_seconds: float) -> dict[str, Any]:
    """Run a command; gives its seconds, the most memory it had, and how it ended."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))

    begin = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=limit)
    alarm = threading.Timer(timeout_seconds, process.kill)
    alarm.start()
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace").strip().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    alarm.cancel()
    seconds = time.perf_counter() - begin
    ending = (
        "done" if os.waitstatus_to_exitcode(status) in (0, 1) and (not said or "Error" not in said[-1]) else "failed"
    )
    if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
        ending = f"not done in {timeout_seconds:.0f} s"
    processor = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "processor_seconds": processor, "peak_bytes": usage.ru_maxrss * 1024, "ending": ending}


def measure(name: str, arguments: list[str], made: Path | None, options: argparse.Namespace) -> dict[str, Any]:
    """Run a command several times and sum up; what it makes is removed each time."""
    runs: list[dict[str, Any]] = []
    for _ in range(options.repeats):
        runs.append(run([str(options.program), *arguments], options.most_gib << 30, options.timeout_seconds))
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        if runs[-1]["ending"] != "done":
            break
    middle = {key: statistics.median(one[key] for one in runs) for key in ("seconds", "processor_seconds")}
    row = {
        "command": name,
        **middle,
        "peak_bytes": max(one["peak_bytes"] for one in runs),
        "ending": runs[-1]["ending"],
    }
    print(name, row, file=sys.stderr)
    return row


def measure_all(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Make the datasets and measure each command with them."""
    world = folder / "world"
    settings = WorldSettings(seconds=SECONDS, num_scenes=4, scene_seconds=2.0)
    shares = dict.fromkeys([Split.TRAIN_SFT, Split.TRAIN_RL, Split.HELD_OUT], 1)
    write_timeline_dataset(world, settings, videos=shares, questions_per_video=2, seed=0)
    media = list(list_media(read_records(world / "records.parquet")).values())
    rows: list[dict[str, Any]] = []
    for wording in options.wordings:
        for num_videos in options.videos:
            dataset = folder / f"dataset-{len(rows)}"
            for medium in media[:num_videos]:
                (dataset / medium.path).parent.mkdir(parents=True, exist_ok=True)
                os.link(world / medium.path, dataset / medium.path)
            records = make_records(media[:num_videos], options.questions, WORDINGS[wording])
            write_records(dataset / "records.parquet", records)
            made = folder / "made"
            commands: dict[str, tuple[list[str], Path | None]] = {"check": (["check", str(dataset)], None)}
            if not rows:  # the other commands don't look at how questions are worded
                published = dataset / "published.json"
                write_published(read_records(dataset / "records.parquet"), published)
                import_options = ["--layout", "video-r1", "--videos", str(dataset)]
                commands |= {
                    "stats": (["stats", str(dataset)], None),
                    "view": (["view", str(dataset), "--output", str(made / "view.html")], made),
                    "export hf": (["export", str(dataset), "--to", "hf", "--output", str(made)], made),
                    "export verl": (["export", str(dataset), "--to", "verl", "--output", str(made)], made),
                    "import video-r1": (["import", str(published), *import_options, "--output", str(made)], made),
                }
            for name, (arguments, output) in commands.items():
                if name.split()[0] in options.commands:
                    row = measure(name, arguments, output, options)
                    rows.append(row | {"wording": wording, "videos": num_videos, "questions": options.questions})
            shutil.rmtree(dataset)
    return rows


def read_options() -> argparse.Namespace:
    """Read what was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--videos", type=int, nargs="+", default=[3, 1], help="how many videos they are about, up to 3")
    parser.add_argument("--wordings", nargs="+", choices=WORDINGS, default=list(WORDINGS))
    parser.add_argument("--commands", nargs="+", default=["check", "stats", "view", "export", "import"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout-seconds", type=float, default=600)
    parser.add_argument("--most-gib", type=int, default=8, help="address space of a command")
    parser.add_argument("--program", type=Path, default=Path(sys.executable).with_name("longvideo-data"))
    parser.add_argument("--folder", type=Path, help="where the datasets are made for a while")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--before", type=Path, help="a result to print this one beside")
    return parser.parse_args()


def print_table(rows: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """Print a Markdown table."""

    def shown(row: dict[str, Any] | None) -> str:
        if row is None:
            return "|"
        memory = f"{row['peak_bytes'] / 2**20:,.0f} MiB"
        if row["ending"] != "done":
            return f"{row['ending']} | over {memory}"
        return f"{row['seconds']:.1f} s ({row['processor_seconds']:.1f} s) | {memory}"

    keys = ("command", "wording", "videos", "questions")
    earlier = {tuple(row[key] for key in keys): row for row in before}
    print("| command | wording | videos | questions |" + (" before | memory |" if before else "") + " now | memory |")
    print("|---|---|---|---|" + ("---|---|" if before else "") + "---|---|")
    for row in rows:
        cells = [str(row[key]) for key in keys]
        if before:
            cells.append(shown(earlier.get(tuple(row[key] for key in keys))))
        print("| " + " | ".join([*cells, shown(row)]) + " |")


def main() -> None:
    """Measure, print, and write."""
    options = read_options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure_all(Path(folder), options)
    machine = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("longvideo-reason-data", "pyarrow", "pydantic", "numpy")},
    }
    if options.output:
        result = {"machine": machine, "repeats": options.repeats, "rows": rows}
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print_table(rows, json.loads(options.before.read_text())["rows"] if options.before else [])


if __name__ == "__main__":
    main()
