"""Tensors in a folder of safetensors files that all ranks write and read together, each its own parts. No pickle.

    shard-00001-model-00003-of-00040.safetensors    of the first rank's files the third

Written and read by torch's distributed checkpoints (`torch.distributed.checkpoint`): a rank writes its shards of a
sharded tensor, with their offsets in the file's header, and some of the tensors that every rank holds; a reader takes
the parts that it needs from whichever files have them. So the number of ranks and the way in which tensors are sharded
may change in between. Torch's reader trusts what it reads and fills gaps with nothing: `list_tensors` looks at the
headers first. The module doesn't know what the tensors are.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from longrl_files.folders import ForeignFolder
from longrl_files.json_text import UnfitJsonError, parse_json
from longrl_files.messages import visible
from longrl_trainer.durable import LINK_CURE
from longrl_trainer.errors import TrainerError

__all__ = [
    "PlannedFiles",
    "describe_failure",
    "list_tensors",
    "plan_writing",
    "read_shards",
    "read_whole",
    "start_writing",
]

SUFFIX = ".safetensors"
FILE_BYTES = 2**28
"""A file and its copy in memory are about this large on every rank: the interpreter stands still while one is made."""
OFFSETS_KEY = "DCP_SHARDING_INFO"
DTYPES = {"F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16}

# A single process is no mistake, and torch would say so at each save.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A part of a tensor, or all of it."""

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    dtype: torch.dtype


class _Writer(HuggingFaceStorageWriter):
    """Calls back on the first rank when all ranks have written; what fails there fails on all ranks."""

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor], num_ranks: int, complete: Callable[[], None]):
        files = _assign_files(tensors, FILE_BYTES * num_ranks)
        super().__init__(str(folder), fqn_to_index_mapping=files, save_distributed=True)
        self._complete = complete

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Called by torch on the first rank."""
        self._complete()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFiles:
    """What one rank writes.

    Attributes:
        num_files: Number of its files.
        num_bytes: Bytes of the numbers in them.
        copied_bytes: Bytes of its copy in the host's memory, which is kept until all is written: also of whole tensors
            that another rank writes.
    """

    num_files: int
    num_bytes: int
    copied_bytes: int


class _Planner(_Writer):
    """Agrees with other ranks on who writes what, like its base class, and writes nothing."""

    def __init__(self, tensors: Mapping[str, Tensor], num_ranks: int):
        super().__init__(Path(), tensors, num_ranks, complete=lambda: None)
        self.num_files = self.num_bytes = 0

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Called by torch; makes no folder."""
        return plan

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        """Called by torch; counts instead of writing."""
        results: list[WriteResult] = []
        for item in plan.items:
            assert item.tensor_data is not None
            num_bytes = math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize
            results.append(WriteResult(index=item.index, size_in_bytes=num_bytes, storage_data=None))
        files: Mapping[str, int] = plan.storage_data["fqn_to_index_mapping"] if plan.items else {}
        self.num_files = len({files[item.index.fqn] for item in plan.items})
        self.num_bytes = sum(result.size_in_bytes for result in results)
        written: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        written.set_result(results)
        return written


def plan_writing(tensors: Mapping[str, Tensor], *, group: dist.ProcessGroup | None) -> PlannedFiles:
    """What `start_writing` would write of these tensors on this rank; all ranks call this together.

    They agree on it in the same messages, but nothing is copied or written, so the tensors needn't have numbers.
    """
    writer = _Planner(tensors, 1 if group is None else group.size())
    dcp.save(dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None)
    own = [
        cast(Tensor, cast(Any, tensor).to_local()) if isinstance(tensor, DTensor) else tensor
        for tensor in tensors.values()
    ]
    return PlannedFiles(
        num_files=writer.num_files, num_bytes=writer.num_bytes, copied_bytes=sum(tensor.nbytes for tensor in own)
    )


def start_writing(
    folder: Path, tensors: Mapping[str, Tensor], *, group: dist.ProcessGroup | None, complete: Callable[[], None]
) -> Future[Any]:
    """Copy the tensors, and write the copy in a thread of its own; all ranks call this together.

    Args:
        folder: Where the files are written, the same on all ranks.
        tensors: The same names on all ranks, each sharded or whole. They may change once this returns.
        group: All ranks, for the thread's messages alone; None for a single process.
        complete: Called on the first rank, in the thread, when the files of all ranks are on the disk.

    Returns:
        What is done when everything is; see `describe_failure` for its error.
    """
    num_ranks = 1 if group is None else group.size()
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
        )
    )
    future = dcp.async_save(
        dict(tensors),
        storage_writer=_Writer(folder, tensors, num_ranks, complete),
        async_stager=stager,
        process_group=group,
        no_dist=group is None,
    )
    return cast("Future[Any]", future)


def describe_failure(failure: BaseException) -> str:
    """The reason for which writing or reading failed, whichever rank it was on."""
    reasons = list(failure.failures.values()) if isinstance(failure, CheckpointException) else []
    reason: BaseException = reasons[0][0] if reasons else failure
    return visible(getattr(reason, "strerror", None) or str(reason) or type(reason).__name__)


def list_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors in a folder, without their values (on the meta device), if the files hold all parts of each.

    Raises:
        TrainerError: They don't, or can't be read.
    """
    parts: dict[str, list[_Part]] = {}
    for name in _file_names(folder):
        path = ForeignFolder(folder, error=TrainerError, link_cure=LINK_CURE).path(name)
        try:
            with safe_open(path, "pt") as file:
                entries = _entries_of(cast(dict[str, str] | None, file.metadata()))
                for key in file.keys():  # noqa: SIM118
                    found = file.get_slice(key)
                    parts.setdefault(key, []).append(
                        _check_part(entries.get(key), found.get_shape(), found.get_dtype())
                    )
        except (OSError, SafetensorError, ValueError) as error:
            raise _damaged(path, str(error)) from error
    return {key: _join(folder, key, found) for key, found in parts.items()}


def read_shards(folder: Path, tensors: Mapping[str, Tensor], *, group: dist.ProcessGroup | None) -> None:
    """Fill the given tensors in place, each rank its own parts; all ranks call this together, after `list_tensors`.

    Raises:
        TrainerError: A tensor isn't there or can't be read.
    """
    try:
        dcp.load(
            dict(tensors),
            storage_reader=HuggingFaceStorageReader(str(folder)),
            process_group=group,
            no_dist=group is None,
        )
    except (CheckpointException, OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise _damaged(folder, describe_failure(error)) from error


def read_whole(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values of some of the tensors that `list_tensors` found, whole, in a single process."""
    whole = {key: torch.empty_like(tensor, device="cpu") for key, tensor in tensors.items()}
    read_shards(folder, whole, group=None)
    return whole


def _assign_files(tensors: Mapping[str, Tensor], file_bytes: int) -> dict[str, int]:
    """The number of each tensor's file, from 1, so that a file has about so many bytes over all ranks."""
    files: dict[str, int] = {}
    filled = 0
    for name, tensor in tensors.items():
        files[name] = 1 + filled // file_bytes
        filled += tensor.numel() * tensor.element_size()
    return files


def _file_names(folder: Path) -> list[str]:
    files = ForeignFolder(folder, error=TrainerError, link_cure=LINK_CURE)
    return [name for name in files.names() if name.endswith(SUFFIX)]


def _entries_of(metadata: Mapping[str, str] | None) -> dict[str, object]:
    """What a file's header says about its tensors."""
    try:
        found = parse_json((metadata or {}).get(OFFSETS_KEY, ""))
    except UnfitJsonError as error:
        raise ValueError("a header without offsets") from error
    return cast(dict[str, object], found) if isinstance(found, dict) else {}


def _check_part(entry: object, lengths: list[int], kind: str) -> _Part:
    """A part of a tensor, checked for its dtype, and its offsets for their number and kind."""
    found = cast(dict[str, object], entry).get("saved_offsets") if isinstance(entry, dict) else None
    offsets = cast(list[object], found) if isinstance(found, list) else [None]
    if len(offsets) != len(lengths) or any(type(offset) is not int or offset < 0 for offset in offsets):
        raise ValueError("offsets that fit no tensor")
    if kind not in DTYPES:
        raise ValueError(f"numbers of kind {visible(kind, 20)}, expected one of {', '.join(DTYPES)}")
    return _Part(offsets=tuple(cast(list[int], offsets)), lengths=tuple(lengths), dtype=DTYPES[kind])


def _join(folder: Path, key: str, parts: list[_Part]) -> Tensor:
    """The tensor that the parts fill, without its values."""
    if len({(len(part.lengths), part.dtype) for part in parts}) != 1:
        raise _damaged(folder, f"parts of {visible(key, 100)} of different kinds")
    ends = [[offset + length for offset, length in zip(part.offsets, part.lengths, strict=True)] for part in parts]
    shape = [max(side) for side in zip(*ends, strict=True)]
    filled = [part for part in parts if 0 not in part.lengths]
    num_filled = sum(math.prod(part.lengths) for part in filled)
    if num_filled != math.prod(shape) or len({part.offsets for part in filled}) != len(filled):
        raise _damaged(folder, f"{visible(key, 100)} isn't whole")
    return torch.empty(shape, dtype=parts[0].dtype, device="meta")


def _damaged(place: Path, reason: str) -> TrainerError:
    checkpoint = place.parent if place.suffix == SUFFIX else place
    return TrainerError(f"the checkpoint {checkpoint} is damaged ({visible(reason)}); remove it to continue")
