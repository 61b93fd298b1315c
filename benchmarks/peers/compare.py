"""One update of one group, side by side with TRL and verl: processor time and memory on one thread.

All programs compute the same loss and gradient norm of the same model, tokens and advantages, which is checked. All of
them compute a prompt of text; one of images only TRL and this project. The peers' environment is made by uv from pinned
packages; the programs run one after the other, in turn, and the median of all updates of each counts.

    python benchmarks/peers/compare.py --output result.json
    python benchmarks/peers/compare.py --prompt-tokens 2048 --rounds 1 --environments folder-to-keep
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from longrl.benchmark.measurement import describe_machine
from longrl.benchmark.workload import QUESTION, TINY
from longrl.tiny_model import build_tiny_model
from longvideo_reason_data.media.image_file import ImageFile
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy

PACKAGES = ("trl==1.16.0", "transformers==5.19.0", "torch==2.13.0", "torchvision==0.28.0", "numpy<2.4", "pillow")
# verl asks for an older transformers; the parts that are measured here run with this one.
WITHOUT_DEPENDENCIES = ("verl==0.9.1", "prefix-grouper==0.0.1.post1")
OF_VERL = ("ray==2.60.0", "tensordict", "omegaconf", "hydra-core", "codetiming", "pandas", "pyarrow", "orjson")
IMAGE_EDGE = 224
"""Pixels; one image is 64 tokens."""

PROGRAMS = {
    "own": ("own_update.py",),
    "trl": ("trl_update.py",),
    "trl best": ("trl_update.py", "best"),
    "verl": ("verl_update.py",),
}
"""Program and arguments, by the name in the results."""

ALLOWED = 1e-4
"""Relative difference of gradient norms, in float32."""


def make_environment(folder: Path) -> Path:
    """Install the peers, unless they are there; returns the interpreter."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run(["uv", "venv", "--quiet", "--clear", str(folder)], check=True)
        install = ["uv", "pip", "install", "--quiet", "--python", str(python)]
        subprocess.run([*install, *PACKAGES, *OF_VERL], check=True)
        subprocess.run([*install, "--no-deps", *WITHOUT_DEPENDENCIES], check=True)
        (folder / "complete").touch()
    return python


def write_update(folder: Path, prompt_tokens: int, *, is_text: bool, group_size: int, response_tokens: int) -> Path:
    """Write the group of one question about so many tokens of text or images; returns its file."""
    folder.mkdir(parents=True)
    random, model = np.random.default_rng(0), folder / "model"
    build_tiny_model(model, [QUESTION], TINY, seed=0)
    policy = load_policy(model, store=EmbeddingStore(folder / "embeddings"))
    question, images = QUESTION, list[Path]()
    if is_text:
        question *= math.ceil(prompt_tokens / len(policy.tokenizer.encode(QUESTION)))
    for number in range(0 if is_text else prompt_tokens * 28 * 28 // IMAGE_EDGE**2):
        images.append(folder / f"{number}.png")
        Image.fromarray(random.integers(0, 256, (IMAGE_EDGE, IMAGE_EDGE, 3), np.uint8)).save(images[-1])
    prompt = policy.build_prompt(question, [policy.encode_image(ImageFile.open(path)) for path in images])
    words = policy.tokenizer.encode("".join(chr(letter) for letter in range(97, 123)))
    update = {
        "model": str(model),
        "prompt_ids": list(prompt.expanded_ids),
        "response_ids": random.choice(words, (group_size, response_tokens)).tolist(),
        "advantages": random.normal(size=group_size).tolist(),
        "images": [str(path) for path in images],
        "question": question,
    }
    path = folder / "update.json"
    path.write_text(json.dumps(update))
    return path


def run(python: Path, name: str, update: Path, repeats: int) -> dict[str, Any]:
    """Run one program once."""
    program, *arguments = PROGRAMS[name]
    command = [str(python), str(Path(__file__).with_name(program)), str(update), str(repeats), *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip()[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def compare(update: Path, names: list[str], python: Path, *, rounds: int, repeats: int) -> dict[str, Any]:
    """Run the programs in turn, and check that they computed the same."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(run(Path(sys.executable) if name == "own" else python, name, update, repeats))
    result: dict[str, Any] = {}
    own = found["own"][0]
    for name, runs in found.items():
        for key in ("loss", "gradient_norm"):
            if not math.isclose(runs[0][key], own[key], rel_tol=ALLOWED, abs_tol=1e-7):
                raise SystemExit(f"{name}: {key} {runs[0][key]!r}, but {own[key]!r} here")
        result[name] = {
            "seconds": median(value for each in runs for value in each["seconds"]),
            "peak_bytes": median(each["peak_bytes"] for each in runs),
            "loss": runs[0]["loss"],
            "gradient_norm": runs[0]["gradient_norm"],
        }
    for values in result.values():
        values["times_own"] = values["seconds"] / result["own"]["seconds"]
    return result


def main() -> None:
    """Compare, print a table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[2048, 8192, 16384])
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--response-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--names", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--kinds", nargs="+", choices=["images", "text"], default=["images", "text"])
    parser.add_argument("--environments", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        python = make_environment(options.environments or Path(scratch) / "environment")
        for kind in options.kinds:
            names = [name for name in options.names if kind == "text" or name != "verl"]
            for prompt_tokens in options.prompt_tokens:
                update = write_update(
                    Path(scratch) / f"{kind}-{prompt_tokens}",
                    prompt_tokens,
                    is_text=kind == "text",
                    group_size=options.group_size,
                    response_tokens=options.response_tokens,
                )
                found = compare(update, names, python, rounds=options.rounds, repeats=options.repeats)
                rows.append({"kind": kind, "prompt_tokens": prompt_tokens, "programs": found})
                for name, values in found.items():
                    print(
                        f"{kind:<7} {prompt_tokens:>6}  {name:<9} {values['seconds']:8.2f} s "
                        f"{values['times_own']:6.2f} ×  {values['peak_bytes'] / 1e6:8.0f} MB",
                        flush=True,
                    )
    if options.output is not None:
        packages = [*PACKAGES, *WITHOUT_DEPENDENCIES]
        settings = {"group_size": options.group_size, "response_tokens": options.response_tokens}
        result = {
            "machine": describe_machine(torch.device("cpu")),
            "packages": packages,
            "settings": settings,
            "rows": rows,
        }
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
