"""`longrl benchmark`: what the engine's ideas are worth on this machine, in seconds and bytes."""

from pathlib import Path
from typing import Literal

__all__ = ["COMMANDS"]


def step(
    output: Path = Path("benchmark.json"),
    frames: tuple[int, ...] = (8, 64, 256),
    modes: tuple[Literal["plain", "cached", "published", "shared"], ...] = ("plain", "cached", "published", "shared"),
    group_size: int = 8,
    response_tokens: int = 64,
    repeats: int = 3,
    model: Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    checkpointing: bool = False,
) -> None:
    """Measure whole GRPO steps in four modes, and write rows, ratios and a drawing.

    plain encodes and recomputes in every pass; cached encodes once; published also splits every response's row over
    the ranks; shared computes the prompt once for the whole group. In one process published is cached. Sampling, with
    transformers, is the same in all. Start it with torchrun for several ranks.

    Example: longrl benchmark step --output benchmark.json

    Example: torchrun --nproc-per-node 2 -m longrl.cli benchmark step --frames 64 --output two_ranks.json

    Args:
        output: Where the rows go; the drawing gets the same name with .svg.
        frames: Numbers of frames to measure; the tiny model makes 32 tokens of each.
        modes: Modes to compare.
        group_size: Responses per question.
        response_tokens: Tokens of every response.
        repeats: Steps of which the median is taken.
        model: Folder of a checkpoint that sees; a tiny Qwen2.5-VL is built if not given.
        device: auto, cpu or cuda.
        dtype: Weights in float32 or bfloat16.
        checkpointing: Recompute activations in backward instead of keeping them.
    """
    from longrl.benchmark.step import StepSettings, measure_steps

    settings = StepSettings(
        frames=frames,
        modes=modes,
        group_size=group_size,
        response_tokens=response_tokens,
        repeats=repeats,
        model=model,
        device=device,
        dtype=dtype,
        checkpointing=checkpointing,
    )
    measure_steps(settings, output)


COMMANDS = {"benchmark step": step}
