"""Every benchmark is read from a small file of its published layout, and every mistake is one line."""

import json
from pathlib import Path

import pytest
from layout_files import ASK, COLOURS, FILES, write_layout

from longvideo_reason_data.benchmarks.layouts import LAYOUTS
from longvideo_reason_data.benchmarks.reading import read_benchmark
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.filtering.evaluation_sets import read_evaluation_set

# Options, right answers in order, and the groups of the first question.
EXPECTED = {
    "videomme": (4, "BBCB", {"duration": ("short",), "domain": ("Knowledge",), "task": ("Counting Problem",)}),
    "videomme_v2": (
        8,
        "BDFHBDFH",
        {"level": ("2",), "group type": ("relevance",), "second head": ("Change",), "third head": ("Object",)},
    ),
    "longvideo_reason": (4, "BBCB", {"skill": ("temporal",)}),
    "longvideobench": (4, "BBCB", {"duration": ("15",), "question": ("S2E",), "topic": ("NP-News-Programs",)}),
    "mlvu": (4, "BBCB", {"task": ("plotQA",)}),
    "lvbench": (4, "BBCB", {"question": ("reasoning",), "video": ("cartoon",)}),
    "egoschema": (5, "BBCB", {}),
    "nextqa": (5, "BBCB", {"type": ("CW",)}),
    "perceptiontest": (3, "BBCB", {"area": ("physics",), "reasoning": ("descriptive",), "tag": ("motion", "colour")}),
    "activitynetqa": (0, None, {"type": ("4",)}),
    "vnbench": (4, "ADCBCBAD", {"type": ("ret_edit1",)}),
    "cgbench": (6, "BBCB", {"domain": ("Life Record",), "category": ("Daily Life",)}),
    "vrbench": (4, "BBCB", {"reasoning": ("Event Attribution",)}),
    "questions": (4, "BBCB", {"skill": ("spatial",)}),
}


def test_every_layout_has_a_file_here():
    assert set(FILES) == set(LAYOUTS) == set(EXPECTED)


@pytest.mark.parametrize("name", FILES)
def test_every_published_layout_is_read(tmp_path, name):
    benchmark = read_benchmark(name, write_layout(tmp_path, name))
    num_options, answers, groups = EXPECTED[name]
    assert [question.question for question in benchmark.questions] == [ASK] * len(benchmark.questions)
    assert {len(question.options) for question in benchmark.questions} == {num_options}
    if answers is None:
        assert [question.answer for question in benchmark.questions] == ["green", "green", "blue", "green"]
    else:
        assert "".join(question.answer for question in benchmark.questions) == answers
        assert all(set(question.options) <= set(COLOURS) for question in benchmark.questions)
    assert benchmark.questions[0].groups == groups
    assert not any(question.flaw for question in benchmark.questions)
    assert len({question.question_id for question in benchmark.questions}) == len(benchmark.questions)
    assert all((tmp_path / question.video_file).is_file() for question in benchmark.questions)


@pytest.mark.parametrize("name", FILES)
def test_decontamination_reads_the_same_questions(tmp_path, name):
    benchmark = read_benchmark(name, write_layout(tmp_path, name))
    items = [item for table in benchmark.tables for item in read_evaluation_set(tmp_path / table).items]
    words = [(item.question, item.options or ()) for item in items]
    asked = [(question.question, question.options) for question in benchmark.questions]
    # Options that say there is none are left out here, and questions without published answers.
    assert [(text, tuple(option for option in options if option != "N/A")) for text, options in words][
        : len(asked)
    ] == asked


def test_a_video_that_two_folders_have_is_the_one_of_its_tables_name(tmp_path):
    benchmark = read_benchmark("mlvu", write_layout(tmp_path, "mlvu"))
    assert benchmark.tables == ("json/1_plotQA.json", "json/4_count.json")
    assert [question.video_file for question in benchmark.questions] == [
        "video/1_plotQA/aaa.mp4",
        "video/1_plotQA/aaa.mp4",
        "video/1_plotQA/aaa.mp4",
        "video/4_count/aaa.mp4",
    ]
    assert benchmark.questions[-1].question_id == "4_count/aaa.mp4/1"


def test_subtitles_are_found_by_their_published_names(tmp_path):
    asked = {name: read_benchmark(name, write_layout(tmp_path / name, name)).questions for name in FILES}
    found = {name: {item.subtitle_file for item in questions} - {None} for name, questions in asked.items()}
    assert {name: files for name, files in found.items() if files} == {
        "videomme": {"subtitle/aaa.srt"},
        "videomme_v2": {"subtitle/001.jsonl"},
        "longvideobench": {"subtitles/aaa_en.json"},
    }
    assert {item.subtitle_start_seconds for item in asked["longvideobench"]} == {10.0}


def test_a_group_is_complete_and_knows_how_it_is_scored(tmp_path):
    benchmark = read_benchmark("videomme_v2", write_layout(tmp_path, "videomme_v2"))
    assert [question.structure for question in benchmark.questions] == ["relevance"] * 4 + ["[1,[2,3],4]"] * 4
    tries = read_benchmark("vnbench", write_layout(tmp_path / "other", "vnbench")).questions
    assert [question.series for question in tries] == [tries[0].series] * 4 + [tries[4].series] * 4


def test_a_missing_video_and_a_wrong_key_keep_their_question(tmp_path):
    rows = FILES["cgbench"]()["cgbench.json"] * 15
    rows = [{**row, "qid": place} for place, row in enumerate(rows)]
    rows[7]["right_answer"] = "K"
    (tmp_path / "cgbench.json").write_text(json.dumps(rows))
    (tmp_path / "aaa.mp4").touch()
    benchmark = read_benchmark("cgbench", tmp_path)
    assert len(benchmark.questions) == 60
    assert {item.video: item.video_file for item in benchmark.questions} == {"aaa": "aaa.mp4", "bbb": None}
    flawed = [question for question in benchmark.questions if question.flaw]
    assert [(question.question_id, question.answer) for question in flawed] == [("7", "")]
    assert "'K' is none of its 6 options" in flawed[0].flaw


def test_a_question_whose_options_were_lost_is_an_open_one(tmp_path):
    rows = FILES["longvideo_reason"]()["data/test-00000-of-00001.parquet"]
    rows[0]["problem"] = ASK
    (tmp_path / "test-eval.json").write_text(json.dumps(rows))
    (tmp_path / "aaa.webm").touch()
    question = read_benchmark("longvideo_reason", tmp_path).questions[0]
    assert (question.options, question.answer, question.question) == ((), "B", ASK)


def test_the_digest_is_that_of_the_questions(tmp_path):
    write_layout(tmp_path, "questions")
    first = read_benchmark("questions", tmp_path).digest
    rows = [json.loads(line) for line in (tmp_path / "exam.jsonl").read_text().splitlines()]
    (tmp_path / "exam.jsonl").unlink()
    (tmp_path / "exam.json").write_text(json.dumps(rows))
    assert read_benchmark("questions", tmp_path).digest == first
    rows[0]["answer"] = "A"
    (tmp_path / "exam.json").write_text(json.dumps(rows))
    assert read_benchmark("questions", tmp_path).digest != first


def refusal(name: str, path: Path, table: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        read_benchmark(name, path, table=table)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_wrong_is_said_in_one_line(tmp_path):
    assert "unknown benchmark 'videomm'; did you mean videomme?" in refusal("videomm", tmp_path)
    assert "no such folder" in refusal("videomme", tmp_path / "gone")
    assert "no table of VRBench in it; expected VRBench_eval.jsonl" in refusal("vrbench", tmp_path)
    write_layout(tmp_path, "questions")
    (tmp_path / "exam.csv").write_text("question\nWhat?\n")
    (tmp_path / "other.jsonl").write_text('{"question": "What?", "answer": "x"}\n')
    columns = "expected columns video_path or video or videos, question or problem or query, answer or solution or "
    assert columns in refusal("questions", tmp_path, "other.jsonl")
    assert "2 tables, exam.jsonl, other.jsonl; set the one to read with --table" in refusal("questions", tmp_path)
    assert "other.jsonl: row 1: no field 'video_path' or 'video'" in refusal("questions", tmp_path, "other.jsonl")
    with pytest.raises(DataError, match="leads out of the folder"):
        read_benchmark("questions", tmp_path, table="../exam.jsonl")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("videoID", None, "no field 'videoID', found "),
        ("answer", None, "row 1: no field 'answer'"),
        ("answer", "", "'answer' is '', expected text"),
        ("question", None, "no field 'question' or 'problem' or 'query'"),
        ("answer", "Z", "4 of 4 questions have no right answer (aaa-0: its answer 'Z' is none of its 4 options"),
        ("question_id", "same", "question id 'same' is used more than once"),
        ("videoID", "gone", "none of the videos is in it, for example 'gone'"),
    ],
)
def test_a_field_of_another_layout_is_named(tmp_path, field, value, expected):
    rows = FILES["videomme"]()["videomme/test-00000-of-00001.parquet"]
    rows = [
        {**{name: row[name] for name in row if name != field}, **({} if value is None else {field: value})}
        for row in rows
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "aaa.mp4").touch()
    assert expected in refusal("videomme", tmp_path / "rows.json")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"group_structure": "[4, 3]", "group_type": "logic"}, "group_structure is '[4,3]', expected [1,2,3,4] or"),
        ({"group_structure": None, "group_type": None}, "has no group_type"),
        ({"video_id": "001"}, "the video '001' has 8 questions, expected 4 in each group"),
    ],
)
def test_a_group_that_can_not_be_scored_is_refused(tmp_path, change, expected):
    rows = [row | change for row in FILES["videomme_v2"]()["test.parquet"]]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert expected in refusal("videomme_v2", tmp_path / "rows.json")


def test_two_files_for_one_video_are_refused(tmp_path):
    write_layout(tmp_path, "vrbench")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "aaa.mp4").touch()
    found = {question.video_file for question in read_benchmark("vrbench", tmp_path).questions}
    assert found == {"videos/v001/aaa.mp4", "videos/v001/bbb.mp4"}
    (tmp_path / "videos" / "v001" / "aaa.mp4").rename(tmp_path / "aaa.mp4")
    message = refusal("vrbench", tmp_path)
    assert "aaa.mp4 and other/aaa.mp4 could all be 'videos/v001/aaa.mp4'; keep one of them" in message


def test_a_published_path_does_not_lead_out_of_the_folder(tmp_path):
    (tmp_path / "secret.mp4").touch()
    folder = tmp_path / "exam"
    write_layout(folder, "questions")
    rows = [{"video": "../secret.mp4", "question": "What?", "answer": "x"}]
    rows += [json.loads((folder / "exam.jsonl").read_text().splitlines()[0])]
    (folder / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [item.video_file for item in read_benchmark("questions", folder).questions] == [None, "films/aaa.mp4"]
