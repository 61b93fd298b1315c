"""What every shipped recipe of `longrl sft` and `longrl grpo` needs: memory as rehearsed, seconds as predicted.

    python benchmarks/recipes.py --output benchmarks/results/recipes.json

Each is rehearsed at full depth, as every rank of the machine that its head names (`longrl rehearse`), and its step is
predicted for the GPU that is named here (`longrl plan`), with the recipe's own way to save memory; no GPU is needed. At
the end the rows are printed as a table. Given the names of some rows, it changes those of the file and keeps the
others; with `--predict` it keeps what was rehearsed. The run fails if a recipe has no entry here, or doesn't fit.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from longrl.launch.preflight.verdict import FPS, HEIGHT, IMITATED_TOKENS, SECONDS, WIDTH, plan_recipe
from longrl.rehearsal.request import RehearsedStage, RehearsedVideos, StepLimits, read_stages
from longrl.rehearsal.run import rehearse
from longrl.stages import RECIPES_FOLDER, command_of, read_tables
from longrl_trainer.config.stages import GrpoConfig, SftConfig
from mrsp_engine.planner.checkpoints import find_shape
from mrsp_engine.planner.hardware import find_accelerator
from mrsp_engine.planner.memory import Strategy, memory_by_part
from mrsp_engine.planner.search import RESIDENT_PARTS
from mrsp_engine.rehearsal.checkpoints import write_without_weights

GB = 1e9
RESULTS = Path(__file__).parent / "results" / "recipes.json"
PACKAGES = ("torch", "transformers")
SAMPLING_STAGES = ("rollout",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One rehearsal of a recipe.

    Attributes:
        recipe: The recipe's name, without ".toml".
        model: The published model.
        gpus: GPUs of the machine.
        memory_gb: Memory of one, in 10^9 bytes.
        gpu: The GPU whose speed the prediction takes.
        num_frames: Frames of a video, instead of the recipe's.
        pools: Whether the model's configuration says that it pools frames, as that of LongVILA-R1-7B may.
    """

    recipe: str
    model: str
    gpus: int = 8
    memory_gb: int = 80
    gpu: str = "H100"
    num_frames: int | None = None
    pools: bool = False

    @property
    def name(self) -> str:
        """The key of its row."""
        return self.recipe if self.num_frames is None else f"{self.recipe} {self.num_frames}"


SEVEN, EIGHT = "Qwen2.5-VL-7B", "Qwen3-VL-8B"
TRIALS = (
    Trial(recipe="qwen2_5_vl_3b_sft", model="Qwen2.5-VL-3B", gpus=1),
    Trial(recipe="qwen2_5_vl_3b_grpo", model="Qwen2.5-VL-3B", gpus=1),
    Trial(recipe="qwen2_5_vl_3b_lora_sft", model="Qwen2.5-VL-3B", gpus=1, memory_gb=24, gpu="A100"),
    Trial(recipe="qwen2_5_vl_3b_lora_grpo", model="Qwen2.5-VL-3B", gpus=1, memory_gb=24, gpu="A100"),
    Trial(recipe="qwen2_5_vl_7b_lora_sft", model=SEVEN, gpus=1),
    Trial(recipe="qwen2_5_vl_7b_lora_grpo", model=SEVEN, gpus=1),
    Trial(recipe="qwen3_text_grpo", model="Qwen3-1.7B", gpus=1),
    Trial(recipe="qwen2_5_vl_7b_sft", model=SEVEN),
    Trial(recipe="qwen2_5_vl_7b_sft", model=SEVEN, num_frames=1024),
    Trial(recipe="qwen2_5_vl_7b_grpo", model=SEVEN),
    Trial(recipe="qwen2_5_vl_7b_grpo", model=SEVEN, num_frames=1024),
    Trial(recipe="qwen2_5_vl_7b_hour_grpo", model=SEVEN),
    Trial(recipe="qwen3_vl_8b_sft", model=EIGHT),
    Trial(recipe="qwen3_vl_8b_grpo", model=EIGHT),
    Trial(recipe="qwen3_5_2b_grpo", model="Qwen3.5-2B", gpus=1),
    Trial(recipe="nvila_8b_video_sft", model="NVILA-8B-Video"),
    Trial(recipe="nvila_8b_video_grpo", model="NVILA-8B-Video"),
    Trial(recipe="longvila_r1_7b_sft", model="LongVILA-R1-7B"),
    Trial(recipe="longvila_r1_7b_grpo", model="LongVILA-R1-7B"),
    Trial(recipe="longvila_r1_7b_8192_frames_grpo", model="LongVILA-R1-7B", pools=True),
    Trial(recipe="qwen2_5_omni_7b_grpo", model="Qwen2.5-Omni-7B"),
)


def run_trial(trial: Trial, *, rehearses: bool) -> dict[str, Any]:
    """Predict, and rehearse too if that is wanted.

    Raises:
        AppError: The recipe can't be rehearsed.
        EngineError: It can't be rehearsed, or the planner finds that it doesn't fit.
    """
    with tempfile.TemporaryDirectory(prefix="recipes-") as scratch:
        model = _pooling_model(trial.model, Path(scratch) / trial.model) if trial.pools else trial.model
        (stage,) = read_stages(RECIPES_FOLDER / f"{trial.recipe}.toml", model)
        stage = _with_frames(stage, trial.num_frames)
        return _predict(trial, stage.config, model) | (_rehearse(trial, stage) if rehearses else {})


def _predict(trial: Trial, config: SftConfig | GrpoConfig, model: str) -> dict[str, Any]:
    """The planner's memory and seconds, with the recipe's own way to save memory."""
    strategy = Strategy(
        is_checkpointed=config.activation_checkpointing != "none",
        sharding="none" if trial.gpus == 1 else "everything",
    )
    plan = plan_recipe(
        config,
        model=model,
        hardware=find_accelerator(trial.gpu),
        num_devices=trial.gpus,
        memory_bytes=trial.memory_gb * GB,
        strategies=[strategy],
    )
    is_grpo = isinstance(config, GrpoConfig)
    shape, (_, row) = replace(find_shape(model), lora_rank=config.lora.rank or 0), plan.sizes.rows("shared")
    held = memory_by_part(
        shape,
        plan.sizes,
        row,
        rows_tokens=row.total,
        sequence_ranks=plan.sequence_ranks,
        all_ranks=trial.gpus,
        strategy=strategy,
        has_reference=is_grpo and config.kl_coefficient > 0,
    )
    while_sampling = sum(held[part] for part in (*RESIDENT_PARTS, "runtime"))
    while_sampling += 2 * shape.num_parameters + config.sampler.memory_bytes
    stages = {name: value for name, value in plan.seconds_by_stage.items() if is_grpo or name not in SAMPLING_STAGES}
    return {
        "model": trial.model,
        "gpus": trial.gpus,
        "gpu_memory_gb": trial.memory_gb,
        "num_frames": plan.sizes.num_frames,
        "prompt_tokens": plan.sizes.prompt_tokens,
        "predicted_gb": round(max(sum(held.values()), while_sampling if is_grpo else 0.0) / GB, 2),
        "predicted_for": trial.gpu,
        "predicted_seconds": round(sum(stages.values()), 1),
        "predicted_seconds_by_stage": {name: round(value, 2) for name, value in stages.items()},
    }


def _rehearse(trial: Trial, stage: RehearsedStage) -> dict[str, Any]:
    """What all ranks hold, at full depth."""
    has_length = stage.config.data.num_frames is None
    videos = RehearsedVideos(height=HEIGHT, width=WIDTH, seconds=SECONDS if has_length else None, fps=FPS)
    limits = StepLimits(num_layers=None, num_rows=None, response_tokens=IMITATED_TOKENS)
    started = time.perf_counter()
    found = rehearse(stage, num_ranks=trial.gpus, memory_bytes=trial.memory_gb * GB, videos=videos, limits=limits)
    values = found.as_json()
    highest = max(values["ranks"], key=lambda rank: rank["peak_bytes"])
    return {
        "peak_gb": round(found.peak_bytes / GB, 2),
        "peak_stage": highest["stage"],
        "peak_parts_gb": {name: round(num_bytes / GB, 2) for name, num_bytes in sorted(highest["parts"].items())},
        "planner_errors_of_the_update": {name: round(error, 3) for name, error in values["planned_errors"].items()},
        "same_order": values["same_order"],
        "step": values["step"],
        "rehearsal_seconds": round(time.perf_counter() - started),
    }


def _pooling_model(name: str, folder: Path) -> str:
    """A folder with the model's configuration, which pools frames."""
    write_without_weights(name, folder)
    path = folder / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"use_tsp_encoder": True}), encoding="utf-8"
    )
    return str(folder)


def _with_frames(stage: RehearsedStage, num_frames: int | None) -> RehearsedStage:
    if num_frames is None:
        return stage
    data = stage.config.data.model_copy(update={"num_frames": num_frames})
    return replace(stage, config=stage.config.model_copy(update={"data": data}))


def describe(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The rows as a table in Markdown."""
    lines = ["| recipe | frames | prompt tokens | GPUs | memory of each | a step |", "|---|---|---|---|---|---|"]
    for name, row in rows.items():
        frames = f"{row['num_frames']:,}" if row["num_frames"] else "–"
        lines.append(
            f"| `{name.split()[0]}` | {frames} | {row['prompt_tokens']:,} | {row['gpus']} × "
            f"{row['gpu_memory_gb']} GB | {_describe_memory(row)} | "
            f"{row['predicted_seconds']:.0f} s, {row['predicted_for']} |"
        )
    return lines


def _describe_memory(row: Mapping[str, Any]) -> str:
    if "peak_gb" in row:
        return f"{row['peak_gb']:.1f} GB, {row['peak_stage']}"
    return f"{row['predicted_gb']:.1f} GB, predicted only"


def find_unnamed() -> list[str]:
    """Recipes that train, and have no trial."""
    names = {trial.recipe for trial in TRIALS}
    return sorted(
        path.stem
        for path in RECIPES_FOLDER.glob("*.toml")
        if command_of(read_tables(path)) in ("sft", "grpo") and path.stem not in names
    )


def main(arguments: Sequence[str]) -> int:
    """Run the trials, and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="names of rows, such as 'qwen2_5_vl_7b_grpo 1024'; all by default")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the file of the results")
    parser.add_argument("--predict", action="store_true", help="rehearse nothing, which takes hours on a few cores")
    options = parser.parse_args(arguments)
    unnamed = find_unnamed()
    if unnamed:
        parser.error(f"no trial of {', '.join(unnamed)}; add one to TRIALS")
    chosen = [trial for trial in TRIALS if not options.rows or trial.name in options.rows]
    before = json.loads(options.output.read_text(encoding="utf-8"))["rows"] if options.output.is_file() else {}
    rows: dict[str, Any] = {trial.name: before[trial.name] for trial in TRIALS if trial.name in before}
    too_large: list[str] = []
    for trial in chosen:
        row = rows.get(trial.name, {}) | run_trial(trial, rehearses=not options.predict)
        rows[trial.name] = row
        if row.get("peak_gb", row["predicted_gb"]) > trial.memory_gb:
            too_large.append(trial.name)
        print(f"{trial.name}: {_describe_memory(row)}; {row['predicted_seconds']} s", flush=True)
        machine = {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in PACKAGES},
        }
        ordered = {one.name: rows[one.name] for one in TRIALS if one.name in rows}
        options.output.write_text(json.dumps({"machine": machine, "rows": ordered}, indent=1) + "\n", encoding="utf-8")
    print("\n".join(describe({one.name: rows[one.name] for one in TRIALS if one.name in rows})))
    if too_large:
        print(f"don't fit: {', '.join(too_large)}", file=sys.stderr)
    return 1 if too_large else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
