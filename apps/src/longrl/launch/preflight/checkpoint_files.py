"""Whether the files of a checkpoint are all there and whole, whatever model it is: by its lists and the files' headers.

A loader would find out too, but only one file at a time, and after minutes on all ranks.
"""

from pathlib import Path, PurePath
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from longrl_files.messages import visible
from mrsp_engine.errors import EngineError
from mrsp_engine.families.checkpoint_folder import MOST_VOCABULARY_BYTES, CheckpointFolder
from mrsp_engine.families.vila.config import LANGUAGE_FOLDER

__all__ = ["find_checkpoint_problems"]

CONFIGURATIONS = ("config.json", "model_index.json")
TOKENIZERS = ({"tokenizer.json"}, {"vocab.json", "merges.txt"})
INDEX_SUFFIX = ".safetensors.index.json"
CURE = "download it again, or set `model.folder`"
MOST_NAMED = 3


def find_checkpoint_problems(folder: Path, *, allow_pickle_weights: bool, needs_tokenizer: bool = True) -> list[str]:
    """What is missing or damaged in a checkpoint of one folder, or of parts in folders directly below it.

    Args:
        folder: The checkpoint.
        allow_pickle_weights: Whether the recipe accepts weights in pickles, which aren't looked into.
        needs_tokenizer: Whether it is a language model's, which is of no use without a tokenizer.
    """
    if not folder.is_dir():
        return [f"{folder}: there is no such folder; expected a checkpoint, set `model.folder`"]
    checkpoint = CheckpointFolder(folder)
    try:
        names = set(checkpoint.files.names())
        if not names & set(CONFIGURATIONS):
            return [f"{folder}: has neither {' nor '.join(CONFIGURATIONS)}; expected a checkpoint, set `model.folder`"]
        parts = [checkpoint, *(checkpoint.part(name) for name in sorted(names) if _is_part(folder / name))]
        found = [_check_part(part) for part in parts]
        problems = [problem for _, part_problems in found for problem in part_problems]
        if "config.json" in names and not problems:  # what it refuses first may be the consequence of one
            checkpoint.admit(allow_pickle_weights=allow_pickle_weights)
    except EngineError as error:
        return [str(error)]
    if not any(num_files for num_files, _ in found) and not problems and not allow_pickle_weights:
        problems.append(f"{folder}: has no file of weights (*.safetensors); {CURE}")
    if needs_tokenizer:
        problems += _check_tokenizer(checkpoint.part(LANGUAGE_FOLDER) if LANGUAGE_FOLDER in names else checkpoint)
    return problems


def _check_tokenizer(language: CheckpointFolder) -> list[str]:
    names = set(language.files.names())
    if any(files <= names for files in TOKENIZERS):
        return []
    expected = ", or ".join(" and ".join(sorted(files, reverse=True)) for files in TOKENIZERS)
    return [f"{language.path}: has no tokenizer (expected {expected}); {CURE}"]


def _is_part(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not path.name.startswith(".")


def _check_part(part: CheckpointFolder) -> tuple[int, list[str]]:
    """The number of files of weights, and what is wrong with them."""
    names = part.files.names()
    lying_there = {name for name in names if name.endswith(".safetensors")}
    problems: list[str] = []
    for index in (name for name in names if name.endswith(INDEX_SUFFIX)):
        listed = _listed(part, index)
        missing = sorted(listed - lying_there)
        if missing:
            more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
            shown = ", ".join(visible(name, 60) for name in missing[:MOST_NAMED])
            problems.append(
                f"{part.path / index}: {len(missing)} of its {len(listed)} files are missing ({shown}{more}); {CURE}"
            )
    for name in sorted(lying_there):
        try:
            with safe_open(part.files.path(name), framework="np"):  # compares the header with the length
                pass
        except (SafetensorError, OSError) as error:
            size = part.files.status(name)
            num_bytes = 0 if size is None else size.st_size
            problems.append(
                f"{part.path / name}: is cut short or damaged ({num_bytes:,} bytes; {visible(str(error), 80)}); {CURE}"
            )
    return len(lying_there), problems


def _listed(part: CheckpointFolder, index: str) -> set[str]:
    """The files that a list of weights names.

    Raises:
        EngineUsageError: The list can't be read.
    """
    values = part.find(index, max_bytes=MOST_VOCABULARY_BYTES) or {}
    weights: Any = values.get("weight_map")
    names = cast(dict[str, Any], weights).values() if isinstance(weights, dict) else ()
    return {PurePath(str(name)).name for name in names}
