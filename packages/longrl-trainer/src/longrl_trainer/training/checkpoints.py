"""The state of a training run on disk: the model, the optimizer's tensors, the step. No pickle.

    checkpoints/step-000120/
        model/                  the model in its published layout, with weights in their training dtype
        optimizer.safetensors   moments and step counts
        state.json              {"format_version": 1, "step": 120}

A checkpoint gets its name only when it is complete, so a run killed while saving continues from the one before.
Everything else that a loop needs (the order of questions, the seed of every rollout) is derived from seed and step;
there is no random state to save.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from longrl_trainer.durable import new_folder, remove_folder, remove_partial, write_json
from longrl_trainer.errors import TrainerError
from longrl_trainer.training.optimizer import Optimizer
from mrsp_engine.families.base import Policy

FORMAT_VERSION = 1
FOLDER_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint."""

    step: int
    folder: Path

    @property
    def model_folder(self) -> Path:
        """The model, in the Hugging Face layout."""
        return self.folder / "model"


def save_checkpoint(checkpoints: Path, *, step: int, policy: Policy, optimizer: Optimizer) -> Checkpoint:
    """Save the state after `step` steps, then remove the checkpoints before it."""
    checkpoint = Checkpoint(step=step, folder=checkpoints / f"step-{step:06d}")
    with new_folder(checkpoint.folder) as folder:
        policy.save(folder / "model", exact=True)
        try:
            save_file(optimizer.state_tensors(), folder / "optimizer.safetensors")
        except SafetensorError as error:
            raise TrainerError(
                f"cannot write the optimizer's state to {checkpoints}: {error}; "
                "free some space or choose another `output`"
            ) from error
        write_json(folder / "state.json", {"format_version": FORMAT_VERSION, "step": step})
    for older in list_checkpoints(checkpoints):
        if older.step != step:
            remove_folder(older.folder)
    return checkpoint


def latest_checkpoint(checkpoints: Path) -> Checkpoint | None:
    """The checkpoint with the most steps; half-written ones are removed."""
    remove_partial(checkpoints)
    return max(list_checkpoints(checkpoints), key=lambda checkpoint: checkpoint.step, default=None)


def list_checkpoints(checkpoints: Path) -> list[Checkpoint]:
    """All complete checkpoints, in no particular order."""
    if not checkpoints.is_dir():
        return []
    named = [(path, FOLDER_NAME.fullmatch(path.name)) for path in checkpoints.iterdir()]
    return [Checkpoint(step=int(match[1]), folder=path) for path, match in named if match]


def restore_optimizer(checkpoint: Checkpoint, optimizer: Optimizer) -> None:
    """Restore the optimizer state of the checkpoint."""
    try:
        state = json.loads((checkpoint.folder / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(checkpoint.folder / "optimizer.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainerError(f"the checkpoint {checkpoint.folder} is damaged ({error}); remove it to continue") from error
    if state != {"format_version": FORMAT_VERSION, "step": checkpoint.step}:
        raise TrainerError(f"the checkpoint {checkpoint.folder} has another format or step: {state}")
    optimizer.load_state_tensors(tensors)
