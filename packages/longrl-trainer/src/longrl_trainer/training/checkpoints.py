"""The state of a training run on disk: the model, the optimizer's tensors, the step. No pickle.

    checkpoints/step-000120/
        model/                  the model in its published layout, with weights in their training dtype;
        adapter/                or, with LoRA, only the adapters, in PEFT's layout
        optimizer.safetensors   moments and step counts
        state.json              {"format_version": 1, "step": 120}

A checkpoint gets its name only when it is complete, so a run killed while saving continues from the one before.
Everything else that a loop needs (the order of questions, the seed of every rollout) is derived from seed and step;
there is no random state to save.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from longrl_files.folders import ForeignFolder
from longrl_files.messages import visible
from longrl_trainer.durable import LINK_CURE, new_folder, remove_folder, remove_partial, write_json
from longrl_trainer.errors import TrainerError
from longrl_trainer.training.optimizer import Optimizer
from mrsp_engine.families.base import Policy

FORMAT_VERSION = 1
FOLDERS_NAME = "checkpoints"
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

    @property
    def adapter_folder(self) -> Path:
        """The adapters, in PEFT's layout, where nothing else is trained."""
        return self.folder / "adapter"

    @property
    def has_adapters(self) -> bool:
        """Whether it holds adapters instead of a model."""
        return self.adapter_folder.is_dir()


def save_checkpoint(checkpoints: Path, *, step: int, policy: Policy, optimizer: Optimizer) -> Checkpoint:
    """Save the state after `step` steps, then remove the checkpoints before it.

    If the weights are sharded, the other ranks call `gather_checkpoint` at the same time.
    """
    checkpoint = Checkpoint(step=step, folder=checkpoints / f"step-{step:06d}")
    with new_folder(checkpoint.folder) as folder:
        if policy.adapters is None:
            policy.save(folder / "model", exact=True)
        else:
            policy.adapters.save(folder / "adapter")
        try:
            save_file(optimizer.state_tensors(), folder / "optimizer.safetensors")
        except SafetensorError as error:
            raise TrainerError(
                f"cannot write the optimizer's state to {checkpoints}: {error}; "
                "free some space or choose another `output`"
            ) from error
        write_json(folder / "state.json", {"format_version": FORMAT_VERSION, "step": step})
    for older in list_checkpoints(checkpoints.parent):
        if older.step != step:
            remove_folder(older.folder)
    return checkpoint


def gather_checkpoint(checkpoints: Path, *, policy: Policy, optimizer: Optimizer) -> None:
    """Another rank's part in `save_checkpoint`: it gives its parts of sharded weights, and writes nothing."""
    nowhere = checkpoints / "written by the first rank"
    if policy.adapters is None:
        policy.save(nowhere, exact=True)
    else:
        policy.adapters.save(nowhere)
    optimizer.state_tensors()


def latest_checkpoint(run: Path) -> Checkpoint | None:
    """The checkpoint of a run with the most steps; half-written ones are removed.

    Raises:
        TrainerError: The run's checkpoints, or a part of the latest, are links or no folders.
    """
    remove_partial(run, FOLDERS_NAME)
    latest = max(list_checkpoints(run), key=lambda checkpoint: checkpoint.step, default=None)
    if latest is not None:
        ForeignFolder(latest.folder, error=TrainerError, link_cure=LINK_CURE).names(latest.model_folder.name)
        ForeignFolder(latest.folder, error=TrainerError, link_cure=LINK_CURE).names(latest.adapter_folder.name)
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


def restore_optimizer(checkpoint: Checkpoint, optimizer: Optimizer) -> None:
    """Restore the optimizer's state from the checkpoint."""
    files = ForeignFolder(checkpoint.folder, error=TrainerError, link_cure=LINK_CURE)
    state = files.read_json("state.json")
    if state != {"format_version": FORMAT_VERSION, "step": checkpoint.step}:
        raise TrainerError(f"the checkpoint {checkpoint.folder} has another format or step: {visible(str(state), 100)}")
    path = files.path("optimizer.safetensors")
    if path.stat().st_size > optimizer.most_state_bytes:
        raise TrainerError(
            f"the checkpoint {checkpoint.folder} is damaged (an optimizer of {path.stat().st_size:,} bytes, expected "
            f"at most {optimizer.most_state_bytes:,}); remove it to continue"
        )
    try:
        tensors = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainerError(
            f"the checkpoint {checkpoint.folder} is damaged ({visible(str(error))}); remove it to continue"
        ) from error
    optimizer.load_state_tensors(tensors)
