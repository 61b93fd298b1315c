"""The planner's predictions for the measured steps, from the rates of the same machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from longrl.benchmark.measurement import measure_matrix_rate, measure_packed_attention, time_interleaved
from longrl.benchmark.workload import FRAME_SIZE
from mrsp_engine.attention.rates import measure_rates
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import GroupLengths, PackedLayout
from mrsp_engine.planner.checkpoints import read_shape
from mrsp_engine.planner.costs import STAGES, Sizes, predict_stages
from mrsp_engine.planner.hardware import HARDWARE, Accelerator

ROW_TOKENS = 2048
COPIED_BYTES = 256 << 20


def measure_accelerator(policy: Policy, group: SequenceGroup | None) -> Accelerator:
    """The rates of this machine for a model's sizes; ranks measure at the same time and get the slowest link.

    The linear rate is that of multiplying a row with a square matrix of the model's width, the attention rate that of a
    causal row of its heads, forward.
    """
    device, dtype = policy.device, policy.dtype
    matrix_rate = measure_matrix_rate(device, dtype)
    width = int(policy.language_model_head.get_parameter("weight").shape[1])
    row, weight = (
        torch.randn(ROW_TOKENS, width, device=device).to(dtype),
        torch.randn(width, 4 * width).to(device, dtype),
    )
    block = torch.ones(COPIED_BYTES // 4, device=device)
    seconds = time_interleaved({"linear": lambda: row @ weight, "copy": block.clone}, repeats=5, device=device)
    layout = PackedLayout((GroupLengths(ROW_TOKENS, ()),))
    attention = measure_packed_attention(layout, policy.attention_heads, device=device, dtype=dtype, repeats=3)
    linear_rate = 2 * ROW_TOKENS * width * 4 * width / min(seconds["linear"])
    link = None if group is None else measure_rates(group, device, dtype)
    nominal = HARDWARE["CPU"]
    return Accelerator(
        name="this machine",
        matrix_rate=matrix_rate,
        memory_bytes=0.0,
        memory_bandwidth=2 * COPIED_BYTES / min(seconds["copy"]),
        link_bandwidth=link.bytes_per_second if link else nominal.link_bandwidth,
        message_seconds=link.message_seconds if link else nominal.message_seconds,
        linear_efficiency=linear_rate / matrix_rate,
        attention_efficiency=attention.forward_rate / matrix_rate,
    )


def predict_rows(
    rows: Sequence[dict[str, Any]], model: Path, accelerator: Accelerator, *, is_checkpointed: bool
) -> list[dict[str, Any]]:
    """The seconds that the planner predicts for every row, and their error against the measurement."""
    shape = read_shape(model)
    predictions: list[dict[str, Any]] = []
    for row in rows:
        sizes = Sizes(
            num_frames=row["frames"],
            frame_pixels=FRAME_SIZE * FRAME_SIZE,
            group_size=row["group_size"],
            response_tokens=row["response_tokens"],
            prompt_tokens=row["prompt_tokens"],
        )
        stages = predict_stages(
            shape,
            sizes,
            accelerator,
            num_ranks=row["ranks"],
            mode=row["mode"],
            is_checkpointed=is_checkpointed,
        )
        total = sum(stages.values())
        predictions.append(
            {
                "mode": row["mode"],
                "frames": row["frames"],
                "seconds": total,
                "seconds_by_stage": stages,
                "error": total / row["seconds"] - 1,
                "error_by_stage": {stage: stages[stage] / row["seconds_by_stage"][stage] - 1 for stage in STAGES},
            }
        )
    return predictions


def describe_errors(predictions: Sequence[dict[str, Any]]) -> list[str]:
    """The planner's errors, one line per row."""
    return [
        f"{found['frames']} frames, {found['mode']}: planned {found['seconds']:.2f} s, off by {found['error']:+.0%} "
        f"(update {found['error_by_stage']['update']:+.0%})"
        for found in predictions
    ]
