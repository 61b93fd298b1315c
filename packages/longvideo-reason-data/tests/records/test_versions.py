"""Records of the previous version are read like current ones, and keep their digest."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvideo_reason_data.cli import main
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.records.folder import hash_records
from longvideo_reason_data.records.record import Demonstration, QuestionRecord, read_records, write_records

RATE = {"condition": "blind", "model": "m", "num_asked": 4, "num_right": 1, "num_unanswered": 0}
OLD: dict[str, Any] = {
    "schema_version": 2,
    "question_id": "one",
    "video_path": "videos/one.mp4",
    "video_digest": "0" * 64,
    "video_duration_seconds": 20.0,
    "split": "train_sft",
    "skill": "goal",
    "question": "Where does the red one go?",
    "options": ["home", "away", "up", "down"],
    "answer": "B",
    "evidence": [{"start_seconds": 1.0, "end_seconds": 2.5}, {"start_seconds": 4.0, "end_seconds": 20.0}],
    "reasoning": "At 1 s it leaves.",
    "source": "test",
    "license": "CC0",
    "pass_rates": [],
}
OLD_ROWS = [
    OLD,
    OLD | {"question_id": "two", "source": "timeline world, hasty demonstration"},
    OLD | {"question_id": "three", "pass_rates": [RATE | {"num_chosen": [1, 1, 1, 1]}]},
    OLD | {"question_id": "four", "options": [], "answer": "It goes away.", "evidence": []},
]
OLD_HASH = "620b9d1c3f340971a2b7b8857993cf30650ea924aa13c0190dd5752406284eda"
"""The digests that the release of version 2 computed for these rows."""


def write_old(path: Path, rows: list[dict[str, Any]]) -> Path:
    metadata = {"longvideo_reason_data.schema_version": "2"}
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), path)
    return path


def new_record(old: dict[str, Any], **changes: Any) -> QuestionRecord:
    fields = {name: value for name, value in old.items() if not name.startswith(("video_", "schema_"))}
    medium = {name: old[f"video_{name}"] for name in ("path", "digest", "duration_seconds")}
    return QuestionRecord.model_validate(fields | {"media": [medium]} | changes)


def test_a_file_of_the_version_before_keeps_its_hash_however_often_it_is_written(tmp_path: Path) -> None:
    records = read_records(write_old(tmp_path / "old.parquet", OLD_ROWS))
    assert hash_records(records) == OLD_HASH
    write_records(tmp_path / "new.parquet", records)
    assert read_records(tmp_path / "new.parquet") == records
    assert hash_records(read_records(tmp_path / "new.parquet")) == OLD_HASH
    assert pq.read_schema(tmp_path / "new.parquet").metadata[b"longvideo_reason_data.schema_version"] == b"3"
    assert [record.demonstration for record in records] == [
        Demonstration.GUESSED if number == 1 else Demonstration.WATCHED for number in range(4)
    ]
    assert [record.source for record in records] == ["test", "timeline world", "test", "test"]


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@pytest.mark.slow
@given(
    question=words,
    reasoning=st.text(st.characters(exclude_categories=["Cs"])),
    source=words | st.sampled_from(["timeline world", "timeline world, hasty demonstration"]),
    duration=st.floats(0.1, 1e5),
    end=st.floats(0.01, 1.0),
    is_open=st.booleans(),
)
def test_both_versions_of_a_record_read_alike(
    tmp_path_factory: pytest.TempPathFactory,
    question: str,
    reasoning: str,
    source: str,
    duration: float,
    end: float,
    is_open: bool,
) -> None:
    old = OLD | {"question": question, "reasoning": reasoning, "source": source, "video_duration_seconds": duration}
    old |= {"evidence": [{"start_seconds": 0.0, "end_seconds": end * duration}]}
    old |= {"options": [], "answer": "home"} if is_open else {}
    folder = tmp_path_factory.mktemp("versions")
    is_guess = source == "timeline world, hasty demonstration"
    changes = {"source": "timeline world", "demonstration": "guessed"} if is_guess else {}
    write_records(folder / "new.parquet", [new_record(old, **changes)])
    (before,) = read_records(write_old(folder / "old.parquet", [old]))
    (after,) = read_records(folder / "new.parquet")
    assert before == after
    assert hash_records([before]) == hash_records([after])


def test_whatever_only_the_present_version_can_say_changes_the_hash() -> None:
    one = new_record(OLD)
    picture = {"kind": "image", "path": "images/a.png", "digest": "1" * 64}
    media = [one.media[0].model_dump(), picture]
    late = [{"start_seconds": 1.0, "end_seconds": 2.0, "medium": 1}]
    others = [
        one,
        new_record(OLD, demonstration="guessed"),
        new_record(OLD, demonstration="guessed", source="timeline world"),
        new_record(OLD, source="timeline world"),
        new_record(OLD, media=media),
        new_record(OLD, media=[picture], evidence=[]),
        new_record(OLD, media=[media[0], media[0]]),
        new_record(OLD, media=[media[0], media[0]], evidence=late),
        new_record(OLD, media=media[::-1], evidence=late),
    ]
    assert len({hash_records([record]) for record in others}) == len(others)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"video_path": "../one.mp4"}, "must be relative"),
        ({"video_digest": "xyz"}, "media.0.digest"),
        ({"video_duration_seconds": None}, "has no duration_seconds"),
        ({"video_duration_seconds": 19.0}, "after the video"),
        ({"schema_version": 7}, "schema_version"),
        ({"answer": "F"}, "answer 'F'"),
    ],
)
def test_a_damaged_row_of_the_version_before_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = write_old(tmp_path / "old.parquet", [OLD, OLD | {"question_id": "two"} | changes])
    with pytest.raises(DataError, match=rf"row 1 \('two'\): .*{words}") as raised:
        read_records(path)
    assert "\n" not in str(raised.value)


def test_the_commands_take_a_dataset_of_the_version_before(
    tmp_path: Path, make_video: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from longvideo_reason_data.media.video_file import digest_file

    path = make_video("videos/one.mp4", num_frames=500)
    write_old(tmp_path / "records.parquet", [OLD | {"video_digest": digest_file(path)}])
    assert main(["stats", str(tmp_path)]) == 0
    assert '"videos": 1' in capsys.readouterr().out
    assert main(["check", str(tmp_path)]) in (0, 1)  # one question has one right letter
    assert "lasts" not in capsys.readouterr().out
    assert main(["view", str(tmp_path)]) == 0
    for layout in ("hf", "jsonl", "trl", "verl", "easyr1"):
        assert main(["export", str(tmp_path), "--to", layout]) == 0
