"""The weights of a checkpoint that a rank reads only in part, once it is known which parts it holds.

A model whose weights are spread over ranks is built without reading them: its language model has memory that is never
touched, so that the system provides none. After spreading, `WeightSlices.fill` reads the rows that this rank holds from
safetensors, one weight at a time. Numbers pass through the model's own dtype, as if it had been loaded whole.

The module handles files and tensors; a family says how it names its weights.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.checkpoint_folder import CheckpointFolder

__all__ = ["WeightPlace", "WeightSlices", "build_untouched", "leaving_unread", "unread_models"]

ModelT = TypeVar("ModelT", bound=nn.Module)

_unread: ContextVar["list[nn.Module] | None"] = ContextVar("unread", default=None)


@contextmanager
def leaving_unread(*, is_wanted: bool = True) -> Generator[list[nn.Module]]:
    """Within the block language models are built without reading their weights, if wanted; yields their list."""
    models: list[nn.Module] = []
    token = _unread.set(models if is_wanted else None)
    try:
        yield models
    finally:
        _unread.reset(token)


def unread_models() -> list[nn.Module] | None:
    """The models built so far in the innermost block of `leaving_unread`; None if models are read now."""
    return _unread.get()


def build_untouched(build: Callable[[], ModelT]) -> ModelT:
    """A module as `build` makes it, but nothing has touched the memory of its parameters; buffers have their values."""

    def forget(_: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None  # keeps it
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(cast(Any, forget))
    try:
        model = build()
    finally:
        handle.remove()
    given: dict[nn.Parameter, nn.Parameter] = {}  # a tied parameter stays one
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in given:
                empty = torch.empty_like(parameter, device="cpu")
                given[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            module.register_parameter(name, given[parameter])
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlace:
    """Where a weight lies: a file, its name there, and whether its last two dimensions are the other way round."""

    path: Path
    key: str
    is_turned: bool


class WeightSlices:
    """Where the weights of a model lie.

    Args:
        folder: The checkpoint.
        weights: All weights of the model by name.
        laid_out: The same as `Family.lay_out` arranges them.
        dtype: What they are rounded to.

    Attributes:
        has_doubles: Whether the files have a weight under two names, as for a tied head.

    Raises:
        EngineUsageError: The files lack one of them, or have it in another shape.
    """

    def __init__(
        self,
        folder: Path,
        weights: Mapping[str, Tensor],
        laid_out: Mapping[str, Mapping[str, Tensor]],
        dtype: torch.dtype,
    ) -> None:
        self._dtype = dtype
        # A view has its weight's storage, and tied weights have one place.
        owners = {id(weight.untyped_storage()): weight for weight in weights.values()}
        self._places: dict[int, WeightPlace] = {}
        self.has_doubles = False
        for part, named in laid_out.items():
            checkpoint = CheckpointFolder(folder / part)
            for file_name in checkpoint.weight_files():
                path = checkpoint.files.path(file_name)
                with safe_open(path, "pt") as file:
                    for key in set(file.keys()) & named.keys():
                        laid = named[key]
                        owner = owners[id(laid.untyped_storage())]
                        if list(file.get_slice(key).get_shape()) == list(laid.shape):
                            self.has_doubles |= id(owner) in self._places
                            is_turned = laid.stride() != owner.stride()
                            self._places[id(owner)] = WeightPlace(path=path, key=key, is_turned=is_turned)
        lacking = sorted(name for name, weight in weights.items() if weight not in self)
        if lacking:
            raise EngineUsageError(
                f"{folder}: {len(lacking)} weights are missing or of another shape, first {lacking[0]}; "
                "the checkpoint is incomplete, set another model folder"
            )

    def __contains__(self, weight: Tensor) -> bool:
        """Whether it is one of the model's weights, as they were before they were spread."""
        return id(weight) in self._places

    def find(self, weight: Tensor) -> WeightPlace:
        """Where one of them lies; asked before it is spread, as no weight is kept for it."""
        return self._places[id(weight)]

    @torch.no_grad()
    def fill(self, target: Tensor, place: WeightPlace) -> None:
        """Read a weight, or the rows of it that this rank holds.

        Args:
            target: What is filled: the weight itself, or what has become of it by FSDP2, split by rows.
            place: Where the whole weight lies.

        Raises:
            EngineUsageError: The file can't be read any more.
        """
        own, start = _own_rows(target)
        stop = start + len(own) if own.dim() else 1
        if start == stop:
            return
        try:
            with safe_open(place.path, "pt") as file:
                whole = file.get_slice(place.key)
                rows = cast(Tensor, whole[start:stop] if own.dim() else file.get_tensor(place.key))
        except (OSError, SafetensorError) as error:
            raise EngineUsageError(f"{place.path}: can't be read any more ({error}); set the model folder") from error
        rows = rows.transpose(1, 2) if place.is_turned else rows
        own.copy_(rows.to(self._dtype))


def _own_rows(target: Tensor) -> tuple[Tensor, int]:
    """This rank's part of a tensor, and the number of its first row."""
    if not isinstance(target, DTensor):
        return target, 0
    own = cast(Tensor, cast(Any, target).to_local())
    split = next((dim for dim, placement in enumerate(target.placements) if placement.is_shard()), None)
    if split is None:
        return own, 0
    rows_each = -(-target.shape[0] // target.device_mesh.size(split))
    return own, min(target.shape[0], rows_each * target.device_mesh.get_local_rank(split))
