"""`longrl rehearse`: a recipe's step on many ranks, without a GPU."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from longrl.errors import AppError, AppUsageError
from longrl.launch.job import count_ranks
from longrl.sizes import read_bytes

if TYPE_CHECKING:
    from longrl.rehearsal.run import Findings

__all__ = ["rehearse"]

GB = 1e9


def rehearse(
    recipe: Annotated[Path, tyro.conf.Positional],
    gpus: int = 8,
    gpu_memory: str = "80GB",
    model: str | None = None,
    layers: int | None = None,
    rows: int | None = None,
    response_tokens: int = 512,
    video_height: int = 720,
    video_width: int = 1280,
    video_seconds: float | None = None,
    video_fps: float = 30.0,
    output: Path | None = None,
) -> None:
    """Run a step of a recipe as every rank of a node, on tensors without numbers, and report memory and traffic.

    Nothing is loaded or downloaded, and no GPU is needed: the training's own code runs at full size on shapes alone. A
    step whose ranks would wait for each other forever is refused, and one that doesn't fit ends with exit status 1. If
    training would drop questions of that length, a line says so.

    Example: longrl rehearse apps/recipes/qwen2_5_vl_3b_grpo.toml --gpus 8 --gpu-memory 80GB --model Qwen2.5-VL-3B

    Example: longrl rehearse my.toml --gpus 2 --layers 2 --output rehearsal.json

    Args:
        recipe: A recipe of `longrl sft`, `longrl grpo` or `longrl quickstart`.
        gpus: Number of GPUs, one rank each.
        gpu_memory: Memory of one, such as 80GB.
        model: Name of a public checkpoint, or a folder with a config.json, instead of the recipe's.
        layers: Keep only this many layers of the model, which is quicker; all by default.
        rows: Rows of the step; by default two for every rank, as further ones are like the second.
        response_tokens: Tokens of a response in SFT; in GRPO they are the recipe's.
        video_height: Height of the videos' frames in pixels.
        video_width: Width of the videos' frames in pixels.
        video_seconds: Length of a video; by default one second per frame.
        video_fps: Frames per second of the files.
        output: Also write the findings to this JSON file.
    """
    from longrl.rehearsal.request import RehearsedVideos, StepLimits, read_stages
    from longrl.rehearsal.run import rehearse as run

    if gpus < 1:
        raise AppUsageError(f"--gpus {gpus}: expected 1 or more")
    memory_bytes = read_bytes("--gpu-memory", gpu_memory)
    videos = RehearsedVideos(height=video_height, width=video_width, seconds=video_seconds, fps=video_fps)
    limits = StepLimits(num_layers=layers, num_rows=rows, response_tokens=response_tokens)
    found: list[Findings] = []
    for stage in read_stages(recipe, model):
        found.append(run(stage, num_ranks=gpus, memory_bytes=memory_bytes, videos=videos, limits=limits))
        print("\n".join(_describe(found[-1])))
    if output is not None:
        values = [findings.as_json() for findings in found]
        output.parent.mkdir(parents=True, exist_ok=True)
        content = values[0] if len(values) == 1 else {"stages": values}
        output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(output)
    for findings in found:
        if findings.peak_bytes > memory_bytes:
            _, peak = findings.peak_of(0)
            part = max(peak.parts, key=lambda name: peak.parts[name])
            raise AppError(
                f"{recipe}: {findings.stage.name} needs {findings.peak_bytes / GB:.1f} GB on a GPU of {gpu_memory}, "
                f"{peak.parts[part] / GB:.1f} GB of it {part}; {_CURES.get(part, _CURE)}"
            )


_CURE = "use more --gpus or more --gpu-memory, or a smaller model"
_CURES = {
    "activations": "use more --gpus, or lower data.num_frames, data.frame_pixels or group_size",
    "sampler": "lower sampler.memory_bytes, or use more --gpu-memory",
}


def _describe(findings: "Findings") -> list[str]:
    facts = findings.facts
    lines = [
        f"{findings.stage.name}: {count_ranks(len(findings.ranks))}, {facts.sequence_ranks} to a row, weights "
        f"{'sharded' if facts.is_sharded else 'whole on each'}; {facts.num_rows} "
        f"row{'' if facts.num_rows == 1 else 's'} of {facts.layout.total} tokens, {facts.prompt_tokens} of them prompt",
        *([] if facts.too_long is None else [f"training drops such a question: {facts.too_long}"]),
        "",
        f"{'rank':>4} {'peak':>9}  in stage: place, and its parts in GB",
    ]
    for rank in range(len(findings.ranks)):
        _, peak = findings.peak_of(rank)
        parts = sorted(peak.parts.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{name} {num_bytes / GB:.2f}" for name, num_bytes in parts if num_bytes >= GB / 200)
        lines.append(f"{rank:>4} {peak.num_bytes / GB:>6.2f} GB  {peak.place}: {listed}")
    lines += ["", f"{'stage':<12} {'peak':>9} {'operations':>12}   of rank 0"]
    first = findings.ranks[0]
    for name, peak in first.peaks.items():
        if name:
            operations = first.operations.get(name, 0.0)
            lines.append(f"{name:<12} {peak.num_bytes / GB:>6.2f} GB {operations:>12.3g}")
    lines += ["", f"{'exchange':<16} {'number':>8} {'GB':>9}   of the rank with the most; all ranks agree on the order"]
    for kind, figures in findings.collectives.items():
        lines.append(f"{kind:<16} {figures['count']:>8} {figures['bytes'] / GB:>9.3f}")
    lines += ["", *_describe_checkpoint(findings)]
    rehearsed = first.peaks["update"].parts
    lines += ["", f"{'update, rank 0':<18} {'rehearsed':>10} {'planned':>10} {'error':>7}"]
    for name in sorted({*rehearsed, *findings.planned}):
        planned = findings.planned.get(name, 0.0)
        error = f"{findings.errors[name]:+.0%}" if name in findings.errors else "-"
        lines.append(f"{name:<18} {rehearsed.get(name, 0) / GB:>7.2f} GB {planned / GB:>7.2f} GB {error:>7}")
    total, planned = sum(rehearsed.values()), sum(findings.planned.values())
    lines.append(f"{'together':<18} {total / GB:>7.2f} GB {planned / GB:>7.2f} GB {planned / total - 1:>+7.0%}")
    return lines


def _describe_checkpoint(findings: "Findings") -> list[str]:
    plans = [rank.result.checkpoint for rank in findings.ranks]
    exchanged = ", ".join(
        f"{figures['count']} {kind} of {figures['bytes'] / GB:.3f} GB"
        for kind, figures in findings.checkpoint_exchanges.items()
    )
    lines = [
        f"checkpoint of {sum(plan.num_bytes for plan in plans) / GB:.2f} GB, agreed on in {exchanged or 'no exchange'}"
    ]
    lines.append(f"{'rank':>4} {'written':>9} {'files':>6} {'copied to host memory':>22}")
    for rank, plan in enumerate(plans):
        written, copied = plan.num_bytes / GB, plan.copied_bytes / GB
        lines.append(f"{rank:>4} {written:>6.2f} GB {plan.num_files:>6} {copied:>19.2f} GB")
    return lines
