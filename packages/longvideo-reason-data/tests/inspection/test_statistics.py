"""Figures and records of large files: the same in any order, and with a thousand questions in memory at a time."""

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from longvideo_reason_data.inspection.statistics import describe_dataset, describe_pass_rates, note_splits
from longvideo_reason_data.records.folder import hash_records
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.pass_rates import Condition, PassRate
from longvideo_reason_data.records.record import (
    Interval,
    QuestionRecord,
    Skill,
    Split,
    iter_records,
    list_media,
    read_records,
    write_records,
)

NUM_QUESTIONS = 4000
WORDS_BYTES = 4000


def make_records(num_questions: int) -> Iterator[QuestionRecord]:
    """Make questions about three videos, each with long reasoning."""
    for number in range(num_questions):
        place = number % 3
        rate = PassRate(condition=Condition.BLIND, model="m", num_asked=8, num_right=number % 9, num_unanswered=0)
        yield QuestionRecord(
            question_id=f"question-{number:05d}",
            media=(RecordMedium(path=f"videos/{place}.mp4", digest=f"{place:064x}", duration_seconds=100.0 + place),),
            split=list(Split)[place],
            skill=list(Skill)[number % 4],
            question=f"Who opens door {number}?",
            options=("the cook", "the driver", "the neighbour", "nobody") if number % 5 else (),
            answer="ABCD"[number % 4],
            evidence=(Interval(start_seconds=0.1 * (number % 100), end_seconds=20.0),),
            reasoning=f"{number} ".ljust(WORDS_BYTES, "x"),
            source="somewhere",
            license="CC0-1.0",
            pass_rates=(rate,) if number % 2 else (),
        )


def test_figures_do_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    records = list(make_records(1200))
    write_records(tmp_path / "records.parquet", records)
    figures = describe_dataset(tmp_path)
    assert figures["dataset_hash"] == hash_records(records)
    assert figures["questions"] == sum(figures["questions_by_split"].values()) == 1200
    assert figures["open_questions"] == 240
    assert figures["hours"] == round(303 / 3600, 3)
    assert figures["pass_rates"] == describe_pass_rates(records)
    assert figures["pass_rates"]["blind"]["questions"] == 600
    random.Random(0).shuffle(records)
    write_records(tmp_path / "records.parquet", records)
    assert describe_dataset(tmp_path) == figures


def test_records_come_in_the_order_of_their_ids_if_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    records = list(make_records(1200))
    shuffled = random.Random(0).sample(records, k=len(records))
    write_records(path, shuffled)
    assert list(iter_records(path)) == shuffled
    assert list(iter_records(path, in_order_of_ids=True)) == records


@pytest.mark.slow
def test_a_dataset_is_counted_in_the_memory_of_a_thousand_questions(tmp_path: Path) -> None:
    write_records(tmp_path / "records.parquet", make_records(NUM_QUESTIONS))
    tracemalloc.start()
    try:
        assert describe_dataset(tmp_path)["questions"] == NUM_QUESTIONS
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < NUM_QUESTIONS * WORDS_BYTES  # the words alone, of all


def test_records_about_one_medium_share_it(tmp_path: Path) -> None:
    write_records(tmp_path / "records.parquet", make_records(100))
    records = read_records(tmp_path / "records.parquet")
    assert len({id(medium) for record in records for medium in record.media}) == len(list_media(records)) == 3


def test_empty_splits_and_too_little_to_measure_with_are_noted() -> None:
    enough = {Split.TRAIN_SFT: 300, Split.TRAIN_RL: 600, Split.HELD_OUT: 100}
    assert note_splits(enough, enough) == []
    (empty,) = note_splits(enough | {Split.TRAIN_SFT: 0}, enough)
    assert empty.startswith("no questions in train_sft; give it a larger share (--splits.train-sft)")
    (few,) = note_splits(enough | {Split.HELD_OUT: 25}, {Split.HELD_OUT: 4})
    assert few.startswith("questions held out: 25, about 4 videos or images")
    assert "a standard error of 10% or more, so only differences above 20%" in few
