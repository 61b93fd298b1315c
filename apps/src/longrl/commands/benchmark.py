"""`longrl benchmark`: the effect of the engine's methods on this machine, in seconds and bytes."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from longrl.commands.generation import AlgorithmChoice

__all__ = ["benchmark"]


def step(
    output: Path = Path("benchmark.json"),
    frames: tuple[int, ...] = (8, 64, 256),
    modes: tuple[Literal["plain", "cached", "published", "shared"], ...] = ("plain", "cached", "published", "shared"),
    group_size: int = 8,
    response_tokens: int = 64,
    repeats: int = 3,
    most_minutes: float = 8.0,
    model: Path | None = None,
    family: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    checkpointing: bool = False,
) -> None:
    """Measure whole GRPO steps in four modes, and write rows, ratios and a drawing.

    plain encodes and recomputes in every pass; cached encodes once; published also splits every response's row over the
    ranks; shared computes the prompt once for the whole group. In one process published equals cached. Sampling, with
    transformers, is the same in all. Start it with torchrun for several ranks.

    Example: longrl benchmark step --output benchmark.json

    Example: longrl benchmark step --family qwen3_5 --frames 326 --modes cached shared

    Example: torchrun --nproc-per-node 2 -m longrl.cli benchmark step --frames 64 --output two_ranks.json

    Args:
        output: Output file for the rows; the drawing gets the same name with .svg.
        frames: Numbers of frames to measure; the tiny model makes 32 tokens per frame.
        modes: Modes to compare.
        group_size: Responses per question.
        response_tokens: Tokens of every response.
        repeats: Number of steps; the median is reported.
        most_minutes: Time limit: fewer repeats of long steps, down to one, if all steps together would take longer.
        model: Folder of a checkpoint with vision; by default a tiny Qwen2.5-VL is built.
        family: Build a tiny model of this family instead, such as qwen3_5.
        device: auto, cpu or cuda.
        dtype: Weights in float32 or bfloat16.
        checkpointing: Recompute activations in the backward pass instead of keeping them.
    """
    from longrl.benchmark.step import StepSettings, measure_steps

    settings = StepSettings(
        frames=frames,
        modes=modes,
        group_size=group_size,
        response_tokens=response_tokens,
        repeats=repeats,
        most_minutes=most_minutes,
        model=model,
        family=family,
        device=device,
        dtype=dtype,
        checkpointing=checkpointing,
    )
    measure_steps(settings, output)


def attention(
    output: Path = Path("attention.json"),
    prompt_tokens: tuple[int, ...] = (1024, 4096, 8192),
    group_size: int = 8,
    response_tokens: int = 64,
    model: str = "Qwen2.5-0.5B",
    repeats: int = 3,
    device: str = "auto",
    dtype: str = "float32",
) -> None:
    """Measure attention over a packed row against one dense causal call, as shares of the machine's matrix rate.

    Example: longrl benchmark attention --output attention.json

    Args:
        output: Output file for the rows.
        prompt_tokens: Lengths of the prompt.
        group_size: Responses after the prompt.
        response_tokens: Tokens of every response.
        model: Name or folder of the checkpoint whose heads are used.
        repeats: Number of passes; the median is reported.
        device: auto, cpu or cuda.
        dtype: float32 or bfloat16.
    """
    from longrl.benchmark.attention import measure_attention

    measure_attention(
        output,
        prompt_tokens=prompt_tokens,
        group_size=group_size,
        response_tokens=response_tokens,
        model=model,
        repeats=repeats,
        device=device,
        dtype=dtype,
    )


def rank(
    output: Path = Path("rank.json"),
    model: str = "Qwen2.5-VL-7B",
    layers: int | None = None,
    frames: tuple[int, ...] = (512, 1024, 3600),
    ranks: int = 8,
    rank: int = 0,
    head_ranks: int | None = None,
    group_size: int = 8,
    response_tokens: int = 1024,
    frame_pixels: int = 128 * 28 * 28,
    repeats: int = 3,
    device: str = "auto",
    dtype: str = "bfloat16",
    checkpointing: bool = True,
) -> None:
    """Measure one rank's part of a row that many ranks share, on one device.

    The language model has random weights in a public checkpoint's shape; the other ranks' keys, values and gradients
    are simulated with the right sizes. Prints seconds, peak memory, and the bytes that would be sent.

    Example: longrl benchmark rank --model Qwen2.5-VL-7B --frames 3600 --ranks 8

    Example: longrl benchmark rank --model Qwen2.5-0.5B --layers 1 --ranks 2 --dtype float32 --response-tokens 64

    Args:
        output: Output file for the rows.
        model: Name or folder of the checkpoint whose language model's shape is used.
        layers: Layers to measure; all by default.
        frames: Numbers of frames.
        ranks: Ranks that share the row.
        rank: The rank to measure.
        head_ranks: Ranks that split the heads; by default chosen by the engine.
        group_size: Responses after the prompt.
        response_tokens: Tokens of every response.
        frame_pixels: Pixels of a frame as the encoder sees it.
        repeats: Number of passes; the median is reported.
        device: auto, cpu or cuda.
        dtype: float32 or bfloat16.
        checkpointing: Recompute activations in the backward pass instead of keeping them.
    """
    from longrl.benchmark.rank import RankSettings, measure_rank

    settings = RankSettings(
        model=model,
        num_layers=layers,
        frames=frames,
        frame_pixels=frame_pixels,
        group_size=group_size,
        response_tokens=response_tokens,
        num_ranks=ranks,
        rank=rank,
        head_ranks=head_ranks,
        repeats=repeats,
        device=device,
        dtype=dtype,
        checkpointing=checkpointing,
    )
    measure_rank(settings, output)


def generation(
    world: Path = Path("pictures"),
    output: Path = Path("generation"),
    recipe: Path | None = None,
    algorithms: tuple[AlgorithmChoice, ...] = (),
    seeds: tuple[int, ...] = (0,),
) -> None:
    """Compare algorithms for models that generate: accuracy and held-out reward against samples and seconds.

    All begin with the pretrained model of a quickstart's world of pictures. A killed benchmark continues.

    Example: longrl benchmark generation --world pictures --output generation --seeds 0 1 2

    Args:
        world: Folder of `longrl quickstart --world pictures`.
        output: Folder of the runs and of the rows, generation.json.
        recipe: Recipe of that quickstart: what its `[rl]` sets is the same for all, but for what the table of an
            algorithm sets.
        algorithms: Algorithms to compare; all by default.
        seeds: Seeds of prompts and noise.
    """
    from longrl.commands.generation import require_diffusers

    require_diffusers()
    from longrl.benchmark.generation import compare_algorithms
    from longrl.pictures.config import PICTURES_RECIPE
    from longrl.progress import choose_progress

    rows = compare_algorithms(
        world, recipe or PICTURES_RECIPE, output, algorithms=algorithms, seeds=seeds, progress=choose_progress()
    )
    print(f"{'algorithm':<14} seed        accuracy        held out   samples  seconds")
    for row in rows:
        print(
            f"{row['algorithm']:<14} {row['seed']:>4} {row['accuracy_before']:>7.1%} → {row['accuracy_after']:>6.1%}"
            f" {row['held_out_before']:>7.3f} → {row['held_out_after']:.3f} {row['samples']:>8,} {row['seconds']:>8.0f}"
        )


Measurement = (
    Annotated[Any, tyro.conf.subcommand("step", constructor=step)]
    | Annotated[Any, tyro.conf.subcommand("attention", constructor=attention)]
    | Annotated[Any, tyro.conf.subcommand("rank", constructor=rank)]
    | Annotated[Any, tyro.conf.subcommand("generation", constructor=generation)]
)


def benchmark(measurement: Annotated[Measurement, tyro.conf.arg(name="")]) -> None:
    """Measure the effect of the engine's methods on this machine.

    Example: longrl benchmark step --output benchmark.json
    """
