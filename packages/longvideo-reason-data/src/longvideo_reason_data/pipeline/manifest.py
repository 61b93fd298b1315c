"""What went into a build, what was dropped and why: at every stage kept + dropped = input."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from longrl_files.messages import visible
from longvideo_reason_data.generation.plan import STAGES, BuildPlan
from longvideo_reason_data.generation.settings import BuildSettings
from longvideo_reason_data.generation.shards import Dropped
from longvideo_reason_data.language_model.session import Spent
from longvideo_reason_data.language_model.settings import ClientSettings

_WITHOUT_EFFECT = {*ClientSettings.model_fields, "captioner_prompt_price", "captioner_completion_price", "subtitles"}


@dataclass(slots=True, kw_only=True)
class Accounts:
    """What went in and what was dropped, by stage; numbers only, however many items there are."""

    num_input: Counter[str] = field(default_factory=Counter[str])
    dropped: dict[str, Counter[str]] = field(default_factory=lambda: {stage: Counter[str]() for stage in STAGES})

    def drop(self, item: Dropped) -> None:
        """Count an item that is dropped."""
        self.dropped[item.stage][item.reason] += 1

    def num_kept(self, stage: str) -> int:
        """Count what is left after a stage."""
        return self.num_input[stage] - self.dropped[stage].total()


def make_manifest(
    plan: BuildPlan,
    accounts: Accounts,
    spent: Spent,
    *,
    input_digests: Mapping[str, str],
    tools: Mapping[str, str],
    subtitles: Mapping[str, Any],
    num_resumed: int,
    dataset_hash: str,
) -> dict[str, Any]:
    """Summarise a build.

    Args:
        plan: What the build was told.
        accounts: What went in and what was dropped.
        spent: The usage.
        input_digests: Digest of what went into each stage.
        tools: Names and versions of the tools that read and cut the videos.
        subtitles: How many videos have subtitles, and which can't be read.
        num_resumed: Number of answers not requested because their video was settled in an earlier run.
        dataset_hash: Digest of the records.

    Returns:
        The content of `manifest.json`.
    """
    dropped = sum((accounts.dropped[stage] for stage in STAGES), Counter[str]())
    return {
        "input": {stage: accounts.num_input[stage] for stage in STAGES},
        "kept": {stage: accounts.num_kept(stage) for stage in STAGES},
        "dropped": dict(sorted(dropped.items())),
        "stages": {
            stage: {
                "input_digest": input_digests[stage],
                "config_digest": plan.config_digests[stage],
                "input": accounts.num_input[stage],
                "kept": accounts.num_kept(stage),
                "dropped": dict(sorted(accounts.dropped[stage].items())),
            }
            for stage in STAGES
        },
        "calls": {
            "made": spent.num_made,
            "cached": spent.num_cached + num_resumed,
            "failed": dict(spent.num_failed),
        },
        "adaptations": {model: dict(counts) for model, counts in spent.adaptations.items()},
        "sampling": {model: dict(counts) for model, counts in spent.sampling.items()},
        "tokens": {"prompt": spent.prompt_tokens, "completion": spent.completion_tokens},
        "cost": spent.cost,
        "cost_unconfirmed": spent.unconfirmed_cost,
        "models": {"reasoner": plan.model, "captioner": plan.captioner},
        "tools": dict(tools),
        "subtitles": dict(subtitles),
        "settings": plan.settings.model_dump(mode="json"),
        "dataset_hash": dataset_hash,
    }


def find_other_setting(manifest: Mapping[str, Any], plan: BuildPlan) -> str | None:
    """Say in which setting a build differs from the one that a manifest is of; None if it makes the same of a video.

    Args:
        manifest: Of the dataset that is there.
        plan: The build to come.
    """
    settings = cast(dict[str, Any], manifest.get("settings") or {})
    now = plan.settings.model_dump(mode="json")
    models = {"reasoner": plan.model, "captioner": plan.captioner}
    pairs = [("models", manifest.get("models", models), models)]
    pairs += [
        (name, settings[name], now[name])
        for name in BuildSettings.model_fields
        if name in settings and name not in _WITHOUT_EFFECT
    ]
    for name, old, new in pairs:
        for difference in _differences(old, new, name):
            return difference
    stage = cast(dict[str, Any], manifest.get("stages") or {}).get("questions") or {}
    digest = stage.get("config_digest")
    if digest is not None and digest != plan.config_digests["questions"]:
        return "the prompts were others, or the version of this package"
    return None


def _differences(old: object, new: object, name: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        was, now = cast(dict[str, Any], old), cast(dict[str, Any], new)
        for key in was.keys() & now.keys():
            yield from _differences(was[key], now[key], f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name} was {visible(json.dumps(old), 40)} and is now {visible(json.dumps(new), 40)}"
