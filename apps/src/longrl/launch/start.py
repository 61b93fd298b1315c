"""One start of a job on this node, from the first look to the last rank's end."""

import shlex
import signal
import sys
from datetime import datetime
from types import FrameType

from longrl.errors import AppError
from longrl.launch.agent import STOPPED, NodeAgent, rank_environment
from longrl.launch.finished import describe_finished
from longrl.launch.job import LaunchJob, count_ranks, python_command
from longrl.launch.link import NodeLink
from longrl.launch.logs import make_logs
from longrl.launch.preflight.nodes import run_preflight
from longrl_files.messages import error_line, visible

__all__ = ["describe_start", "start_job"]


def start_job(job: LaunchJob, *, looks_first: bool = True, rehearses: bool = False) -> int:
    """Look at all nodes, then run the ranks of this one; every node calls this.

    Args:
        job: What to run.
        looks_first: Whether to look before.
        rehearses: Whether that includes the step on shapes alone.

    Returns:
        The status to exit with.

    Raises:
        AppError: The nodes don't find each other, or the logs can't be written.
    """
    finished = describe_finished(job)
    if finished is not None:
        _say(finished)
        return 0
    # Asked to stop while there is nothing to save yet.
    before = signal.signal(signal.Signals[job.stop_signal], _stop_before) if job.saves else None
    try:
        if job.num_nodes > 1:
            _say(f"node {job.node_rank} of {job.num_nodes}: waiting for the others")
        link = NodeLink(job.node_rank, job.num_nodes, job.address)
        try:
            return _start(job, link, looks_first=looks_first, rehearses=rehearses)
        finally:
            link.leave()
    finally:
        if before is not None:
            signal.signal(signal.Signals[job.stop_signal], before)


def _start(job: LaunchJob, link: NodeLink, *, looks_first: bool, rehearses: bool) -> int:
    is_first = job.node_rank == 0
    start = str(link.exchange("start", datetime.now().strftime("%Y%m%d-%H%M%S"))[0])
    if looks_first:
        if is_first:
            _say("looking at what is there, before anything is started (--no-preflight leaves that out)")
        found = run_preflight(job, link, start, rehearses=rehearses)
        if is_first:
            for line in found.lines:
                _say(line)
            for problem in found.problems:
                print(error_line(problem), file=sys.stderr, flush=True)
        if found.problems:
            return _end_before(len(found.problems), is_first=is_first)
    logs = make_logs(job.logs, start)
    if is_first:
        _say(f"started {count_ranks(job.num_ranks)}, which now load what they need; all they say is in {logs}")
    code, failure = NodeAgent(job, link, logs).run()
    if failure is not None:
        tells = is_first or failure.get("node") == job.node_rank or "is_gone" in failure
        for line in failure["lines"] if tells else ():
            print(visible(str(line), 399), file=sys.stderr, flush=True)
    if is_first and code == STOPPED:
        _say("saved and stopped; the same command goes on from there")
    return code


def describe_start(job: LaunchJob) -> list[str]:
    """What every node would run after the look, as lines of a shell."""
    logs = job.logs / datetime.now().strftime("%Y%m%d-%H%M%S")
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in rank_environment(job).items())
    lines: list[str] = []
    for node in range(job.num_nodes):
        torchrun = python_command(["-m", "torch.distributed.run", *job.torchrun_arguments(logs, node)])
        lines += [f"# node {node}", f"{settings} {shlex.join(torchrun)}".strip()]
    return lines


def _end_before(num_problems: int, *, is_first: bool) -> int:
    where = "" if is_first else ", which node 0 lists"
    _say(f"nothing was started: {num_problems} problem{'s' if num_problems > 1 else ''}{where}")
    return AppError.exit_code


def _stop_before(number: int, frame: FrameType | None) -> None:
    raise SystemExit(STOPPED)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
