"""Reading recipes (TOML) into the models of `config`, with one clear line for every mistake; saving the settings used.

Uses only the models' pydantic interface, so other packages can read their own recipes with it.
"""

import difflib
import json
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from longrl_files.regular_files import read_bounded
from longrl_trainer.durable import write_json
from longrl_trainer.errors import TrainerUsageError

ConfigT = TypeVar("ConfigT", bound=BaseModel)

CONFIG_NAME = "config.json"
MOST_RECIPE_BYTES = 2**20


def load_recipe(path: Path, model: type[ConfigT]) -> ConfigT:
    """Read a recipe. Every mistake is a `TrainerUsageError` with the file, the key, its value and what is expected."""
    if not path.exists():
        raise TrainerUsageError(f"{path}: there is no such recipe")
    content = read_bounded(path, error=TrainerUsageError, max_bytes=MOST_RECIPE_BYTES)
    try:
        values = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
        raise TrainerUsageError(f"{path}: not valid TOML: {error}") from error
    return parse_config(values, model, source=str(path))


def parse_config(values: dict[str, Any], model: type[ConfigT], *, source: str) -> ConfigT:
    """Check plain values against a configuration model; `source` names them in the error line."""
    try:
        # Via JSON: strict about types, but a string may become a path. A TOML date becomes a string here.
        return model.model_validate_json(json.dumps(values, default=str))
    except RecursionError:
        raise TrainerUsageError(f"{source}: tables are nested too deeply; expected those of a recipe") from None
    except ValidationError as error:
        # A misspelt key is the cause, and the missing key its consequence: the cause comes first.
        problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        line = describe_problem(problems[0], model)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise TrainerUsageError(f"{source}: {line}{more}") from None


def describe_problem(problem: Any, model: type[BaseModel]) -> str:
    """One line for one entry of pydantic's `ValidationError.errors()`."""
    location = tuple(str(part) for part in problem["loc"])
    key = ".".join(location) or "the whole recipe"
    if problem["type"] == "extra_forbidden":
        known = sorted(_section_at(model, location[:-1]).model_fields)
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{key}: unknown key; {hint}valid here: {', '.join(known)}"
    if problem["type"] == "missing":
        return f"{key}: missing; this setting has no default"
    if problem["type"] == "value_error":
        message = str(problem["msg"]).removeprefix("Value error, ")
        return message if message.startswith(f"{key}.") else f"{key}: {message}"
    return f"{key}: got {_short(problem['input'])}, expected: {_expected(str(problem['msg']))}"


def save_config(config: BaseModel, folder: Path) -> Path:
    """Write the resolved configuration as `config.json` into a run's folder."""
    path = folder / CONFIG_NAME
    write_json(path, config.model_dump(mode="json"))
    return path


def first_difference(saved: dict[str, Any], current: dict[str, Any], prefix: str = "") -> str | None:
    """The dotted key, with both values, where two resolved configurations first differ; None when they agree."""
    for name in sorted(saved.keys() | current.keys()):
        old, new = saved.get(name), current.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            difference = first_difference(old, new, f"{prefix}{name}.")
            if difference is not None:
                return difference
        elif old != new:
            return f"{prefix}{name} was {_short(old)} and is now {_short(new)}"
    return None


def _section_at(model: type[BaseModel], location: tuple[str, ...]) -> type[BaseModel]:
    """The nested model that a dotted location leads to."""
    for name in location:
        annotation = model.model_fields[name].annotation
        if typing.get_origin(annotation) in (typing.Union, types.UnionType):
            annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return model


def _expected(message: str) -> str:
    """Pydantic's message without its standard prefix."""
    return message.removeprefix("Input should be ").removeprefix("a ").removeprefix("valid ") or message


def _short(value: object, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"
