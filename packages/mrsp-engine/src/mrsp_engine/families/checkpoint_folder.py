"""A checkpoint's folder, looked at before any library opens it.

Checkpoints are downloaded, and transformers opens whatever it finds at a path: a link to elsewhere, a FIFO that never
ends, a pickle, a list of weight files in another folder, a configuration of another shape. So every file that may be
read is checked first, the size and the types of JSON are bounded, and anything wrong is reported in one line. The hub's
cache, whose snapshots are links into `blobs` beside them, loads as it is; other links are refused.

This module knows files and JSON, but neither torch nor a family.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, cast

from longrl_files.folders import ForeignFolder
from longrl_files.json_text import UnfitJsonError, parse_json
from longrl_files.messages import visible
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families.config_values import refuse_wrong_values

__all__ = ["INDEX_NAME", "PICKLE_NAME", "WEIGHTS_NAME", "CheckpointFolder"]

WEIGHTS_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
PICKLE_NAME, PICKLE_INDEX_NAME = "pytorch_model.bin", "pytorch_model.bin.index.json"
CONFIG_NAME = "config.json"
TEMPLATES_FOLDER = "additional_chat_templates"

MOST_CONFIG_BYTES = 8 * 2**20
MOST_VOCABULARY_BYTES = 64 * 2**20
LONGEST_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format."""

_CURE = "set the model folder"
_CONFIGURATIONS = (
    CONFIG_NAME,
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
)
_SHAPING = frozenset(_CONFIGURATIONS[:6])
_VOCABULARIES = ("tokenizer.json", "vocab.json")
_INDICES = {INDEX_NAME: ".safetensors", PICKLE_INDEX_NAME: ".bin"}
_ADAPTER_NAME = "adapter_config.json"


class CheckpointFolder:
    """The folder of one model in the layout of transformers, or a part of one.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = ForeignFolder(
            path, error=EngineUsageError, link_cure="put the file itself there, or set another model folder"
        )

    def part(self, name: str) -> "CheckpointFolder":
        """A folder in it, which must be a real one; it needn't be there.

        Raises:
            EngineUsageError: It is a link.
        """
        self.files.names(name)
        return CheckpointFolder(self.path / name)

    def find(self, name: str, *, max_bytes: int = MOST_CONFIG_BYTES) -> dict[str, Any] | None:
        """Read a JSON object; None if there is no such file.

        Raises:
            EngineUsageError: It is no file, too large, no JSON, or no object; or what it says is of another kind than
                every reader expects.
        """
        file = self.files.find(name)
        if file is None:
            return None
        file.close()
        try:
            values = parse_json(self.files.read_bytes(name, max_bytes=max_bytes))
        except UnfitJsonError as error:
            raise EngineUsageError(
                f"{self.path / name}: can't be read as JSON ({visible(str(error))}); {_CURE}"
            ) from error
        if not isinstance(values, dict):
            raise EngineUsageError(f"{self.path / name}: expected a JSON object; {_CURE}")
        found = cast(dict[str, Any], values)
        if PurePath(name).name in _SHAPING:
            refuse_wrong_values(self.path / name, found)
        return found

    def read(self, name: str) -> dict[str, Any]:
        """Read a JSON object that must be there.

        Raises:
            EngineUsageError: As from `find`, or there is no such file.
        """
        found = self.find(name)
        if found is None:
            raise EngineUsageError(f"{self.path / name}: can't be read as JSON (no such file); {_CURE}")
        return found

    def admit(self, *, allow_pickle_weights: bool = False) -> None:
        """Check everything that transformers or a sampler may open directly in this folder.

        Args:
            allow_pickle_weights: Weights may lie in pickles, of which transformers reads nothing but tensors.

        Raises:
            EngineUsageError: Something there doesn't belong into a checkpoint.
        """
        names = set(self.files.names())
        if _ADAPTER_NAME in names:
            raise EngineUsageError(
                f"{self.path}: holds an adapter ({_ADAPTER_NAME}), which is not read; merge it into the model first"
            )
        for name in names:
            if not (name.startswith(".") or (self.path / name).is_dir()):
                self.files.path(name)
        list(self.files.files(TEMPLATES_FOLDER))
        for name in _CONFIGURATIONS:
            self.find(name)
        for name in _VOCABULARIES:
            self.find(name, max_bytes=MOST_VOCABULARY_BYTES)
        self._check_names()
        for index in [INDEX_NAME] if self.weight_files() else [PICKLE_INDEX_NAME]:
            suffix = _INDICES[index]
            for name in self.indexed(index):
                if not name.endswith(suffix):
                    raise EngineUsageError(
                        f"{self.path / index}: names {visible(name, 60)}, expected files *{suffix}; {_CURE}"
                    )
                self.files.path(name)
        if not self.weight_files() and not allow_pickle_weights and names & {PICKLE_NAME, PICKLE_INDEX_NAME}:
            raise EngineUsageError(
                f"{self.path}: holds its weights as pickles ({PICKLE_NAME}); set `allow_pickle_weights` "
                "(--model.allow-pickle-weights) if you trust their source, or save them as safetensors"
            )

    def weight_files(self) -> list[str]:
        """Names of the safetensors files that hold the weights, by the rule of transformers; none if there are none."""
        return [WEIGHTS_NAME] if self.files.has(WEIGHTS_NAME) else self.indexed(INDEX_NAME)

    def count_weights(self) -> int | None:
        """Number of weights in those files, according to their headers; None if there are no such files.

        Raises:
            EngineUsageError: A file isn't as long as its header says, or its header can't be read.
        """
        names = self.weight_files()
        return sum(self.count_in(name) for name in names) if names else None

    def matrices(self) -> set[str]:
        """Names of the weights with two dimensions in those files, by their headers.

        Raises:
            EngineUsageError: A file's header can't be read.
        """
        headers = [self._header(name)[0] for name in self.weight_files()]
        return {key for header in headers for key, shape in header.items() if len(shape) == 2}

    def count_in(self, name: str) -> int:
        """Number of weights in one file in safetensors' format, according to its header.

        Raises:
            EngineUsageError: The file isn't as long as its header says, or its header can't be read.
        """
        shapes, expected, size = self._header(name)
        if expected != size:
            raise EngineUsageError(
                f"{self.path / name}: has {size:,} bytes, expected {expected:,}; the file is cut short or "
                f"changed, {_CURE}"
            )
        return sum(math.prod(shape) for shape in shapes.values())

    def _header(self, name: str) -> tuple[dict[str, list[int]], int, int]:
        """The shape of every tensor in a file of weights, the bytes it should have, and those it has."""
        with self.files.open(name) as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if length <= LONGEST_HEADER_BYTES else b""
            size = file.seek(0, 2)
        try:
            header = cast(Mapping[str, Any], parse_json(text))
            tensors = {key: tensor for key, tensor in header.items() if key != "__metadata__"}
            end = max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
            shapes = {key: _checked_shape(tensor["shape"]) for key, tensor in tensors.items()}
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise EngineUsageError(f"{self.path / name}: not a file of tensors; {_CURE}") from error
        return shapes, 8 + length + end, size

    def indexed(self, index: str) -> list[str]:
        """The files that a list of weights names, each directly in this folder; none if there is no such list.

        Raises:
            EngineUsageError: It is no such list, or names something else.
        """
        values = self.find(index, max_bytes=MOST_VOCABULARY_BYTES)
        if values is None:
            return []
        weights: Any = values.get("weight_map")
        if not isinstance(weights, dict) or not isinstance(values.get("metadata", {}), dict):
            raise EngineUsageError(f"{self.path / index}: names no weight_map of files; {_CURE}")
        names = cast(dict[str, Any], weights).values()
        for name in names:
            if not isinstance(name, str) or PurePath(name).name != name or "\0" in name:
                raise EngineUsageError(
                    f"{self.path / index}: names the file {visible(str(name), 60)}; expected names of files beside it, "
                    f"{_CURE}"
                )
        return sorted(set(cast(Iterable[str], names)))

    def _check_names(self) -> None:
        """Refuse configurations that direct a reader to other files."""
        config = self.find(CONFIG_NAME) or {}
        tokenizer = self.find("tokenizer_config.json") or {}
        for name, values, key in (
            (CONFIG_NAME, config, "transformers_weights"),
            ("tokenizer_config.json", tokenizer, "fast_tokenizer_files"),
        ):
            if values.get(key):
                raise EngineUsageError(
                    f"{self.path / name}: {key}={visible(str(values[key]), 60)}: files are read under their usual "
                    "names only; remove it or set another model folder"
                )


def _checked_shape(shape: Any) -> list[int]:
    for extent in shape:
        if type(extent) is not int or extent < 0:
            raise ValueError(f"extent {extent}")
    return list(shape)
