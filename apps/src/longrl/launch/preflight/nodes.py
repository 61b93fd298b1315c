"""The look before a start: every node examines itself, then all compare, and try the exchange between their ranks.

Everything that is wrong is told at once, a line each with its node, because a start on a cluster is waited for.
"""

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from longrl.errors import AppUsageError
from longrl.launch.job import LaunchJob
from longrl.launch.link import NodeLink
from longrl.launch.preflight.exchange import describe_findings, run_trial
from longrl.launch.preflight.node_checks import check_node
from longrl.launch.preflight.shared_folders import SharedFolders
from longrl.launch.preflight.verdict import plan_job, rehearse_job
from longrl.machine.gpus import GpuReport, find_gpus
from longrl.machine.resources import free_disk_bytes, free_memory_bytes
from longrl_files.messages import visible
from longrl_trainer.errors import TrainerError
from mrsp_engine.errors import EngineError

__all__ = ["Preflight", "compare_nodes", "run_preflight"]

GB = 1e9
MOST_CLOCK_SECONDS = 5.0
COMPARED_PACKAGES = ("longrl", "torch", "transformers", "vllm")


@dataclass(slots=True, kw_only=True)
class Preflight:
    """What was found, the same on all nodes.

    Attributes:
        lines: What the nodes have.
        problems: What is wrong, a line each.
    """

    lines: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])


def run_preflight(job: LaunchJob, link: NodeLink, start: str, *, rehearses: bool = False) -> Preflight:
    """Look at all nodes; all call this together.

    Args:
        job: What is to be started.
        link: The connection between the nodes.
        start: The name of this start.
        rehearses: Also run the step on shapes alone.

    Raises:
        AppError: A node doesn't come.
    """
    shared = SharedFolders(job, start)
    if job.node_rank == 0 and job.num_nodes > 1:
        shared.write()
    try:
        link.exchange("written", True)
        own = {"seconds": time.time()} | _report(job, find_gpus(), shared, rehearses=rehearses)
        reports: list[dict[str, Any]] = link.exchange("report", own)
    finally:
        if job.node_rank == 0:
            shared.remove()
    found = Preflight()
    for node, report in enumerate(reports):
        name = f"node {node} ({visible(str(report['host']), 60)})"
        found.lines += [f"{name}: {visible(str(line))}" for line in report["lines"]]
        found.problems += [f"{name}: {problem}" for problem in report["problems"]]
    differences = compare_nodes(reports)
    found.problems += differences
    # Nodes with other settings may expect another number of ranks.
    if job.num_ranks > 1 and not differences and all(report["has_devices"] for report in reports):
        findings = [finding for part in link.exchange("trial", run_trial(job, link)) for finding in part]
        line, problems = describe_findings(job, findings)
        found.lines += [line] if line else []
        found.problems += problems
    return found


def compare_nodes(reports: list[dict[str, Any]]) -> list[str]:
    """Lines on what differs between nodes but mustn't: settings, versions, clocks.

    Args:
        reports: What each node told: `host`, `seconds` of its clock at one time, `versions`, `settings`.
    """
    first, problems = reports[0], list[str]()
    for node, report in enumerate(reports[1:], start=1):
        name = f"node {node} ({visible(str(report['host']), 60)})"
        ahead = float(report["seconds"]) - float(first["seconds"])
        if abs(ahead) > MOST_CLOCK_SECONDS:
            problems.append(
                f"{name}: its clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} that of node 0, "
                f"expected at most {MOST_CLOCK_SECONDS:g} s; synchronise them (`timedatectl` shows whether they are)"
            )
        for kind, cure in (("versions", "install the same on all nodes"), ("settings", "start the same on all nodes")):
            here, there = report[kind], first[kind]
            name_of = next((key for key in sorted({*here, *there}) if here.get(key) != there.get(key)), None)
            if name_of is not None:
                values = [visible(str(found.get(name_of)), 60) for found in (here, there)]
                problems.append(f"{name}: {visible(name_of, 60)} is {values[0]}, and {values[1]} on node 0; {cure}")
    return problems


def _report(job: LaunchJob, gpus: GpuReport, shared: SharedFolders, *, rehearses: bool) -> dict[str, Any]:
    """What this node tells the others."""
    problems = check_node(job, gpus)
    lines = [_describe(job, gpus)]
    if job.node_rank == 0:
        for look in (plan_job, rehearse_job) if rehearses else (plan_job,):
            try:
                line, more = look(job, gpus)
            except (AppUsageError, EngineError, TrainerError) as error:
                line, more = "", [str(error)]
            lines += [line] if line else []
            problems += more
    else:
        problems += shared.find_unshared()
    return {
        "host": socket.gethostname(),
        "has_devices": job.device == "cpu" or len(gpus.gpus) >= job.processes,
        "lines": lines,
        "problems": problems,
        "versions": {name: _version(name) for name in COMPARED_PACKAGES},
        "settings": dict(_flatten({"device": job.device, "gpus": job.processes, **job.config.model_dump(mode="json")})),
    }


def _describe(job: LaunchJob, gpus: GpuReport) -> str:
    """What this node has, in a line."""
    parts = [f"ranks on the CPU: {job.processes}" if job.device == "cpu" else "no GPU"]
    if job.device == "cuda" and gpus.gpus:
        first = gpus.gpus[0]
        parts = [f"{len(gpus.gpus)} × {first.name} of {first.memory_bytes / GB:.0f} GB, driver {first.driver}"]
    parts.append(f"{free_memory_bytes() / GB:.0f} GB of memory free")
    parts.append(f"{free_disk_bytes(job.folder) / GB:.0f} GB free for {job.folder}")
    return "; ".join(parts)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flatten(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
