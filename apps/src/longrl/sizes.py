"""Sizes of memory as people write them in options."""

import re

from longrl.errors import AppUsageError

__all__ = ["read_bytes"]

UNITS = {"GB": 1e9, "GIB": 2.0**30, "TB": 1e12}


def read_bytes(option: str, text: str) -> float:
    """The number of bytes that an option's text stands for.

    Raises:
        AppUsageError: It is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|GiB|TB)", text.strip(), re.IGNORECASE)
    if match is None:
        raise AppUsageError(f"{option} {text!r}: expected a number and one of GB, GiB, TB, such as 80GB")
    return float(match[1]) * UNITS[match[2].upper()]
