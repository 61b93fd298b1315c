"""Whole pipelines: `longrl quickstart` in a rendered world, `longrl start` and `longrl init` with one's own videos.

Imports nothing heavy: a command imports what it needs when it runs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from longrl.commands.generation import AlgorithmChoice, quickstart_pictures
from longrl.errors import AppUsageError

Folder = Annotated[Path, tyro.conf.Positional]
Files = Annotated[tuple[Path, ...], tyro.conf.Positional]


def quickstart(
    output: Path = Path("quickstart"),
    seed: int = 0,
    recipe: Path | None = None,
    world: Literal["timeline", "sound", "pictures"] = "timeline",
    algorithm: AlgorithmChoice | None = None,
) -> None:
    """Run the whole pipeline on real video files on this machine, and write a report.

    Renders a small world to H.264 files, writes questions about it, builds a tiny Qwen2.5-VL, encodes every video once,
    trains by imitation (CoT-SFT) and by reward (GRPO, with vLLM as the sampler), and evaluates on videos not used in
    training. It can be interrupted at any time: the same command continues where it stopped.

    In the world of sound a tone sounds during each scene, a tiny Qwen2.5-Omni is trained to see and to hear, and most
    questions need both; the report says what is left of its accuracy without sound and without pictures.

    The world of pictures is about generation instead: a tiny flow-matching model learns to draw captions, and is then
    improved by rewards for right pictures.

    Example: longrl quickstart

    Example: longrl quickstart --output /tmp/second --seed 1

    Example: longrl quickstart --world sound --output sound

    Example: longrl quickstart --world pictures --output pictures

    Args:
        output: Folder for all output.
        seed: Seed of the world, the model and the rollouts.
        recipe: Settings of the world, the model and the training; apps/recipes/quickstart.toml by default, or
            quickstart_sound.toml or pictures.toml beside it.
        world: What is learned: to answer questions about videos, or about films with their sound, or to draw pictures.
        algorithm: In the world of pictures, the algorithm that improves the model; that of the recipe by default.
    """
    if algorithm is not None and world != "pictures":
        raise AppUsageError(f"--algorithm {algorithm}: expected --world pictures, or an `objective` in the recipe")
    if seed < 0:
        raise AppUsageError(f"--seed {seed}: expected 0 or more")
    from rich.console import Console

    from longrl.progress import choose_progress

    if world == "pictures":
        quickstart_pictures(output, seed, recipe, algorithm, choose_progress(), Console(stderr=True))
        return
    from longrl.quickstart.config import QUICKSTART_RECIPE, SOUND_RECIPE, load_quickstart
    from longrl.quickstart.outcome import print_summary
    from longrl.quickstart.run import run_quickstart

    shipped = SOUND_RECIPE if world == "sound" else QUICKSTART_RECIPE
    config = load_quickstart(recipe or shipped, output=output, seed=seed)
    if config.world.sound != (world == "sound"):
        raise AppUsageError(
            f"{recipe}: world.sound={str(config.world.sound).lower()} with --world {world}; choose --world "
            f"{'sound' if config.world.sound else 'timeline'}, or another recipe"
        )
    summary = run_quickstart(config, choose_progress(), Console(stderr=True))
    print_summary(config.output, summary, Console())


def init(
    source: Folder,
    model: Path,
    output: Path,
    base_url: str | None = None,
    served_model: str | None = None,
    gpu: str | None = None,
) -> None:
    """Write recipes for a dataset or a folder of videos: sft.toml, grpo.toml and evaluate.toml.

    They are filled in for this checkpoint, these videos and this machine: number and size of frames, questions per step
    and memory come from the planner. Each begins with the command to run it. Nothing is ever replaced. `longrl start`
    writes the same ones, and uses those that are there.

    Example: longrl init dataset --model checkpoints/Qwen2.5-VL-3B-Instruct --output mine

    Example: longrl init films --model checkpoints/Qwen2.5-VL-3B-Instruct --output mine --gpu H100

    Args:
        source: A dataset, or a folder of videos, from which a dataset is to be built in OUTPUT/dataset.
        model: Folder of the checkpoint to train.
        output: Folder of the recipes, and of what they write.
        base_url: Address of the server that will write the questions, for the command that is shown.
        served_model: Name of its model, likewise.
        gpu: Plan for this GPU (A100, H100 or H200), or for CPU, instead of what this machine has.
    """
    from longrl.footage.material import examine_footage, examine_machine, require_checkpoint
    from longrl.footage.recipes import FootagePlaces, write_recipes
    from longrl.footage.splits import list_split_options
    from longvideo_reason_data.records.folder import RECORDS_NAME

    require_checkpoint(model)
    is_dataset = (source / RECORDS_NAME).is_file()
    places = FootagePlaces.of(output, model, source if is_dataset else None)
    for path in write_recipes(places, examine_footage(source), examine_machine(gpu)):
        print(path)
    print("run, in this order:")
    if not is_dataset:
        server = f"--base-url {base_url or 'URL'} --model {served_model or 'NAME'}"
        options = [server, *list_split_options(source, places.dataset)]
        print(f"  longvideo-data build --videos {source} --output {places.dataset} {' '.join(options)}")
    for command in ("sft", "grpo", "evaluate"):
        print(f"  longrl {command} {places.output / command}.toml")


def start(arguments: Sequence[str]) -> None:
    """From a folder of videos to a report; its options are also those of a build, which are loaded only here."""
    from longrl.footage.start import start as run

    tyro.cli(run, prog="longrl start", args=list(arguments), config=(tyro.conf.EnumChoicesFromValues,))


def start_help(videos: Files) -> None:
    """From a folder of your own videos to a trained model and a report, in one command that can be interrupted.

    Example: longrl start films --base-url http://localhost:8000/v1 --served-model Qwen3-VL-32B
    --model checkpoints/Qwen2.5-VL-3B-Instruct --output mine

    Args:
        videos: Video files, or folders that are searched for them.
    """
    raise NotImplementedError(f"{videos}: handled by start")
