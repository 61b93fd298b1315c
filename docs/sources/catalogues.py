"""What recipes name: rewards, objectives, algorithms and benchmarks, from the registries where programs find them."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import entry_points
from typing import Any

from settings import settings_table

from longrl_omni.generation.config.algorithms import ALGORITHMS, AlgorithmParts
from longrl_omni.generation.rewards.base import kinds_judged_by, name_kind
from longrl_trainer.config.objectives import OBJECTIVES, ObjectiveParts
from longvideo_reason_data.benchmarks.layouts import LAYOUTS, SeriesRule

__all__ = ["list_algorithms", "list_benchmarks", "list_objectives", "list_rewards"]

_SERIES = {
    SeriesRule.NONE: "",
    SeriesRule.NONLINEAR: "non-linear score of groups",
    SeriesRule.ALL_RIGHT: "right only if all tries are",
}


def list_rewards(group: str) -> str:
    """Every reward behind the entry points of a group: what it gives, for which questions, and its settings."""
    parts: list[str] = []
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        reward = entry.load()
        types = getattr(reward, "question_types", None)
        asked = "all questions" if types is None else f"questions of type {', '.join(f'`{each}`' for each in types)}"
        if group != "longrl_trainer.rewards":
            asked = " and ".join(map(name_kind, kinds_judged_by(reward)))
        logged = " It is only logged: its weight must be 0." if getattr(reward, "is_only_logged", False) else ""
        parts.append(f"## `{entry.name}` {{ #{entry.name} }}")
        parts.append(f"For {asked}. {inspect.getdoc(reward)}{logged}")
        if hasattr(reward, "Settings"):
            place = f"rewards.{entry.name}"
            parts += [f"In a table `[{place}]`, beside its `weight`:", settings_table(reward.Settings, place)]
    return "\n\n".join(parts)


def list_objectives() -> str:
    """What every `objective` sets."""
    return _list_parts(
        "objective", {name: asdict(parts) for name, parts in OBJECTIVES.items()}, asdict(ObjectiveParts())
    )


def list_algorithms() -> str:
    """What every `algorithm` sets."""
    return _list_parts(
        "algorithm", {name: asdict(parts) for name, parts in ALGORITHMS.items()}, asdict(AlgorithmParts())
    )


def list_benchmarks() -> str:
    """Every benchmark that `longrl evaluate --benchmark` reads."""
    rows = ["| name | benchmark | accuracy is reported by | subtitles | scored together |", "|---|---|---|---|---|"]
    for name, layout in LAYOUTS.items():
        subtitles = "yes" if layout.subtitle else "no"
        scored = _SERIES[layout.series_rule] or (f"mean over {layout.mean_of}" if layout.mean_of else "–")
        rows.append(f"| `{name}` | {layout.title} | {', '.join(layout.groups) or '–'} | {subtitles} | {scored} |")
    return "\n".join(rows)


def _list_parts(column: str, listed: Mapping[str, dict[str, Any]], usual: dict[str, Any]) -> str:
    """A table of the parts that each sets otherwise than the first one."""
    common = ", ".join(f"`{name} = {json.dumps(value)}`" for name, value in usual.items())
    rows = [f"| `{column}` | sets |", "|---|---|"]
    for name, parts in listed.items():
        changed = [f"`{part} = {json.dumps(value)}`" for part, value in parts.items() if value != usual[part]]
        rows.append(f"| `{name}` | {', '.join(changed) or 'nothing else'} |")
    return "\n".join([f"Unless one of them says otherwise: {common}.", "", *rows])
