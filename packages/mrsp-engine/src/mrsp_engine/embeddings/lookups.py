"""How often a store had what was needed."""

from dataclasses import dataclass

__all__ = ["StoreLookups"]


@dataclass(slots=True, kw_only=True)
class StoreLookups:
    """What was looked for in a store in order to be encoded if it isn't there.

    With several ranks each medium counts on one of them.

    Attributes:
        hits: Media that were there.
        misses: Media that had to be encoded.
    """

    hits: int = 0
    misses: int = 0
