"""Evaluation sets are read in their published layouts, and nothing is skipped silently."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longvideo_reason_data.filtering.evaluation_sets import EvaluationItem, read_evaluation_set

QUESTION = "Why does the woman put the suitcase back into the car?"
OPTIONS = ("the train is gone", "she forgot her passport", "the driver left", "her brother came")
LETTERED = [f"{letter}. {option}" for letter, option in zip("ABCD", OPTIONS, strict=True)]
IN_BRACKETS = "\n".join(f"({letter}) {option}" for letter, option in zip("ABCD", OPTIONS, strict=True))

LAYOUTS: dict[str, tuple[Any, str | None, str | None]] = {
    "LongVideo-Reason": (
        [
            {
                "problem_id": 1,
                "data_type": "video",
                "videos": "longvila_videos/abcdefghijk.mp4",
                "problem": "\n".join([QUESTION, *LETTERED]),
                "problem_type": "plot",
                "answer": "<answer>B</answer>",
            }
        ],
        None,
        "longvila_videos/abcdefghijk.mp4",
    ),
    "LVBench": (
        [
            {
                "key": "abcdefghijk",
                "type": "cartoon",
                "video_info": {"fps": 30.0, "duration_minutes": 31.4},
                "qa": [
                    {
                        "uid": "1",
                        "question": f"{QUESTION}\n{IN_BRACKETS}",
                        "answer": "D",
                        "question_type": ["reasoning"],
                        "time_reference": "00:10-00:20",
                    }
                ],
            }
        ],
        "abcdefghijk",
        None,
    ),
    "Video-MME": (
        [
            {
                "video_id": "001",
                "duration": "short",
                "url": "https://www.youtube.com/watch?v=abcdefghijk",
                "videoID": "abcdefghijk",
                "question_id": "001-1",
                "question": QUESTION,
                "options": LETTERED,
                "answer": "C",
            }
        ],
        "abcdefghijk",
        None,
    ),
    "LongVideoBench": (
        [
            {
                "video_id": "abcdefghijk",
                "id": "abcdefghijk_0",
                "question": QUESTION,
                "candidates": list(OPTIONS),
                "correct_choice": 1,
                "video_path": "abcdefghijk.mp4",
                "subtitle_path": "abcdefghijk_en.json",
            }
        ],
        "abcdefghijk",
        "abcdefghijk.mp4",
    ),
    "LongVideoBench, one field an option": (
        [
            {
                "video_id": "abcdefghijk",
                "question": QUESTION,
                **{f"option{place}": option for place, option in enumerate(OPTIONS)},
                "option4": "",
                "video_path": "abcdefghijk.mp4",
            }
        ],
        "abcdefghijk",
        "abcdefghijk.mp4",
    ),
    "MLVU": (
        [{"video": "needle_32.mp4", "duration": 467, "question": QUESTION, "candidates": list(OPTIONS), "answer": "x"}],
        None,
        "needle_32.mp4",
    ),
    "CG-Bench": (
        [{"qid": 3, "video_uid": "abcdefghijk", "question": QUESTION, "choices": list(OPTIONS), "right_answer": "A"}],
        "abcdefghijk",
        None,
    ),
    "EgoSchema": (
        [
            {
                "q_uid": "001934bb-81bd",
                "google_drive_id": "1x",
                "question": QUESTION,
                **{f"option {place}": option for place, option in enumerate(OPTIONS)},
            }
        ],
        "001934bb-81bd",
        None,
    ),
    "NExT-QA": (
        [
            {
                "video": "4010069381",
                "frame_count": "369",
                "question": QUESTION,
                "answer": "0",
                "qid": "6",
                "type": "CW",
                **{f"a{place}": option for place, option in enumerate(OPTIONS)},
            }
        ],
        None,
        "4010069381",
    ),
    "a table by ids, with lists of questions": (
        {"video_123": {"metadata": {}, "mc_question": [{"id": 0, "question": QUESTION, "options": list(OPTIONS)}]}},
        "video_123",
        None,
    ),
    "a list under a name": (
        {"version": "1", "questions": [{"video_id": "abcdefghijk", "question": QUESTION, "options": OPTIONS}]},
        "abcdefghijk",
        None,
    ),
    "letters as names": (
        [{"video": "abcdefghijk.mp4", "question": QUESTION, **dict(zip("ABCD", OPTIONS, strict=True)), "answer": "A"}],
        None,
        "abcdefghijk.mp4",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path: Path, name: str) -> None:
    content, source_id, video_path = LAYOUTS[name]
    named = {"question": QUESTION, "options": OPTIONS, "source_id": source_id, "video_path": video_path}
    expected = EvaluationItem.model_validate(named)
    (tmp_path / "exam.json").write_text(json.dumps(content))
    paths = [tmp_path / "exam.json"]
    if isinstance(content, list):
        (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        pq.write_table(pa.Table.from_pylist(content), tmp_path / "exam.parquet")
        paths += [tmp_path / "exam.jsonl", tmp_path / "exam.parquet"]
    for path in paths:
        evaluation_set = read_evaluation_set(path)
        assert evaluation_set.items == (expected,)
        assert evaluation_set.summary == "1 questions about 1 named videos"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("csv", ";"), ("csv", "\t"), ("tsv", "\t")])
def test_delimited_tables(tmp_path: Path, suffix: str, delimiter: str, encoding: str) -> None:
    header = ("index", "video", "question", "candidates", "answer")
    row = ("0", "abcdefghijk", QUESTION, repr(list(OPTIONS)).replace('"', '""'), "A")
    text = delimiter.join(header) + "\n" + delimiter.join(f'"{cell}"' for cell in row) + "\n"
    path = tmp_path / f"exam.{suffix}"
    path.write_bytes(text.encode(encoding))
    (item,) = read_evaluation_set(path).items
    assert (item.question, item.options, item.paths) == (QUESTION, OPTIONS, ("abcdefghijk",))


def test_a_list_of_videos_needs_no_questions(tmp_path: Path) -> None:
    (tmp_path / "exam.csv").write_text("video_id\nabcdefghijk\nlmnopqrstuv\n")
    assert read_evaluation_set(tmp_path / "exam.csv").summary == "0 questions about 2 named videos"
