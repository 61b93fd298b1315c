"""Which linear layers of a model get adapters, as the recipe names them.

A target is the end of a layer's name, cut at a dot. Layers are given to peft by their full names: of an expression peft
forgets the place, and then adapts other parts of the model too. The head and the input embedding get none, because peft
unties them where they are one.

What can be seen in the files' headers is refused before a model is loaded.
"""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn

from longrl_trainer.config.sections import LoraSection
from longrl_trainer.errors import TrainerUsageError
from mrsp_engine.families.base import Policy
from mrsp_engine.families.checkpoint_folder import CheckpointFolder
from mrsp_engine.families.vila.config import LANGUAGE_FOLDER

__all__ = ["choose_targets", "refuse_unknown_targets"]


def refuse_unknown_targets(folder: Path, lora: LoraSection) -> None:
    """Refuse targets whose last part names no matrix of a checkpoint; one without safetensors isn't looked at.

    Raises:
        TrainerUsageError: There is such a target.
    """
    if not lora.targets or not folder.is_dir():
        return
    checkpoint = CheckpointFolder(folder)
    parts = (checkpoint, checkpoint.part(LANGUAGE_FOLDER))
    matrices = {name.removesuffix(".weight") for part in parts for name in part.matrices() if name.endswith(".weight")}
    if matrices:
        in_layers = [name for name in matrices if any(part.isdecimal() for part in name.split("."))]
        for target in lora.targets:
            if not _ends(in_layers, target.rpartition(".")[2]):
                raise _unmatched(target, in_layers)


def choose_targets(policy: Policy, lora: LoraSection) -> list[str]:
    """Full names, in `policy.causal_model`, of the layers that get adapters.

    Raises:
        TrainerUsageError: A target matches nothing, or the model has no vision that can get adapters.
    """
    model = policy.causal_model
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    decoder = _place(model, policy.decoder)
    tower = None if policy.encoder is None else _place(model, policy.encoder.parts)
    of_vision = [] if tower is None else [name for name in linears if _is_in(name, tower)]
    available = [name for name in linears if decoder is not None and _is_in(name, decoder) and name not in of_vision]
    if lora.vision:
        if not of_vision:
            raise TrainerUsageError(
                f"lora.vision=true: the vision of a model of type {policy.name} isn't part of its language model's "
                "class, or there is none; set it to false"
            )
        available += of_vision
    if lora.targets is None:
        return available
    for target in lora.targets:
        if not _ends(available, target):
            raise _unmatched(target, available)
    chosen = [name for name in available if any(_ends([name], target) for target in lora.targets)]
    if lora.vision and not any(name in of_vision for name in chosen):
        raise TrainerUsageError(
            f"lora.vision=true: lora.targets match nothing in the vision; add one of {_list_ends(of_vision)}"
        )
    return chosen


def _place(model: nn.Module, part: nn.Module) -> str | None:
    """The name of a part of a model; None if it isn't one."""
    return next((name for name, module in model.named_modules() if module is part), None)


def _is_in(name: str, place: str) -> bool:
    return not place or name.startswith(f"{place}.")


def _ends(names: Iterable[str], target: str) -> list[str]:
    """The names that end with a target."""
    return [name for name in names if f".{name}".endswith(f".{target}")]


def _list_ends(names: Iterable[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))


def _unmatched(target: str, names: Sequence[str]) -> TrainerUsageError:
    ends = {".".join(name.split(".")[-length:]) for name in names for length in range(1, target.count(".") + 2)}
    near = difflib.get_close_matches(target, sorted(ends), n=1, cutoff=0.0)
    hint = f"the nearest is {near[0]!r}, and " if near else ""
    return TrainerUsageError(
        f"lora.targets: {target!r} matches no linear layer that can get an adapter; {hint}"
        f"the ends of their names are {_list_ends(names)}"
    )
