"""The trial of the exchange between ranks: the same number of processes as the run, on the same devices, adding up.

It takes seconds, and finds a wrong network interface, a firewall or a broken link before a model is loaded. Its
processes are started here and not by torchrun, which would end all at the first failure; here each tells its own.
"""

import os
import subprocess
import tempfile
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import Any, cast

from longrl.launch.job import LaunchJob, python_command
from longrl.launch.link import NodeLink, quiet_network
from longrl_files.json_text import UnfitJsonError, parse_json
from longrl_files.messages import visible

__all__ = ["ExchangeFinding", "describe_findings", "run_trial"]

LIMIT_SECONDS = 120.0
SLOW_BYTES_PER_SECOND = 1e9
"""Less than this between GPUs means that they exchange through a slow network, or through host memory."""
CURE = "look at the firewall and at the interface (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME; NCCL_DEBUG=INFO tells more)"

ExchangeFinding = dict[str, Any]
"""What one rank found: `rank`, and `bandwidth` or `problem`."""


def run_trial(job: LaunchJob, link: NodeLink, limit_seconds: float = LIMIT_SECONDS) -> list[ExchangeFinding]:
    """Start this node's ranks, wait for them, and return what each found; all nodes call this together.

    Args:
        job: What is to be started.
        link: The connection between the nodes, whose store the ranks use too.
        limit_seconds: How long ranks may take, with the loading of torch.
    """
    with tempfile.TemporaryDirectory(prefix="longrl-trial-") as folder:
        processes: list[subprocess.Popen[bytes]] = []
        first = job.node_rank * job.processes
        environment = os.environ | quiet_network(link.host) | {"WORLD_SIZE": str(job.num_ranks)}
        environment |= {"MASTER_ADDR": link.host, "MASTER_PORT": str(link.port)}
        command = python_command(
            ["-m", "longrl.launch.preflight.exchange_rank", job.device, str(limit_seconds / 2)]
        )  # so that they can tell
        try:
            for place in range(job.processes):
                with Path(folder, str(place)).open("wb") as output:
                    own = {"RANK": str(first + place), "LOCAL_RANK": str(place)}
                    processes.append(
                        subprocess.Popen(command, env=environment | own, stdout=output, stderr=subprocess.DEVNULL)
                    )
            deadline = monotonic() + limit_seconds
            for process in processes:
                try:
                    process.wait(timeout=max(0.0, deadline - monotonic()))
                except subprocess.TimeoutExpired:
                    continue
            codes = [process.poll() for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [
            {"rank": first + place, **_read(Path(folder, str(place)).read_bytes(), code, limit_seconds)}
            for place, code in enumerate(codes)
        ]


def describe_findings(job: LaunchJob, findings: list[ExchangeFinding]) -> tuple[str, list[str]]:
    """A line on the exchange, and the problems; each problem once, with all ranks that have it."""
    ranks_by_problem: dict[str, list[str]] = {}
    for finding in findings:
        if "problem" in finding:
            ranks_by_problem.setdefault(visible(str(finding["problem"])), []).append(str(finding["rank"]))
    problems = [
        f"the exchange fails on rank {', '.join(ranks)}: {problem}; {CURE}"
        for problem, ranks in ranks_by_problem.items()
    ]
    if problems:
        return "", problems
    bandwidth = fmean(float(finding["bandwidth"]) for finding in findings)
    backend = "NCCL" if job.device == "cuda" else "gloo"
    line = f"all-reduce over {backend}: {len(findings)} ranks, {bandwidth / 1e9:.2f} GB/s"
    if job.device == "cuda" and bandwidth < SLOW_BYTES_PER_SECOND:
        line += f" (slow, expected {SLOW_BYTES_PER_SECOND / 1e9:g} or more; {CURE})"
    return line, problems


def _read(output: bytes, code: int | None, limit_seconds: float) -> ExchangeFinding:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    try:
        found = parse_json(lines[-1]) if lines else None
    except UnfitJsonError:
        found = None
    if isinstance(found, dict) and found.keys() & {"bandwidth", "problem"}:
        return cast(ExchangeFinding, found)
    if code is None:
        return {"problem": f"not done within {limit_seconds:g} s"}
    return {"problem": f"ended with status {code}" if code >= 0 else f"killed by signal {-code}"}
