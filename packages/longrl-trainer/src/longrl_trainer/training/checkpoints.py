"""The state of a training run on disk: trained weights, moments, steps. No pickle.

    checkpoints/step-000120/
        shard-….safetensors     the tensors of `TrainingOptimizer.state_tensors`, of all ranks (`training.shards`)
        adapter/                with LoRA, the adapters again, in PEFT's layout
        state.json              the step, the seed, and what else there is to know about them

A checkpoint gets its name only when it is complete, so a run killed while saving continues from the one before. Weights
that aren't trained are those of the model that the run began with, and are not saved. Everything else that a loop needs
(the order of questions, the seed of every rollout) is derived from seed and step; there is no random state to save.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from longrl_files.folders import ForeignFolder
from longrl_files.messages import visible
from longrl_trainer.durable import LINK_CURE, remove_folder, remove_partial
from longrl_trainer.errors import TrainerError
from longrl_trainer.training.optimizer import WEIGHT, TrainingOptimizer
from longrl_trainer.training.ranks import ALONE, Ranks
from longrl_trainer.training.shards import list_tensors, read_shards, read_whole
from mrsp_engine.distributed.sharded_weights import whole_shape

FORMAT_VERSION = 2
FOLDERS_NAME, STATE_NAME, ADAPTER_NAME = "checkpoints", "state.json", "adapter"
FOLDER_NAME = re.compile(r"step-(\d{6,18})")
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "seed": int,
    "dtype": str,
    "score": (float, int, type(None)),
    "accuracy": (float, int, type(None)),
    "files": dict,
    "tied": dict,
    "frozen": dict,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint."""

    step: int
    folder: Path

    @property
    def adapter_folder(self) -> Path:
        """The adapters, in PEFT's layout, where nothing else is trained."""
        return self.folder / ADAPTER_NAME

    @property
    def has_adapters(self) -> bool:
        """Whether adapters are what is trained."""
        return self.adapter_folder.is_dir()

    def read_state(self) -> dict[str, Any]:
        """What `state.json` says, after a look at whether all files are there.

        Raises:
            TrainerError: The checkpoint is damaged, or has another format or step.
        """
        files = ForeignFolder(self.folder, error=TrainerError, link_cure=LINK_CURE)
        found = files.read_json(STATE_NAME)
        state = cast(dict[str, Any], found) if isinstance(found, dict) else {}
        if state.get("format_version") == 1:
            raise TrainerError(
                f"the checkpoint {self.folder} was written by an earlier version (format 1, expected {FORMAT_VERSION});"
                " end the run with that version, or remove the checkpoint to start over"
            )
        if state.get("format_version") != FORMAT_VERSION or state.get("step") != self.step:
            raise TrainerError(f"the checkpoint {self.folder} has another format or step: {visible(str(found), 100)}")
        for name, kinds in _KINDS.items():
            if not isinstance(state.get(name), kinds):
                raise self._damaged(f"{name} is {visible(repr(state.get(name)), 60)} in {STATE_NAME}")
        for name, num_bytes in cast(dict[str, object], state["files"]).items():
            status = files.status(name)
            if status is None or status.st_size != num_bytes:
                there = "nothing" if status is None else f"{status.st_size:,} bytes"
                raise self._damaged(f"{visible(name, 60)} has {there}, expected {visible(str(num_bytes), 20)} bytes")
        return state

    def read_weights(self) -> dict[str, Tensor]:
        """All weights by their names in the model, in the dtype that they were trained in, in a single process.

        A weight that isn't trained is on the meta device, which stands for what the run began with. Tied weights are
        the same tensor.
        """
        state, saved = self.read_state(), list_tensors(self.folder)
        dtype = getattr(torch, state["dtype"], None)
        if not isinstance(dtype, torch.dtype):
            raise self._damaged(f"dtype is {visible(state['dtype'], 40)}")
        keys = {key: tensor for key, tensor in saved.items() if key.startswith(f"{WEIGHT}/")}
        weights = {
            key.removeprefix(f"{WEIGHT}/"): tensor.to(dtype) for key, tensor in read_whole(self.folder, keys).items()
        }
        for name, shape in cast(dict[str, Any], state["frozen"]).items():
            try:
                weights[name] = torch.empty(shape, dtype=dtype, device="meta")
            except (RuntimeError, TypeError) as error:
                raise self._damaged(f"{visible(name, 100)} has the shape {visible(str(shape), 40)}") from error
        for name, other in cast(dict[str, Any], state["tied"]).items():
            if other not in weights:
                raise self._damaged(f"{visible(name, 100)} is tied to nothing")
            weights[name] = weights[other]
        return weights

    def _damaged(self, reason: str) -> TrainerError:
        return TrainerError(f"the checkpoint {self.folder} is damaged ({reason}); remove it to continue")


def latest_checkpoint(run: Path) -> Checkpoint | None:
    """The checkpoint of a run with the most steps, looked at; half-written ones are removed.

    Raises:
        TrainerError: The run's checkpoints are links or no folders, or the latest is damaged.
    """
    remove_partial(run, FOLDERS_NAME)
    latest = max(list_checkpoints(run), key=lambda checkpoint: checkpoint.step, default=None)
    if latest is not None:
        latest.read_state()
        list_tensors(latest.folder)
    return latest


def list_checkpoints(run: Path) -> list[Checkpoint]:
    """All complete checkpoints of a run, in no particular order.

    Raises:
        TrainerError: One of them is no folder.
    """
    files = ForeignFolder(run, error=TrainerError, link_cure=LINK_CURE)
    found: list[Checkpoint] = []
    for name in files.names(FOLDERS_NAME):
        match = FOLDER_NAME.fullmatch(name)
        if match is not None:
            files.names(f"{FOLDERS_NAME}/{name}")
            found.append(Checkpoint(step=int(match[1]), folder=run / FOLDERS_NAME / name))
    return found


def describe_state(
    model: nn.Module, *, step: int, seed: int, dtype: str, score: float | None, accuracy: float | None = None
) -> dict[str, Any]:
    """What `state.json` says, except the files.

    Args:
        model: What is trained.
        step: How many steps are done.
        seed: The seed of the run.
        dtype: What weights are rounded to after each step.
        score: How good the last steps were, the more the better; None if that isn't known.
        accuracy: Of the model after this step, on held-out questions; None if it wasn't evaluated.
    """
    first_names: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        first = first_names.setdefault(id(weight), name)
        if first != name:
            tied[name] = first
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    frozen = {
        name: list(whole_shape(tensor))
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name not in trained and name not in tied
    }
    return {
        "format_version": FORMAT_VERSION,
        "step": step,
        "seed": seed,
        "dtype": dtype,
        "score": score,
        "accuracy": accuracy,
        "tied": tied,
        "frozen": frozen,
    }


def restore(checkpoint: Checkpoint, optimizer: TrainingOptimizer, *, seed: int, ranks: Ranks = ALONE) -> None:
    """Continue from a checkpoint: weights, moments and step counts; all ranks call this together.

    Raises:
        TrainerError: It is damaged, or belongs to another model, optimizer or seed.
    """
    state = ranks.ask_first(checkpoint.read_state)
    if state["seed"] != seed:
        raise TrainerError(f"the checkpoint {checkpoint.folder} has the seed {state['seed']}, and the run {seed}")
    group = None if ranks.group is None else ranks.group.process_group
    optimizer.restore(
        list_tensors(checkpoint.folder), lambda tensors: read_shards(checkpoint.folder, tensors, group=group)
    )


def best_checkpoint(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """The undamaged one with the highest accuracy on held-out questions, and of equals the newest.

    If none of them was evaluated, the one with the best loss or reward; None if nothing is known of any.
    """
    known: dict[str, list[tuple[float, int, Checkpoint]]] = {"accuracy": [], "score": []}
    for checkpoint in checkpoints:
        try:
            state = checkpoint.read_state()
        except TrainerError:
            continue
        for name, rated in known.items():
            if state.get(name) is not None:
                rated.append((float(state[name]), checkpoint.step, checkpoint))
    rated = known["accuracy"] or known["score"]
    return max(rated, key=lambda item: item[:2])[2] if rated else None


def remove_older(run: Path, *, num_kept: int) -> None:
    """Remove all checkpoints of a run but the newest ones and the best; see `best_checkpoint`."""
    newest_first = sorted(list_checkpoints(run), key=lambda checkpoint: -checkpoint.step)
    kept = newest_first[:num_kept]
    if newest_first[num_kept:]:
        kept += filter(None, [best_checkpoint(newest_first)])
    for checkpoint in newest_first:
        if checkpoint not in kept:
            remove_folder(checkpoint.folder)
