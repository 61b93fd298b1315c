"""Exporting the model of a run, finished or in progress, as a checkpoint in its published layout.

A finished run has its model in that layout already. A training checkpoint has the trained weights, in shards and in the
training dtype; everything else is taken from the model that the run began with, so that model is needed too. Both are
written by the code that writes every saved model (`mrsp_engine.families.copies`). A run in progress is only read, and
no model is loaded, except to merge what adapters have learned into the model that they were trained for.
"""

import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from longrl_files.folders import ForeignFolder
from longrl_trainer.config.recipes import parse_config
from longrl_trainer.config.sections import LoraSection
from longrl_trainer.durable import LINK_CURE, PARTIAL_MARK
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.runs.digests import digest_of, digest_of_uppermost_files
from longrl_trainer.runs.folder import RESULT_NAME
from longrl_trainer.runs.settings import SETTINGS_NAME, read_settings
from longrl_trainer.training.adapters import LoraAdapters
from longrl_trainer.training.checkpoints import Checkpoint, best_checkpoint, list_checkpoints
from longrl_trainer.training.opening import TORCH_DTYPES
from longrl_trainer.training.ranks import Ranks
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineError
from mrsp_engine.families import lay_out_weights, load_policy
from mrsp_engine.families.checkpoints import require_empty, write_checkpoint
from mrsp_engine.families.copies import read_weights, write_copy
from mrsp_engine.families.language_policy import LanguagePolicy

__all__ = ["NamedModel", "export_model", "open_named_model"]

Weights = Mapping[str, Mapping[str, Tensor]]
Step = int | Literal["best"] | None
"""A number of steps, the best checkpoint, or the newest."""


def export_model(run: Path, output: Path, *, step: Step = None, model: Path | None = None) -> int:
    """Write a run's model as a checkpoint like the one that the run began with.

    Args:
        run: The run's folder.
        output: Folder of the checkpoint; it must not exist or be empty.
        step: After how many steps; `"best"` for the checkpoint with the highest accuracy on held-out questions or, of
            a run that wasn't evaluated, with the best loss or reward; the final model, or that of the newest
            checkpoint, when not given.
        model: What the run began with, if it lies elsewhere now.

    Returns:
        The steps that the model was trained for.

    Raises:
        TrainerUsageError: There is no run or no such step, or the model that the run began with isn't there.
        EngineError: The output exists, a file is damaged, or the disk refuses.
    """
    saved = read_settings(run)
    if saved is None:
        raise TrainerUsageError(
            f"{run}: no run is here (there is no {SETTINGS_NAME}); expected the `output` folder of sft or grpo"
        )
    require_empty(output)
    places: dict[str, str] = saved.get("places", {})  # which versions before didn't note
    outside = (run, output, *(Path(place) for name, place in places.items() if name != "model"))
    num_steps = _num_steps_of_finished(run)
    if num_steps is not None and step in (None, num_steps):
        source, found, weights = run / "model", num_steps, read_weights(run / "model")
        outside = (output,)
    else:
        chosen = _choose(run, step, num_steps)
        source = _published(saved, outside) if model is None else model
        if not (source / "config.json").is_file():
            raise TrainerUsageError(f"{source}: is no checkpoint; set `--model` to what the run began with")
        read = partial(_read_trained, source)
        if chosen.has_adapters:
            read = _load_to_merge(run, saved, source, allow_pickle_weights=model is None)
        found, weights = _read_checkpoint(run, step, num_steps, read)
    write_checkpoint(output, lambda folder: write_copy(source, folder, weights, is_whole=True, outside=outside))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A checkpoint that settings name.

    Attributes:
        folder: Where it lies.
        step: After how many steps of a run; None if it isn't named by a run.
    """

    folder: Path
    step: int | None


@contextmanager
def open_named_model(folder: Path, beside: Path, *, step: Step, ranks: Ranks) -> Generator[NamedModel]:
    """The checkpoint in a folder or, if a step is given, that of the run in it; all ranks call this together.

    The model of a run is exported into a folder that is there as long as the block runs.

    Args:
        folder: A checkpoint's folder, or a run's.
        beside: A model is exported into the folder that this file or folder is in.
        step: A number of steps or `"best"`, see `export_model`; None if the folder is a checkpoint.
        ranks: Processes that use the model; the first one writes it.
    """
    if step is None:
        yield NamedModel(folder=folder, step=None)
        return
    output = beside.with_name(f"{beside.stem}-model{PARTIAL_MARK}{os.getpid()}")
    with ExitStack() as written:

        def write() -> tuple[str, int]:
            written.callback(shutil.rmtree, output, ignore_errors=True)
            return str(output), export_model(folder, output, step=step)

        name, num_steps = ranks.ask_first(write)
        yield NamedModel(folder=Path(name), step=num_steps)
        ranks.wait()


def _num_steps_of_finished(run: Path) -> int | None:
    """How many steps a finished run has; None if it isn't finished."""
    files = ForeignFolder(run, error=TrainerUsageError, link_cure=LINK_CURE)
    if not files.has(RESULT_NAME):
        return None
    result = files.read_json(RESULT_NAME)
    num_steps = cast(dict[str, object], result).get("num_steps") if isinstance(result, dict) else None
    if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 0:
        raise TrainerUsageError(f"{run / RESULT_NAME}: is not the result of a run; expected a number of steps in it")
    return num_steps


def _read_checkpoint(
    run: Path, step: Step, num_steps: int | None, read: Callable[[Checkpoint], Weights]
) -> tuple[int, Weights]:
    """The weights of a checkpoint; of the next one if the run replaces it in this moment."""
    while True:
        checkpoint = _choose(run, step, num_steps)
        try:
            return checkpoint.step, read(checkpoint)
        except (EngineError, TrainerError):
            if checkpoint.folder.exists():
                raise


def _read_trained(source: Path, checkpoint: Checkpoint) -> Weights:
    return lay_out_weights(source, checkpoint.read_weights())


def _load_to_merge(
    run: Path, saved: dict[str, Any], source: Path, *, allow_pickle_weights: bool
) -> Callable[[Checkpoint], Weights]:
    """Load the model that a run's adapters belong to; returns a function that merges those of a checkpoint into it.

    It is loaded in the run's dtype, so that the result is what the run itself would save.
    """
    settings: dict[str, Any] = saved.get("settings", {})
    dtype = TORCH_DTYPES.get(settings.get("dtype", ""))
    if dtype is None or not isinstance(settings.get("lora"), dict):
        raise TrainerUsageError(
            f"{run / SETTINGS_NAME}: has no settings of the adapters in its checkpoints; expected those that the run "
            "was begun with"
        )
    lora = parse_config(settings["lora"], LoraSection, source=str(run / SETTINGS_NAME))
    store = EmbeddingStore(run / "embeddings", is_read_only=True)  # nothing is encoded
    policy = load_policy(source, dtype=dtype, store=store, allow_pickle_weights=allow_pickle_weights)
    adapters = LoraAdapters(policy, lora, seed=0)

    def merge(checkpoint: Checkpoint) -> Weights:
        adapters.load(checkpoint.adapter_folder)
        return cast(LanguagePolicy, policy).checkpoint_weights()

    return merge


def _choose(run: Path, step: Step, num_steps: int | None) -> Checkpoint:
    checkpoints = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(run)}
    if step is None and checkpoints:
        return checkpoints[max(checkpoints)]
    if step == "best" and checkpoints:
        best = best_checkpoint(list(checkpoints.values()))
        if best is None:
            raise TrainerUsageError(
                f"{run}: no checkpoint says how good it is, so none is the best; set `evaluation.every_steps` in the "
                f"recipe, or name one of {', '.join(map(str, sorted(checkpoints)))}"
            )
        return best
    if step in checkpoints:
        return checkpoints[step]
    there = sorted({*checkpoints, *([] if num_steps is None else [num_steps])})
    if not there:
        raise TrainerUsageError(
            f"{run}: has no checkpoint yet; the run saves one every `checkpoint_every_steps` steps, and its model at "
            "the end"
        )
    raise TrainerUsageError(f"{run}: has no model of step {step}; expected one of {', '.join(map(str, there))}")


def _published(saved: dict[str, Any], outside: tuple[Path, ...]) -> Path:
    """The model that a run began with, where it lay then."""
    if "places" not in saved:
        raise TrainerUsageError("the run was begun by a version that didn't note with which model; set `--model` to it")
    place, recorded = Path(saved["places"]["model"]), saved["inputs"]["model"]
    if not place.is_dir():
        raise TrainerUsageError(
            f"{place}: the model that the run began with isn't here, and number formats and files beside the weights "
            "are taken from it; set `--model` to where it lies now"
        )
    if recorded not in (digest_of(place, "`--model`", outside=outside), digest_of_uppermost_files(place)):
        raise TrainerUsageError(
            f"{place}: isn't the model any more that the run began with; put it back, or set `--model` to a checkpoint "
            "whose number formats and files beside the weights the exported one shall have"
        )
    return place
