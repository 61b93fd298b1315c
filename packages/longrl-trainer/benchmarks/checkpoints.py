"""What checkpoints add to the steps of a training: written in the background, waited for, or not at all.

One process trains a small Qwen2.5-VL on one prompt with G responses, in blocks of as many steps as lie between two
checkpoints. Blocks without a checkpoint, with one in the background and with one that is waited for take turns, so that
other work on the machine meets all alike. A block with a checkpoint ends when that is on the disk. The ratio is the
median over the rounds, each block beside the one without of its own round.

    python benchmarks/checkpoints.py --output result.json
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from longrl_trainer.training.checkpoints import describe_state
from longrl_trainer.training.optimizer import Optimizer
from longrl_trainer.training.ranks import ALONE
from longrl_trainer.training.saving import CheckpointSaver
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.tiny.qwen2_5_vl import create_tiny_qwen2_5_vl

MODES = ("none", "background", "waiting")


def make_policy(folder: Path, arguments: argparse.Namespace) -> Policy:
    """A model with random weights."""
    create_tiny_qwen2_5_vl(
        folder / "model",
        corpus=[f"word{number} and another" for number in range(2000)],
        hidden_size=arguments.hidden_size,
        num_layers=arguments.layers,
        num_heads=arguments.hidden_size // 64,
        num_key_value_heads=1,
        intermediate_size=4 * arguments.hidden_size,
    )
    policy = load_policy(folder / "model", store=EmbeddingStore(folder / "embeddings"))
    policy.freeze_vision()
    return policy


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds; returns the report."""
    torch.set_num_threads(arguments.threads)
    draw = torch.Generator().manual_seed(0)
    blocks: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        run = Path(name) / "run"
        run.mkdir()
        policy = make_policy(Path(name), arguments)
        prompt = policy.build_prompt(" ".join(f"word{number}" for number in range(arguments.prompt_words)), ())
        optimizer = Optimizer(policy.model, weight_decay=0.0, max_gradient_norm=1.0)
        saver = CheckpointSaver(run, num_kept=1, ranks=ALONE)

        def make_step() -> None:
            token_ids = torch.randint(0, 250, (arguments.group_size, arguments.response_tokens), generator=draw)
            branches = [Branch(token_ids=tuple(row.tolist())) for row in token_ids]
            scores = score_branches(policy, prompt, branches)
            (-torch.cat(scores.logprobs).mean()).backward()
            optimizer.step(1e-5)

        make_step()
        state_bytes = sum(tensor.nbytes for tensor in optimizer.state_tensors().values())
        number = 0
        for _ in range(arguments.rounds):
            for mode in MODES:
                begun, processor, halted = time.perf_counter(), time.process_time(), 0.0
                for step in range(arguments.every):
                    make_step()
                    if step == 0 and mode != "none":
                        number += 1
                        before = time.perf_counter()
                        state = describe_state(policy.model, step=number, seed=0, dtype="float32", score=None)
                        saver.start(optimizer.state_tensors(), state)
                        if mode == "waiting":
                            saver.wait()
                        halted = time.perf_counter() - before
                saver.wait()
                blocks[mode].append(
                    {
                        "seconds": time.perf_counter() - begun,
                        "processor_seconds": time.process_time() - processor,
                        "halted_seconds": halted,
                    }
                )
        saver.close()

    def compare(mode: str, kind: str) -> float:
        pairs = zip(blocks[mode], blocks["none"], strict=True)
        return statistics.median(block[kind] / plain[kind] for block, plain in pairs)

    return {
        "machine": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "versions": {package: version(package) for package in ("longrl-trainer", "torch", "safetensors")},
        },
        "settings": {name: value for name, value in vars(arguments).items() if name not in ("output", "folder")},
        "prompt_tokens": prompt.length,
        "trained_parameters": optimizer.num_parameters,
        "state_bytes": state_bytes,
        "blocks": blocks,
        "seconds_per_step": {
            mode: statistics.median(block["seconds"] for block in blocks[mode]) / arguments.every for mode in MODES
        },
        "ratio": {
            mode: {kind: compare(mode, kind) for kind in ("seconds", "processor_seconds")}
            for mode in ("background", "waiting")
        },
    }


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file of the report; it is printed otherwise")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; a temporary folder by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints; as in training by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--prompt-words", type=int, default=700)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--response-tokens", type=int, default=32)
    arguments = parser.parse_args()
    report = json.dumps(measure(arguments), indent=2) + "\n"
    if arguments.output is None:
        print(report, end="")
    else:
        arguments.output.write_text(report)


if __name__ == "__main__":
    main()
