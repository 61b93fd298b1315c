"""`longrl launch` and `longrl doctor`: a recipe on all GPUs of all nodes, and what is installed for it.

Imports nothing heavy: a command imports what it needs when it runs.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from longrl.commands.recipes import HELP_OPTIONS, resolve_config
from longrl.errors import AppUsageError

if TYPE_CHECKING:
    from longrl.launch.job import LaunchJob

__all__ = ["COMMANDS", "HELP", "announce", "doctor"]

TORCH_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"

DESCRIPTION = """Start a recipe on all GPUs of one or several machines, after a look at whether it can run there.

All options but these are settings of the recipe.

Example: longrl launch apps/recipes/qwen2_5_vl_7b_grpo.toml --gpus 8 --group-size 16

Example: longrl launch RECIPE --nodes 2 --gpus 8 --node-rank 0 --address node1:29500   (and --node-rank 1 on the other)

Example: longrl launch RECIPE --nodes 4 --gpus 8 --slurm --sbatch time=24:00:00 partition=gpu exclusive mem=0

Example: longrl launch RECIPE --nodes 4 --gpus 8 --ray   (on a machine of a Ray cluster)

Example: longrl launch RECIPE --nodes 2 --gpus 8 --address node1:29500 --print

Example: longrl launch RECIPE --device cpu --gpus 2
"""


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """How a recipe is started; all other options are settings of the recipe."""

    nodes: int = 1
    """Machines; the same command is started on each, by Slurm or by you."""
    gpus: int | None = None
    """GPUs of each machine, one rank each; by default all that are seen. With --device cpu the number of ranks."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where ranks compute."""
    node_rank: int = 0
    """Which of the machines this is, counted from 0."""
    address: str | None = None
    """HOST:PORT of the first machine, as all reach it; the next port is used as well."""
    slurm: bool = False
    """Write a script for Slurm beside the logs, and submit it if sbatch is installed. The run is warned before its time
    is up, saves, and is queued again."""
    sbatch: tuple[str, ...] = ()
    """With --slurm: further options of sbatch, such as time=24:00:00 partition=gpu cpus-per-task=64."""
    ray: bool = False
    """Run on the Ray cluster that this machine belongs to (RAY_ADDRESS): Ray Train starts a launcher on each of --nodes
    machines as soon as they have the GPUs free. Recipe and run have to lie where all machines see them."""
    warning_seconds: int = 600
    """With --slurm: how long before the end of its time the run is warned; longer than a step and a checkpoint take."""
    print: bool = False
    """Only show what would be run: the script, or torchrun's line for each machine."""
    rehearse: bool = False
    """Before the start, also run the step on shapes alone, which takes minutes (`longrl rehearse`)."""
    preflight: bool = True
    """Look at all machines before the start; what is wrong is listed, and then nothing is started."""


def launch(arguments: Sequence[str]) -> None:
    """Start a recipe."""
    if any(argument in HELP_OPTIONS for argument in arguments):
        _parse(["--help"])
    recipe = Path(arguments[0])
    options, overrides = _parse(arguments[1:])
    job = read_job(recipe, options, overrides)
    if options.slurm:
        _launch_on_slurm(job, options)
        return
    if options.ray:
        _launch_on_ray(job, options)
        return
    if not options.print:
        announce(job)
    level = os.environ.get(TORCH_LOG_LEVEL)
    os.environ[TORCH_LOG_LEVEL] = level or "ERROR"  # torch reads it when it is loaded; broken connections fill a screen
    from longrl.launch.start import describe_start, start_job

    if level is None:
        del os.environ[TORCH_LOG_LEVEL]
    if options.print:
        print("\n".join(describe_start(job)))
        return
    sys.exit(start_job(job, looks_first=options.preflight, rehearses=options.rehearse))


def announce(job: "LaunchJob") -> None:
    """Say what is being started, before libraries are loaded for it, and what will be slow."""
    from longrl.launch.job import count_ranks

    where = "the CPU" if job.device == "cpu" else f"{job.processes} GPU{'' if job.processes == 1 else 's'}"
    nodes = f" of each of {job.num_nodes} nodes" if job.num_nodes > 1 else ""
    print(
        f"longrl {job.command} {job.recipe}: {count_ranks(job.num_ranks)} on {where}{nodes}",
        file=sys.stderr,
        flush=True,
    )
    num_cores = len(os.sched_getaffinity(0))
    if job.device == "cpu" and job.processes > num_cores:
        print(
            f"warning: --gpus {job.processes} with --device cpu, and {num_cores} processor cores here: ranks will wait "
            f"for each other, and each holds a model; expected --gpus {num_cores} or less",
            file=sys.stderr,
            flush=True,
        )


def read_job(recipe: Path, options: LaunchOptions, overrides: Sequence[str]) -> "LaunchJob":
    """What the options ask for.

    Raises:
        TrainerUsageError: The recipe can't be read.
        AppUsageError: An option is wrong.
    """
    from longrl.launch.job import LaunchJob, read_address
    from longrl.machine.gpus import find_gpus
    from longrl.stages import command_of, model_of, read_tables

    if options.sbatch and not options.slurm:
        raise AppUsageError(f"--sbatch {' '.join(options.sbatch)}: expected with --slurm; add it, or omit --sbatch")
    if options.ray:
        wrong = {"--slurm": options.slurm, "--address": options.address, "--node-rank": options.node_rank}
        for option in (name for name, value in wrong.items() if value):
            raise AppUsageError(
                f"{option} with --ray: expected without, since Ray finds machines itself; omit one of both"
            )
    tables = read_tables(recipe)
    command = command_of(tables)
    example = f"longrl launch {recipe} --gpus 8"
    config = resolve_config(command, [str(recipe), *overrides], model_of(command, tables), example=example)
    processes = options.gpus
    if processes is None:
        found = find_gpus() if options.device == "cuda" else None
        processes = 1 if found is None else len(found.gpus)
        if processes == 0:
            reason = "there are none" if found is None or found.problem is None else found.problem
            raise AppUsageError(f"--gpus: no GPU is seen here ({reason}); set the number, or --device cpu")
    address = options.address
    if options.slurm or options.ray:  # found out where it is started
        address = address or "first-node:29500"
    return LaunchJob(
        recipe=recipe,
        command=command,
        overrides=tuple(overrides),
        config=config,
        device=options.device,
        num_nodes=options.nodes,
        processes=processes,
        node_rank=options.node_rank,
        address=None if address is None or options.nodes == 1 else read_address(address),
    )


def _parse(arguments: Sequence[str]) -> tuple[LaunchOptions, list[str]]:
    """The launcher's own options, and the others."""
    return tyro.cli(
        LaunchOptions,
        prog="longrl launch RECIPE",
        description=DESCRIPTION,
        args=list(arguments),
        return_unknown_args=True,
        config=(tyro.conf.EnumChoicesFromValues,),
    )


def _launch_on_slurm(job: "LaunchJob", options: LaunchOptions) -> None:
    from longrl.launch.slurm import submit, write_script

    script = write_script(job, options.sbatch, options.warning_seconds)
    if options.print:
        print(script, end="")
        return
    path, answer = submit(script, job)
    print(f"{path}: {answer or 'written; no sbatch is installed here, so submit it where there is one'}")


def _launch_on_ray(job: "LaunchJob", options: LaunchOptions) -> None:
    chosen = {"--no-preflight": not options.preflight, "--rehearse": options.rehearse}
    extra = tuple(name for name, is_chosen in chosen.items() if is_chosen)
    if not options.print:
        print(f"longrl {job.command} {job.recipe}: joining the Ray cluster", file=sys.stderr, flush=True)
    from longrl.launch.ray_cluster.driver import RayStart, describe_ray_start

    if options.print:
        print("\n".join(describe_ray_start(job, extra)))
        return
    sys.exit(RayStart(job, extra).run())


def describe_launch(recipe: Annotated[Path, tyro.conf.Positional]) -> None:
    """Start a recipe on all GPUs of one or several machines, after a look at whether it can run there.

    All other options are settings of the recipe. See longrl launch --help for those of the start.

    Example: longrl launch apps/recipes/qwen2_5_vl_7b_grpo.toml --gpus 8 --group-size 16

    Args:
        recipe: Settings in a TOML file.
    """
    raise NotImplementedError(f"{recipe}: handled by `launch`")


def doctor(recipe: Annotated[Path | None, tyro.conf.Positional] = None) -> None:
    """Show what this machine has: versions, GPUs, and for which work something is missing.

    Nothing is loaded, so it takes a moment. With a recipe, the exit status is 1 if something that it needs is missing.

    Example: longrl doctor

    Example: longrl doctor apps/recipes/qwen2_5_vl_7b_grpo.toml

    Args:
        recipe: A recipe of any command.
    """
    from longrl.machine.doctor import examine

    lines, is_complete = examine(recipe)
    print("\n".join(lines))
    if not is_complete:
        sys.exit(1)


HELP = {"launch": describe_launch, "doctor": doctor}
"""What the list of commands shows; a command with a recipe and its settings is run by the function in `COMMANDS`."""
COMMANDS = {"launch": launch}
