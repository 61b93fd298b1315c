"""A copy of the checkpoint that a model was loaded from, with new weights.

Training changes only weights. All other files are copied byte for byte, so that every program that can read the first
folder reads the second in the same way: configurations (a newer library would write keys that older ones ignore),
tokenizer, processor, templates, licence, and code, which is copied and never run. Weights keep their names, their
division into files and, unless requested otherwise, their dtypes; a head that has no weights of its own in the files
gets none.

Two things are not copied: what isn't part of the checkpoint (hidden folders, and the folder that is being written), and
the old weights in other file formats, which would disagree with the new ones.

The module handles files and tensors; a family says how it names its weights.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families.checkpoint_folder import INDEX_NAME, MOST_VOCABULARY_BYTES, WEIGHTS_NAME, CheckpointFolder

__all__ = ["checkpoint_files", "read_weights", "write_copy"]

_FORMS_OF_WEIGHTS = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data"}
)
_FOREIGN_INDEX = ".bin.index.json"
_OTHER_PARTS = ("mtp.", "talker.", "token2wav.")
"""Prefixes of the weights of parts that no model loads: what predicts further tokens, and what speaks."""
_SPEAKERS_NAME = "spk_dict.pt"
"""Voices of a talker, which aren't weights of the model in another format."""
_COPIED_BYTES = 1 << 20


def checkpoint_files(folder: Path, *, outside: Iterable[Path] = ()) -> list[Path]:
    """The files of a checkpoint, including those in subfolders, as paths relative to `folder` in a fixed order.

    A file may be a link into the hub's cache in which the checkpoint lies, and nothing else may be one: what is copied
    would come from anywhere. Hidden folders (`.git`, `.cache`) are not part of a checkpoint.

    Args:
        folder: The checkpoint.
        outside: Further folders that are not part of it, wherever they are, such as one that is being written.

    Raises:
        EngineUsageError: It holds a link, or something that is neither a file nor a folder.
    """
    others = [path.resolve() for path in outside]

    def is_foreign(name: str) -> bool:
        last, place = name.rpartition("/")[2], (folder / name).resolve()
        return last.startswith(".") or last == "__pycache__" or any(other.is_relative_to(place) for other in others)

    return sorted(Path(name) for name in CheckpointFolder(folder).files.files(skips=is_foreign))


def read_weights(folder: Path) -> dict[str, dict[str, Tensor]]:
    """All weights of a checkpoint that `write_copy` wrote, by the folder of it in which they lie and by name.

    Raises:
        EngineError: There are none, or a file is gone or damaged.
    """
    weights: dict[str, dict[str, Tensor]] = {}
    files = CheckpointFolder(folder).files
    try:
        for path in checkpoint_files(folder):
            if path.suffix == ".safetensors":
                part = "" if path.parent == Path() else path.parent.as_posix()
                weights.setdefault(part, {}).update(load_file(files.path(path.as_posix())))
    except (OSError, SafetensorError, EngineUsageError) as error:
        raise EngineError(
            f"{folder}: its weights can't be read ({getattr(error, 'strerror', None) or error})"
        ) from error
    if not weights:
        raise EngineError(f"{folder}: holds no weights; expected a checkpoint with safetensors")
    return weights


def write_copy(
    source: Path,
    target: Path,
    weights: Mapping[str, Mapping[str, Tensor]],
    *,
    exact: bool = False,
    is_whole: bool = False,
    outside: Iterable[Path],
) -> None:
    """Fill a folder with a checkpoint's files and new weights.

    Args:
        source: The checkpoint.
        target: An empty folder.
        weights: All weights of each part of the model, under every name that files may use for them, the usual one
            first; a part is named by its folder in the checkpoint, "" for the checkpoint itself. One on the meta device
            stands for what the checkpoint has.
        exact: Keep the weights' own dtypes instead of those in the files.
        is_whole: Refuse files with a weight that isn't given, instead of leaving it as it is; weights of parts
            that no model loads (what predicts further tokens or speaks) stay.
        outside: Folders that are not part of the checkpoint; see `checkpoint_files`.

    Raises:
        EngineError: The checkpoint no longer exists, or has different weights.
    """
    if not source.is_dir():
        raise _vanished(source, EngineError("no such folder"))
    files = CheckpointFolder(source).files
    try:
        for path in checkpoint_files(source, outside=outside):
            is_weights = path.suffix in _FORMS_OF_WEIGHTS or path.name.endswith(_FOREIGN_INDEX)
            if is_weights and path.name != _SPEAKERS_NAME:
                continue
            (target / path.parent).mkdir(parents=True, exist_ok=True)
            with files.open(path.as_posix()) as old, (target / path).open("xb") as new:
                shutil.copyfileobj(old, new, _COPIED_BYTES)
    except EngineUsageError as error:
        raise _vanished(source, error) from error
    for part, tensors in weights.items():
        (target / part).mkdir(parents=True, exist_ok=True)
        _write_part(source / part, target / part, tensors, exact=exact, is_whole=is_whole)


def _write_part(source: Path, target: Path, tensors: Mapping[str, Tensor], *, exact: bool, is_whole: bool) -> None:
    """Write the weights of one folder, divided into the same files as in the source."""
    files = _weight_files(source)
    if not files:
        _write_single(source, target, tensors, exact=exact)
        return
    missing = _first_names(tensors)
    total_size = 0
    for name in files:
        content, metadata = _renew(source / name, tensors, exact=exact)
        strange = sorted(name for name in content.keys() - tensors.keys() if not name.startswith(_OTHER_PARTS))
        if is_whole and strange:
            raise EngineError(
                f"{source / name}: holds {strange[0]}, which the model hasn't; "
                "the model was loaded from another checkpoint"
            )
        save_file(content, target / name, metadata=metadata)
        total_size += sum(tensor.nbytes for tensor in content.values())
        for key in content.keys() & tensors.keys():
            missing.pop(tensors[key].data_ptr(), None)
    if missing:
        raise EngineError(
            f"{source}: its files have no place for {len(missing)} weights of the model, first "
            f"{min(missing.values())}; the model was loaded from another checkpoint"
        )
    if exact and len(files) > 1:
        _correct_index(target, total_size)


def _first_names(tensors: Mapping[str, Tensor]) -> dict[int, str]:
    """The first name of each weight; weights that share storage count once."""
    names: dict[int, str] = {}
    for name, tensor in tensors.items():
        names.setdefault(tensor.data_ptr(), name)
    return names


def _weight_files(folder: Path) -> list[str]:
    """Names of the files with a folder's weights, by transformers' rules; none if the weights have another format."""
    try:
        if not CheckpointFolder(folder).files.names():
            raise _vanished(folder)
        return CheckpointFolder(folder).weight_files()
    except (OSError, EngineUsageError) as error:
        raise _vanished(folder, error) from error


def _renew(
    path: Path, tensors: Mapping[str, Tensor], *, exact: bool
) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """The contents of a weights file with the new weights, and its metadata; weights unknown to the model stay."""
    content: dict[str, Tensor] = {}
    held: set[int] = set()
    try:
        CheckpointFolder(path.parent).files.path(path.name)
        with safe_open(path, "pt") as file:
            published = {name: cast(Tensor, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            metadata = cast(dict[str, str] | None, file.metadata())
    except (OSError, SafetensorError, EngineUsageError) as error:
        raise _vanished(path, error) from error
    for name, old in published.items():
        new = tensors.get(name, old).detach()
        if new.shape != old.shape:
            raise EngineError(
                f"{path}: {name} has shape {tuple(old.shape)} and in the model {tuple(new.shape)}; "
                "the model was loaded from another checkpoint"
            )
        if new.is_meta:
            new = old
        dtype = new.dtype if exact and name in tensors else old.dtype
        new = new.to(device="cpu", dtype=dtype).contiguous()
        if new.data_ptr() in held:
            new = new.clone()  # a tied head that has an entry of its own in the file
        held.add(new.data_ptr())
        content[name] = new
    return content, metadata


def _write_single(source: Path, target: Path, tensors: Mapping[str, Tensor], *, exact: bool) -> None:
    """Write all weights into one file, each once; used where the source has no safetensors to copy the layout from."""
    dtype = None if exact else _named_dtype(source)
    lacking = next((name for name, tensor in tensors.items() if tensor.is_meta), None)
    if lacking is not None:
        raise EngineError(f"{source}: {lacking} wasn't trained, and is in no safetensors there; convert its weights")
    content = {
        name: tensors[name].detach().to(device="cpu", dtype=dtype or tensors[name].dtype).contiguous()
        for name in _first_names(tensors).values()
    }
    save_file(content, target / WEIGHTS_NAME, metadata={"format": "pt"})


def _named_dtype(folder: Path) -> torch.dtype | None:
    """The dtype that a configuration names."""
    try:
        values = CheckpointFolder(folder).find("config.json") or {}
    except EngineUsageError:
        return None
    dtype = getattr(torch, str(values.get("torch_dtype") or values.get("dtype")).removeprefix("torch."), None)
    return dtype if isinstance(dtype, torch.dtype) else None


def _correct_index(folder: Path, total_size: int) -> None:
    """Name the size that the weights have in their own number formats."""
    index = CheckpointFolder(folder).find(INDEX_NAME, max_bytes=MOST_VOCABULARY_BYTES) or {}
    if index.get("metadata", {}).get("total_size") not in (None, total_size):
        index["metadata"]["total_size"] = total_size
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _vanished(path: Path, error: Exception | None = None) -> EngineError:
    reason = "" if error is None else f" ({getattr(error, 'strerror', None) or error})"
    return EngineError(
        f"{path}: can't be read any more{reason}; a saved model takes everything except its weights from the "
        f"checkpoint it was loaded from; restore that and start again"
    )
