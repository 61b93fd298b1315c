"""A run's folder: its settings, its progress, and its results.

    settings.json    the resolved settings with their history, and digests of the run's inputs (`settings`)
    seen_videos.json the videos that it shows, and those of the run that its model comes from
    metrics.jsonl    one line per step, and first one of step 0 if it is evaluated (in GRPO also rollouts.jsonl)
    rewards/         files of rewards that keep some, such as a judge's answers
    questions.json   how many questions were kept, and which were dropped and why
    checkpoints/     the state to continue from
    model/           the final model; what adapters have learned is merged into it
    adapter/         with LoRA, those adapters by themselves
    result.json      written last: the run is finished (logs/, if there is one, belongs to `longrl launch`)

Started again with the same settings, a run continues or, if finished, only reports its result. With a larger number of
steps it continues from its last checkpoint, finished or not. One process, the first rank, owns it and writes all.
"""

import logging
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from longrl_files.messages import visible
from longrl_trainer.config.effects import Difference, Effect
from longrl_trainer.config.sections import DataSection, ModelSection
from longrl_trainer.config.stages import TrainingConfig
from longrl_trainer.durable import readable_write_errors, remove_partial, write_json
from longrl_trainer.errors import SignalledError, TrainerUsageError
from longrl_trainer.runs.exchange_watch import ExchangeWatch
from longrl_trainer.runs.interruption import StopSignals
from longrl_trainer.runs.journal import JsonLines, steps_in
from longrl_trainer.runs.settings import (
    describe_run,
    find_changes,
    log_changes,
    own_run_folder,
    read_object,
    read_settings,
    refuse_following,
    refuse_other_contents,
    with_whole_model,
    write_settings,
)
from longrl_trainer.runs.trackers import TrackedJournal, require_tracker
from longrl_trainer.training.checkpoints import ADAPTER_NAME, Checkpoint, describe_state, latest_checkpoint, restore
from longrl_trainer.training.optimizer import TrainingOptimizer
from longrl_trainer.training.ranks import ALONE, Ranks
from longrl_trainer.training.saving import CheckpointSaver
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
        signals: What asks the run to save its state and end.
        lengthened: The change of the run's length, if it was different before.
    """

    def __init__(self, config: TrainingConfig, described: dict[str, Any], ranks: Ranks, watch: ExchangeWatch) -> None:
        self._config, self._watch, self._ranks = config, watch, ranks
        self._scores: list[float] = []
        self.folder = folder = config.output
        self._saver = CheckpointSaver(folder, num_kept=config.checkpoints_kept, ranks=ranks)
        self.signals = StopSignals("SIGTERM", config.warning_signal)
        self.metrics = TrackedJournal.of(config, is_writer=ranks.is_first)
        self.rollouts = JsonLines(folder / "rollouts.jsonl", is_writer=ranks.is_first)
        self.result, self.checkpoint, self.lengthened = ranks.ask_first(lambda: self._find(config, described))
        watch.step = self.step + 1
        self._last_saved = self.step

    @property
    def step(self) -> int:
        """Number of steps that need not be repeated."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def model_folder(self) -> Path:
        """Folder of the final model."""
        return self.folder / "model"

    def restore(self, optimizer: TrainingOptimizer) -> None:
        """Continue from the checkpoint, if there is one."""
        if self.checkpoint is not None:
            restore(self.checkpoint, optimizer, seed=self._config.seed, ranks=self._ranks)

    def end_step(
        self, step: int, policy: Policy, optimizer: TrainingOptimizer, *, score: float | None, accuracy: float | None
    ) -> None:
        """Begin to save the state if it is time to, or it was evaluated; all ranks call this together after every step.

        Args:
            step: How many steps are done.
            policy: The model.
            optimizer: Its optimizer.
            score: How good the step was, the more the better; None if that isn't known.
            accuracy: Of the model as it is now, on held-out questions; None if it wasn't evaluated.

        Raises:
            SignalledError: A signal arrived at one of the ranks; the state is saved.
            TrainerError: The state before couldn't be saved.
        """
        self._watch.step = step + 1
        if score is not None:
            self._scores.append(score)
        reports = self._ranks.exchange((self.signals.received, self._saver.has_failed))
        received = next((name for name, _ in reports if name is not None), None)
        if any(has_failed for _, has_failed in reports):
            self._saver.wait()
        if received is not None or accuracy is not None or step % self._config.checkpoint_every_steps == 0:
            self._begin_saving(step, policy, optimizer, accuracy)
        if received is not None:
            self._saver.wait()
            raise SignalledError(
                f"{self.folder}: stopped by {received} after step {step}, which is saved; start it again to continue"
            )

    def save(self, step: int, policy: Policy, optimizer: TrainingOptimizer) -> None:
        """Save the state after a step now, unless that is done; all ranks call this together."""
        if step > self._last_saved:
            self._begin_saving(step, policy, optimizer)
        self._saver.wait()

    def _begin_saving(
        self, step: int, policy: Policy, optimizer: TrainingOptimizer, accuracy: float | None = None
    ) -> None:
        self._last_saved = step
        mean, config = fmean(self._scores) if self._scores else None, self._config
        self._scores.clear()
        state = describe_state(
            policy.model, step=step, seed=config.seed, dtype=config.dtype, score=mean, accuracy=accuracy
        )
        self._saver.start(
            optimizer.state_tensors(), state, lambda folder: self._save_adapters(policy, folder / ADAPTER_NAME)
        )

    def read_dropped(self) -> list[Any]:
        """The dropped questions of a run that goes on, as its file lists them; all ranks call this together.

        Raises:
            TrainerUsageError: The file was written by something else.
        """

        def read() -> list[Any]:
            found = read_object(self.folder, QUESTIONS_NAME, {"dropped_questions": list}) if self.step else None
            if found is not None and "dropped_questions" not in found:
                raise TrainerUsageError(
                    f"{self.folder / QUESTIONS_NAME} was written by something else: no list of dropped questions; "
                    "remove it"
                )
            return [] if found is None else found["dropped_questions"]

        return self._ranks.ask_first(read)

    def save_questions(self, report: dict[str, Any]) -> None:
        """Record which questions are kept and dropped; all ranks call this together."""
        self._ranks.ask_first(lambda: write_json(self.folder / QUESTIONS_NAME, report))

    def accept_other_questions(self, change: str, *, after_step: int) -> None:
        """Remark that finished steps used a question that is unusable now, or the reverse.

        Raises:
            TrainerUsageError: The recipe doesn't allow it.
        """
        if not self._config.questions_may_change:
            raise TrainerUsageError(
                f"{self.folder}: the {after_step} completed steps used other questions: {change}; restore the file, "
                "or set `questions_may_change = true` to continue with these"
            )
        self.remark(f"questions changed: {change}", after_step=after_step)

    def remark(self, text: str, *, after_step: int | None = None) -> None:
        """Report what changes after a step, by default that of the checkpoint, here and in the settings' history."""
        if self._ranks.is_first:
            _logger.warning("%s: %s", self.folder, text)
            saved = read_settings(self.folder) or {}
            line = {"after_step": self.step if after_step is None else after_step, "remark": text}
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
        return steps_in(self._ranks.ask_first(self.metrics.read))

    def read_series(self, name: str) -> list[float | None]:
        """A number of the journal, for all steps so far; all ranks call this together.

        Raises:
            TrainerUsageError: The journal has something else there.
        """
        values = [line.get(name) for line in self.read_metrics()]
        for value in values:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise TrainerUsageError(
                    f"{self.metrics.path} was written by something else: {name} is {visible(repr(value), 40)}"
                )
        return values

    def finish(self, policy: Policy, result: dict[str, Any]) -> None:
        """Save the final model, then the result; all ranks call this together."""
        self._saver.wait()
        if self._ranks.is_first or policy.is_sharded:
            policy.save(self.model_folder)
        self._save_adapters(policy, self.folder / ADAPTER_NAME)
        if self._ranks.is_first:
            write_json(self.folder / RESULT_NAME, result)
        self._ranks.wait()

    def close(self) -> None:
        """Wait for what is being saved, and close the tracker."""
        self._saver.close()
        self.metrics.close()

    def _save_adapters(self, policy: Policy, folder: Path) -> None:
        """Save what is trained by itself, if adapters are; all ranks call this together."""
        if policy.adapters is not None and (self._ranks.is_first or policy.is_sharded):
            policy.adapters.save(folder)

    def _find(
        self, config: TrainingConfig, described: dict[str, Any]
    ) -> tuple[dict[str, Any] | None, Checkpoint | None, Difference | None]:
        """Load what exists: the result, or the checkpoint and the journals up to it; and a changed length."""
        saved = read_settings(self.folder)
        if saved is None:
            refuse_other_contents(self.folder)
            write_settings(self.folder, saved := described)
        saved = with_whole_model(self.folder, saved, described)
        changes = find_changes(self.folder, saved, described, config)
        length = next((change for change in changes if change.effect is Effect.LENGTH), None)
        remove_partial(self.folder)
        result = read_object(self.folder, RESULT_NAME)
        if result is not None:
            if length is None:
                refuse_following(self.folder, changes)
                return result, None, None
            if length.now < length.was:
                raise TrainerUsageError(
                    f"{self.folder} is finished: {length.setting} was {length.was} and is now {length.now}; expected "
                    "at least as many, or another `output`"
                )
        checkpoint = latest_checkpoint(self.folder)
        after_step = checkpoint.step if checkpoint else 0
        for journal in (self.metrics, self.rollouts):
            journal.check()
        if result is not None:
            (self.folder / RESULT_NAME).unlink()  # first, so that after a kill the run is as before its end
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
            require_tracker(config.tracker)
            if folder.is_file():
                raise TrainerUsageError(f"{folder} is a file, not the folder of a run; choose another `output`")
            with readable_write_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            owned.enter_context(own_run_folder(folder))
            return described

        watch = owned.enter_context(ExchangeWatch(ranks, config.parallel.exchange_patience_seconds, config.output))
        run = Run(config, ranks.ask_first(take), ranks, watch)
        owned.callback(run.close)
        yield run
