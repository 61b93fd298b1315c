"""What a plan means for a recipe: its keys with their values, and how they are written in TOML.

`longrl plan` shows them, and `longrl init` writes recipes with them, so both say the same. Everything here comes from
the planner's arithmetic; the rates behind its seconds are those of data sheets.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrsp_engine.planner.hardware import Accelerator
    from mrsp_engine.planner.search import PlanRequest, StepPlan

__all__ = ["describe_rates", "planned_settings", "toml_lines"]

Value = bool | int | float | str
MEBIBYTE = 2**20
LEAST_SAMPLER_BYTES = 256 * MEBIBYTE


def planned_settings(request: "PlanRequest", plan: "StepPlan") -> dict[str, Value]:
    """The settings of a GRPO recipe, by dotted key, with which the step is as planned.

    Args:
        request: What was planned.
        plan: The plan for it.
    """
    strategy, split, budget = plan.strategy, plan.split, request.video.budget if request.video else None
    settings: dict[str, Value] = {
        "prompts_per_step": request.prompts_per_step,
        "group_size": request.group_size,
        "max_response_tokens": request.response_tokens,
    }
    if strategy.is_checkpointed:
        settings["activation_checkpointing"] = "offload" if strategy.are_activations_offloaded else "recompute"
    if request.num_frames:
        settings["data.num_frames"] = request.num_frames
    if budget is not None and budget.frame_pixels is not None:
        settings["data.frame_pixels"] = budget.frame_pixels
    if budget is not None and budget.video_tokens is not None:
        settings["data.video_tokens"] = budget.video_tokens
    if request.shape.lora_rank:
        settings |= {"lora.rank": request.shape.lora_rank, "lora.alpha": 2 * request.shape.lora_rank}
    if request.kl != "none":
        settings |= {"kl_coefficient": 0.001, "kl_place": request.kl}
    if plan.sequence_ranks > 1:
        settings |= {"parallel.sequence_ranks": plan.sequence_ranks, "parallel.head_ranks": split.head_ranks}
        if split.token_ranks > 1:
            settings["parallel.exchange"] = split.exchange
    if plan.groups_per_row > 1:
        row = plan.sizes.prompt_tokens + plan.sizes.group_size * plan.sizes.response_tokens
        settings["parallel.row_tokens"] = plan.groups_per_row * row
    settings |= _sharding(request, plan)
    settings["sampler.memory_bytes"] = _sampler_bytes(request, plan)
    if plan.tensor_ranks > 1:
        settings["sampler.tensor_ranks"] = plan.tensor_ranks
    return settings


def _sharding(request: "PlanRequest", plan: "StepPlan") -> dict[str, Value]:
    """How weights and optimizer are spread; a single process has nothing to spread."""
    strategy = plan.strategy
    if request.num_devices == 1 and not strategy.is_optimizer_offloaded:
        return {}
    if strategy.is_optimizer_offloaded:
        kind = "zero3" if strategy.sharding == "everything" else "zero2"
        return {"sharding.kind": kind, "sharding.offload": "optimizer"}
    return {"sharding.kind": {"none": "none", "optimizer": "zero2", "everything": "fsdp2"}[strategy.sharding]}


def _sampler_bytes(request: "PlanRequest", plan: "StepPlan") -> int:
    """Memory for the keys and values of all responses of a step, as far as training leaves it."""
    from mrsp_engine.planner.search import RESIDENT_PARTS, USABLE_SHARE

    of_group = plan.sampler_bytes["KV cache"]
    others = sum(plan.sampler_bytes.values()) - of_group
    resident = sum(plan.update_bytes[part] for part in RESIDENT_PARTS)
    left = request.memory_bytes * USABLE_SHARE - resident - others
    groups = -(-request.prompts_per_step * plan.tensor_ranks // request.num_devices)
    wanted = max(of_group, min(of_group * groups, left), LEAST_SAMPLER_BYTES)
    return -(-int(wanted) // MEBIBYTE) * MEBIBYTE


def describe_rates(hardware: "Accelerator") -> str:
    """One line on the rates that predicted seconds rest on."""
    return (
        f"assumed, not measured: {hardware.name} makes {hardware.matrix_rate:.3g} operations per second, of which "
        f"linear layers reach {hardware.linear_efficiency:.0%} and attention {hardware.attention_efficiency:.0%}, "
        f"reads {hardware.memory_bandwidth / 1e9:.0f} GB/s and sends {hardware.link_bandwidth / 1e9:.0f} GB/s; "
        "`longrl benchmark step` measures"
    )


def toml_lines(settings: Mapping[str, Value], remarks: Mapping[str, str] | None = None) -> list[str]:
    """Settings by dotted key as the lines of a TOML file: first those without a table, then a paragraph per table.

    Args:
        settings: The settings; tables are in the order of their first one.
        remarks: What stands behind some of them, by the same keys.
    """
    tables: dict[str, list[str]] = {"": []}
    for key, value in settings.items():
        table, _, name = key.rpartition(".")
        remark = (remarks or {}).get(key)
        line = f"{name} = {json.dumps(value, ensure_ascii=False)}"
        tables.setdefault(table, []).append(f"{line:<27} # {remark}" if remark else line)
    lines = tables.pop("")
    for table, of_table in tables.items():
        lines += ["", f"[{table}]", *of_table] if lines else [f"[{table}]", *of_table]
    return lines
