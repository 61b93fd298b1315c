"""What a setting does to the result of a run, and which settings of a run that is found again are other than before.

The effect of a setting stands in the annotation of its field; without one it shapes the result. Knows nothing of where
settings are kept.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Effect(Enum):
    """What another value of a setting does."""

    SHAPES = "shapes"
    """The result is another: a run can't go on with it."""
    LENGTH = "length"
    """There are more steps, or fewer, of the same kind."""
    NONE = "none"
    """The result is the same; only how, how fast, or whether it is reached may differ."""
    PLACE = "place"
    """The same thing lies elsewhere: what lies there is compared, and not its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A setting that is other than before."""

    setting: str
    """Dotted key."""
    was: Any
    now: Any
    effect: Effect


def effect_of(field: FieldInfo) -> Effect:
    """The effect that is annotated."""
    return next((item for item in field.metadata if isinstance(item, Effect)), Effect.SHAPES)


def named_settings(config: BaseModel) -> dict[str, Any]:
    """All settings as plain values, resolved as the model resolves them, but for places."""
    resolved = config.model_dump(mode="json")
    named: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value: object = getattr(config, name)
        if effect_of(field) is not Effect.PLACE:
            named[name] = named_settings(value) if isinstance(value, BaseModel) else resolved[name]
    return named


def find_differences(saved: Mapping[str, Any], config: BaseModel, prefix: str = "") -> Generator[Difference]:
    """The settings that are other than they were saved, in the order of their names.

    A setting that wasn't there when the others were saved had its default.
    """
    current = named_settings(config)
    fields = type(config).model_fields
    for name in sorted(saved.keys() | current.keys()):
        field = fields.get(name)
        effect = Effect.SHAPES if field is None else effect_of(field)
        now, value = current.get(name), getattr(config, name, None)
        was = saved[name] if name in saved else _default(config, name)
        if isinstance(value, BaseModel) and isinstance(was, dict) and effect is Effect.SHAPES:
            yield from find_differences(cast(dict[str, Any], was), value, f"{prefix}{name}.")
        elif was != now:
            yield Difference(setting=f"{prefix}{name}", was=was, now=now, effect=effect)


def _default(config: BaseModel, name: str) -> Any:
    """What a setting is when nobody sets it; what it is now if it has no default."""
    field = type(config).model_fields[name]
    if field.is_required():
        return named_settings(config)[name]
    default: object = field.get_default(call_default_factory=True, validated_data={})
    return named_settings(config.model_copy(update={name: default}))[name]
