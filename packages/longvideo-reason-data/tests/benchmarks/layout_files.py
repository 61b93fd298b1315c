"""A small file of every layout, with the fields and places of the published ones: two videos each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ASK = "Which colour fills the picture?"
COLOURS = ("red", "green", "blue", "white", "black", "grey", "pink", "brown")
# The video, the right option, and the rest of a row: three questions about one video, one about the other.
ASKED = (("aaa", 1, 0), ("aaa", 1, 1), ("aaa", 2, 2), ("bbb", 1, 0))


def lettered(num: int, form: str = "{}. {}") -> list[str]:
    return [form.format(letter, colour) for letter, colour in zip("ABCDEFGH", COLOURS[:num], strict=False)]


def fields(num: int, name: str) -> dict[str, str]:
    return {name.format(place): colour for place, colour in enumerate(COLOURS[:num])}


def videomme() -> dict[str, Any]:
    rows = [
        {
            "video_id": "001",
            "videoID": video,
            "duration": "short" if video == "aaa" else "long",
            "domain": "Knowledge",
            "sub_category": "Law",
            "task_type": "Counting Problem",
            "question_id": f"{video}-{number}",
            "question": ASK,
            "options": lettered(4),
            "answer": "ABCD"[right],
        }
        for video, right, number in ASKED
    ]
    srt = "1\n00:00:00,000 --> 00:00:01,500\nIt is red.\n\n2\n00:00:02,000 --> 00:00:03,000\nOr not.\n"
    return {"videomme/test-00000-of-00001.parquet": rows, "subtitle/aaa.srt": srt, "data": ("aaa.mp4", "bbb.mkv")}


def videomme_v2() -> dict[str, Any]:
    last = {"level": 2, "second_head": "Change", "third_head": "Object"}
    rows = [
        {
            "video_id": video,
            "question_id": f"{video}-{number}",
            "question": ASK,
            "options": "\n".join(lettered(8)),
            "answer": "ABCDEFGH"[2 * number - 1],
            "group_type": "relevance" if video == "001" else "logic",
            "group_structure": "None" if video == "001" else "[1, [2, 3], 4]",
            **(last if number == 4 else dict.fromkeys(last)),
        }
        for video in ("001", "002")
        for number in range(1, 5)
    ]
    words = [("It", 0.0, 0.2), ("is", 0.3, 0.4), ("is", 0.4, 0.5), ("red.", 0.5, 0.9), ("No.", 2.0, 2.4)]
    lines = "".join(json.dumps({"text": text, "start_time": a, "end_time": b}) + "\n" for text, a, b in words)
    return {"test.parquet": rows, "subtitle/001.jsonl": lines, "data": ("001.mp4", "002.mp4")}


def longvideo_reason() -> dict[str, Any]:
    skills = ("temporal", "goal", "spatial", "plot")
    rows = [
        {
            "problem_id": place,
            "data_type": "video",
            "problem_type": skills[place],
            "problem": "\n".join([ASK, *lettered(4)]),
            "answer": f"<answer>{'ABCD'[right]}</answer>",
            "videos": f"longvila_videos/{video}.webm",
        }
        for place, (video, right, _) in enumerate(ASKED)
    ]
    return {"data/test-00000-of-00001.parquet": rows, "longvideo_eval_subset3": ("aaa.webm", "bbb.webm")}


def longvideobench() -> dict[str, Any]:
    rows = [
        {
            "video_id": video,
            "id": f"{video}_{number}",
            "video_path": f"{video}.mp4",
            "subtitle_path": f"{video}_en.json",
            "question": ASK,
            "correct_choice": right,
            "duration_group": 15 if video == "aaa" else 3600,
            "question_category": "S2E",
            "topic_category": "NP-News-Programs",
            "starting_timestamp_for_subtitles": 10.0,
            **fields(4, "option{}"),
            "option4": "N/A",
        }
        for video, right, number in ASKED
    ]
    spoken = [{"start": "00:00:10.000", "end": "00:00:11.000", "line": "It is red."}]
    return {
        "validation-00000-of-00001.parquet": rows,
        "subtitles/aaa_en.json": spoken,
        "videos": ("aaa.mp4", "bbb.mp4"),
    }


def mlvu() -> dict[str, Any]:
    def rows(task: str, video: str) -> list[dict[str, Any]]:
        return [
            {
                "video": f"{name}.mp4",
                "duration": 480.0,
                "question": ASK,
                "candidates": list(COLOURS[:4]),
                "answer": COLOURS[right],
                "question_type": task,
            }
            for name, right, _ in ASKED
            if name == video
        ]

    # Both tasks have a video of this name.
    other = [{**row, "video": "aaa.mp4"} for row in rows("count", "bbb")]
    return {
        "json/1_plotQA.json": rows("plotQA", "aaa"),
        "json/4_count.json": other,
        "json/9_summary.json": [{"video": "aaa.mp4", "question": "What happens?", "answer": "Much."}],
        "video/1_plotQA": ("aaa.mp4",),
        "video/4_count": ("aaa.mp4",),
    }


def lvbench() -> dict[str, Any]:
    rows = [
        {
            "key": video,
            "type": "cartoon",
            "video_info": {"duration_minutes": 31.4},
            "qa": [
                {
                    "uid": f"{video}{number}",
                    "question": "\n".join([ASK, *lettered(4, "({}) {}")]),
                    "answer": "ABCD"[right],
                    "question_type": ["entity recognition", "reasoning"] if number else ["reasoning"],
                    "time_reference": "00:10-00:20",
                }
                for name, right, number in ASKED
                if name == video
            ],
        }
        for video in ("aaa", "bbb")
    ]
    return {"data/video_info.meta.jsonl": rows, "all_videos": ("aaa.mp4", "bbb.mp4")}


def egoschema() -> dict[str, Any]:
    rows = [
        {"q_uid": f"{video}{number}", "google_drive_id": "1x", "question": ASK, **fields(5, "option {}")}
        for video, _, number in ASKED
    ]
    answers = {f"{video}{number}": right for video, right, number in ASKED}
    unanswered = {**rows[0], "q_uid": "ccc"}
    videos = tuple(f"{name}.mp4" for name in answers)
    return {"questions.json": [*rows, unanswered], "subset_answers.json": answers, "videos": videos}


def nextqa() -> dict[str, Any]:
    rows = [
        {
            "video": {"aaa": 4010069381, "bbb": 2400171624}[video],
            "frame_count": 369,
            "question": ASK,
            "answer": right,
            "qid": number,
            "type": ("CW", "TN", "DC")[number],
            **fields(5, "a{}"),
        }
        for video, right, number in ASKED
    ]
    return {"MC/test-00000-of-00001.parquet": rows, "NExTVideo/1164": ("4010069381.mp4", "2400171624.mp4")}


def perceptiontest() -> dict[str, Any]:
    table = {
        video: {
            "metadata": {"split": "valid"},
            "mc_question": [
                {
                    "id": number,
                    "question": ASK,
                    "options": list(COLOURS[:3]),
                    "answer_id": right,
                    "area": "physics",
                    "reasoning": "descriptive",
                    "tag": ["motion", "colour"],
                }
                for name, right, number in ASKED
                if name == video
            ],
        }
        for video in ("aaa", "bbb")
    }
    return {"mc_question_valid.json": table, "videos": ("aaa.mp4", "bbb.mp4")}


def activitynetqa() -> dict[str, Any]:
    questions = [
        {"video_name": video, "question": ASK, "question_id": f"v_{video}_{number}"} for video, _, number in ASKED
    ]
    answers = [
        {"answer": COLOURS[right], "type": 4, "question_id": f"v_{video}_{number}"} for video, right, number in ASKED
    ]
    return {"test_q.json": questions, "test_a.json": answers, "all_test": ("v_aaa.mp4", "v_bbb.webm")}


def vnbench() -> dict[str, Any]:
    rows = [
        {
            "video": f"VNBench_new/{video}.mp4",
            "question": ASK,
            "options": list(COLOURS[turn:4] + COLOURS[:turn]),
            "gt": COLOURS[right],
            "type": "ret_edit1" if video == "aaa" else "cnt_insert",
            "length": 30,
            "try": turn,
        }
        for video, right in (("aaa", 0), ("bbb", 2))
        for turn in range(4)
    ]
    return {"VNBench-main-4try.json": rows, "VNBench_new": ("aaa.mp4", "bbb.mp4")}


def cgbench() -> dict[str, Any]:
    rows = [
        {
            "qid": place,
            "video_uid": video,
            "question": ASK,
            "choices": list(COLOURS[:6]),
            "answer": COLOURS[right],
            "right_answer": "ABCDEF"[right],
            "clue_intervals": [[1, 2]],
            "domain": "Life Record",
            "sub_category": "Daily Life",
            "duration": 1000,
        }
        for place, (video, right, _) in enumerate(ASKED)
    ]
    return {"cgbench.json": rows, "cgbench_mini.json": rows[:1], "cg_videos_720p": ("aaa.mp4", "bbb.mp4")}


def vrbench() -> dict[str, Any]:
    rows = [
        {
            "video_id": video,
            "video_path": f"videos/v001/{video}.mp4",
            "video_summary": "Much happens.",
            "mcq": {
                f"qa{number + 1}": {
                    "question": ASK,
                    "options": dict(zip("ABCD", COLOURS[:4], strict=True)),
                    "answer": "ABCD"[right],
                    "reasoning_type": "Event Attribution",
                    "reasoning_process": {"1": "A wall."},
                }
                for name, right, number in ASKED
                if name == video
            },
        }
        for video in ("aaa", "bbb")
    ]
    return {"VRBench_eval.jsonl": rows, "videos/v001": ("aaa.mp4", "bbb.mp4")}


def questions() -> dict[str, Any]:
    rows = [
        {
            "id": f"q{place}",
            "video": f"films/{video}.mp4",
            "question": ASK,
            **dict(zip("ABCD", COLOURS[:4], strict=True)),
            "answer": ("B", "green", "(C)", "1")[place],
            "skill": "spatial",
        }
        for place, (video, _, _) in enumerate(ASKED)
    ]
    return {"exam.jsonl": rows, "films": ("aaa.mp4", "bbb.mp4")}


FILES: dict[str, Callable[[], dict[str, Any]]] = {
    builder.__name__: builder
    for builder in (
        videomme,
        videomme_v2,
        longvideo_reason,
        longvideobench,
        mlvu,
        lvbench,
        egoschema,
        nextqa,
        perceptiontest,
        activitynetqa,
        vnbench,
        cgbench,
        vrbench,
        questions,
    )
}


def write_layout(folder: Path, name: str, write_video: Callable[[Path], None] = Path.touch) -> Path:
    """Write the files of a layout into a folder: tables as published, and videos by the given function."""
    for place, content in FILES[name]().items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, tuple):
            path.mkdir(parents=True, exist_ok=True)
            for video in content:
                write_video(path / video)
        elif isinstance(content, str):
            path.write_text(content)
        elif path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(content), path)
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        else:
            path.write_text(json.dumps(content))
    return folder
