"""A run's folder: what it was asked to do, how far it is, and what came out.

    settings.json    the resolved settings, and digests of the questions and the model the run began with
    metrics.jsonl    one line per step (with rollouts.jsonl beside it in GRPO)
    questions.json   how many questions were kept, and which were dropped for what reason
    checkpoints/     the state to continue from
    model/           the final model
    result.json      written last: the run is finished

Started again with the same settings a run continues or, when finished, only reports its result; its inputs may have
moved, for they are compared by content. With other settings or inputs it is refused, naming the first difference: a
run must not be half one thing and half another. With several ranks the first one writes all this, and the others see
the same folder.
"""

import json
from pathlib import Path
from typing import Any

from longrl_trainer.config.recipes import first_difference
from longrl_trainer.config.sections import DataSection, ModelSection, records_path
from longrl_trainer.config.stages import TrainingConfig
from longrl_trainer.durable import PARTIAL_MARK, readable_write_errors, remove_partial, write_json
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.runs.digests import digest_of, digest_of_uppermost_files
from longrl_trainer.runs.journal import JsonLines
from longrl_trainer.training.checkpoints import Checkpoint, latest_checkpoint, restore_optimizer, save_checkpoint
from longrl_trainer.training.optimizer import Optimizer
from longrl_trainer.training.ranks import ALONE, Ranks
from mrsp_engine.families.base import Policy

SETTINGS_NAME, RESULT_NAME = "settings.json", "result.json"


class Run:
    """One stage's output folder, new or found again.

    Attributes:
        folder: The folder.
        checkpoint: Where it continues; None for the beginning.
        result: What the finished run reported; None while it is not finished.
        metrics: The journal of steps.
        rollouts: The journal of responses.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self._ranks = ranks
        self.folder = folder
        self.metrics = JsonLines(folder / "metrics.jsonl", is_writer=ranks.is_first)
        self.rollouts = JsonLines(folder / "rollouts.jsonl", is_writer=ranks.is_first)
        self.result, self.checkpoint = ranks.ask_first(self._find)

    @property
    def step(self) -> int:
        """Steps that need not be repeated."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def model_folder(self) -> Path:
        """Where the final model goes."""
        return self.folder / "model"

    def restore(self, optimizer: Optimizer) -> None:
        """Continue from the checkpoint, if there is one."""
        if self.checkpoint is not None:
            restore_optimizer(self.checkpoint, optimizer)

    def save_checkpoint(self, step: int, policy: Policy, optimizer: Optimizer) -> None:
        """Make `step` the step to continue from."""
        if self._ranks.is_first:
            save_checkpoint(self.folder / "checkpoints", step=step, policy=policy, optimizer=optimizer)

    def save_questions(self, report: dict[str, Any]) -> None:
        """Write which questions were kept and dropped."""
        if self._ranks.is_first:
            write_json(self.folder / "questions.json", report)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The journal of all steps so far; all ranks call this together."""
        return self._ranks.ask_first(self.metrics.read)

    def finish(self, policy: Policy, result: dict[str, Any]) -> None:
        """Save the final model, then the result; all ranks call this together."""
        if self._ranks.is_first:
            policy.save(self.model_folder)
            write_json(self.folder / RESULT_NAME, result)
        self._ranks.wait()

    def _find(self) -> tuple[dict[str, Any] | None, Checkpoint | None]:
        """What there is: the result, or else the checkpoint, the journals cut off behind it."""
        path = self.folder / RESULT_NAME
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8")), None
        checkpoint = latest_checkpoint(self.folder / "checkpoints")
        for journal in (self.metrics, self.rollouts):
            journal.keep_until(checkpoint.step if checkpoint else 0)
        return None, checkpoint


def open_run(
    stage: str, config: TrainingConfig, *, model: ModelSection, data: DataSection, ranks: Ranks = ALONE
) -> Run:
    """Open the run's folder, creating it or checking that it holds the same run; all ranks call this together."""
    ranks.ask_first(lambda: _prepare_folder(stage, config, model=model, data=data))
    return Run(config.output, ranks)


def _prepare_folder(stage: str, config: TrainingConfig, *, model: ModelSection, data: DataSection) -> None:
    folder = config.output
    settings = describe_run(stage, config, model=model, data=data)
    saved = read_settings(folder)
    if saved is not None:
        saved = _with_whole_model(folder, saved, settings, model.folder)
        difference = first_difference(saved | {"places": None}, settings | {"places": None})
        if difference is not None:
            raise TrainerUsageError(
                f"{folder} holds another run: {difference}; choose another `output`, or remove the folder to start over"
            )
    else:
        if folder.is_file() or (folder.is_dir() and any(PARTIAL_MARK not in path.name for path in folder.iterdir())):
            raise TrainerUsageError(f"{folder} is not empty and holds no run of this trainer; choose another `output`")
        with readable_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SETTINGS_NAME, settings)
    remove_partial(folder)


def _with_whole_model(
    folder: Path, saved: dict[str, Any], settings: dict[str, Any], model_folder: Path
) -> dict[str, Any]:
    """The settings of a run that knew its model's uppermost files alone, now with all that shapes the model."""
    recorded, current = saved.get("inputs"), settings["inputs"]
    if not isinstance(recorded, dict) or recorded.get("model") == current["model"]:
        return saved
    if recorded.get("model") != digest_of_uppermost_files(model_folder):
        return saved
    completed = saved | {"inputs": recorded | {"model": current["model"]}}
    write_json(folder / SETTINGS_NAME, completed)
    return completed


def describe_run(stage: str, config: TrainingConfig, *, model: ModelSection, data: DataSection) -> dict[str, Any]:
    """Everything that decides a run's result, where it was found, and the digest of what lay there.

    How ranks divide the work decides nothing, so a run may continue on another number of them.
    """
    settings = config.model_dump(
        mode="json", exclude={"output": True, "model": True, "data": {"dataset"}, "parallel": True}
    )
    inputs = {
        "model": digest_of(model.folder, "`model.folder`", outside=(config.output, model.store, data.dataset)),
        "records": digest_of(records_path(data), "`data.dataset`"),
    }
    places = {"model": str(model.folder), "store": str(model.store), "dataset": str(data.dataset)}
    return {"stage": stage, "settings": settings, "inputs": inputs, "places": places}


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What an output folder was used for; None when it holds no run."""
    path = folder / SETTINGS_NAME
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError) as error:
        raise TrainerUsageError(f"{path} is not the settings of a run: {error}") from error
