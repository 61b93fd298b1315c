"""Records survive the way through Parquet, and a wrong one is refused by name."""

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
from longvideo_reason_data.records.record import QuestionRecord, read_records, resolve_video, write_records

GOOD: dict[str, Any] = {
    "question_id": "one",
    "video_path": "videos/one.mp4",
    "video_digest": "0" * 64,
    "video_duration_seconds": 20.0,
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
OPEN = {**GOOD, "question_id": "open", "options": (), "answer": "It goes away.", "evidence": ()}


def make(**changes: Any) -> QuestionRecord:
    return QuestionRecord.model_validate({**GOOD, **changes})


def test_round_trip(tmp_path: Path) -> None:
    records = [make(), QuestionRecord.model_validate(OPEN), make(question_id="ä\n\u2028", reasoning="")]
    path = tmp_path / "deep" / "records.parquet"
    write_records(path, records)
    assert read_records(path) == records
    assert [file.name for file in path.parent.iterdir()] == ["records.parquet"]
    write_records(path, [])
    assert read_records(path) == []


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
            video_duration_seconds=duration,
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
        {"video_path": "/videos/one.mp4"},
        {"video_path": "../one.mp4"},
        {"video_path": "videos/../../one.mp4"},
        {"video_path": "videos\\one.mp4"},
        {"video_path": "."},
        {"video_path": ""},
        {"video_digest": "xyz"},
        {"video_digest": "A" * 64},
        {"video_duration_seconds": 0},
        {"video_duration_seconds": float("nan")},
        {"video_duration_seconds": float("inf")},
        {"video_duration_seconds": 19.0},
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
    with pytest.raises(UsageError, match="version 1, this program reads version 2"):
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


def test_resolve_video(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    (folder / "videos").mkdir(parents=True)
    (folder / "videos" / "one.mp4").write_bytes(b"x")
    assert resolve_video(folder, make()) == (folder / "videos" / "one.mp4").resolve()
    with pytest.raises(DataError, match="is missing"):
        resolve_video(folder, make(video_path="videos/two.mp4"))
    (tmp_path / "outside.mp4").write_bytes(b"x")
    (folder / "videos" / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (folder / "up").symlink_to(tmp_path)
    for escaping in ("videos/link.mp4", "up/outside.mp4"):
        with pytest.raises(DataError, match="leads outside"):
            resolve_video(folder, make(video_path=escaping))
    unchecked = make().model_copy(update={"video_path": "../outside.mp4"})
    with pytest.raises(DataError, match="leads outside"):
        resolve_video(folder, unchecked)


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
