"""Finding questions and videos of benchmarks among one's own, so that nobody trains on what is measured later.

Three nets, because each has holes: the id of the source (until somebody uploads the video again), the footage (unless
it was cut), and the wording of the question (unless it was rewritten). A wording that a dataset asks about several
videos is a template, says nothing about any of them, and doesn't convict a question by itself.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.filtering.benchmark_files import Benchmark
from longvideo_reason_data.filtering.near_duplicates import likeness, shingle
from longvideo_reason_data.filtering.similarity.set_index import RankedSets, SetIndex
from longvideo_reason_data.media.decoders.base import DecoderName
from longvideo_reason_data.media.fingerprints import Fingerprint, find_footage, fingerprint_video
from longvideo_reason_data.records.medium import RecordMedium, kind_of, open_file, open_medium
from longvideo_reason_data.records.record import QuestionRecord, list_media

SAME_WORDING = 0.8
_SHORTEST_ID = 6  # characters; shorter ids, such as running numbers, are those of any video
_FEWEST_TEMPLATE_VIDEOS = 3


class Net(StrEnum):
    """By what a question was recognised."""

    SOURCE_ID = "source_id"
    FOOTAGE = "footage"
    WORDING = "wording"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contamination:
    """A question that is in a benchmark, or is about a video of one.

    Attributes:
        question_id: The question.
        benchmark: Name of the benchmark.
        row: Its row, from 1.
        net: By what it was recognised.
        likeness: How alike footage or wording are, from 0 to 1; 1 for equal ids.
    """

    question_id: str
    benchmark: str
    row: int
    net: Net
    likeness: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecontaminationReport:
    """What was compared and what was found, so that "nothing" can be told from "nothing to compare".

    Attributes:
        compared: By benchmark, how many questions, ids and videos it offered, and videos that couldn't be read.
        found: All contaminations; a question may have several.
    """

    compared: Mapping[str, Mapping[str, int]]
    found: tuple[Contamination, ...]

    def by_question(self) -> dict[str, Contamination]:
        """Return the first contamination of each question."""
        return {item.question_id: item for item in reversed(self.found)}

    def as_json(self) -> dict[str, Any]:
        """Return what a report file says."""
        return {
            "compared": {name: dict(counts) for name, counts in self.compared.items()},
            "contaminated_questions": len({item.question_id for item in self.found}),
            "found_by": dict(sorted(Counter(str(item.net) for item in self.found).items())),
            "found": [
                {
                    "question_id": item.question_id,
                    "benchmark": item.benchmark,
                    "row": item.row,
                    "net": str(item.net),
                    "likeness": round(item.likeness, 4),
                }
                for item in self.found
            ],
        }


def find_contamination(
    records: Sequence[QuestionRecord], fingerprints: Mapping[str, Fingerprint], benchmarks: Sequence[Benchmark]
) -> DecontaminationReport:
    """Look for the benchmarks in a dataset.

    Args:
        records: The dataset's questions.
        fingerprints: Of its media, by digest; one without isn't compared by footage.
        benchmarks: What must not be in it.
    """
    compared: dict[str, dict[str, int]] = {}
    found: list[Contamination] = []
    for benchmark in benchmarks:
        known, unreadable = _fingerprint_media(benchmark)
        compared[benchmark.name] = {
            "questions": sum(bool(item.question) for item in benchmark.items),
            "source_ids": len({item.source_id for item in benchmark.items if item.source_id}),
            "videos": len(known),
            "videos_unreadable": unreadable,
        }
        found += _by_source_id(records, benchmark)
        found += _by_footage(records, fingerprints, benchmark.name, known)
        found += _by_wording(records, benchmark)
    return DecontaminationReport(compared=compared, found=tuple(found))


def source_id_of(medium: RecordMedium) -> str:
    """Return the name under which a video or picture came, without what a build appended to it."""
    return PurePosixPath(medium.path).stem.removesuffix(f"-{medium.digest[:12]}")


def _by_source_id(records: Sequence[QuestionRecord], benchmark: Benchmark) -> list[Contamination]:
    rows: dict[str, int] = {}
    for row, item in enumerate(benchmark.items, start=1):
        names = (item.source_id, *(PurePosixPath(path).stem for path in item.paths))
        for name in names:
            if name and len(name) >= _SHORTEST_ID:
                rows.setdefault(name, row)
    # An id inside a longer name counts when nothing that ids are made of touches it: `film_[dQw4w9WgXcQ]`.
    by_name: dict[str, int | None] = {}
    found: list[Contamination] = []
    for record in records:
        names = [source_id_of(medium) for medium in record.media]
        for name in names:
            if name not in by_name:
                parts = {name, *re.split(r"[\s\[\](){}=.]+", name)}
                by_name[name] = min((rows[part] for part in parts if part in rows), default=None)
        row = min((row for name in names if (row := by_name[name]) is not None), default=None)
        if row is not None:
            found.append(_contamination(record, benchmark.name, row, Net.SOURCE_ID, 1.0))
    return found


def _fingerprint_media(benchmark: Benchmark) -> tuple[list[tuple[int, Fingerprint]], int]:
    """Compute the fingerprint of each medium with the first row that names it, and count those that can't be read."""
    rows: dict[Path, int] = {}
    for row, item in enumerate(benchmark.items, start=1):
        for path in benchmark.find_media(item):
            rows.setdefault(path, row)
    known: list[tuple[int, Fingerprint]] = []
    for path, row in rows.items():
        try:
            known.append((row, fingerprint_video(open_file(path, kind_of(path)))))
        except DataError:
            continue  # counted in the report
    return known, len(rows) - len(known)


def _by_footage(
    records: Sequence[QuestionRecord],
    fingerprints: Mapping[str, Fingerprint],
    name: str,
    known: Sequence[tuple[int, Fingerprint]],
) -> list[Contamination]:
    matches = find_footage(fingerprints, [fingerprint for _, fingerprint in known])
    found: list[Contamination] = []
    for record in records:
        likest = max((matches[digest] for digest in record.digests if digest in matches), key=_likeness, default=None)
        if likest is not None:
            found.append(_contamination(record, name, known[likest[0]][0], Net.FOOTAGE, likest[1]))
    return found


def _likeness(match: tuple[int, float]) -> float:
    return match[1]


def _by_wording(records: Sequence[QuestionRecord], benchmark: Benchmark) -> list[Contamination]:
    asked: defaultdict[bytes, list[QuestionRecord]] = defaultdict(list)
    for record in records:
        asked[_digest(shingle(record.question, record.options))].append(record)
    own = [
        group
        for group in asked.values()
        if len(set(chain.from_iterable(record.digests for record in group))) < _FEWEST_TEMPLATE_VIDEOS
    ]
    rows: dict[frozenset[str], int] = {}
    for row, item in enumerate(benchmark.items, start=1):
        if item.question:
            rows.setdefault(shingle(item.question, item.options or ()), row)
    theirs = list(rows)
    sets = RankedSets(chain(theirs, (_shingles_of(group) for group in own)))
    known = SetIndex(sets, SAME_WORDING)
    for place in range(len(theirs)):
        known.add(place)
    found: list[Contamination] = []
    for place, group in enumerate(own, start=len(theirs)):
        members = _shingles_of(group)
        alike, likest = max(
            ((likeness(members, theirs[other]), -other) for other in known.find(place)), default=(0.0, 0)
        )
        if alike >= SAME_WORDING:
            row = rows[theirs[-likest]]
            found += [_contamination(record, benchmark.name, row, Net.WORDING, alike) for record in group]
    return found


def _shingles_of(group: Sequence[QuestionRecord]) -> frozenset[str]:
    """The shingles of questions that have the same ones."""
    return shingle(group[0].question, group[0].options)


def _digest(members: frozenset[str]) -> bytes:
    """Stands for a set in less memory."""
    return hashlib.blake2b("\n".join(sorted(members)).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _contamination(record: QuestionRecord, benchmark: str, row: int, net: Net, alike: float) -> Contamination:
    return Contamination(question_id=record.question_id, benchmark=benchmark, row=row, net=net, likeness=alike)


_NUM_READERS = 4  # videos looked at side by side


def fingerprint_records(
    folder: Path, records: Iterable[QuestionRecord], *, decoder: DecoderName
) -> dict[str, Fingerprint]:
    """Compute the fingerprints of a dataset's media by digest; those that can't be read are omitted.

    Raises:
        UsageError: When the decoder isn't installed.
    """
    media = list_media(records)
    with ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="fingerprints") as threads:
        made = threads.map(partial(fingerprint_medium, folder, decoder), media.values())
        return {digest: found for digest, found in zip(media, made, strict=True) if found is not None}


def fingerprint_medium(folder: Path, decoder: DecoderName, medium: RecordMedium) -> Fingerprint | None:
    """Compute the fingerprint of a medium; None when it can't be read.

    Raises:
        UsageError: When the decoder isn't installed.
    """
    try:
        return fingerprint_video(open_medium(folder, medium, decoder=decoder))
    except UsageError:
        raise
    except DataError:
        return None
