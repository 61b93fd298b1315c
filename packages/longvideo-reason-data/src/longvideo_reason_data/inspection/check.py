"""What a check of a dataset finds beyond the files themselves: repeated questions, leaks, shortcuts, benchmarks.

Every line names what was found and what it is held against. Whether models can answer the questions isn't asked here;
what they answered when the dataset was filtered is summed up.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.filtering.benchmark_files import read_benchmark
from longvideo_reason_data.filtering.decontamination import find_contamination, fingerprint_records
from longvideo_reason_data.filtering.near_duplicates import find_repeated_questions
from longvideo_reason_data.filtering.option_shortcuts import find_shortcuts
from longvideo_reason_data.filtering.rules import check_question
from longvideo_reason_data.media.fingerprints import find_same_footage
from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.folder import (
    MANIFEST_NAME,
    RECORDS_NAME,
    hash_records,
    read_dataset,
    read_decoder,
    read_manifest,
)
from longvideo_reason_data.records.medium import MediumKind, RecordMedium, open_medium
from longvideo_reason_data.records.record import NUM_OPTIONS, Demonstration, QuestionRecord, Split, list_media


def check_questions(records: Sequence[QuestionRecord]) -> list[str]:
    """Hold questions to the rules that their words alone can break, each by itself and all together.

    Demonstrations that say of themselves that they guess are meant to, and aren't held to them one by one.

    Returns:
        One line per problem.
    """
    problems = [
        f"{record.question_id}: {', '.join(reasons)}"
        for record in records
        if record.demonstration is not Demonstration.GUESSED
        and (reasons := check_question(record, record.longest_seconds))
    ]
    return problems + find_shortcuts(records)


def check_footage(folder: Path, records: Sequence[QuestionRecord], benchmarks: Sequence[Path] = ()) -> list[str]:
    """Look for footage that leaks from one split into another, repeated questions, and benchmarks.

    Args:
        folder: The dataset, from which every video is looked at.
        records: Its questions.
        benchmarks: Files of `benchmarks.read_benchmark`.

    Returns:
        One line per problem; videos that can't be read are for `check_dataset` to report.

    Raises:
        UsageError: When a benchmark isn't one, or the dataset's decoder isn't installed.
        DataError: When the manifest can't be read.
    """
    known = [read_benchmark(path) for path in benchmarks]
    fingerprints = fingerprint_records(folder, records, decoder=read_decoder(folder))
    same = find_same_footage(fingerprints)
    splits = _splits_of(records)
    paths = {digest: medium.path for digest, medium in list_media(records).items()}
    problems = [
        f"{paths[digest]} shows what {paths[first]} shows, but one is in {_listed(splits[digest])} and the other in "
        f"{_listed(splits[first])}"
        for digest, first in same.items()
        if splits[digest] != splits[first]
    ]
    problems += [
        f"{question_id}: asks what {kept} asks ({alike:.0%} alike)"
        for question_id, (kept, alike) in find_repeated_questions(records, same).items()
    ]
    if known:
        problems += [
            f"{item.question_id}: is in benchmark {item.benchmark}, row {item.row}, by its {item.net} "
            f"({item.likeness:.0%} alike)"
            for item in find_contamination(records, fingerprints, known).by_question().values()
        ]
    return problems


def _splits_of(records: Sequence[QuestionRecord]) -> dict[str, set[Split]]:
    """The splits in which each medium is, by its digest."""
    splits: defaultdict[str, set[Split]] = defaultdict(set)
    for record in records:
        for digest in record.digests:
            splits[digest].add(record.split)
    return splits


def _listed(splits: Iterable[str]) -> str:
    return ", ".join(sorted(splits))


# Chi-square with three degrees of freedom exceeds this once in ten thousand fair draws.
_LETTERS_LIMIT = 21.1


def check_dataset(folder: Path, benchmarks: Sequence[Path] = ()) -> list[str]:
    """Hold a dataset to its rules.

    Args:
        folder: The dataset.
        benchmarks: Files with questions or videos that must not be in it.

    Returns:
        One line per problem; none for a sound dataset.

    Raises:
        UsageError: When the folder is missing or holds no dataset of this version.
        DataError: When the records or the manifest can't be read at all.
    """
    from longvideo_reason_data.inspection.check import check_footage, check_questions

    records = read_dataset(folder)
    problems = [] if records else [f"{folder / RECORDS_NAME}: no questions in it"]
    problems += _check_media(folder, records)
    kinds = {digest: medium.kind for digest, medium in list_media(records).items()}
    problems += [
        f"{kinds[digest]} {digest[:12]} is in several splits: {_listed(found)}"
        for digest, found in _splits_of(records).items()
        if len(found) > 1
    ]
    asked = Counter((record.digests, record.question, record.options) for record in records)
    problems += [
        f"asked {count} times about one {kinds[key[0][0]] if len(key[0]) == 1 else 'set of media'}: {key[1]!r}"
        for key, count in asked.items()
        if count > 1
    ]
    problems += _check_letters(records)
    problems += check_questions(records)
    problems += check_footage(folder, records, benchmarks)
    return problems + _check_manifest(folder, records)


def _check_media(folder: Path, records: Sequence[QuestionRecord]) -> list[str]:
    """Compare each file with what the records say of it."""
    problems: list[str] = []
    by_path: dict[tuple[str, MediumKind], list[tuple[QuestionRecord, RecordMedium]]] = {}
    for record in records:
        for medium in dict.fromkeys(record.media):
            by_path.setdefault((medium.path, medium.kind), []).append((record, medium))
    for (path, _), named in sorted(by_path.items()):
        try:
            file = open_medium(folder, named[0][1])
            digest = file.content_digest
        except DataError as error:
            problems.append(f"{error} ({len(named)} questions)")
            continue
        for record, medium in named:
            if medium.digest != digest:
                problems.append(f"{record.question_id}: {path} is another file than the one asked about")
            elif abs((medium.duration_seconds or 0.0) - file.duration_seconds) > 0.001:
                problems.append(
                    f"{record.question_id}: {path} lasts {file.duration_seconds:.3f} s, "
                    f"the record says {medium.duration_seconds:.3f} s"
                )
    return problems


def _check_letters(records: Sequence[QuestionRecord]) -> list[str]:
    """Say in which splits the right letters are too uneven to be chance."""
    problems: list[str] = []
    for split in Split:
        letters = Counter(record.answer for record in records if record.split is split and record.options)
        expected = letters.total() / NUM_OPTIONS
        if not expected:
            continue
        spread = sum((letters[letter] - expected) ** 2 / expected for letter in LETTERS[:NUM_OPTIONS])
        if spread > _LETTERS_LIMIT:
            shown = ", ".join(f"{letter} {letters[letter]}" for letter in LETTERS[:NUM_OPTIONS])
            problems.append(f"{split}: the right letters are unbalanced: {shown}")
    return problems


def _check_manifest(folder: Path, records: Sequence[QuestionRecord]) -> list[str]:
    """Compare the manifest, when there is one, with the records."""
    stated = read_manifest(folder).get("dataset_hash")
    if stated is not None and stated != hash_records(records):
        path = folder / MANIFEST_NAME
        return [f"{path}: its dataset_hash isn't that of the records; one of the two is from another build"]
    return []
