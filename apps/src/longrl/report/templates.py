"""The templates of all pages: strict, with escaped text, and with one style sheet."""

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def open_templates(room: str = "longrl.report") -> Environment:
    """The templates of a room, by default this one; a share is shown with the filter `percent`."""
    environment = Environment(
        loader=PackageLoader(room, "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}"
    return environment


def list_settings(config: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every setting by its dotted name, without paths."""
    listed: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, dict):
            listed += list_settings(value, f"{prefix}{name}.")
        elif name not in ("output", "folder", "store", "dataset"):
            listed.append((f"{prefix}{name}", json.dumps(value, ensure_ascii=False)))
    return listed
