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
    from collections.abc import Mapping, Sequence

    import torch
    from torch import Tensor, nn

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
    is_spread_later: bool = False,
) -> "Policy":
    """Load a checkpoint with the family that its config.json names, in float32 unless told otherwise.

    Args:
        folder: The checkpoint.
        dtype: Type of its weights.
        store: Where embeddings are kept.
        device: Where it computes.
        allow_pickle_weights: Read weights from pickles too, of which nothing but tensors is taken.
        is_spread_later: Don't read the language model's weights yet: `mrsp_engine.sharding.shard_policy` has to spread
            them over ranks first, and then every rank reads its own.

    Raises:
        EngineUsageError: There is no checkpoint in `folder`, or no installed family can load it.
    """
    import torch

    model_type = _read_model_type(folder)
    family = _find_family(folder, model_type)
    from mrsp_engine.families.checkpoints import refuse_broken
    from mrsp_engine.families.weight_slices import leaving_unread

    given, place = dtype or torch.float32, torch.device(device)
    with refuse_broken(folder, model_type), leaving_unread(is_wanted=is_spread_later) as unread:
        policy = family.load_policy(
            folder, dtype=given, store=store, device=place, allow_pickle_weights=allow_pickle_weights
        )
        is_complete = not unread or _read_encoder(policy, family, unread, given, place)
    # Only transformers knows whether a tied head with numbers of its own is tied.
    return policy if is_complete else load_policy(folder, dtype=dtype, store=store, device=device)


def _read_encoder(
    policy: "Policy", family: "Family", unread: "Sequence[nn.Module]", dtype: "torch.dtype", device: "torch.device"
) -> bool:
    """Read everything but the language model's weights, and place it and all buffers; False if that can't be."""
    from mrsp_engine.families.weight_slices import WeightSlices

    own = {id(weight) for model in unread for weight in model.state_dict(keep_vars=True).values()}
    weights = {name: weight for name, weight in policy.model.state_dict(keep_vars=True).items() if id(weight) in own}
    slices = WeightSlices(policy.folder, weights, family.lay_out(policy.folder, weights), dtype)
    if slices.has_doubles:
        return False
    of_language = {*policy.decoder.parameters(), *policy.language_model_head.parameters()}
    for weight in weights.values():
        if weight not in of_language:
            slices.fill(weight, slices.find(weight))
    for parameter in policy.model.parameters():
        if parameter not in of_language:
            parameter.data = parameter.data.to(device)
    for module in policy.model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))
    policy.unread, policy.computed_device = slices, device
    return True


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
