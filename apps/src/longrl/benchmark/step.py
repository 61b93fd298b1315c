"""`longrl benchmark step`: whole steps at several numbers of frames, in every mode, side by side.

All modes of one number of frames take turns, so that other load on the machine affects them equally, and medians are
compared. The context of the figures is written with them. Long steps are repeated less often if they would take too
long.
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
from longrl.benchmark.modes import MODES, rotated, run_step
from longrl.benchmark.plot import draw_steps
from longrl.benchmark.predictions import describe_errors, measure_accelerator, predict_rows
from longrl.benchmark.ranks import is_first, open_ranks, same_text, slowest
from longrl.benchmark.workload import QUESTION, HeldVideo, Workload, build_measured, load_models
from longrl.errors import AppUsageError
from longrl_trainer.durable import write_json
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.planner.costs import STAGES, Mode
from mrsp_engine.planner.hardware import Accelerator

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """What to measure.

    Attributes:
        frames: Numbers of frames.
        modes: Modes to compare.
        group_size: Responses G.
        response_tokens: Tokens R of each.
        repeats: Steps per mode and number of frames.
        most_minutes: Time limit of all steps together: no repeat after the first is started that would exceed it.
        model: Folder of a checkpoint; a tiny one if None.
        family: Family of the tiny one; Qwen2.5-VL if None.
        device: `auto`, `cpu` or `cuda`.
        dtype: Type of the weights.
        checkpointing: Recompute activations in the backward pass.
    """

    frames: tuple[int, ...]
    modes: tuple[Mode, ...]
    group_size: int
    response_tokens: int
    repeats: int
    most_minutes: float
    model: Path | None
    family: str | None
    device: str
    dtype: str
    checkpointing: bool

    def __post_init__(self) -> None:
        for name in ("group_size", "response_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise AppUsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 1 or more")
        if not self.most_minutes >= 0:
            raise AppUsageError(f"--most-minutes {self.most_minutes}: expected 0 or more")
        if not self.frames or min(self.frames) < 1:
            raise AppUsageError(f"--frames {' '.join(map(str, self.frames))}: expected numbers from 1 up")
        if not self.modes or not set(self.modes) <= set(MODES):
            raise AppUsageError(f"--modes {' '.join(self.modes)}: expected some of {', '.join(MODES)}")
        if self.model is not None and self.family is not None:
            raise AppUsageError(f"--family {self.family}: chooses the tiny model; leave it out, or --model")
        if self.dtype not in ("float32", "bfloat16"):
            raise AppUsageError(f"--dtype {self.dtype}: expected float32 or bfloat16")


def measure_steps(settings: StepSettings, output: Path) -> None:
    """Measure and write `output`, and a drawing of the same name; under torchrun on all its ranks."""
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
                "model": _name_model(settings),
                "rollout_engine": "TransformersRolloutEngine",
                "settings": {
                    "repeats": settings.repeats,
                    "most_minutes": settings.most_minutes,
                    "checkpointing": settings.checkpointing,
                },
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
    """How many times as fast as each other mode `shared` is: the whole step, and its update."""
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
    """The rows as a human-readable table."""
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


def _name_model(settings: StepSettings) -> str:
    return f"tiny {settings.family}" if settings.family else "tiny" if settings.model is None else settings.model.name


def _scratch(output: Path) -> str:
    return tempfile.mkdtemp(prefix=".benchmark-", dir=output.parent)


def _measure(
    settings: StepSettings, device: torch.device, group: SequenceGroup | None, folder: Path, scratch: Path
) -> tuple[list[Row], Accelerator]:
    if settings.model is None and is_first(group):
        build_measured(folder, settings.family)
    if group is not None:
        dist.barrier(group=group.process_group)
    dtype = torch.float32 if settings.dtype == "float32" else torch.bfloat16
    models = load_models(folder, scratch, dtype=dtype, device=device, checkpointing=settings.checkpointing)
    rows: list[Row] = []
    seconds_left = 60 * settings.most_minutes
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
        of_frames = _measure_frames(work, settings, seconds_left)
        seconds_left -= sum(sum(row["seconds_of_repeats"]) for row in of_frames)
        rows += of_frames
    return rows, measure_accelerator(models.policy, group)


def _measure_frames(work: Workload, settings: StepSettings, seconds_left: float) -> list[Row]:
    seconds: Mapping[Mode, list[list[float]]] = {mode: [] for mode in settings.modes}
    peaks: Mapping[Mode, list[int | None]] = {mode: [] for mode in settings.modes}
    rounds: list[float] = []  # seconds of all modes together, the same on every rank
    for repeat in range(settings.repeats):
        if rounds and sum(rounds) + max(rounds) > seconds_left:
            _tell(work, f"no step {repeat + 1}, which would take longer than --most-minutes {settings.most_minutes:g}")
            break
        rounds.append(0.0)
        for mode in rotated(settings.modes, repeat):
            of_step, peak = _measure_step(work, mode)
            seconds[mode].append(of_step)
            peaks[mode].append(peak)
            rounds[-1] += of_step[-1]
            _tell(work, f"{mode}, step {repeat + 1}: {of_step[-1]:.2f} s")
    prompt = work.models.policy.build_prompt(QUESTION, [work.plan.reference])
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


def _measure_step(work: Workload, mode: Mode) -> tuple[list[float], int | None]:
    """Seconds of each stage and of the step, and peak bytes: the maximum of each over the ranks."""
    if work.group is not None:
        dist.barrier(group=work.group.process_group)
    device = work.models.policy.device
    memory = PeakMemory(device)
    by_stage = run_step(work, mode)
    peak = memory.read()
    *seconds, most = slowest([*by_stage.values(), sum(by_stage.values()), float(peak or 0)], work.group, device)
    return seconds, None if peak is None else int(most)


def _tell(work: Workload, what: str) -> None:
    if is_first(work.group):
        print(f"{work.video.frame_count} frames, {what}", file=sys.stderr)
