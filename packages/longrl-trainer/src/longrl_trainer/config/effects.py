"""How a setting affects the result of a run, and which settings have changed since a run was started.

The effect of a setting is in the annotation of its field; without one it affects the result. Independent of where
settings are stored.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Effect(Enum):
    """The effect of changing a setting."""

    SHAPES = "shapes"
    """The result is different: a run can't continue with it."""
    LENGTH = "length"
    """There are more steps, or fewer, but of the same kind."""
    FOLLOWING = "following"
    """The steps that follow are different: a run may continue with it, and notes from which step on."""
    NONE = "none"
    """The result is the same; only how, how fast, or whether it is reached may change."""
    PLACE = "place"
    """The path of an input: its contents are compared, not the path."""


@dataclass(frozen=True, slots=True)
class WithoutEffect:
    """In the annotation of a setting that is a table of tables: keys that don't affect the result in any of them."""

    keys: frozenset[str]

    def shaping(self, tables: Any) -> Any:
        """What is left of the tables."""
        if not isinstance(tables, Mapping):
            return tables
        return {
            name: {key: value for key, value in table.items() if key not in self.keys}
            if isinstance(table, Mapping)
            else table
            for name, table in cast(Mapping[str, Any], tables).items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A setting that has changed."""

    setting: str
    """Dotted key."""
    was: Any
    now: Any
    effect: Effect


def effect_of(field: FieldInfo, default: Effect = Effect.SHAPES) -> Effect:
    """The effect that is annotated."""
    return next((item for item in field.metadata if isinstance(item, Effect)), default)


def named_settings(config: BaseModel) -> dict[str, Any]:
    """All settings except paths as plain values, resolved like in the model."""
    resolved = config.model_dump(mode="json")
    named: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value: object = getattr(config, name)
        if effect_of(field) is not Effect.PLACE:
            named[name] = named_settings(value) if isinstance(value, BaseModel) else resolved[name]
    return named


def result_settings(config: BaseModel) -> dict[str, Any]:
    """The settings that affect the result, as plain values: no paths, and nothing that only says how it is reached."""
    resolved = config.model_dump(mode="json")
    shaping: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value: object = getattr(config, name)
        if effect_of(field) in (Effect.PLACE, Effect.NONE):
            continue
        parts = [item for item in field.metadata if isinstance(item, WithoutEffect)]
        if isinstance(value, BaseModel):
            shaping[name] = result_settings(value)
        else:
            shaping[name] = parts[0].shaping(resolved[name]) if parts else resolved[name]
    return shaping


def find_differences(
    saved: Mapping[str, Any], config: BaseModel, prefix: str = "", default: Effect = Effect.SHAPES
) -> Generator[Difference]:
    """The settings that differ from the saved ones, in the order of their names.

    A setting that didn't exist when the others were saved counts as having its default.

    Args:
        saved: What was saved.
        config: The settings now.
        prefix: What stands before their names.
        default: The effect of those that aren't annotated.
    """
    current = named_settings(config)
    fields = type(config).model_fields
    for name in sorted(saved.keys() | current.keys()):
        field = fields.get(name)
        effect = default if field is None else effect_of(field, default)
        now, value = current.get(name), getattr(config, name, None)
        was = saved[name] if name in saved else _default(config, name)
        if isinstance(value, BaseModel) and isinstance(was, dict):
            yield from find_differences(cast(dict[str, Any], was), value, f"{prefix}{name}.", effect)
        elif was != now:
            parts = [item for item in field.metadata if isinstance(item, WithoutEffect)] if field else []
            if parts and parts[0].shaping(was) == parts[0].shaping(now):
                effect = Effect.NONE
            yield Difference(setting=f"{prefix}{name}", was=was, now=now, effect=effect)


def _default(config: BaseModel, name: str) -> Any:
    """The default of a setting; its current value if it has no default."""
    field = type(config).model_fields[name]
    if field.is_required():
        return named_settings(config)[name]
    default: object = field.get_default(call_default_factory=True, validated_data={})
    return named_settings(config.model_copy(update={name: default}))[name]
