"""Records survive a round trip through Parquet, and an invalid one is refused by name."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from longvideo_reason_data.atomic_files import atomic_path, write_text_atomic
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.folder import hash_records
from longvideo_reason_data.records.medium import RecordMedium, resolve_medium
from longvideo_reason_data.records.record import QuestionRecord, RecordFile, read_records, write_records

VIDEO: dict[str, Any] = {"kind": "video", "path": "videos/one.mp4", "digest": "0" * 64, "duration_seconds": 20.0}
PICTURE: dict[str, Any] = {"kind": "image", "path": "images/two.png", "digest": "1" * 64, "duration_seconds": None}
GOOD: dict[str, Any] = {
    "question_id": "one",
    "media": (VIDEO,),
    "split": "train_sft",
    "skill": "goal",
    "question": "Where does the red one go?",
    "options": ("home", "away", "up", "down"),
    "answer": "B",
    "evidence": ({"start_seconds": 1.0, "end_seconds": 2.5}, {"start_seconds": 4, "end_seconds": 20}),
    "reasoning": "At 1 s it leaves.",
    "source": "test",
    "license": "CC0",
}
SEVERAL = ((VIDEO, PICTURE), (VIDEO, PICTURE, PICTURE), (VIDEO, VIDEO))
OPEN = {**GOOD, "question_id": "open", "options": (), "answer": "It goes away.", "evidence": ()}


def make(**changes: Any) -> QuestionRecord:
    return QuestionRecord.model_validate({**GOOD, **changes})


def test_round_trip(tmp_path: Path) -> None:
    records = [make(), QuestionRecord.model_validate(OPEN), make(question_id="ä\n\u2028", reasoning="")]
    records += [make(question_id=f"media {place}", media=media) for place, media in enumerate(SEVERAL)]
    path = tmp_path / "deep" / "records.parquet"
    write_records(path, records)
    assert read_records(path) == records
    assert [file.name for file in path.parent.iterdir()] == ["records.parquet"]
    write_records(path, [])
    assert read_records(path) == []


def test_any_record_can_be_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    records = [make(question_id=str(number), media=SEVERAL[number % 3]) for number in range(2100)]
    write_records(path, records)
    with RecordFile(path) as file:
        path.rename(tmp_path / "replaced.parquet")  # what was opened stays the same
        write_records(path, [make()])
        for number in (2099, 0, 999, 1000, 1001, 1, 2000):
            assert file.read(number) == records[number]
        for number in (-1, 2100):
            with pytest.raises(DataError, match=rf"row {number} was asked for, and it has 2100"):
                file.read(number)


printable = st.text(min_size=1).filter(str.strip)


@given(printable, printable, st.floats(0.1, 1e5), st.lists(printable, min_size=4, max_size=4), st.sampled_from("ABCD"))
def test_any_record_that_is_accepted_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    question: str,
    reasoning: str,
    duration: float,
    options: list[str],
    answer: str,
) -> None:
    try:
        record = make(
            question=question,
            reasoning=reasoning,
            media=(VIDEO | {"duration_seconds": duration},),
            options=tuple(options),
            answer=answer,
            evidence=({"start_seconds": 0, "end_seconds": duration},),
        )
    except ValidationError:
        return
    path = tmp_path_factory.mktemp("records") / "records.parquet"
    write_records(path, [record])
    assert read_records(path) == [record]


@pytest.mark.parametrize(
    "wrong",
    [
        {"media": ()},
        *(
            {"media": (PICTURE, VIDEO | changes)}
            for changes in (
                {"path": "/videos/one.mp4"},
                {"path": "../one.mp4"},
                {"path": "videos/../../one.mp4"},
                {"path": "videos\\one.mp4"},
                {"path": "."},
                {"path": ""},
                {"digest": "xyz"},
                {"digest": "A" * 64},
                {"duration_seconds": 0},
                {"duration_seconds": float("nan")},
                {"duration_seconds": float("inf")},
                {"duration_seconds": None},
                {"kind": "sound"},
                {"width": 8},
            )
        ),
        {"media": (VIDEO | {"duration_seconds": 19.0},)},
        {"media": (VIDEO, PICTURE | {"duration_seconds": 1.0})},
        {"media": (PICTURE,)},  # whose evidence is a time range
        {"evidence": ({"start_seconds": 1, "end_seconds": 2, "medium": 1},)},
        {"evidence": ({"start_seconds": 1, "end_seconds": 2, "medium": -1},)},
        {"media": (VIDEO, PICTURE), "evidence": ({"start_seconds": 1, "end_seconds": 2, "medium": 1},)},
        {"demonstration": "dreamt"},
        {"answer_type": "numeric"},  # with options
        {"answer_type": "choice", "options": (), "answer": "3"},
        {"answer_type": "poem", "options": (), "answer": "3"},
        {"schema_version": 2},
        {"split": "test"},
        {"skill": "sport"},
        {"question": " "},
        {"options": ("a", "b", "c")},
        {"options": ("a", "b", "c", "a")},
        {"options": ("a", "b", "c", " A ")},
        {"options": ("a", "b", "c", "")},
        {"answer": "E"},
        {"answer": "b"},
        {"answer": "AB"},
        {"answer": ""},
        {"evidence": ({"start_seconds": 2, "end_seconds": 2},)},
        {"evidence": ({"start_seconds": -1, "end_seconds": 2},)},
        {"evidence": ({"start_seconds": 1, "end_seconds": float("nan")},)},
        {"schema_version": 1},
        {"unknown": 1},
    ],
)
def test_wrong_records_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(**wrong)


def test_the_type_of_an_answer_is_stored_and_files_without_it_are_read(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    records = [
        make(),
        make(question_id="two", options=(), answer="a boat"),
        make(question_id="three", options=(), answer="3", answer_type=QuestionType.NUMERIC),
    ]
    write_records(path, records)
    assert read_records(path) == records
    types = [record.question_type for record in records]
    assert types == [QuestionType.CHOICE, QuestionType.OPEN, QuestionType.NUMERIC]
    pq.write_table(pq.read_table(path).drop_columns(["answer_type"]), path)
    assert read_records(path)[:2] == records[:2]
    untyped = records[2].model_copy(update={"answer_type": None})
    assert read_records(path)[2] == untyped
    assert hash_records([untyped]) != hash_records(records[2:])


def test_records_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        make().answer = "C"


def test_ids_are_unique(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'one' is used more than once"):
        write_records(tmp_path / "records.parquet", [make(), make()])
    assert list(tmp_path.iterdir()) == []


def one_line(raised: pytest.ExceptionInfo[DataError], path: Path) -> None:
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such records file") as raised:
        read_records(tmp_path / "none.parquet")
    one_line(raised, tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PAR1" * 40])
def test_not_parquet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "records.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a readable Parquet file") as raised:
        read_records(path)
    one_line(raised, path)


def test_truncated_parquet(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    write_records(path, [make()])
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_records(path)


def test_other_parquet_and_other_versions(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(UsageError, match="without question records"):
        read_records(path)
    write_records(path, [make()])
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"longvideo_reason_data.schema_version": "1"}), path)
    with pytest.raises(UsageError, match="version 1, this program reads versions 2 and 3"):
        read_records(path)


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    write_records(path, [make(), make(question_id="two")])
    table = pq.read_table(path)
    answers = pa.array(["B", "F"])
    pq.write_table(table.set_column(table.schema.get_field_index("answer"), "answer", answers), path)
    with pytest.raises(DataError, match=r"row 1 \('two'\): answer 'F' must be one letter") as raised:
        read_records(path)
    one_line(raised, path)
    pq.write_table(table.drop_columns(["skill"]), path)
    with pytest.raises(DataError, match=r"row 0 \('one'\): skill: Field required"):
        read_records(path)


def test_resolve_medium(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    (folder / "videos").mkdir(parents=True)
    (folder / "videos" / "one.mp4").write_bytes(b"x")
    one = RecordMedium.model_validate(VIDEO)
    assert resolve_medium(folder, one) == (folder / "videos" / "one.mp4").resolve()
    for missing in (VIDEO | {"path": "videos/two.mp4"}, PICTURE):
        with pytest.raises(DataError, match=f"{missing['kind']} .* is missing"):
            resolve_medium(folder, RecordMedium.model_validate(missing))
    (tmp_path / "outside.mp4").write_bytes(b"x")
    (folder / "videos" / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (folder / "up").symlink_to(tmp_path)
    for escaping in ("videos/link.mp4", "up/outside.mp4"):
        for medium in (VIDEO, PICTURE):
            with pytest.raises(DataError, match="is a link"):
                resolve_medium(folder, RecordMedium.model_validate(medium | {"path": escaping}))
    with pytest.raises(DataError, match="leads out of"):
        resolve_medium(folder, one.model_copy(update={"path": "../outside.mp4"}))


# Atomic files.


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_text_atomic(path, "old")

    def fail_halfway() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_place_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can't be written"):
        write_text_atomic(tmp_path / "file" / "below.json", "x")


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    def write_to_a_full_disk() -> None:
        with atomic_path(tmp_path / "full") as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_text("x")

    with pytest.raises(DataError, match="No space left"):
        write_to_a_full_disk()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text_atomic(path, "old" * 1000)
    program = (
        "import sys; from pathlib import Path\n"
        "from longvideo_reason_data.atomic_files import write_text_atomic\n"
        "n = 0\n"
        "while True: n += 1; write_text_atomic(Path(sys.argv[1]), 'new' * 100_000); print(n, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert path.read_text() == "new" * 100_000
