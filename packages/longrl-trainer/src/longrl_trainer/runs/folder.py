"""A run's folder: its settings, its progress, and its results.

    settings.json    the resolved settings with their history, and digests of the run's inputs (`settings`)
    metrics.jsonl    one line per step (in GRPO also rollouts.jsonl)
    questions.json   how many questions were kept, and which were dropped and why
    checkpoints/     the state to continue from
    model/           the final model; what adapters have learned is merged into it
    adapter/         with LoRA, those adapters by themselves
    result.json      written last: the run is finished

Started again with the same settings, a run continues or, if finished, only reports its result. With a larger number of
steps it continues from its last checkpoint, finished or not. One process at a time owns the folder. With several ranks
the first one owns it and writes everything, and the others see the same folder.
"""

import logging
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from longrl_files.messages import visible
from longrl_trainer.config.effects import Difference, Effect
from longrl_trainer.config.sections import DataSection, ModelSection
from longrl_trainer.config.stages import TrainingConfig
from longrl_trainer.durable import PARTIAL_MARK, readable_write_errors, remove_partial, write_json
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.runs.journal import JsonLines
from longrl_trainer.runs.settings import (
    describe_run,
    find_changes,
    log_changes,
    read_object,
    read_settings,
    with_whole_model,
    write_settings,
)
from longrl_trainer.training.checkpoints import (
    Checkpoint,
    gather_checkpoint,
    latest_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from longrl_trainer.training.optimizer import Optimizer
from longrl_trainer.training.ranks import ALONE, Ranks
from longvideo_reason_data.ownership import OWNER_NAME, own_folder
from mrsp_engine.families.base import Policy

QUESTIONS_NAME, RESULT_NAME = "questions.json", "result.json"

_logger = logging.getLogger(__name__)


class Run:
    """One stage's output folder, new or existing.

    Attributes:
        folder: The folder.
        checkpoint: The checkpoint to continue from; None at the beginning.
        result: The report of the finished run; None while it is not finished.
        metrics: The journal of steps.
        rollouts: The journal of responses.
        lengthened: The change of the run's length, if it was different before.
    """

    def __init__(self, config: TrainingConfig, described: dict[str, Any], ranks: Ranks) -> None:
        self._ranks = ranks
        self._questions_may_change = config.questions_may_change
        self.folder = folder = config.output
        self.metrics = JsonLines(folder / "metrics.jsonl", is_writer=ranks.is_first)
        self.rollouts = JsonLines(folder / "rollouts.jsonl", is_writer=ranks.is_first)
        self.result, self.checkpoint, self.lengthened = ranks.ask_first(lambda: self._find(config, described))

    @property
    def step(self) -> int:
        """Number of steps that need not be repeated."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def model_folder(self) -> Path:
        """Folder of the final model."""
        return self.folder / "model"

    def restore(self, optimizer: Optimizer) -> None:
        """Continue from the checkpoint, if there is one."""
        if self.checkpoint is not None:
            restore_optimizer(self.checkpoint, optimizer)

    def save_checkpoint(self, step: int, policy: Policy, optimizer: Optimizer) -> None:
        """Make `step` the step to continue from; all ranks call this together."""
        if self._ranks.is_first:
            save_checkpoint(self.folder / "checkpoints", step=step, policy=policy, optimizer=optimizer)
        elif policy.is_sharded:
            gather_checkpoint(self.folder / "checkpoints", policy=policy, optimizer=optimizer)

    def save_questions(self, report: dict[str, Any]) -> None:
        """Record which questions were kept and dropped; all ranks call this together.

        Raises:
            TrainerUsageError: A continued run began with other questions, and the recipe doesn't allow it.
        """

        def save() -> None:
            path = self.folder / QUESTIONS_NAME
            before = read_object(self.folder, QUESTIONS_NAME, {"dropped_questions": list})
            if self.step and before is not None:
                change = describe_other_questions(_dropped(path, before), _dropped(path, report))
                if change is not None and not self._questions_may_change:
                    raise TrainerUsageError(
                        f"{self.folder}: the {self.step} completed steps used other questions: {change}; restore "
                        "the file, or set `questions_may_change = true` to continue with these"
                    )
                if change is not None:
                    self.remark(f"questions changed: {change}")
            write_json(path, report)

        self._ranks.ask_first(save)

    def remark(self, text: str) -> None:
        """Report what changes from the next step on, here and in the history of the settings."""
        if self._ranks.is_first:
            _logger.warning("%s: %s", self.folder, text)
            saved = read_settings(self.folder) or {}
            line = {"after_step": self.step, "remark": text}
            write_settings(self.folder, {**saved, "changes": [*saved.get("changes", []), line]})

    def require_length(self, num_steps: int) -> None:
        """Refuse to end before the steps that are already done."""
        if num_steps < self.step:
            raise TrainerUsageError(
                f"{self.folder}: {self.step} steps are done, but {num_steps} are requested; expected at least as many, "
                "or another `output`"
            )

    def read_metrics(self) -> list[dict[str, Any]]:
        """The journal of all steps so far; all ranks call this together."""
        return self._ranks.ask_first(self.metrics.read)

    def finish(self, policy: Policy, result: dict[str, Any]) -> None:
        """Save the final model, then the result; all ranks call this together."""
        if self._ranks.is_first or policy.is_sharded:
            policy.save(self.model_folder)
            if policy.adapters is not None:
                policy.adapters.save(self.folder / "adapter")
        if self._ranks.is_first:
            write_json(self.folder / RESULT_NAME, result)
        self._ranks.wait()

    def _find(
        self, config: TrainingConfig, described: dict[str, Any]
    ) -> tuple[dict[str, Any] | None, Checkpoint | None, Difference | None]:
        """Load what exists: the result, or the checkpoint and the journals up to it; and a changed length."""
        saved = read_settings(self.folder)
        if saved is None:
            if any(PARTIAL_MARK not in path.name and path.name != OWNER_NAME for path in self.folder.iterdir()):
                raise TrainerUsageError(
                    f"{self.folder} is not empty and contains no run of this trainer; choose another `output`"
                )
            write_settings(self.folder, saved := described)
        saved = with_whole_model(self.folder, saved, described)
        changes = find_changes(self.folder, saved, described, config)
        length = next((change for change in changes if change.effect is Effect.LENGTH), None)
        remove_partial(self.folder)
        path = self.folder / RESULT_NAME
        result = read_object(self.folder, RESULT_NAME)
        if result is not None:
            if length is None:
                return result, None, None
            if length.now < length.was:
                raise TrainerUsageError(
                    f"{self.folder} is finished: {length.setting} was {length.was} and is now {length.now}; expected "
                    "at least as many, or another `output`"
                )
            path.unlink()  # before the settings: a kill in between leaves the run as before its end
        checkpoint = latest_checkpoint(self.folder)
        after_step = checkpoint.step if checkpoint else 0
        for journal in (self.metrics, self.rollouts):
            journal.keep_until(after_step)
        if changes:
            log_changes(self.folder, saved, described, changes, after_step=after_step)
        return None, checkpoint, length


@contextmanager
def open_run(
    stage: str, config: TrainingConfig, *, model: ModelSection, data: DataSection, ranks: Ranks = ALONE
) -> Generator[Run]:
    """Own the run's folder within the block, new or checked to contain the same run; all ranks call this together.

    Raises:
        TrainerUsageError: The folder contains something else, or an input is missing.
        DataError: Another process owns the folder.
    """
    with ExitStack() as owned:

        def take() -> dict[str, Any]:
            described = describe_run(stage, config, model=model, data=data)
            folder = config.output
            if folder.is_file():
                raise TrainerUsageError(f"{folder} is a file, not the folder of a run; choose another `output`")
            with readable_write_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            owned.enter_context(own_folder(folder))
            return described

        yield Run(config, ranks.ask_first(take), ranks)


def describe_other_questions(dropped_before: Mapping[str, str], dropped_now: Mapping[str, str]) -> str | None:
    """The first question that was kept before and is dropped now, or the reverse, by id and reason; None if none is."""
    for question_id in sorted(dropped_before.keys() ^ dropped_now.keys()):
        if question_id in dropped_now:
            return f"{visible(question_id)} can't be used now ({visible(dropped_now[question_id])})"
        return f"{visible(question_id)} couldn't be used before ({visible(dropped_before[question_id])}) but can be now"
    return None


def _dropped(path: Path, report: Mapping[str, Any]) -> dict[str, str]:
    """The questions that a report lists as dropped, with the reasons."""
    try:
        return {str(question["question_id"]): str(question["detail"]) for question in report["dropped_questions"]}
    except (KeyError, TypeError) as error:
        raise TrainerUsageError(
            f"{path} was written by something else: no list of dropped questions; remove it"
        ) from error
