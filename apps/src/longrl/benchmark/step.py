"""`longrl benchmark step`: whole steps at several numbers of frames, in every mode, one beside the other.

All modes of one number of frames take turns, so that whatever else the machine does hits them alike, and medians are
compared. Everything a figure has to be read with is written beside it.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from longrl.benchmark.measurement import PeakMemory, describe_machine
from longrl.benchmark.modes import MODES, STAGES, Mode, rotations, run_step
from longrl.benchmark.plot import draw_steps
from longrl.benchmark.predictions import describe_errors, measure_accelerator, predict_rows
from longrl.benchmark.ranks import is_first, open_ranks, same_text, slowest
from longrl.benchmark.workload import QUESTION, HeldVideo, Models, Workload, build_tiny, load_models
from longrl.errors import AppUsageError
from longrl_trainer.durable import write_json
from mrsp_engine.planner.hardware import Accelerator
from mrsp_engine.process_groups import SequenceGroup

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """What is measured.

    Attributes:
        frames: Numbers of frames.
        modes: Modes to compare.
        group_size: Responses G.
        response_tokens: Tokens R of each.
        repeats: Steps per mode and number of frames.
        model: Folder of a checkpoint; the tiny one if None.
        device: `auto`, `cpu` or `cuda`.
        dtype: Type of the weights.
        checkpointing: Recompute activations in backward.
    """

    frames: tuple[int, ...]
    modes: tuple[Mode, ...]
    group_size: int
    response_tokens: int
    repeats: int
    model: Path | None
    device: str
    dtype: str
    checkpointing: bool

    def __post_init__(self) -> None:
        for name in ("group_size", "response_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise AppUsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 1 or more")
        if not self.frames or min(self.frames) < 1:
            raise AppUsageError(f"--frames {' '.join(map(str, self.frames))}: expected numbers from 1 up")
        if not self.modes or not set(self.modes) <= set(MODES):
            raise AppUsageError(f"--modes {' '.join(self.modes)}: expected some of {', '.join(MODES)}")
        if self.dtype not in ("float32", "bfloat16"):
            raise AppUsageError(f"--dtype {self.dtype}: expected float32 or bfloat16")


def measure_steps(settings: StepSettings, output: Path) -> None:
    """Measure and write `output`, with a drawing of the same name beside it; under torchrun on all its ranks."""
    if output.suffix != ".json":
        raise AppUsageError(f"--output {output}: expected a name that ends in .json")
    output.parent.mkdir(parents=True, exist_ok=True)
    with open_ranks(settings.device) as (device, group):
        scratch = Path(same_text(_scratch(output) if is_first(group) else "", group))
        try:
            folder = settings.model or scratch / "model"
            rows, accelerator = _measure(settings, device, group, folder, scratch)
            if not is_first(group):
                return
            predictions = predict_rows(rows, folder, accelerator, is_checkpointed=settings.checkpointing)
            ratios = compare_modes(rows)
            results: dict[str, Any] = {
                "machine": describe_machine(device) | {"ranks": rows[0]["ranks"], "dtype": settings.dtype},
                "model": "tiny" if settings.model is None else settings.model.name,
                "rollout_engine": "TransformersRolloutEngine",
                "settings": {"repeats": settings.repeats, "checkpointing": settings.checkpointing},
                "rows": rows,
                "ratios": ratios,
                "rates": asdict(accelerator),
                "predictions": predictions,
            }
            write_json(output, results)
            drawing = output.with_suffix(".svg")
            drawing.write_text(draw_steps(rows), encoding="utf-8")
            print("\n".join([*describe_rows(rows), *describe_ratios(ratios), *describe_errors(predictions)]))
            print(output, drawing, sep="\n")
        finally:
            if is_first(group):
                shutil.rmtree(scratch, ignore_errors=True)


def compare_modes(rows: Iterable[Row]) -> list[Row]:
    """How many times faster `shared` is than each other mode: the whole step, and its update."""
    by_frames: dict[int, dict[str, Row]] = {}
    for row in rows:
        by_frames.setdefault(row["frames"], {})[row["mode"]] = row
    return [
        {
            "frames": frames,
            "prompt_tokens": row["prompt_tokens"],
            "slower": mode,
            "step": row["seconds"] / of_mode["shared"]["seconds"],
            "update": row["seconds_by_stage"]["update"] / of_mode["shared"]["seconds_by_stage"]["update"],
        }
        for frames, of_mode in by_frames.items()
        if "shared" in of_mode
        for mode, row in of_mode.items()
        if mode != "shared"
    ]


def describe_rows(rows: Sequence[Row]) -> list[str]:
    """The rows as a table for people."""
    lines = [f"{'frames':>7} {'prompt':>8} {'mode':>10} {'step':>9}" + "".join(f"{s:>11}" for s in STAGES) + "   peak"]
    for row in rows:
        stages = "".join(f"{row['seconds_by_stage'][stage]:>10.2f}s" for stage in STAGES)
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f} MB"
        lines.append(
            f"{row['frames']:>7} {row['prompt_tokens']:>8} {row['mode']:>10} {row['seconds']:>8.2f}s{stages}   {peak}"
        )
    return lines


def describe_ratios(ratios: Sequence[Row]) -> list[str]:
    """The comparison as sentences."""
    return [
        f"{ratio['frames']} frames: shared is {ratio['step']:.2f}× as fast as {ratio['slower']} "
        f"(update {ratio['update']:.2f}×)"
        for ratio in ratios
    ]


def _scratch(output: Path) -> str:
    return tempfile.mkdtemp(prefix=".benchmark-", dir=output.parent)


def _measure(
    settings: StepSettings, device: torch.device, group: SequenceGroup | None, folder: Path, scratch: Path
) -> tuple[list[Row], Accelerator]:
    if settings.model is None and is_first(group):
        build_tiny(folder)
    if group is not None:
        dist.barrier(group=group.process_group)
    dtype = torch.float32 if settings.dtype == "float32" else torch.bfloat16
    models = load_models(folder, scratch, dtype=dtype, device=device, checkpointing=settings.checkpointing)
    rows: list[Row] = []
    for number, frames in enumerate(sorted(settings.frames)):
        video = HeldVideo(frames)
        work = Workload(
            models=models,
            video=video,
            plan=models.encoder.plan(video, range(frames)),
            group=group,
            group_size=settings.group_size,
            response_tokens=settings.response_tokens,
            scratch=scratch,
        )
        if not number:
            for mode in settings.modes:
                run_step(work, mode)  # warms up
        rows += _measure_frames(work, settings)
    return rows, measure_accelerator(models.policy, group)


def _measure_frames(work: Workload, settings: StepSettings) -> list[Row]:
    models: Models = work.models
    device = models.policy.device
    seconds: Mapping[Mode, list[list[float]]] = {mode: [] for mode in settings.modes}
    peaks: Mapping[Mode, list[int | None]] = {mode: [] for mode in settings.modes}
    for repeat, mode in rotations(settings.modes, settings.repeats):
        if work.group is not None:
            dist.barrier(group=work.group.process_group)
        memory = PeakMemory(device)
        by_stage = run_step(work, mode)
        peak = memory.read()
        *of_stages, most, total = slowest(
            [*by_stage.values(), float(peak or 0), sum(by_stage.values())], work.group, device
        )
        seconds[mode].append([*of_stages, total])
        peaks[mode].append(None if peak is None else int(most))
        if is_first(work.group):
            print(f"{work.video.frame_count} frames, {mode}, step {repeat + 1}: {total:.2f} s", file=sys.stderr)
    prompt = models.policy.build_prompt(QUESTION, [work.plan.reference])
    rows: list[Row] = []
    for mode in settings.modes:
        *of_stages, totals = zip(*seconds[mode], strict=True)
        rows.append(
            {
                "mode": mode,
                "frames": work.video.frame_count,
                "prompt_tokens": prompt.length,
                "response_tokens": work.response_tokens,
                "group_size": work.group_size,
                "ranks": work.num_ranks,
                "seconds": median(totals),
                "seconds_by_stage": dict(zip(STAGES, map(median, of_stages), strict=True)),
                "peak_bytes": max((peak for peak in peaks[mode] if peak is not None), default=None),
                "spread": (max(totals) - min(totals)) / median(totals),
                "seconds_of_repeats": list(totals),
            }
        )
    return rows
