"""`longrl generate`, `longrl generate-grpo` and the quickstart's world of pictures.

Imports nothing heavy: a command imports what it needs when it runs.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from longrl.commands.recipes import resolve_config
from longrl.errors import AppUsageError

if TYPE_CHECKING:
    from rich.console import Console

    from longrl_trainer.runs.progress import ProgressDisplay

AlgorithmChoice = Literal[
    "flow_grpo", "dance_grpo", "mix_grpo", "grpo_guard", "flow_dppo", "diffusion_nft", "awm", "dgpo"
]
"""The names of `longrl_omni.generation.config.algorithms.AlgorithmName`, whose module would be slow to import here."""


def generate(arguments: Sequence[str]) -> None:
    """Draw pictures."""
    from longrl_omni.generation.config.recipes import GenerateConfig

    config = resolve_config(
        "generate",
        arguments,
        GenerateConfig,
        example="longrl generate apps/recipes/pictures_generate.toml --samples-per-prompt 4 --output samples",
    )
    require_diffusers()
    from longrl_omni.generation.samples import generate_samples

    for name, mean in generate_samples(config).items():
        print(f"{name:<12} {'not judged' if mean is None else f'{mean:.4f}'}")
    print(config.output)


def generate_grpo(arguments: Sequence[str]) -> None:
    """Train by reward."""
    from longrl_omni.generation.config.recipes import GenerateGrpoConfig

    config = resolve_config(
        "generate-grpo",
        arguments,
        GenerateGrpoConfig,
        example="longrl generate-grpo apps/recipes/sd3_5_medium_generate_grpo.toml --algorithm diffusion_nft",
    )
    require_diffusers()
    from longrl.progress import choose_progress
    from longrl_omni.generation.grpo import train_generation

    result = train_generation(config, progress=choose_progress())
    for name, before in result.before.items():
        after = result.after[name]
        if before is not None and after is not None:
            print(f"{name:<12} {before:.4f} → {after:.4f}")
    print(f"{result.num_steps} steps, sampler against policy {result.ratio_error:.1e}")
    print(result.model_folder)


def quickstart_pictures(
    output: Path,
    seed: int,
    recipe: Path | None,
    algorithm: AlgorithmChoice | None,
    progress: "ProgressDisplay",
    console: "Console",
) -> None:
    """The quickstart's world of pictures."""
    require_diffusers()
    from rich.console import Console

    from longrl.pictures.config import PICTURES_RECIPE, load_pictures
    from longrl.pictures.run import print_pictures_summary, run_pictures

    config = load_pictures(recipe or PICTURES_RECIPE, output=output, seed=seed, algorithm=algorithm)
    print_pictures_summary(config, run_pictures(config, progress, console), Console())


def require_diffusers() -> None:
    """Refuse what needs diffusers where it isn't installed.

    Raises:
        AppUsageError: It isn't.
    """
    if find_spec("diffusers") is None:
        raise AppUsageError("diffusers isn't installed, which generation needs: pip install 'longrl[generation]'")


def describe_generate(recipe: Annotated[Path, tyro.conf.Positional]) -> None:
    """Draw pictures with a model that generates them: a recipe, followed by any of its settings as options.

    Example: longrl generate apps/recipes/pictures_generate.toml --samples-per-prompt 4 --output samples

    Args:
        recipe: Settings in a TOML file.
    """
    raise NotImplementedError(f"{recipe}: handled by `generate`")


def describe_generate_grpo(recipe: Annotated[Path, tyro.conf.Positional]) -> None:
    """Train a model that generates pictures by reward: a recipe, followed by any of its settings as options.

    Example: longrl generate-grpo apps/recipes/sd3_5_medium_generate_grpo.toml --algorithm diffusion_nft

    Args:
        recipe: Settings in a TOML file.
    """
    raise NotImplementedError(f"{recipe}: handled by `generate_grpo`")


HELP = {"generate": describe_generate, "generate-grpo": describe_generate_grpo}
"""What the list of commands shows; a command with a recipe is run by the function in `COMMANDS`."""
COMMANDS = {"generate": generate, "generate-grpo": generate_grpo}
