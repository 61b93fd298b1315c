"""The settings of a run: `settings.json`, and whether the current settings describe the same run.

    stage, settings, inputs    what affects the result: by value, and files by the digest of their contents
    places                     where those files were; they may have moved
    changes                    what was changed later, each with the number of steps done before

Settings that don't affect the result may change, and so may the length of a run and the learning rate of its further
steps (`config.effects`); the file has the current ones. Any other change makes it another run and is refused: one run
must not mix two configurations.
"""

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from longrl_files.folders import ForeignFolder
from longrl_files.messages import visible
from longrl_trainer.config.effects import Difference, Effect, find_differences, named_settings
from longrl_trainer.config.recipes import first_difference
from longrl_trainer.config.sections import DataSection, ModelSection, records_path
from longrl_trainer.config.stages import TrainingConfig
from longrl_trainer.durable import LINK_CURE, LOGS_NAME, LOOK_PREFIX, PARTIAL_MARK, write_json
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.runs.digests import digest_of, digest_of_uppermost_files
from longvideo_reason_data.ownership import OWNER_NAME, own_folder

_logger = logging.getLogger(__name__)

SETTINGS_NAME, SEEN_NAME = "settings.json", "seen_videos.json"
_WRITTEN_AT_THE_START = frozenset({SETTINGS_NAME, SEEN_NAME, "questions.json"})
_KINDS: Mapping[str, type] = {"stage": str, "settings": dict, "inputs": dict, "places": dict, "changes": list}


def describe_run(stage: str, config: TrainingConfig, *, model: ModelSection, data: DataSection) -> dict[str, Any]:
    """All settings of a run, where its inputs were found, and digests of their contents."""
    inputs = {
        "model": digest_of(model.folder, "`model.folder`", outside=(config.output, model.store, data.dataset)),
        "records": digest_of(records_path(data), "`data.dataset`"),
    }
    places = {"model": str(model.folder), "store": str(model.store), "dataset": str(data.dataset)}
    return {"stage": stage, "settings": named_settings(config), "inputs": inputs, "places": places, "changes": []}


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of the run in an output folder; None if it contains no run."""
    return read_object(folder, SETTINGS_NAME, _KINDS)


def read_object(folder: Path, name: str, kinds: Mapping[str, type] | None = None) -> dict[str, Any] | None:
    """Read a JSON object of a run; None if there is no such file.

    Args:
        folder: The run's folder.
        name: The file in it.
        kinds: What some of its values must be, where it has them.

    Raises:
        TrainerUsageError: It is no file, no JSON object, or says something of another kind.
    """
    files = ForeignFolder(folder, error=TrainerUsageError, link_cure=LINK_CURE)
    if not files.has(name):
        return None
    values = files.read_json(name)
    if not isinstance(values, dict):
        raise TrainerUsageError(f"{folder / name} was written by something else: expected a JSON object; remove it")
    named = cast(dict[str, Any], values)
    for key, kind in (kinds or {}).items():
        if not isinstance(named.get(key, kind()), kind):
            raise TrainerUsageError(
                f"{folder / name} was written by something else: {key} is {visible(repr(named[key]), 60)}; remove it"
            )
    return named


def write_settings(folder: Path, described: dict[str, Any]) -> None:
    """Save the settings of the run."""
    write_json(folder / SETTINGS_NAME, described)


@contextmanager
def own_run_folder(folder: Path) -> Generator[None]:
    """Own a folder within the block; one that was new is left without a run if the block fails before a step is done.

    So corrected settings may go to the same folder. Whatever is worth keeping, such as a judge's paid answers, keeps
    the settings too.

    Raises:
        DataError: Another process owns the folder.
    """
    with own_folder(folder):
        was_new = not (folder / SETTINGS_NAME).exists()
        try:
            yield
        except Exception:
            found = list_names(folder)
            if was_new and SETTINGS_NAME in found and found <= _WRITTEN_AT_THE_START:
                for name in found:
                    (folder / name).unlink()
            raise


def list_names(folder: Path) -> set[str]:
    """What a folder holds, but for unfinished files, the mark of its owner, and a launcher's logs and look."""
    names = {path.name for path in folder.iterdir()} - {OWNER_NAME, LOGS_NAME}
    return {name for name in names if PARTIAL_MARK not in name and not name.startswith(LOOK_PREFIX)}


def refuse_other_contents(folder: Path) -> None:
    """Refuse a folder of something else than a run.

    Raises:
        TrainerUsageError: It has other files, and no settings of a run.
    """
    names = list_names(folder)
    if names and SETTINGS_NAME not in names:
        raise TrainerUsageError(f"{folder} is not empty and contains no run of this trainer; choose another `output`")


def with_whole_model(folder: Path, saved: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    """The settings of an older run, whose model digest covered only top-level files, updated to cover all files."""
    recorded, current = saved.get("inputs"), described["inputs"]
    if not isinstance(recorded, dict) or recorded.get("model") == current["model"]:
        return saved
    if recorded.get("model") != digest_of_uppermost_files(Path(described["places"]["model"])):
        return saved
    completed = saved | {"inputs": recorded | {"model": current["model"]}}
    write_settings(folder, completed)
    return completed


def find_changes(folder: Path, saved: dict[str, Any], described: dict[str, Any], config: BaseModel) -> list[Difference]:
    """The permitted changes since the run in a folder was started.

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
            f"{folder} contains another run: {difference}; choose another `output`, or remove the folder to start over"
        )
    return changes


def refuse_following(folder: Path, changes: Sequence[Difference]) -> None:
    """Refuse what would change further steps of a finished run, which has none.

    Raises:
        TrainerUsageError: There is such a change.
    """
    for change in changes:
        if change.effect is Effect.FOLLOWING:
            raise TrainerUsageError(
                f"{folder} is finished: {change.setting} was {change.was} and is now {change.now}, which only further "
                "steps can follow; request more, or choose another `output`"
            )


def log_changes(
    folder: Path, saved: dict[str, Any], described: dict[str, Any], changes: Sequence[Difference], *, after_step: int
) -> None:
    """Save the current settings, and that they were different in the steps before."""
    for change in changes:
        if change.effect is Effect.FOLLOWING:
            name = change.setting.removeprefix("settings.")
            _logger.warning(
                "%s: from step %d on %s is %s (was %s)", folder, after_step + 1, name, change.now, change.was
            )
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
