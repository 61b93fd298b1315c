"""Families of models behind one interface, found by the `model_type` of a checkpoint.

A family is one module and one entry point in the group `mrsp_engine.families`; nothing here names one. The modules that
only count frames and tokens (`frame_sizes`, `processor_files`, `published_frames`) need no torch; nothing here imports
them.
"""

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mrsp_engine.errors import EngineUsageError

if TYPE_CHECKING:
    import torch

    from mrsp_engine.embeddings.store import EmbeddingStore
    from mrsp_engine.families.base import Family, Policy

ENTRY_POINT_GROUP = "mrsp_engine.families"


def load_policy(
    folder: Path,
    *,
    dtype: "torch.dtype | None" = None,
    store: "EmbeddingStore",
    device: "torch.device | str" = "cpu",
) -> "Policy":
    """Load a checkpoint with the family that its config.json names, in float32 unless told otherwise.

    Raises:
        EngineUsageError: There is no checkpoint in `folder`, or no installed family can load it.
    """
    import torch

    model_type = _read_model_type(folder)
    families = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if model_type not in families:
        raise EngineUsageError(
            f"{folder}: checkpoint of model type {model_type!r}; expected one of {', '.join(sorted(families))}; "
            "choose another model folder or install a package that provides the family"
        )
    family = cast("Family", families[model_type].load()())
    return family.load_policy(folder, dtype=dtype or torch.float32, store=store, device=torch.device(device))


def _read_model_type(folder: Path) -> str:
    path = folder / "config.json"
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EngineUsageError(f"{folder}: no checkpoint here (config.json is missing); set the model folder") from None
    except (OSError, ValueError) as error:
        raise EngineUsageError(f"{path}: can't be read as JSON ({error}); set the model folder") from error
    model_type = cast(dict[str, Any], config).get("model_type") if isinstance(config, dict) else None
    if not isinstance(model_type, str):
        raise EngineUsageError(f"{path}: names no model_type; expected an ordinary Hugging Face checkpoint")
    return model_type
