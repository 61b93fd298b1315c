"""A checkpoint like the one that a model was loaded from, with other weights.

Training changes weights and nothing else. So all other files are carried over byte for byte, for every program that
could read the first folder to read the second one alike: configurations (a newer library would write keys that older
ones ignore), tokenizer, processor, templates, licence, and code, which is copied and never run. Weights keep their
names, their division into files and, unless asked otherwise, their number formats; a head that has no weights of its
own in the files gets none.

Two things stay behind: what isn't part of the checkpoint (hidden folders, and the folder that is being written), and
the old weights in forms that would disagree with the new ones.

The module knows files and tensors; how a family names its weights is told by the family.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mrsp_engine.errors import EngineError

__all__ = ["checkpoint_files", "read_weights", "write_copy"]

WEIGHTS_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
_FORMS_OF_WEIGHTS = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data"}
)
_FOREIGN_INDEX = ".bin.index.json"


def checkpoint_files(folder: Path, *, outside: Iterable[Path] = ()) -> list[Path]:
    """The files of a checkpoint, those in its folders included, as paths relative to `folder` in a fixed order.

    Links are followed, as in the snapshots of a hub's cache, which hold nothing else. Hidden folders (`.git`, `.cache`)
    are no part of a checkpoint.

    Args:
        folder: The checkpoint.
        outside: Folders that are no part of it either, wherever they lie, such as one that is being written.
    """
    others = [path.resolve() for path in outside]

    def walk(directory: Path, above: frozenset[Path]) -> Iterator[Path]:
        for item in directory.iterdir():
            if not item.is_dir():
                yield item.relative_to(folder)
                continue
            place = item.resolve()
            is_foreign = item.name.startswith(".") or item.name == "__pycache__" or place in above
            if not is_foreign and not any(other.is_relative_to(place) for other in others):
                yield from walk(item, above | {place})

    return sorted(walk(folder, frozenset({folder.resolve()})))


def read_weights(folder: Path) -> dict[str, dict[str, Tensor]]:
    """All weights of a checkpoint that `write_copy` wrote, by the folder of it in which they lie and by name.

    Raises:
        EngineError: There are none, or a file is gone or damaged.
    """
    weights: dict[str, dict[str, Tensor]] = {}
    try:
        for path in checkpoint_files(folder):
            if path.suffix == ".safetensors":
                part = "" if path.parent == Path() else path.parent.as_posix()
                weights.setdefault(part, {}).update(load_file(folder / path))
    except (OSError, SafetensorError) as error:
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
    """Fill a folder with a checkpoint's files and other weights.

    Args:
        source: The checkpoint.
        target: An empty folder.
        weights: All weights of each part of the model, under every name that files may have for them, the usual one
            first; a part is named by its folder in the checkpoint, "" for the checkpoint itself.
        exact: Keep the weights' own number formats instead of those in the files.
        is_whole: Refuse files with a weight that isn't given, instead of leaving it as it is.
        outside: Folders that are no part of the checkpoint; see `checkpoint_files`.

    Raises:
        EngineError: The checkpoint isn't there any more, or is of other weights.
    """
    try:
        paths = checkpoint_files(source, outside=outside)
    except OSError as error:
        raise _vanished(source, error) from error
    for path in paths:
        if path.suffix in _FORMS_OF_WEIGHTS or path.name.endswith(_FOREIGN_INDEX):
            continue
        (target / path.parent).mkdir(parents=True, exist_ok=True)
        if not (source / path).is_file():
            raise _vanished(source / path)
        shutil.copyfile(source / path, target / path)
    for part, tensors in weights.items():
        (target / part).mkdir(parents=True, exist_ok=True)
        _write_part(source / part, target / part, tensors, exact=exact, is_whole=is_whole)


def _write_part(source: Path, target: Path, tensors: Mapping[str, Tensor], *, exact: bool, is_whole: bool) -> None:
    """Write the weights of one folder, file by file as they lie in the source."""
    files = _weight_files(source)
    if not files:
        _write_single(source, target, tensors, exact=exact)
        return
    missing = _first_names(tensors)
    total_size = 0
    for name in files:
        content, metadata = _renew(source / name, tensors, exact=exact)
        strange = sorted(content.keys() - tensors.keys())
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
        _correct_index(target / INDEX_NAME, total_size)


def _first_names(tensors: Mapping[str, Tensor]) -> dict[int, str]:
    """The first name of each weight, by where its numbers lie."""
    names: dict[int, str] = {}
    for name, tensor in tensors.items():
        names.setdefault(tensor.data_ptr(), name)
    return names


def _weight_files(folder: Path) -> list[str]:
    """Names of the files that hold a folder's weights, by the rule of transformers; none if they have another form."""
    if (folder / WEIGHTS_NAME).is_file():
        return [WEIGHTS_NAME]
    try:
        index: Any = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
        names = sorted(set(cast(dict[str, str], index["weight_map"]).values()))
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise _vanished(folder) from error
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _vanished(folder / INDEX_NAME, error) from error
    if any(Path(name).name != name for name in names):
        raise EngineError(f"{folder / INDEX_NAME}: names files in other folders; set another model folder")
    return names


def _renew(
    path: Path, tensors: Mapping[str, Tensor], *, exact: bool
) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """What a file of weights holds once they are renewed, and its metadata; what the model doesn't know stays."""
    content: dict[str, Tensor] = {}
    held: set[int] = set()
    try:
        with safe_open(path, "pt") as file:
            published = {name: cast(Tensor, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            metadata = cast(dict[str, str] | None, file.metadata())
    except (OSError, SafetensorError) as error:
        raise _vanished(path, error) from error
    for name, old in published.items():
        new = tensors.get(name, old).detach()
        if new.shape != old.shape:
            raise EngineError(
                f"{path}: {name} has shape {tuple(old.shape)} and in the model {tuple(new.shape)}; "
                "the model was loaded from another checkpoint"
            )
        dtype = new.dtype if exact and name in tensors else old.dtype
        new = new.to(device="cpu", dtype=dtype).contiguous()
        if new.data_ptr() in held:
            new = new.clone()  # a tied head that has a place of its own in the file
        held.add(new.data_ptr())
        content[name] = new
    return content, metadata


def _write_single(source: Path, target: Path, tensors: Mapping[str, Tensor], *, exact: bool) -> None:
    """Write all weights into one file, each once, where the source has no safetensors to take the layout from."""
    dtype = None if exact else _named_dtype(source / "config.json")
    content = {
        name: tensors[name].detach().to(device="cpu", dtype=dtype or tensors[name].dtype).contiguous()
        for name in _first_names(tensors).values()
    }
    save_file(content, target / WEIGHTS_NAME, metadata={"format": "pt"})


def _named_dtype(path: Path) -> torch.dtype | None:
    """The number format that a configuration names."""
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    dtype = getattr(torch, str(values.get("torch_dtype") or values.get("dtype")).removeprefix("torch."), None)
    return dtype if isinstance(dtype, torch.dtype) else None


def _correct_index(path: Path, total_size: int) -> None:
    """Name the size that the weights have in their own number formats."""
    index: Any = json.loads(path.read_text(encoding="utf-8"))
    if index.get("metadata", {}).get("total_size") not in (None, total_size):
        index["metadata"]["total_size"] = total_size
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _vanished(path: Path, error: Exception | None = None) -> EngineError:
    reason = "" if error is None else f" ({getattr(error, 'strerror', None) or error})"
    return EngineError(
        f"{path}: can't be read any more{reason}; a saved model takes all but its weights from the checkpoint it was "
        "loaded from, put that back and start again"
    )
