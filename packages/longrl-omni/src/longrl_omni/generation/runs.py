"""The folder of a generation run: settings, journal, checkpoints and result, in the trainer's formats.

    settings.json      the resolved settings with their history, and digests of model and prompts
    metrics.jsonl      one line per step
    checkpoints/       the state to continue from
    pictures/, clips/  held-out pictures or clips, before and after
    evaluations.json   what the rewards say about them, as soon as it is known
    model/, adapter/   the final model, with what adapters learned merged, and these by themselves
    result.json        written last: the run is finished

Started again with the same settings, a run continues, or only reports its result. Everything that isn't in a checkpoint
follows from seed and step.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from longrl_omni.generation.config.recipes import GenerateGrpoConfig
from longrl_omni.generation.policies.trained_weights import AVERAGE, SMOOTHED, TrainedWeights
from longrl_trainer.config.effects import Effect, named_settings
from longrl_trainer.durable import readable_write_errors, remove_partial, write_json
from longrl_trainer.errors import SignalledError, TrainerError, TrainerUsageError
from longrl_trainer.runs.digests import digest_of
from longrl_trainer.runs.interruption import StopSignals
from longrl_trainer.runs.journal import JsonLines
from longrl_trainer.runs.settings import (
    find_changes,
    list_names,
    log_changes,
    own_run_folder,
    read_object,
    read_settings,
    write_settings,
)
from longrl_trainer.training.checkpoints import Checkpoint, describe_state, latest_checkpoint
from longrl_trainer.training.optimizer import Optimizer
from longrl_trainer.training.ranks import ALONE
from longrl_trainer.training.saving import CheckpointSaver
from longrl_trainer.training.shards import list_tensors, read_shards

RESULT_NAME, EVALUATIONS_NAME = "result.json", "evaluations.json"
STAGE = "generate-grpo"


class GenerationRun:
    """The output folder of one run, new or existing.

    Attributes:
        folder: The folder.
        checkpoint: The checkpoint to continue from; None at the beginning.
        result: The report of the finished run; None while it isn't finished.
        metrics: The journal of steps.
        signals: What asks the run to save its state and end.
    """

    def __init__(self, config: GenerateGrpoConfig, described: dict[str, Any]) -> None:
        self._config = config
        self._scores: list[float] = []
        self.folder = folder = config.output
        self._saver = CheckpointSaver(folder, num_kept=config.checkpoints_kept, ranks=ALONE)
        self.signals = StopSignals("SIGTERM", config.warning_signal)
        self.metrics = JsonLines(folder / "metrics.jsonl")
        self.result, self.checkpoint = self._find(described)

    @property
    def step(self) -> int:
        """Number of steps that need not be repeated."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def model_folder(self) -> Path:
        """Folder of the final model."""
        return self.folder / "model"

    @property
    def adapter_folder(self) -> Path:
        """Folder of what adapters learned."""
        return self.folder / "adapter"

    def restore(self, optimizer: Optimizer, weights: TrainedWeights) -> None:
        """Continue from the checkpoint, if there is one.

        Raises:
            TrainerError: It is damaged, or belongs to another model, optimizer or seed.
        """
        if self.checkpoint is None:
            return
        folder = self.checkpoint.folder
        state = self.checkpoint.read_state()
        if state["seed"] != self._config.seed:
            raise TrainerError(f"the checkpoint {folder} has the seed {state['seed']}, and the run {self._config.seed}")

        def read(tensors: Mapping[str, Tensor]) -> None:
            read_shards(folder, tensors, group=None)

        saved = list_tensors(folder)
        beginnings = f"{AVERAGE}/", f"{SMOOTHED}/"
        average = {name: tensor for name, tensor in saved.items() if name.startswith(beginnings)}
        own = weights.average_tensors()
        if {name: tensor.shape for name, tensor in average.items()} != {
            name: tensor.shape for name, tensor in own.items()
        }:
            raise TrainerError(f"the checkpoint {folder} has the moving average of another model; remove it")
        optimizer.restore({name: tensor for name, tensor in saved.items() if name not in average}, read)
        if own:
            read(own)

    def end_step(
        self, step: int, network: nn.Module, optimizer: Optimizer, weights: TrainedWeights, *, score: float | None
    ) -> None:
        """Begin to save the state if it is time to.

        Raises:
            SignalledError: A signal arrived; the state is saved.
            TrainerError: The state before couldn't be saved.
        """
        if score is not None:
            self._scores.append(score)
        received = self.signals.received
        if received is None and step % self._config.checkpoint_every_steps:
            return
        mean = fmean(self._scores) if self._scores else None
        self._scores.clear()
        state = describe_state(network, step=step, seed=self._config.seed, dtype=self._config.model.dtype, score=mean)
        self._saver.start(optimizer.state_tensors() | weights.average_tensors(), state)
        if received is not None:
            self._saver.wait()
            raise SignalledError(
                f"{self.folder}: stopped by {received} after step {step}, which is saved; start it again to continue"
            )

    def read_evaluations(self) -> dict[str, Any]:
        """What the rewards said about held-out samples so far, by `before` and `after`."""
        return read_object(self.folder, EVALUATIONS_NAME) or {}

    def save_evaluations(self, evaluations: Mapping[str, Any]) -> None:
        """Write what `read_evaluations` returns."""
        write_json(self.folder / EVALUATIONS_NAME, dict(evaluations))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result, once all else is written."""
        self._saver.wait()
        write_json(self.folder / RESULT_NAME, dict(result))

    def close(self) -> None:
        """Wait for what is being saved."""
        self._saver.close()

    def _find(self, described: dict[str, Any]) -> tuple[dict[str, Any] | None, Checkpoint | None]:
        """What exists: the result, or the checkpoint, with the journal up to it."""
        saved = read_settings(self.folder)
        if saved is None:
            if list_names(self.folder):
                raise TrainerUsageError(
                    f"{self.folder} is not empty and contains no run of this trainer; choose another `output`"
                )
            write_settings(self.folder, saved := described)
        changes = find_changes(self.folder, saved, described, self._config)
        remove_partial(self.folder)
        result = read_object(self.folder, RESULT_NAME)
        if result is not None:
            binding = next((one for one in changes if one.effect in (Effect.LENGTH, Effect.FOLLOWING)), None)
            if binding is not None:
                raise TrainerUsageError(
                    f"{self.folder} is finished: {binding.setting} was {binding.was} and is now {binding.now}; choose "
                    "another `output`"
                )
            return result, None
        checkpoint = latest_checkpoint(self.folder)
        after_step = checkpoint.step if checkpoint else 0
        if self._config.steps < after_step:
            raise TrainerUsageError(
                f"{self.folder}: {after_step} steps are done, but {self._config.steps} are requested; expected "
                "as many or more, or another `output`"
            )
        self.metrics.check()
        self.metrics.keep_until(after_step)
        if changes:
            log_changes(self.folder, saved, described, changes, after_step=after_step)
        return None, checkpoint


@contextmanager
def open_generation_run(config: GenerateGrpoConfig) -> Generator[GenerationRun]:
    """Own the run's folder within the block, new or checked to contain the same run.

    Raises:
        TrainerUsageError: The folder contains something else, or an input is missing.
        DataError: Another process owns the folder.
    """
    inputs = {"model": config.model.folder, "prompts": config.prompts, "held_out_prompts": config.held_out_prompts}
    names = {"model": "`model.folder`", "prompts": "`prompts`", "held_out_prompts": "`held_out_prompts`"}
    described: dict[str, Any] = {
        "stage": STAGE,
        "settings": named_settings(config),
        "inputs": {
            name: digest_of(path, names[name], outside=(config.output,) if name == "model" else ())
            for name, path in inputs.items()
        },
        "places": {name: str(path) for name, path in inputs.items()},
        "changes": [],
    }
    if config.output.is_file():
        raise TrainerUsageError(f"{config.output} is a file, not the folder of a run; choose another `output`")
    with readable_write_errors(config.output):
        config.output.mkdir(parents=True, exist_ok=True)
    with own_run_folder(config.output):
        run = GenerationRun(config, described)
        try:
            yield run
        finally:
            run.close()


def choose_device(name: str) -> torch.device:
    """The device that a recipe names.

    Raises:
        TrainerUsageError: It isn't there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainerUsageError('model.device="cuda": there is no such device; set it to "auto" or "cpu"')
    return torch.device(name)
