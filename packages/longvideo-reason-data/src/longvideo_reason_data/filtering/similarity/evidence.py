"""How far the evidence of two questions is the same, and where in time to look for evidence that is.

If two stretches of time share at least half of what either covers, then the first halves of both meet (the prefix
filter of `set_index`, for time), and neither is longer than twice the other. So evidence is put down under the cells of
a grid that its first half touches, a grid as coarse as the evidence is long, and looked for in three grids.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

from longvideo_reason_data.records.record import Interval

SAME_EVIDENCE = 0.5
"""Share of the time from which on two questions have the same evidence. The cells are made for this share."""

_SLACK = 1e-9  # for sums that are rounded

Cell = tuple[int, int, int]
"""The medium, the exponent of the grid, and the number of a cell in it; all -1 for questions without evidence."""


def shared_time(first: Sequence[Interval], second: Sequence[Interval]) -> float:
    """Share of the time covered by either that is covered by both; 1 when neither has any."""
    if not first and not second:
        return 1.0
    both = either = 0.0
    for medium in {span.medium for span in (*first, *second)}:
        ours, theirs = ([span for span in spans if span.medium == medium] for spans in (first, second))
        borders = sorted({t for span in (*ours, *theirs) for t in (span.start_seconds, span.end_seconds)})
        for start, end in itertools.pairwise(borders):
            covered = [
                any(span.start_seconds <= start and end <= span.end_seconds for span in spans)
                for spans in (ours, theirs)
            ]
            both += (end - start) * all(covered)
            either += (end - start) * any(covered)
    return both / either if either else 0.0


def cells_of(evidence: Sequence[Interval]) -> tuple[list[Cell], list[Cell]]:
    """Find the cells of evidence.

    Returns:
        Those under which it is put down, and those in which all evidence that is the same is put down.
    """
    if not evidence:
        return [(-1, -1, -1)], [(-1, -1, -1)]
    covered = _merge(evidence)
    seconds = sum(end - start for _, start, end in covered)
    half: list[tuple[int, float, float]] = []
    remaining = seconds / 2 * (1 + _SLACK)
    for medium, start, end in covered:
        half.append((medium, start, min(end, start + remaining)))
        remaining -= end - start
        if remaining < 0:
            break
    shortest, own, longest = (math.frexp(seconds * factor)[1] for factor in (0.5 - _SLACK, 1.0, 2.0 + _SLACK))
    near = [cell for exponent in range(shortest, longest + 1) for cell in _touched(half, exponent)]
    return list(dict.fromkeys(_touched(half, own))), list(dict.fromkeys(near))


def _merge(evidence: Sequence[Interval]) -> list[tuple[int, float, float]]:
    """The time that is covered, each moment once, in the order of media and time."""
    merged: list[tuple[int, float, float]] = []
    for medium, start, end in sorted((span.medium, span.start_seconds, span.end_seconds) for span in evidence):
        if merged and merged[-1][0] == medium and start <= merged[-1][2]:
            merged[-1] = (medium, merged[-1][1], max(end, merged[-1][2]))
        else:
            merged.append((medium, start, end))
    return merged


def _touched(spans: Sequence[tuple[int, float, float]], exponent: int) -> Iterator[Cell]:
    """The cells, two to the power of the exponent in seconds, that spans touch."""
    for medium, start, end in spans:
        for number in range(int(math.ldexp(start, -exponent)), int(math.ldexp(end, -exponent)) + 1):
            yield medium, exponent, number
