"""The script with which Slurm starts a job on its nodes, warns it before its time is up, and queues it again."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from longrl.errors import AppError, AppUsageError
from longrl.launch.job import LaunchJob, python_command
from longrl_files.messages import visible
from longrl_trainer.durable import write_text
from longrl_trainer.errors import StoppedError

__all__ = ["SCRIPT_NAME", "submit", "write_script"]

SCRIPT_NAME = "launch.sbatch"
SUBMIT = "sbatch"
PATIENCE_SECONDS = 120.0
OPTION_NAME = re.compile("[a-z]{2,}(-[a-z]+)*")


def write_script(job: LaunchJob, options: Sequence[str], warning_seconds: int) -> str:
    """The script.

    Args:
        job: What is to be started.
        options: Further options of `sbatch`, each NAME=VALUE or NAME, which replace those given here.
        warning_seconds: How long before the end of its time a run is asked to save and stop.

    Raises:
        AppUsageError: An option isn't of that form.
    """
    if warning_seconds < 1:
        raise AppUsageError(f"--warning-seconds {warning_seconds}: expected 1 or more")
    chosen = {
        "job-name": job.folder.name or "longrl",
        "nodes": str(job.num_nodes),
        "ntasks-per-node": "1",
        "output": f"{job.logs.absolute()}/slurm-%j.out",
        "open-mode": "append",
        "requeue": "",
    }
    if job.device == "cuda":
        chosen["gpus-per-node"] = str(job.processes)
    if job.saves:
        chosen["signal"] = f"{job.stop_signal.removeprefix('SIG')}@{warning_seconds}"
    for option in options:
        name, _, value = option.lstrip("-").partition("=")
        if not OPTION_NAME.fullmatch(name) or not option.isprintable():
            raise AppUsageError(
                f"--sbatch {visible(option, 60)!r}: expected NAME=VALUE with the long name of an option of sbatch "
                "(small letters and hyphens), such as time=12:00:00 or cpus-per-task=8"
            )
        chosen[name] = value
    directives = [f"#SBATCH --{name}{'=' + value if value else ''}" for name, value in chosen.items()]
    command = shlex.join(python_command(["-m", "longrl", *job.launch_arguments()]))
    return "\n".join(
        [
            "#!/bin/bash",
            *directives,
            "",
            f"cd {shlex.quote(str(Path.cwd()))} || exit 2",
            'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            'export ADDRESS="$first:$((20000 + SLURM_JOB_ID % 10000 * 2))"',
            'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"',
            "# One launcher on each node, which starts the ranks there; Slurm warns them all.",
            "srun --kill-on-bad-exit=0 --cpu-bind=none bash -c "
            + shlex.quote(f'exec {command} --node-rank "$SLURM_NODEID" --address "$ADDRESS"'),
            "status=$?",
            f"if [ $status -eq {StoppedError.exit_code} ]; then  # saved and stopped",
            '  scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            "exit $status",
            "",
        ]
    )


def submit(script: str, job: LaunchJob) -> tuple[Path, str | None]:
    """Write the script beside the logs, and submit it where `sbatch` is installed.

    Returns:
        The file, and what `sbatch` said; None where there is none.

    Raises:
        AppError: It can't be written or isn't accepted.
    """
    path = job.logs / SCRIPT_NAME
    try:
        job.logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AppError(f"{job.logs}: can't be made ({error.strerror}); choose another `output`") from error
    write_text(path, script)
    program = shutil.which(SUBMIT)
    if program is None:
        return path, None
    try:
        done = subprocess.run(
            [program, str(path)], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AppError(f"{path}: {SUBMIT} doesn't answer ({visible(str(error))})") from None
    if done.returncode != 0:
        raise AppError(f"{path}: {SUBMIT} refuses it: {visible((done.stderr or done.stdout).strip())}")
    return path, visible(done.stdout.strip())
