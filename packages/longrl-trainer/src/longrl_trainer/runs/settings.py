"""What a run was asked for: `settings.json`, and whether what is asked now is the same run.

    stage, settings, inputs    what shapes the result: by value, and files by the digest of what lay there
    places                     where it lay; it may have moved
    changes                    what became other later, each with the number of steps that were done before

Settings that shape no result may change, and the length of a run too (`config.effects`); the file holds those that
apply now. With anything else it is another run, and refused: a run must not be half one thing and half another.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longrl_trainer.config.effects import Difference, Effect, find_differences, named_settings
from longrl_trainer.config.recipes import first_difference
from longrl_trainer.config.sections import DataSection, ModelSection, records_path
from longrl_trainer.config.stages import TrainingConfig
from longrl_trainer.durable import write_json
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.runs.digests import digest_of, digest_of_uppermost_files

SETTINGS_NAME = "settings.json"


def describe_run(stage: str, config: TrainingConfig, *, model: ModelSection, data: DataSection) -> dict[str, Any]:
    """Everything that a run was asked for, where its inputs were found, and the digest of what lay there."""
    inputs = {
        "model": digest_of(model.folder, "`model.folder`", outside=(config.output, model.store, data.dataset)),
        "records": digest_of(records_path(data), "`data.dataset`"),
    }
    places = {"model": str(model.folder), "store": str(model.store), "dataset": str(data.dataset)}
    return {"stage": stage, "settings": named_settings(config), "inputs": inputs, "places": places, "changes": []}


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What an output folder was used for; None when it holds no run."""
    path = folder / SETTINGS_NAME
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError) as error:
        raise TrainerUsageError(f"{path} is not the settings of a run: {error}") from error


def write_settings(folder: Path, described: dict[str, Any]) -> None:
    """Save what the run is asked for."""
    write_json(folder / SETTINGS_NAME, described)


def with_whole_model(folder: Path, saved: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that knew its model's uppermost files alone, now with all that shapes the model."""
    recorded, current = saved.get("inputs"), described["inputs"]
    if not isinstance(recorded, dict) or recorded.get("model") == current["model"]:
        return saved
    if recorded.get("model") != digest_of_uppermost_files(Path(described["places"]["model"])):
        return saved
    completed = saved | {"inputs": recorded | {"model": current["model"]}}
    write_settings(folder, completed)
    return completed


def find_changes(
    folder: Path, saved: dict[str, Any], described: dict[str, Any], config: TrainingConfig
) -> list[Difference]:
    """What the run in a folder was asked for otherwise than now, as far as it may be.

    Raises:
        TrainerUsageError: It is another run.
    """
    difference = first_difference({"stage": saved.get("stage")}, {"stage": described["stage"]})
    changes: list[Difference] = []
    if difference is None:
        changes = list(find_differences(saved.get("settings", {}), config, "settings."))
        shaping = next((change for change in changes if change.effect is Effect.SHAPES), None)
        if shaping is not None:
            difference = first_difference({shaping.setting: shaping.was}, {shaping.setting: shaping.now})
    if difference is None:
        difference = first_difference({"inputs": saved.get("inputs")}, {"inputs": described["inputs"]})
    if difference is not None:
        raise TrainerUsageError(
            f"{folder} holds another run: {difference}; choose another `output`, or remove the folder to start over"
        )
    return changes


def log_changes(
    folder: Path, saved: dict[str, Any], described: dict[str, Any], changes: Sequence[Difference], *, after_step: int
) -> None:
    """Save what is asked for now, and that it was otherwise in the steps before."""
    lines = [
        {
            "after_step": after_step,
            "setting": change.setting.removeprefix("settings."),
            "was": change.was,
            "now": change.now,
        }
        for change in changes
    ]
    history = [*saved.get("changes", []), *lines]
    write_settings(folder, {**saved, "settings": described["settings"], "changes": history})
