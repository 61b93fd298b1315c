"""Finding questions that say nearly the same, among as many as there are.

The words of a question become a set of shingles, sets become MinHash signatures, and signatures that agree in a band
are candidates (Broder 1997; banding after Leskovec, Rajaraman and Ullman, *Mining of Massive Datasets*, chapter 3).
Every candidate pair is then compared exactly, so that hashing can miss a pair but never invent one: at a likeness of
0.6 it misses four in a hundred thousand.
"""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longvideo_reason_data.filtering.option_shortcuts import plain_words
from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.record import Interval, QuestionRecord

SAME_QUESTION = 0.6

_NUM_BANDS, _ROWS = 42, 3
_generator = np.random.default_rng(20251107)  # any fixed number: signatures are compared within one run only
# Multiply-shift hashing (Dietzfelbinger and others 1997): odd factors, the upper half of a 64-bit product.
_FACTORS = _generator.integers(0, 2**63, _NUM_BANDS * _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_TERMS = _generator.integers(0, 2**63, _NUM_BANDS * _ROWS, dtype=np.uint64)


class SimilarPair(NamedTuple):
    """Two places in a sequence and how alike what stands there is, from 0 to 1."""

    first: int
    second: int
    likeness: float


def shingle(question: str, options: Iterable[str] = ()) -> frozenset[str]:
    """Make the shingles of a question: its words, its pairs of words, and its options as wholes in any order."""
    words = plain_words(question).split()
    pairs = (f"{before} {after}" for before, after in itertools.pairwise(words))
    return frozenset(words) | frozenset(pairs) | frozenset(f"option {plain_words(option)}" for option in options)


def likeness(first: frozenset[str], second: frozenset[str]) -> float:
    """Jaccard index of two sets: 1 for equal ones, 0 when they share nothing or are empty."""
    return len(first & second) / len(first | second) if first and second else 0.0


def similar_pairs(sets: Sequence[frozenset[str]], *, at_least: float) -> list[SimilarPair]:
    """Find all pairs of sets that are alike.

    Args:
        sets: What `shingle` made; an empty set is like no other.
        at_least: Smallest Jaccard index of a pair, for which 0.5 or more is meant.

    Returns:
        Pairs in ascending order of their places.
    """
    # Equal sets are compared once: a dataset may ask the same of a thousand videos.
    places: defaultdict[frozenset[str], list[int]] = defaultdict(list)
    for place, members in enumerate(sets):
        if members:
            places[members].append(place)
    distinct = list(places)
    signatures = np.array([_signature(members) for members in distinct]).reshape(-1, _NUM_BANDS, _ROWS)
    candidates: set[tuple[int, int]] = set()
    for band in range(_NUM_BANDS):  # the buckets of one band at a time are in memory
        buckets: defaultdict[bytes, list[int]] = defaultdict(list)
        for number, rows in enumerate(signatures[:, band]):
            buckets[rows.tobytes()].append(number)
        for group in buckets.values():
            candidates.update(itertools.combinations(group, 2))
    found: list[SimilarPair] = []
    for one, other in candidates:
        alike = likeness(distinct[one], distinct[other])
        if alike >= at_least:
            found += [
                SimilarPair(min(pair), max(pair), alike)
                for pair in itertools.product(places[distinct[one]], places[distinct[other]])
            ]
    for same in places.values():
        found += [SimilarPair(first, second, 1.0) for first, second in itertools.combinations(same, 2)]
    return sorted(found)


def find_repeated_questions(
    records: Sequence[QuestionRecord], same_footage: dict[str, str]
) -> dict[str, tuple[str, float]]:
    """Find questions that were asked before about the same footage, or about the same media in the same order.

    Two questions are the same when they are worded alike, have the same answer, and their evidence overlaps by half:
    "Where does red meet blue?" and "Where does red meet green?" are worded alike and are two questions.

    Args:
        records: The questions; of several alike the one with the first id stays.
        same_footage: For the digest of a medium that shows what another one shows, the digest of that one.

    Returns:
        For the id of each repeated question, the id of the one that stays, and how alike they are worded.
    """
    by_footage: defaultdict[tuple[str, ...], list[QuestionRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.question_id):
        by_footage[tuple(same_footage.get(digest, digest) for digest in record.digests)].append(record)
    repeated: dict[str, tuple[str, float]] = {}
    for group in by_footage.values():
        sets = [shingle(record.question, record.options) for record in group]
        for first, second, alike in similar_pairs(sets, at_least=SAME_QUESTION):
            kept, other = group[first], group[second]
            if kept.question_id in repeated or _answer_of(kept) != _answer_of(other):
                continue
            if _overlap(kept.evidence, other.evidence) >= 0.5:
                repeated.setdefault(other.question_id, (kept.question_id, alike))
    return repeated


def _signature(members: frozenset[str]) -> NDArray[np.uint32]:
    """Compute a MinHash signature: uint32 [bands · rows]."""
    hashed = np.array(
        [int.from_bytes(hashlib.blake2b(member.encode(), digest_size=8).digest()) for member in sorted(members)],
        dtype=np.uint64,
    )
    return ((hashed[:, None] * _FACTORS + _TERMS) >> np.uint64(32)).min(axis=0).astype(np.uint32)


def _answer_of(record: QuestionRecord) -> str:
    return plain_words(record.options[LETTERS.index(record.answer)] if record.options else record.answer)


def _overlap(first: Sequence[Interval], second: Sequence[Interval]) -> float:
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
