"""The command `longrl` in a process forked from one that has loaded its libraries, so that it starts at once."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# What the commands load when they are called; loaded once by the process that is forked, if it isn't running yet.
LOADED = ["longrl.cli", "longrl_trainer.sft", "longrl_trainer.grpo", "longrl_trainer.evaluation.evaluate"]


def run_forked(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; what it says is kept in the folder meanwhile."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    paths = [folder / "output", folder / "error"]
    process = context.Process(target=_run, args=(list(arguments), dict(environment), paths))
    process.start()
    process.join()
    assert process.exitcode is not None
    output, error = (path.read_text() for path in paths)
    return subprocess.CompletedProcess(arguments, process.exitcode, output, error)


def _run(arguments: list[str], environment: dict[str, str], paths: list[Path]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    from longrl.cli import main

    sys.exit(main(arguments))
