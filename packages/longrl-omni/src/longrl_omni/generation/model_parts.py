"""Networks of other libraries: none is built that is larger than its weights, and none fails in more than one line.

Independent of what a network is for: parts of a pipeline that is trained, and the models of rewards.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from longrl_files.messages import visible
from longrl_trainer.errors import TrainerError
from mrsp_engine.errors import EngineError
from mrsp_engine.families.checkpoint_folder import MOST_VOCABULARY_BYTES, CheckpointFolder
from mrsp_engine.families.config_values import refuse_wrong_values

WEIGHTS = ".safetensors"
"""How the names of files with weights end."""
_MOST_LAYERS_UNASKED = 64
_TIED = 2
"""A weight that two layers share is counted twice in a network and once in a file."""


def refuse_large_network(folder: Path, kind: Any) -> None:
    """Refuse a network that would be larger than the weights beside its configuration, before memory is taken for it.

    Args:
        folder: Of the network.
        kind: The network's class in diffusers or transformers. It is built on torch's meta device, where nothing takes
            memory.

    Raises:
        ValueError: It is larger.
        EngineError: A file there can't be read.
    """
    checkpoint = CheckpointFolder(folder)
    config = cast(dict[str, Any], checkpoint.files.read_json("config.json", max_bytes=MOST_VOCABULARY_BYTES))
    # The patch of a network of clips has several edges, where one of a language model has one.
    single = {name: value for name, value in config.items() if not isinstance(value, list)}
    refuse_wrong_values(folder / "config.json", single)
    num_weights = sum(checkpoint.count_in(name) for name in checkpoint.files.names() if name.endswith(WEIGHTS))
    for name, value in _numbers(config):
        # Each layer has weights, so more of them than weights only take time to build.
        if "layers" in name and value > max(num_weights // 1000, _MOST_LAYERS_UNASKED):
            raise ValueError(f"{visible(name, 40)} = {value}, but its files have only {num_weights:,} weights")
    with torch.device("meta"):
        asked = sum(tensor.numel() for tensor in _build(kind, folder).state_dict().values())
    if asked > _TIED * num_weights:
        raise ValueError(f"config.json asks for {asked:,} weights, but its files have {num_weights:,}")


@contextmanager
def load_part(folder: Path, part: str, *, setting: str = "model.folder") -> Generator[None]:
    """Turn whatever a library raises for a broken folder (many kinds of exceptions) into a line that names the part.

    Raises:
        TrainerError: Something was raised within the block.
    """
    try:
        with quiet_libraries():
            yield
    except (TrainerError, EngineError, ImportError):
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise TrainerError(f"`{setting}` = {folder}: {part} can't be loaded ({visible(reason, 160)})") from error


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Keep diffusers and transformers from writing bars and remarks of their own; their settings are restored."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, had_bars in before:
            library.set_verbosity(verbosity)
            if had_bars:
                library.enable_progress_bar()


def _numbers(config: dict[str, Any]) -> Generator[tuple[str, int]]:
    """Every whole number in a configuration and in those of its parts, by the last of its names."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(cast(dict[str, Any], value))
        elif isinstance(value, int):
            yield name, value


def _build(kind: Any, folder: Path) -> nn.Module:
    if hasattr(kind, "from_config"):  # diffusers
        return kind.from_config(kind.load_config(folder, local_files_only=True))
    return kind(kind.config_class.from_pretrained(folder, local_files_only=True))
