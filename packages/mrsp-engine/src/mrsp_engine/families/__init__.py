"""Families of models behind one interface, found by the `model_type` of a checkpoint.

A family is one module and one entry point in the group `mrsp_engine.families`; nothing here names one. The modules that
only count frames and tokens (`frame_sizes`, `processor_files`, `published_frames`) need no torch; nothing here imports
them.
"""

from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, cast

from longrl_files.messages import visible
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.checkpoint_folder import CheckpointFolder

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from mrsp_engine.embeddings.store import EmbeddingStore
    from mrsp_engine.families.base import Family, Policy

ENTRY_POINT_GROUP = "mrsp_engine.families"


def load_policy(
    folder: Path,
    *,
    dtype: "torch.dtype | None" = None,
    store: "EmbeddingStore",
    device: "torch.device | str" = "cpu",
    allow_pickle_weights: bool = False,
) -> "Policy":
    """Load a checkpoint with the family that its config.json names, in float32 unless told otherwise.

    Args:
        folder: The checkpoint.
        dtype: Type of its weights.
        store: Where embeddings are kept.
        device: Where it computes.
        allow_pickle_weights: Read weights from pickles too, of which nothing but tensors is taken.

    Raises:
        EngineUsageError: There is no checkpoint in `folder`, or no installed family can load it.
    """
    import torch

    model_type = _read_model_type(folder)
    family = _find_family(folder, model_type)
    from mrsp_engine.families.checkpoints import refuse_broken

    with refuse_broken(folder, model_type):
        return family.load_policy(
            folder,
            dtype=dtype or torch.float32,
            store=store,
            device=torch.device(device),
            allow_pickle_weights=allow_pickle_weights,
        )


def lay_out_weights(folder: Path, weights: "Mapping[str, Tensor]") -> "dict[str, dict[str, Tensor]]":
    """Arrange a model's weights like those of the checkpoint that it was loaded from; see `Family.lay_out`.

    Raises:
        EngineUsageError: There is no checkpoint in `folder`, or no installed family can load it.
    """
    return _find_family(folder, _read_model_type(folder)).lay_out(folder, weights)


def _find_family(folder: Path, model_type: str) -> "Family":
    families = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if model_type not in families:
        raise EngineUsageError(
            f"{folder}: checkpoint of model type {visible(model_type, 40)!r}; expected one of "
            f"{', '.join(sorted(families))}; choose another model folder or install a package that provides the family"
        )
    return cast("Family", families[model_type].load()())


def _read_model_type(folder: Path) -> str:
    config = CheckpointFolder(folder).find("config.json") if folder.exists() else None
    if config is None:
        raise EngineUsageError(f"{folder}: no checkpoint here (config.json is missing); set the model folder")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise EngineUsageError(
            f"{folder / 'config.json'}: names no model_type; expected an ordinary Hugging Face checkpoint"
        )
    return model_type
