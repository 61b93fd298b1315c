"""How much host memory every rank needs to open a model whose weights are spread over ranks by FSDP2.

A Qwen2 of the wanted size is written with random weights in bfloat16, and opened by several processes that begin anew
each time: once every rank reads all of it before it is spread, and once only its part. The most memory of each process
above what it had before is written as JSON, and the seconds that opening took.

    python benchmarks/sharded_loading.py --ranks 2 --layers 8 --hidden-size 2048 --output result.json
"""

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from mrsp_engine.distributed.process_groups import create_sequence_group
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.sharding import shard_policy
from mrsp_engine.testing.ranks import run_on_ranks
from mrsp_engine.tiny.families import build_tiny
from mrsp_engine.tiny.language import LanguageSizes


def open_model(folder: str, is_spread_later: bool, is_trained: bool) -> dict[str, float]:
    """Open and spread the model as one rank, and tell what it took."""
    torch.set_num_threads(1)
    group = create_sequence_group(dist.get_world_size())
    store = EmbeddingStore(Path(folder).parent / "embeddings")
    before, started = most_memory(), time.perf_counter()
    policy = load_policy(Path(folder), dtype=torch.bfloat16, store=store, is_spread_later=is_spread_later)
    policy.model.requires_grad_(is_trained)
    shard_policy(policy, group)
    kept = sum(weight.to_local().nbytes for weight in policy.model.parameters())  # type: ignore[operator]
    return {
        "most_bytes": most_memory() - before,
        "kept_bytes": kept,
        "seconds": time.perf_counter() - started,
    }


def most_memory() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden-size", type=int, default=2048)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="loading-") as scratch:
        folder = Path(scratch) / "model"
        sizes = LanguageSizes(
            hidden_size=options.hidden_size,
            num_heads=options.hidden_size // 128,
            num_key_value_heads=2,
            num_layers=options.layers,
            intermediate_size=4 * options.hidden_size,
        )
        build_tiny("qwen2", folder, 0, sizes=sizes)
        for path in folder.glob("*.safetensors"):  # published weights are in bfloat16
            coarse = {name: weight.to(torch.bfloat16) for name, weight in load_file(path).items()}
            save_file(coarse, path, metadata={"format": "pt"})
        for num_ranks in options.ranks:
            for is_trained in (False, True):
                found = {
                    name: run_on_ranks(open_model, num_ranks, str(folder), is_spread_later, is_trained)
                    for name, is_spread_later in (("whole", False), ("parts", True))
                }
                most = {name: max(rank["most_bytes"] for rank in ranks) for name, ranks in found.items()}
                measured.append(
                    {"num_ranks": num_ranks, "is_trained": is_trained, "ratio": most["parts"] / most["whole"], **found}
                )
                print(json.dumps({"ranks": num_ranks, "trained": is_trained, "ratio": measured[-1]["ratio"], **most}))
        file_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    result = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
        "layers": options.layers,
        "hidden_size": options.hidden_size,
        "file_bytes": file_bytes,
        "measured": measured,
    }
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
