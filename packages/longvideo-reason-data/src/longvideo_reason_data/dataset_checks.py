"""What a check of a dataset finds beyond the files themselves: repeated questions, leaks, shortcuts, benchmarks.

Every line names what was found and what it is held against. Whether models can answer the questions isn't asked here;
what they answered when the dataset was filtered is summed up.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from longvideo_reason_data.benchmarks import read_benchmark
from longvideo_reason_data.dataset_folder import read_decoder
from longvideo_reason_data.decoders.base import DecoderName
from longvideo_reason_data.decontamination import find_contamination
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.filters import check_question
from longvideo_reason_data.near_duplicates import find_repeated_questions
from longvideo_reason_data.option_hygiene import find_shortcuts
from longvideo_reason_data.pass_rates import Condition
from longvideo_reason_data.records import QuestionRecord, resolve_video
from longvideo_reason_data.timeline.dataset import HASTY_SOURCE
from longvideo_reason_data.video_fingerprint import Fingerprint, find_same_footage, fingerprint_video
from longvideo_reason_data.videos import VideoFile

_NUM_READERS = 4  # videos looked at side by side


def check_questions(records: Sequence[QuestionRecord]) -> list[str]:
    """Hold questions to the rules that their words alone can break, each by itself and all together.

    Demonstrations that say of themselves that they guess are meant to, and aren't held to them one by one.

    Returns:
        One line per problem.
    """
    problems = [
        f"{record.question_id}: {', '.join(reasons)}"
        for record in records
        if record.source != HASTY_SOURCE and (reasons := check_question(record, record.video_duration_seconds))
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
    splits: defaultdict[str, set[str]] = defaultdict(set)
    paths: dict[str, str] = {}
    for record in records:
        splits[record.video_digest].add(record.split)
        paths[record.video_digest] = record.video_path
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


def fingerprint_records(
    folder: Path, records: Iterable[QuestionRecord], *, decoder: DecoderName
) -> dict[str, Fingerprint]:
    """Compute the fingerprints of a dataset's videos by digest; those that can't be read are left out.

    Raises:
        UsageError: When the decoder isn't installed.
    """
    videos = {record.video_digest: record for record in records}
    with ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="fingerprints") as threads:
        made = threads.map(partial(fingerprint_record, folder, decoder), videos.values())
        return {digest: found for digest, found in zip(videos, made, strict=True) if found is not None}


def fingerprint_record(folder: Path, decoder: DecoderName, record: QuestionRecord) -> Fingerprint | None:
    """Compute the fingerprint of the video of a record; None when it can't be read.

    Raises:
        UsageError: When the decoder isn't installed.
    """
    try:
        return fingerprint_video(VideoFile.open(resolve_video(folder, record), decoder=decoder))
    except UsageError:
        raise
    except DataError:
        return None


def describe_pass_rates(records: Iterable[QuestionRecord]) -> Mapping[str, Mapping[str, Any]]:
    """Sum up how the questions were answered, by condition: how many, how often rightly, how often not at all."""
    sums: defaultdict[Condition, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for record in records:
        for rate in record.pass_rates:
            counted = (1, rate.num_asked, rate.num_right, rate.num_unanswered)
            sums[rate.condition] = [total + one for total, one in zip(sums[rate.condition], counted, strict=True)]
    return {
        str(condition): {
            "questions": sums[condition][0],
            "answers": sums[condition][1],
            "right_rate": round(sums[condition][2] / sums[condition][1], 4),
            "unanswered_rate": round(sums[condition][3] / sums[condition][1], 4),
        }
        for condition in Condition
        if condition in sums
    }


def _listed(splits: Iterable[str]) -> str:
    return ", ".join(sorted(splits))
