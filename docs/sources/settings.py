"""The settings of a recipe as tables, from the models that check them: names, values, defaults, meaning.

What a table says comes from the fields and the docstrings under them, so it can't differ from `--help`.
"""

import inspect
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from longrl_trainer.config.effects import Effect, effect_of

__all__ = ["describe_settings", "settings_table"]

EFFECTS = {
    Effect.SHAPES: "no",
    Effect.LENGTH: "yes, and the run gets longer or shorter",
    Effect.FOLLOWING: "yes, for the steps that follow",
    Effect.NONE: "yes",
    Effect.PLACE: "yes, if only the place is another",
}
"""Whether a run that has begun may go on with another value."""
_WORDS: dict[object, str] = {bool: "`true`, `false`", int: "integer", float: "number", str: "text", Path: "path"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_ATTRIBUTE = re.compile(r"^    (\w+): ((?:.+\n?)(?:^ {8}.+\n?)*)", re.MULTILINE)


def describe_settings(model: type[BaseModel], own_pages: Mapping[type[BaseModel], str]) -> str:
    """All settings of a model, section by section.

    Args:
        model: The model.
        own_pages: The pages of models that have one, as links go there; they aren't described again.
    """
    effects = any(isinstance(item, Effect) for field in model.model_fields.values() for item in field.metadata)
    return "\n\n".join(_sections(model, "", Effect.SHAPES if effects else None, own_pages))


def settings_table(model: type[BaseModel], place: str = "", effect: Effect | None = None) -> str:
    """A table of the settings that a model has itself, without those of its sections; empty if there are none.

    Args:
        model: The model.
        place: Where it is in a recipe.
        effect: The effect of changing those that aren't annotated; None for models that no run continues with.
    """
    meanings = _attributes(model)
    rows = [
        _row(name, field, f"{place}.{name}" if place else name, meanings.get(name, ""), effect)
        for name, field in model.model_fields.items()
        if _section_of(field) is None
    ]
    if not rows:
        return ""
    columns = ["setting", "values", "default", "meaning", *([] if effect is None else ["may change in a run"])]
    return "\n".join([_line(columns), _line(["---"] * len(columns)), *map(_line, rows)])


def _sections(
    model: type[BaseModel], place: str, effect: Effect | None, own_pages: Mapping[type[BaseModel], str]
) -> Iterator[str]:
    table = settings_table(model, place, effect)
    if table:
        yield table
    for name, field in model.model_fields.items():
        section = _section_of(field)
        if section is None:
            continue
        inner = f"{place}.{name}" if place else name
        yield f"## `[{inner}]` {{ #{inner} }}"
        if section in own_pages:
            page = own_pages[section]
            yield f"The settings of [`{PurePosixPath(page).stem}`]({page})."
            continue
        yield _summary(section)
        of_section = None if effect is None else effect_of(field, effect)
        yield from _sections(section, inner, of_section, own_pages)


def _row(name: str, field: FieldInfo, place: str, meaning: str, effect: Effect | None) -> list[str]:
    cells = [
        f"[`{name}`](#{place}){{ #{place} }}",
        _describe_values(field),
        _describe_default(field),
        field.description or meaning,
    ]
    return cells if effect is None else [*cells, EFFECTS[effect_of(field, effect)]]


def _describe_values(field: FieldInfo) -> str:
    return _with_bounds(_describe_type(field.annotation), field.metadata)


def _with_bounds(words: str, metadata: Iterable[object]) -> str:
    bounds = [
        f"{sign} {getattr(item, name):g}"
        for item in metadata
        for name, sign in _BOUNDS.items()
        if getattr(item, name, None) is not None
    ]
    return f"{words} {', '.join(bounds)}" if bounds else words


def _describe_type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        metadata = [inner for item in arguments[1:] for inner in getattr(item, "metadata", [item])]
        return _with_bounds(_describe_type(arguments[0]), metadata)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_describe_type(part) for part in arguments if part is not type(None)))
    if origin is tuple:
        return f"list of {_describe_type(arguments[0])}"
    if origin is dict:
        return "table"
    if inspect.isclass(annotation) and issubclass(annotation, str) and hasattr(annotation, "__members__"):
        return ", ".join(f"`{json.dumps(str(value))}`" for value in cast(Any, annotation))
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _describe_default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    default: object = field.get_default(call_default_factory=True, validated_data={})
    if default is None:
        return "–"
    if isinstance(default, dict):
        pairs = cast(dict[str, object], default).items()
        return f"`{{{', '.join(f'{name} = {json.dumps(value)}' for name, value in pairs)}}}`"
    plain = list(cast(tuple[object, ...], default)) if isinstance(default, tuple) else default
    return f"`{json.dumps(plain, default=str, ensure_ascii=False)}`"


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if inspect.isclass(kind) and issubclass(kind, BaseModel) else None


def _summary(model: type[BaseModel]) -> str:
    return (inspect.getdoc(model) or "").split("\n\n")[0].replace("\n", " ")


def _attributes(model: type[BaseModel]) -> dict[str, str]:
    """What docstrings say of fields under `Attributes:`, those of the classes above too."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        _, _, listed = (inspect.cleandoc(kind.__doc__ or "")).partition("Attributes:\n")
        found |= {name: " ".join(text.split()) for name, text in _ATTRIBUTE.findall(listed)}
    return found


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', '&#124;') for cell in cells)} |"
