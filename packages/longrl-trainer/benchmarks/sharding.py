"""What sharded weights cost: the same update with whole and with sharded weights, side by side on the same processes.

Every process has two copies of a tiny model, one whole and one sharded with FSDP2, and computes the update of a step
(forward, backward, optimizer) with each in turn, from the same groups. Medians of the clock and of the processor are
written as JSON, with their ratios and the bytes of weights, gradients and optimizer state that a process holds.

    python packages/longrl-trainer/benchmarks/sharding.py --ranks 2 --output result.json
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from longrl_trainer.config.stages import SftConfig
from longrl_trainer.sft import take_gradients
from longrl_trainer.training.opening import create_optimizer, save_memory
from longrl_trainer.training.ranks import Ranks
from longrl_trainer.training.scoring import RowScoring
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.layout import Branch
from mrsp_engine.rows import PromptGroup
from mrsp_engine.testing.ranks import run_on_ranks
from mrsp_engine.tiny.families import build_tiny
from mrsp_engine.tiny.language import LanguageSizes

KINDS = ("none", "fsdp2")


class Update:
    """The update of a step with weights of one kind."""

    def __init__(self, folder: Path, kind: str, ranks: Ranks) -> None:
        self._config = SftConfig.model_validate(
            {
                "output": folder / "run",
                "learning_rate": 1e-3,
                "model": {"folder": folder},
                "data": {"dataset": folder, "split": "train_sft", "num_frames": 4},
                "sharding": {"kind": kind},
            }
        )
        self._policy = load_policy(folder, store=EmbeddingStore(folder / "embeddings"))
        self._ranks = ranks
        save_memory(self._policy, self._config, ranks)
        self._optimizer = create_optimizer(self._policy, self._config, ranks)
        self._scoring = RowScoring.of(self._config, self._policy, ranks)

    def run(self, prompt_tokens: int, num_groups: int) -> dict[str, float]:
        """Seconds of one update on this rank, by clock and processor, and its loss."""
        prompt = self._policy.build_prompt("why " * prompt_tokens, [])
        groups = [PromptGroup(prompt=prompt, branches=[Branch(token_ids=(5,) * 64)] * 8) for _ in range(num_groups)]
        self._ranks.wait()
        clock, processor = time.perf_counter(), time.process_time()
        loss = take_gradients(self._policy, groups, self._scoring)
        self._ranks.sum_gradients(self._policy)
        self._optimizer.step(self._config.learning_rate)
        self._ranks.wait()
        return {
            "clock": time.perf_counter() - clock,
            "processor": time.process_time() - processor,
            "loss": loss,
        }

    def held_bytes(self) -> int:
        """Bytes of weights, gradients (as many) and two moments on this rank."""
        weights = [
            weight.to_local() if isinstance(weight, DTensor) else weight for weight in self._policy.model.parameters()
        ]
        return 4 * sum(weight.nbytes for weight in weights)


def measure(folder: str, sequence_ranks: int, prompt_tokens: int, num_groups: int, repeats: int) -> dict[str, Any]:
    """All updates of this rank."""
    assert isinstance(dist.group.WORLD, dist.ProcessGroup)
    ranks = Ranks(group=SequenceGroup.of(dist.group.WORLD)).share_rows(sequence_ranks)
    updates = {kind: Update(Path(folder), kind, ranks) for kind in KINDS}
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(repeats + 1):
        for kind, update in updates.items():
            runs[kind].append(update.run(prompt_tokens, num_groups))
    return {"runs": {kind: of_kind[1:] for kind, of_kind in runs.items()}} | {
        "bytes": {kind: update.held_bytes() for kind, update in updates.items()}
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="processes")
    parser.add_argument("--sequence-ranks", type=int, default=1, help="processes that share a row")
    parser.add_argument("--prompt-tokens", type=int, default=2048, help="about this many tokens of a prompt")
    parser.add_argument("--groups", type=int, default=2, help="questions of a step, with 8 responses of 64 tokens each")
    parser.add_argument("--repeats", type=int, default=7, help="measured updates of each kind, after one to warm up")
    parser.add_argument("--output", type=Path, help="a JSON file for the result")
    settings = parser.parse_args()
    sizes = LanguageSizes(
        hidden_size=256, num_layers=4, num_heads=8, num_key_value_heads=4, intermediate_size=512, vocabulary_size=1024
    )
    with tempfile.TemporaryDirectory() as folder:
        build_tiny("qwen3", Path(folder) / "model", sizes=sizes)
        found = run_on_ranks(
            measure,
            settings.ranks,
            str(Path(folder) / "model"),
            settings.sequence_ranks,
            settings.prompt_tokens,
            settings.groups,
            settings.repeats,
            timeout_seconds=3600,
        )
    seconds = {
        kind: {
            "clock": statistics.median(run["clock"] for run in found[0]["runs"][kind]),
            "processor": statistics.median(
                sum(of_rank["runs"][kind][place]["processor"] for of_rank in found) for place in range(settings.repeats)
            ),
        }
        for kind in KINDS
    }
    result: dict[str, Any] = {
        "settings": {name: value for name, value in vars(settings).items() if name != "output"},
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "torch": torch.__version__},
        "seconds": seconds,
        "ratio": {what: seconds["fsdp2"][what] / seconds["none"][what] for what in ("clock", "processor")},
        "bytes_of_rank": found[0]["bytes"],
        "largest_difference_of_losses": max(
            abs(first["loss"] - second["loss"]) for first, second in zip(*found[0]["runs"].values(), strict=True)
        ),
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if settings.output is not None:
        settings.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
