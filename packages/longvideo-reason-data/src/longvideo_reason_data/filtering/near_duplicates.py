"""Finding questions that say nearly the same, among as many as there are.

The words of a question become a set of shingles. Questions are gone through in the order of their ids, and each is held
against those that stay only, so that a thousand questions that are alike cost a thousand comparisons and not half a
million. Which of those can be like it at all, `longvideo_reason_data.filtering.similarity` tells.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from longvideo_reason_data.filtering.option_shortcuts import plain_words
from longvideo_reason_data.filtering.similarity.evidence import SAME_EVIDENCE, cells_of, shared_time
from longvideo_reason_data.filtering.similarity.set_index import RankedSets, SetIndex
from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.record import QuestionRecord

SAME_QUESTION = 0.6


def shingle(question: str, options: Iterable[str] = ()) -> frozenset[str]:
    """Make the shingles of a question: its words, its pairs of words, and its options as wholes in any order."""
    words = plain_words(question).split()
    pairs = (f"{before} {after}" for before, after in itertools.pairwise(words))
    return frozenset(words) | frozenset(pairs) | frozenset(f"option {plain_words(option)}" for option in options)


def likeness(first: frozenset[str], second: frozenset[str]) -> float:
    """Jaccard index of two sets: 1 for equal ones, 0 when they share nothing or are empty."""
    return len(first & second) / len(first | second) if first and second else 0.0


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
        For the id of each repeated question, the first id of those that stay and that it is like, and how alike they
        are worded.
    """
    by_footage: defaultdict[tuple[str, ...], defaultdict[str, list[QuestionRecord]]]
    by_footage = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda record: record.question_id):
        footage = tuple(same_footage.get(digest, digest) for digest in record.digests)
        by_footage[footage][_answer_of(record)].append(record)
    repeated: dict[str, tuple[str, float]] = {}
    for by_answer in by_footage.values():
        found = {key: kept for group in by_answer.values() if len(group) > 1 for key, kept in _repeated_in(group)}
        repeated |= sorted(found.items(), key=lambda item: (item[1][0], item[0]))
    return repeated


def _repeated_in(group: Sequence[QuestionRecord]) -> Iterator[tuple[str, tuple[str, float]]]:
    """Find the repeated ones of questions with the same footage and answer."""
    sets = RankedSets(shingle(record.question, record.options) for record in group)
    staying = SetIndex(sets, SAME_QUESTION)
    for place, record in enumerate(group):
        own, near = cells_of(record.evidence)
        kept = next(
            (
                (kept.question_id, alike)
                for kept in map(group.__getitem__, staying.find(place, near))
                if shared_time(kept.evidence, record.evidence) >= SAME_EVIDENCE
                and (alike := _worded_alike(kept, record)) >= SAME_QUESTION
            ),
            None,
        )
        if kept is None:
            staying.add(place, own)
        else:
            yield record.question_id, kept


def _worded_alike(first: QuestionRecord, second: QuestionRecord) -> float:
    return likeness(shingle(first.question, first.options), shingle(second.question, second.options))


def _answer_of(record: QuestionRecord) -> str:
    return plain_words(record.options[LETTERS.index(record.answer)] if record.options else record.answer)
