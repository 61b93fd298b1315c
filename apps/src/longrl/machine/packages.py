"""Which packages are installed, and which of those that a part of this project asks for are not: by metadata alone.

Nothing is imported, so it is quick, and a package that can't be loaded is as visible as any other. What a part needs is
read from the requirements of its own distribution, where it stands anyway.
"""

import importlib.metadata
from collections.abc import Iterator

from packaging.requirements import Requirement

__all__ = ["find_version", "missing_packages"]

OWN_PREFIXES = ("longrl", "longvideo-reason-data", "mrsp-engine")


def find_version(name: str) -> str | None:
    """The version of an installed distribution; None if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing_packages(distribution: str, extra: str | None = None) -> list[str]:
    """What a distribution, or one of its extras, asks for and isn't installed in a fitting version.

    Args:
        distribution: One of this project's, such as "longrl-trainer".
        extra: One of its extras; without one all that it always needs, and what those of this project among them need.

    Returns:
        Requirements, with the version that is there instead, if one is.
    """
    return list(dict.fromkeys(_missing(distribution, extra, set())))


def _missing(distribution: str, extra: str | None, seen: set[str]) -> Iterator[str]:
    seen.add(distribution)
    try:
        lines = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        yield distribution
        return
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if extra is not None:
            applies = marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
        else:
            applies = marker is None or marker.evaluate({"extra": ""})
        if not applies:
            continue
        if requirement.name.startswith(OWN_PREFIXES):
            for inner in requirement.extras or {None}:
                if requirement.name not in seen or inner is not None:
                    yield from _missing(requirement.name, inner, seen)
            continue
        found = find_version(requirement.name)
        wanted = f"{requirement.name}{requirement.specifier}"
        if found is None:
            yield wanted
        elif not requirement.specifier.contains(found, prereleases=True):
            yield f"{wanted} ({found} is installed)"
