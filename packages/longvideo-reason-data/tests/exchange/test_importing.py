"""Published datasets become records, and what can't is dropped with its reason."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longvideo_reason_data.cli import main
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.exchange.importing import ImportSettings, import_dataset
from longvideo_reason_data.inspection.check import check_dataset
from longvideo_reason_data.media.video_file import digest_file
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
    # The folder is whole; what `check` says about the reasoning is true of what was published.
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
    ]
    (choice, number), dropped = bring_in(tmp_path, "video-r1", items)
    assert dropped == []
    assert (list(choice.options), choice.answer) == (OPTIONS, "A")
    assert choice.reasoning == "She walks to the harbour."
    assert (choice.source, choice.license) == ("archive", "unknown")
    assert choice.media[0].digest == digest_file(videos / "archive" / "film.mp4")
    assert (number.options, number.answer) == ((), "3")


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
    assert "is already there" in capsys.readouterr().err


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
