"""Published datasets become records, and unusable questions are dropped with a reason."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longvideo_reason_data.cli import main
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.exchange.exporting import export_dataset
from longvideo_reason_data.exchange.importing import ImportSettings, import_dataset
from longvideo_reason_data.inspection.check import check_dataset
from longvideo_reason_data.media.video_file import digest_file
from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.folder import read_dataset
from longvideo_reason_data.records.record import QuestionRecord, Skill

MakeVideo = Callable[..., Path]
Item = dict[str, Any]

OPTIONS = ["a boat", "a train", "a horse", "a bicycle"]
LETTERED = [f"{letter}. {option}" for letter, option in zip("ABCD", OPTIONS, strict=True)]


def long_video_reason(**changes: Any) -> Item:
    problem = "What does she leave on?\n" + "\n".join(LETTERED)
    item = {
        "problem_id": 3,
        "data_type": "video",
        "videos": "film.mp4",
        "problem": problem,
        "problem_type": "general",
        "reasoning": "She walks to the harbour. The answer is a boat.",
        "answer": "<answer>A</answer>",
    }
    return {name: value for name, value in (item | changes).items() if value is not None}


def video_r1(**changes: Any) -> Item:
    item = {
        "problem_id": 2,
        "problem": "What does she leave on?",
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": LETTERED,
        "process": "<think>She walks to the harbour.</think>",
        "solution": "<answer>A</answer>",
        "path": "./archive/film.mp4",
        "data_source": "archive",
    }
    return {name: value for name, value in (item | changes).items() if value is not None}


@pytest.fixture
def videos(make_video: MakeVideo, tmp_path: Path) -> Path:
    make_video("videos/film.mp4", num_frames=25)
    make_video("videos/archive/film.mp4", num_frames=30)
    secret = make_video("secret.mp4", num_frames=25, first_number=9)
    (tmp_path / "videos" / "link.mp4").symlink_to(secret)
    (tmp_path / "videos" / "damaged.mp4").write_bytes(b"no video at all")
    return tmp_path / "videos"


def bring_in(
    tmp_path: Path, layout: Any, items: list[Item], **settings: Any
) -> tuple[list[QuestionRecord], list[Item]]:
    file = tmp_path / "published.json"
    file.write_text(json.dumps(items), encoding="utf-8")
    settings = {"layout": layout, "skill": Skill.PLOT} | settings
    manifest = import_dataset(file, tmp_path / "videos", tmp_path / "out", ImportSettings(**settings))
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    records = read_dataset(tmp_path / "out")
    assert manifest["input"]["questions"] == len(items) == len(records) + len(dropped)
    assert manifest["dropped"] == dict(Counter(item["reason"] for item in dropped))
    # The folder is complete; what `check` reports about the reasoning is true of the published data.
    found = {reason for line in check_dataset(tmp_path / "out") for reason in line.partition(": ")[2].split(", ")}
    assert found <= {"reasoning_too_short", "reasoning_without_times"}
    return records, dropped


def test_long_video_reason(tmp_path, videos):
    items = [
        long_video_reason(),
        long_video_reason(problem="Why does she leave?", answer="Because of the rain."),
        long_video_reason(problem="Which comes last?\n(A) the sea\n(B) a hat\n(C) A. Smith\n(D) rain", answer="B"),
        long_video_reason(problem="Where is the cup?", answer="On a shelf", problem_type="Spatial Reasoning"),
    ]
    (choice, open_ended, other, spatial), dropped = bring_in(tmp_path, "longvideo-reason", items, license="CC0-1.0")
    assert dropped == []
    assert (choice.question, list(choice.options), choice.answer) == ("What does she leave on?", OPTIONS, "A")
    assert choice.reasoning == "She walks to the harbour. The answer is a boat."
    assert (choice.skill, choice.source, choice.license) == (Skill.PLOT, "longvideo-reason", "CC0-1.0")
    assert choice.media[0].digest == digest_file(videos / "film.mp4")
    assert choice.media[0].duration_seconds == pytest.approx(1.0)
    assert choice.evidence == ()
    assert (open_ended.options, open_ended.answer) == ((), "Because of the rain.")
    assert (other.options, other.answer) == (("the sea", "a hat", "A. Smith", "rain"), "B")
    assert spatial.skill is Skill.SPATIAL


def test_video_r1(tmp_path, videos):
    items = [
        video_r1(),
        video_r1(problem_type="numerical", options=[], problem="How many boats?", solution="<answer>3</answer>"),
        video_r1(problem_type="OCR", options=[], problem="What is written there?", solution="<answer>B</answer>"),
        video_r1(problem_type="free-form", options=[], problem="Why does she leave?", solution="<answer>Rain</answer>"),
    ]
    (choice, number, read, free), dropped = bring_in(tmp_path, "video-r1", items)
    assert dropped == []
    assert (list(choice.options), choice.answer) == (OPTIONS, "A")
    assert choice.reasoning == "She walks to the harbour."
    assert (choice.source, choice.license) == ("archive", "unknown")
    assert choice.media[0].digest == digest_file(videos / "archive" / "film.mp4")
    assert (number.options, number.answer) == ((), "3")
    types = [record.question_type for record in (choice, number, read, free)]
    assert types == [QuestionType.CHOICE, QuestionType.NUMERIC, QuestionType.OCR, QuestionType.OPEN]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"path": "gone.mp4"}, "video_missing"),
        ({"path": "archive"}, "video_missing"),
        ({"path": "bad\0name.mp4"}, "video_missing"),
        ({"path": "../secret.mp4"}, "video_outside"),
        ({"path": "link.mp4"}, "video_outside"),
        ({"path": "/etc/hostname"}, "video_outside"),
        ({"path": "damaged.mp4"}, "video_unreadable"),
        ({"path": 7}, "field_missing"),
        ({"problem": None}, "field_missing"),
        ({"solution": " "}, "field_missing"),
        ({"process": {"text": "She walks."}}, "field_missing"),
        ({"data_type": "audio"}, "not_a_video"),
        ({"data_type": "image"}, "image_unreadable"),
        ({"options": LETTERED[:3]}, "options_not_four"),
        ({"solution": "<answer>a plane</answer>"}, "answer_unclear"),
        ({"solution": "<answer>A or B</answer>"}, "answer_unclear"),
        ({"options": [*LETTERED[:3], "D. a boat"]}, "record_invalid"),
    ],
)
def test_what_cant_be_used_is_dropped_with_its_reason(tmp_path, videos, changes, reason):
    records, dropped = bring_in(tmp_path, "video-r1", [video_r1(**changes), video_r1()])
    assert len(records) == 1
    assert [item["reason"] for item in dropped] == [reason]
    assert dropped[0]["item"] == "published-0000000"
    assert sorted(path.name for path in (tmp_path / "out" / "videos").iterdir()) == [
        Path(records[0].media[0].path).name
    ]


PROBLEM = "What does she leave on?"
BOLD = [f"**{letter}.** {option}" for letter, option in zip("ABCD", OPTIONS, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "tail",
    [
        "\n" + "\n".join(LETTERED),
        "\n\n" + "\n\n".join(LETTERED) + "\n",
        " " + " ".join(LETTERED),
        "\n" + " ".join(LETTERED),
        "\n" + "  ".join(LETTERED[:2]) + "\n" + "  ".join(LETTERED[2:]),
        "\n" + "\n".join(BOLD),
        " " + " ".join(BOLD),
        "\n" + "\n".join(f"**{line}**" for line in LETTERED),
        "\n" + "\n".join(f"- {line}" for line in LETTERED),
        *(
            between.join(["", *(form.format(letter) + option for letter, option in zip("ABCD", OPTIONS, strict=True))])
            for form in ("({}) ", "{}) ", "[{}] ", "{}: ", "{}、 ")
            for between in ("\n", " ")
        ),
        "\n" + "\n".join(line.replace(line[0], line[0].lower(), 1).replace(".", ")") for line in LETTERED),
        " " + " ".join(line.replace(line[0], line[0].lower(), 1).replace(".", ")") for line in LETTERED),
        "\nA. But this has to be weighed...\nso we rewrite it.\n" + "\n".join(LETTERED),
        "\n" + "\n".join(LETTERED) + "\nPlease answer with the letter.",
        "\n" + "\n".join(LETTERED) + "\nAnswer with the option's letter directly.\nThe best answer is:",
    ],
)
def test_options_are_read_however_they_stand_behind_the_question(tmp_path, videos, tail):
    (record,), dropped = bring_in(tmp_path, "longvideo-reason", [long_video_reason(problem=PROBLEM + tail)])
    assert dropped == []
    assert (record.question.partition("\nA. But")[0], list(record.options), record.answer) == (PROBLEM, OPTIONS, "A")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"options": OPTIONS},
        {"options": [f"({letter}) {option}" for letter, option in zip("ABCD", OPTIONS, strict=True)]},
        {"options": dict(zip("ABCD", OPTIONS, strict=True))},
        {"options": dict(reversed(list(zip("ABCD", LETTERED, strict=True))))},
        {"options": {"text": OPTIONS, "label": list("ABCD")}},
        {"options": json.dumps(LETTERED)},
        {"options": repr(LETTERED)},
        {"options": "\n".join(LETTERED)},
        {"options": " ".join(LETTERED)},
        {"options": None, **dict(zip("ABCD", OPTIONS, strict=True))},
        {"options": [], "problem": PROBLEM + "\n" + "\n".join(LETTERED)},
        {"problem": PROBLEM + "\n" + "\n".join(LETTERED)},
        {"solution": "<answer>A. a boat</answer>"},
        {"solution": "<answer>Therefore the final answer is: A</answer>"},
        {"solution": "a boat"},
    ],
)
def test_options_are_read_in_every_form_of_their_field(tmp_path, videos, changes):
    (record,), dropped = bring_in(tmp_path, "video-r1", [video_r1(**changes)])
    assert dropped == []
    assert (record.question, list(record.options), record.answer) == (PROBLEM, OPTIONS, "A")


NO_OPTIONS = [
    {"options": []},
    {"options": None},
    {"options": {}},
    {"options": "red or blue"},
    {"options": [{"is": "red"}]},
    {"options": None, "problem": PROBLEM + "\nA. red\nB. blue\nC. green\nC. white"},
    {"options": None, "problem": PROBLEM + "\nA. red\nB. blue\nC. green\nD. white\nA second thought"},
    {"options": None, "problem": PROBLEM + "\nA red\nB blue"},
]
LETTER_ANSWERS = ["<answer>B</answer>", "(B)", "b", "B. blue", "The answer is B.", "A, C", "A or B"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [*NO_OPTIONS, *({"options": None, "solution": answer} for answer in LETTER_ANSWERS)]
)
def test_a_letter_is_never_the_answer_of_an_open_question(tmp_path, videos, changes):
    row = video_r1(**{"solution": "B", **changes})
    records, dropped = bring_in(tmp_path, "video-r1", [row, video_r1()])
    assert len(records) == 1
    assert [item["reason"] for item in dropped] == ["options_missing"]


PLACES = ["<video>\n", "<image>", "<VIDEO> ", "<|vision_start|><|video_pad|><|vision_end|>", "<video_1>\n<video_2>\n"]


@pytest.mark.parametrize("place", [*PLACES, "<|image_1|>", "<audio>\n", "<image_placeholder>", "<img>"])
def test_places_around_a_question_are_taken_off_and_inside_they_drop_it(tmp_path, videos, place):
    items = [
        video_r1(problem=place + PROBLEM),
        video_r1(problem=PROBLEM + "\n" + place, path="film.mp4"),
        video_r1(problem="Look at " + place + " twice."),
        video_r1(options=[*LETTERED[:3], f"D. a {place} bicycle"]),
    ]
    records, dropped = bring_in(tmp_path, "video-r1", items)
    assert [record.question for record in records] == [PROBLEM, PROBLEM]
    assert [item["reason"] for item in dropped] == ["placeholder_inside"] * 2
    export_dataset(tmp_path / "out", tmp_path / "verl", "verl")


def test_options_that_contradict_each_other_are_dropped(tmp_path, videos):
    other = PROBLEM + "\nA. a car\nB. a train\nC. a horse\nD. a bicycle"
    _, dropped = bring_in(tmp_path, "video-r1", [video_r1(problem=other), video_r1()])
    assert [item["reason"] for item in dropped] == ["options_unclear"]


@pytest.mark.parametrize("form", ["lines.jsonl", "table.csv", "table.tsv", "table.parquet", "by_id.json"])
def test_every_form_of_table_is_brought_in(tmp_path, videos, form):
    rows = [video_r1(), video_r1(path="gone.mp4", process='<think>She said "no", and left.\nSo.</think>')]
    path = tmp_path / form
    cells = [{**row, "options": json.dumps(row["options"])} for row in rows]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8-sig")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{**row, "video": b"bytes of a film"} for row in rows]), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps({str(row["problem_id"]) + str(n): row for n, row in enumerate(rows)}))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(cells[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(cells)
    settings = ImportSettings(layout="video-r1", skill=Skill.PLOT)
    manifest = import_dataset(path, videos, tmp_path / "out", settings)
    assert manifest["dropped"] == {"video_missing": 1}
    (record,) = read_dataset(tmp_path / "out")
    assert (record.question, list(record.options), record.answer) == (PROBLEM, OPTIONS, "A")


def test_a_table_in_another_encoding_is_told(tmp_path, videos):
    path = tmp_path / "published.csv"
    path.write_bytes("problem,path\nWo ist die Tür?,film.mp4\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"isn't UTF-8 .* save it as UTF-8"):
        import_dataset(path, videos, tmp_path / "out", ImportSettings(layout="video-r1"))


def test_a_skill_is_never_guessed(tmp_path, videos):
    records, dropped = bring_in(
        tmp_path, "longvideo-reason", [long_video_reason(), long_video_reason(skill="goal")], skill=None
    )
    assert [record.skill for record in records] == [Skill.GOAL]
    assert [item["reason"] for item in dropped] == ["skill_unknown"]


def test_lines_are_read_as_an_array_is(tmp_path, videos, capsys):
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps(long_video_reason()) + "\n\n" + json.dumps(long_video_reason(videos="no.mp4")) + "\n")
    arguments = ["import", str(file), "--layout", "longvideo-reason", "--videos", str(videos), "--skill", "temporal"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert "1 of 2 questions kept (video_missing 1)" in capsys.readouterr().out
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "not readable as JSON"),
        ('{"a": 1}\n[]', "item 1 is list"),
        ("[3]", "item 0 is int"),
        ("[]", "none of its 0 questions"),
        ("[{}]", "the first: field_missing"),
        ("[" * 100_000, "not readable as JSON"),
    ],
)
def test_a_file_without_use_is_told_in_one_line(tmp_path, videos, text, words):
    file = tmp_path / "published.json"
    file.write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        import_dataset(file, videos, tmp_path / "out", ImportSettings(layout="video-r1"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_places_that_arent_there_are_wrong_requests(tmp_path, videos):
    settings = ImportSettings(layout="video-r1")
    with pytest.raises(UsageError, match="no such file"):
        import_dataset(tmp_path / "none.json", videos, tmp_path / "out", settings)
    (tmp_path / "some.json").write_text("[]")
    with pytest.raises(UsageError, match="set --videos"):
        import_dataset(tmp_path / "some.json", tmp_path / "nowhere", tmp_path / "out", settings)
