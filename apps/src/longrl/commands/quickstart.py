"""`longrl quickstart`: a whole pipeline on this machine, about videos or about pictures.

Imports nothing heavy: a command imports what it needs when it runs.
"""

from pathlib import Path
from typing import Literal

from longrl.commands.generation import quickstart_pictures
from longrl.errors import AppUsageError


def quickstart(
    output: Path = Path("quickstart"),
    seed: int = 0,
    recipe: Path | None = None,
    world: Literal["timeline", "pictures"] = "timeline",
) -> None:
    """Run the whole pipeline on real video files on this machine, and write a report.

    Renders a small world to H.264 files, writes questions about it, builds a tiny Qwen2.5-VL, encodes every video once,
    trains by imitation (CoT-SFT) and by reward (GRPO, with vLLM as the sampler), and evaluates on videos not used in
    training. It can be interrupted at any time: the same command continues where it stopped.

    The world of pictures is about generation instead: a tiny flow-matching model learns to draw captions, and is then
    improved by rewards for right pictures.

    Example: longrl quickstart

    Example: longrl quickstart --output /tmp/second --seed 1

    Example: longrl quickstart --world pictures --output pictures

    Args:
        output: Folder for all output.
        seed: Seed of the world, the model and the rollouts.
        recipe: Settings of the world, the model and the training; apps/recipes/quickstart.toml by default, or
            pictures.toml beside it.
        world: What is learned: to answer questions about videos, or to draw pictures.
    """
    if seed < 0:
        raise AppUsageError(f"--seed {seed}: expected 0 or more")
    from rich.console import Console

    from longrl.progress import choose_progress

    if world == "pictures":
        quickstart_pictures(output, seed, recipe, choose_progress(), Console(stderr=True))
        return
    from longrl.quickstart.config import QUICKSTART_RECIPE, load_quickstart
    from longrl.quickstart.run import print_summary, run_quickstart

    config = load_quickstart(recipe or QUICKSTART_RECIPE, output=output, seed=seed)
    summary = run_quickstart(config, choose_progress(), Console(stderr=True))
    print_summary(config, summary, Console())
