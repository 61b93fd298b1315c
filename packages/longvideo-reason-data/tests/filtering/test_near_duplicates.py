"""Repeated questions are found however they are reworded, footage however it is encoded, benchmarks by three nets."""

import json
import random
import tracemalloc
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from one_video import make_record

from longvideo_reason_data.cli import main
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.filtering import near_duplicates
from longvideo_reason_data.filtering.decontamination import Net, find_contamination, source_id_of
from longvideo_reason_data.filtering.evaluation_sets import read_evaluation_set
from longvideo_reason_data.filtering.near_duplicates import (
    SAME_QUESTION,
    find_repeated_questions,
    likeness,
    shingle,
)
from longvideo_reason_data.filtering.option_shortcuts import plain_words
from longvideo_reason_data.filtering.similarity.evidence import shared_time
from longvideo_reason_data.inspection.check import check_footage, check_questions
from longvideo_reason_data.media.fingerprints import (
    SAME_FOOTAGE,
    Fingerprint,
    compare_footage,
    find_footage,
    find_same_footage,
    fingerprint_video,
)
from longvideo_reason_data.media.video_file import VideoFile, digest_file
from longvideo_reason_data.records.record import Demonstration, QuestionRecord, Split, read_records, write_records
from longvideo_reason_data.timeline.dataset import write_timeline_dataset
from longvideo_reason_data.timeline.rendering import draw_frame
from longvideo_reason_data.timeline.world import World, WorldSettings, create_world

NUM_QUESTIONS = 2000
GOOD: dict[str, Any] = {
    "question_id": "q1",
    "video_path": f"videos/dQw4w9WgXcQ-{'a' * 12}.mp4",
    "video_digest": "a" * 64,
    "video_duration_seconds": 20.0,
    "split": "train_rl",
    "skill": "spatial",
    "question": "Where does the old cook put the heavy iron pan after washing it?",
    "options": ["on the stove", "in the sink", "under the table", "by the window"],
    "answer": "B",
    "reasoning": "At 3 s the cook washes the pan and lowers it down.",
    "evidence": [{"start_seconds": 3, "end_seconds": 8}],
    "source": "x",
    "license": "x",
}


def record(**changes: Any) -> QuestionRecord:
    return make_record({**GOOD, **changes})


# Wording.


def compare_all(records: Sequence[QuestionRecord]) -> dict[str, tuple[str, float]]:
    """Find repeated questions by comparing each with each; this is what a repeated question is."""

    def answer_of(record: QuestionRecord) -> str:
        return plain_words(record.options["ABCD".index(record.answer)] if record.options else record.answer)

    repeated: dict[str, tuple[str, float]] = {}
    for kept, other in combinations(sorted(records, key=lambda record: record.question_id), 2):
        alike = likeness(shingle(kept.question, kept.options), shingle(other.question, other.options))
        if kept.question_id in repeated or kept.digests != other.digests or answer_of(kept) != answer_of(other):
            continue
        if alike >= SAME_QUESTION and shared_time(kept.evidence, other.evidence) >= 0.5:
            repeated.setdefault(other.question_id, (kept.question_id, alike))
    return repeated


def draw_record(draw: random.Random, number: int, num_words: int) -> QuestionRecord:
    """Draw a question of few words, so that many are alike."""
    starts = [draw.choice([draw.randint(0, 8), draw.uniform(0, 8)]) for _ in range(draw.randint(0, 3))]
    options = ["a", "b", "c", f"d {draw.randint(0, 1)}"]
    draw.shuffle(options)
    return record(
        question_id=f"q{number:03}",
        question=" ".join(f"word{draw.randrange(num_words)}" for _ in range(draw.randint(1, 9))),
        options=draw.choice([[], options]),
        answer=draw.choice("AB"),
        video_digest=draw.choice("ab") * 64,
        evidence=[
            {"start_seconds": start, "end_seconds": start + draw.choice([1, 2, 4, draw.uniform(0.1, 3)])}
            for start in starts
        ],
    )


@pytest.mark.parametrize("num_words", [2, 3, 4])
def test_repeated_questions_are_those_that_comparing_each_with_each_finds(num_words: int) -> None:
    draw = random.Random(num_words)
    num_repeated = 0
    for _ in range(5):
        records = [draw_record(draw, number, num_words) for number in range(100)]
        draw.shuffle(records)
        found = find_repeated_questions(records, {})
        assert found == compare_all(records)
        num_repeated += len(found)
    assert num_repeated > 2


KITCHEN = ("the cook", "the driver", "the neighbour", "nobody")
DISTRIBUTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "nearly the same": lambda n: {"question": f"Who opens the green door number {n} in the hall?", "options": KITCHEN},
    "the same at other times": lambda n: {"evidence": [{"start_seconds": n / 1000, "end_seconds": (n + 1) / 1000}]},
    "all different": lambda n: {"question": " ".join(f"word{n}x{place}" for place in range(9))},
    "one word in common": lambda n: {"question": f"Where does a{n} see b{n} with c{n}?", "options": [], "answer": "x"},
    "half of the words in common": lambda n: {"question": f"What is it that we see there a{n} b{n} c{n} d{n} e{n}?"},
}


@pytest.mark.slow
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_work_and_memory_grow_with_the_questions_and_not_with_their_pairs(
    distribution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = 0

    def counted(first: frozenset[str], second: frozenset[str]) -> float:
        nonlocal compared
        compared += 1
        return likeness(first, second)

    monkeypatch.setattr(near_duplicates, "likeness", counted)
    records = [
        record(question_id=f"q{number:04}", **DISTRIBUTIONS[distribution](number)) for number in range(NUM_QUESTIONS)
    ]
    tracemalloc.start()
    try:
        repeated = find_repeated_questions(records, {})
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(repeated) == (NUM_QUESTIONS - 1 if distribution == "nearly the same" else 0)
    assert compared <= 2 * NUM_QUESTIONS
    assert peak_bytes < 8000 * NUM_QUESTIONS


@pytest.mark.parametrize(
    ("changes", "is_repeated"),
    [
        ({}, True),
        ({"question": "After washing it, where does the old cook put the heavy iron pan?"}, True),
        ({"options": GOOD["options"][::-1], "answer": "C"}, True),
        ({"evidence": [{"start_seconds": 4, "end_seconds": 8}]}, True),
        ({"evidence": [{"start_seconds": 12, "end_seconds": 15}]}, False),
        ({"answer": "C"}, False),
        ({"question": "Who comes in while the water runs?"}, False),
        ({"video_digest": "b" * 64}, False),
        ({"video_digest": "c" * 64}, True),  # a copy of the first video
    ],
)
def test_a_question_is_repeated_when_wording_answer_and_evidence_agree(
    changes: dict[str, Any], is_repeated: bool
) -> None:
    records = [record(question_id="q2", **changes), record()]
    found = find_repeated_questions(records, {"c" * 64: "a" * 64})
    assert {question_id: kept for question_id, (kept, _) in found.items()} == ({"q2": "q1"} if is_repeated else {})


# Footage.

SETTINGS = WorldSettings(seconds=24.0, num_scenes=4, frames_per_second=4, size_pixels=64)


def encode(
    world: World | None, path: Path, *, size: int = 64, rate: int = 4, quality: int = 18, gain: float = 1
) -> Path:
    """Encode a world, or a still picture, in one of many ways."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        codec = "libvpx-vp9" if path.suffix == ".webm" else "libx264"
        options = {"crf": str(quality), "cpu-used": "8", "deadline": "realtime"} if codec == "libvpx-vp9" else {}
        stream = container.add_stream(codec, rate=rate, options=options or {"crf": str(quality), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = size, size * 3 // 4 // 2 * 2, "yuv420p"
        for number in range(int(24 * rate)):
            moment = number / rate if world else 0.0
            shown = draw_frame(world or create_world("still", SETTINGS), moment) * gain
            frame = av.VideoFrame.from_ndarray(shown.clip(0, 255).astype(np.uint8), format="rgb24")
            frame = frame.reformat(width=stream.width, height=stream.height)
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def fingerprint(path: Path) -> Fingerprint:
    return fingerprint_video(VideoFile.open(path))


@pytest.mark.slow
def test_footage_is_recognised_in_another_file_and_told_from_other_footage(tmp_path: Path) -> None:
    worlds = [create_world(f"footage {number}", SETTINGS) for number in range(12)]
    originals = [fingerprint(encode(world, tmp_path / f"{number}.mp4")) for number, world in enumerate(worlds)]
    alike = compare_footage(originals, originals)
    assert alike.diagonal().min() > 0.999
    others = alike[~np.eye(len(worlds), dtype=bool)]
    copies = [
        encode(worlds[0], tmp_path / "worse.mp4", quality=38),
        encode(worlds[0], tmp_path / "small.mp4", size=48),
        encode(worlds[0], tmp_path / "large.mkv", size=160, rate=10),
        encode(worlds[0], tmp_path / "other.webm", quality=40),
        encode(worlds[0], tmp_path / "dark.mp4", gain=0.7),
        encode(worlds[0], tmp_path / "slow.avi", rate=3),
    ]
    same = compare_footage([fingerprint(path) for path in copies], originals)
    assert same[:, 0].min() > SAME_FOOTAGE + 0.05, same[:, 0]
    assert max(others.max(), same[:, 1:].max()) < SAME_FOOTAGE - 0.1, (others.max(), same[:, 1:].max())
    prints = {"a": originals[0], "b": originals[1], "c": fingerprint(copies[0]), "d": fingerprint(copies[1])}
    assert find_same_footage(prints) == {"c": "a", "d": "a"}


def test_still_footage_is_compared_by_its_picture(tmp_path: Path) -> None:
    still = fingerprint(encode(None, tmp_path / "still.mp4"))
    worse = fingerprint(encode(None, tmp_path / "worse.mp4", quality=35, size=96))
    moving = fingerprint(encode(create_world("still", SETTINGS), tmp_path / "moving.mp4"))
    alike = compare_footage([still], [worse, moving])[0]
    assert not still.change.any()
    assert alike[0] > SAME_FOOTAGE
    assert alike[1] == 0
    assert find_same_footage({}) == {}
    assert compare_footage([], [still]).shape == (0, 1)


def test_the_same_footage_is_found_among_very_many_videos() -> None:
    generator = np.random.default_rng(0)

    def unlike() -> Fingerprint:
        change, still = generator.normal(size=8192), generator.normal(size=256)
        return Fingerprint(
            change=(change / np.linalg.norm(change)).astype(np.float16),
            still=(still / np.linalg.norm(still)).astype(np.float16),
        )

    prints = {f"{number:03}": unlike() for number in range(300)}
    same = {"150": "007", "151": "150", "299": "007", "298": "297", "020": "019"}
    for name, other in same.items():
        prints[name] = prints[other]
    assert find_same_footage(prints) == {**same, "151": "007"}
    known = [*(unlike() for _ in range(200)), prints["200"], prints["297"]]
    found = find_footage(prints, known)
    assert {name: place for name, (place, _) in found.items()} == {"200": 200, "297": 201, "298": 201}
    assert all(likeness == pytest.approx(1, abs=1e-3) for _, likeness in found.values())


# Benchmarks.


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_each_net_finds_its_own_and_the_report_says_what_was_compared(tmp_path: Path) -> None:
    world = create_world("exam", SETTINGS)
    original = fingerprint(encode(world, tmp_path / "mine.mp4"))
    encode(world, tmp_path / "theirs.mp4", size=96, quality=30)
    path = write_lines(
        tmp_path / "exam.jsonl",
        {"question": "Which season is it?", "videoID": "dQw4w9WgXcQ"},
        {"question": "Which season is it?", "video": "theirs.mp4"},
        {
            "question": GOOD["question"],
            "candidates": ["A. on the stove", "B. in the sink", "C. under the table", "(D) by the window"],
        },
        {"question": "Which season is it?", "video": "../outside.mp4"},
    )
    records = [
        record(question_id="by id"),
        record(question_id="by footage", video_digest="b" * 64, video_path="videos/b.mp4", question="Who?"),
        record(question_id="by wording", video_digest="c" * 64, video_path="videos/c.mp4"),
        record(question_id="clean", video_digest="d" * 64, video_path="videos/d.mp4", question="Why is it?"),
    ]
    records[0] = records[0].model_copy(update={"question": "What for?"})
    report = find_contamination(records, {"b" * 64: original}, [read_evaluation_set(path)])
    found = {item.question_id: (item.net, item.row) for item in report.found}
    assert found == {"by id": (Net.SOURCE_ID, 1), "by footage": (Net.FOOTAGE, 2), "by wording": (Net.WORDING, 3)}
    assert report.compared == {"exam": {"questions": 4, "source_ids": 1, "videos": 1, "videos_unreadable": 0}}
    written = report.as_json()
    assert written["contaminated_questions"] == 3
    assert written["found_by"] == {"footage": 1, "source_id": 1, "wording": 1}


def test_a_wording_asked_about_many_videos_is_a_template(tmp_path: Path) -> None:
    exam = read_evaluation_set(
        write_lines(tmp_path / "exam.jsonl", {"question": GOOD["question"], "options": GOOD["options"]})
    )
    for num_videos, num_found in ((2, 2), (3, 0)):
        records = [
            record(question_id=f"q{n}", video_digest=str(n) * 64, video_path=f"{n}.mp4") for n in range(num_videos)
        ]
        assert len(find_contamination(records, {}, [exam]).found) == num_found


def test_source_ids_lose_what_a_build_appended() -> None:
    assert source_id_of(record().media[0]) == "dQw4w9WgXcQ"
    assert source_id_of(record(video_path="a/b-c.webm").media[0]) == "b-c"


@pytest.mark.parametrize("name", ["dQw4w9WgXcQ", "my film [dQw4w9WgXcQ]", "dQw4w9WgXcQ.f137"])
def test_an_id_is_found_inside_a_name(tmp_path: Path, name: str) -> None:
    exam = read_evaluation_set(write_lines(tmp_path / "exam.jsonl", {"video_id": "dQw4w9WgXcQ"}, {"video_id": "my"}))
    assert len(find_contamination([record(video_path=f"videos/{name}.mp4")], {}, [exam]).found) == 1
    assert not find_contamination([record(video_path="videos/dQw4w9WgXcQx.mp4")], {}, [exam]).found
    assert not find_contamination([record(video_path="videos/my.mp4")], {}, [exam]).found


def test_parquet_and_json_benchmarks_are_read(tmp_path: Path) -> None:
    rows = [{"question": "Who?", "options": ["A. he", "B. she"], "videoID": "x", "video": "x.mp4", "score": 1.0}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "exam.parquet")
    (tmp_path / "exam.json").write_text(json.dumps(rows))
    numbers = [{**rows[0], "options": {"A": "he", "B": "she"}}]
    (tmp_path / "named.json").write_text(json.dumps(numbers))
    items = [read_evaluation_set(tmp_path / name).items for name in ("exam.parquet", "exam.json", "named.json")]
    assert items[0] == items[1] == items[2]
    assert items[0][0].options == ("he", "she")
    assert items[0][0].source_id == "x"


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("exam.txt", "question\n", UsageError, "must end in .jsonl"),
        ("exam.csv", "question\n", UsageError, "0 questions compared"),
        ("exam.csv", 'question,video\n"Who?', DataError, "not readable as a table"),
        ("exam.csv", "question,video\nWho,what,why?,a.mp4\n", DataError, "more cells than the 2 names"),
        ("exam.jsonl", "{", DataError, "not readable as JSON"),
        ("exam.jsonl", "[1]", DataError, "item 0 is int"),
        ("exam.jsonl", "", UsageError, "0 questions compared"),
        ("exam.json", "3", DataError, "contains int, expected a list"),
        ("exam.json", '[{"video_id": "dQw4w9WgXcQ", "Frage": "Who?"}]', UsageError, "found Frage"),
        ("exam.json", '{"q1": 3, "q2": 1}', UsageError, "0 questions compared"),
        ("exam.jsonl", '{"key": "dQw4w9WgXcQ", "qa": [{"ask": "Who?"}]}', UsageError, "found ask"),
        ("exam.jsonl", '{"score": 1}', UsageError, "no row with a question"),
        ("exam.json", "{}", UsageError, "0 questions compared"),
        ("exam.parquet", "x", DataError, "not a readable Parquet file"),
        ("exam.jsonl", '{"question": {"a": 1}}', DataError, "row 1: question"),
    ],
)
def test_wrong_benchmarks_are_one_clear_line(
    tmp_path: Path, name: str, content: str, error: type[DataError], words: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=words) as caught:
        read_evaluation_set(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no such file"):
        read_evaluation_set(tmp_path / "missing.jsonl")


# The check of a folder.


def test_check_names_leaks_repeated_questions_and_benchmarks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("first.mp4", "copy.mp4", "other.mp4")
    encode(create_world("leak", SETTINGS), tmp_path / "videos" / names[0])
    encode(create_world("leak", SETTINGS), tmp_path / "videos" / names[1], size=80, quality=30)
    encode(create_world("another", SETTINGS), tmp_path / "videos" / names[2])
    records = [
        record(
            question_id=name,
            video_path=f"videos/{name}",
            video_digest=digest_file(tmp_path / "videos" / name),
            video_duration_seconds=24.0,
            split="held_out" if name == "copy.mp4" else "train_rl",
            answer="ABC"[number],
            question=GOOD["question"] if name != "other.mp4" else "Who comes in while the water runs?",
        )
        for number, name in enumerate(names)
    ]
    write_records(tmp_path / "records.parquet", [records[0], records[2]])
    exam = write_lines(tmp_path / "exam.jsonl", {"question": records[0].question, "options": records[0].options})
    assert main(["check", str(tmp_path)]) == 0
    assert main(["check", str(tmp_path), "--benchmarks", str(exam)]) == 1
    assert "first.mp4: is in benchmark exam, row 1, by its wording (100% alike)" in capsys.readouterr().out
    repeated = records[1].model_copy(update={"answer": "A"})
    faulty = records[2].model_copy(
        update={"question_id": "faulty", "reasoning": "The caption at 3 s says who comes in first."}
    )
    write_records(tmp_path / "records.parquet", [records[0], repeated, faulty])
    assert main(["check", str(tmp_path)]) == 1
    found = capsys.readouterr().out
    assert "shows what videos/" in found
    assert "one is in held_out and the other in train_rl" in found or "one is in train_rl and" in found
    assert "first.mp4: asks what copy.mp4 asks (100% alike)" in found
    assert "faulty: mentions_captions" in found
    assert main(["check", str(tmp_path), "--benchmarks", str(tmp_path / "missing.jsonl")]) == 2


@pytest.mark.slow
def test_a_timeline_dataset_with_guessing_authors_is_sound(tmp_path: Path) -> None:
    write_timeline_dataset(
        tmp_path,
        SETTINGS,
        videos={Split.TRAIN_SFT: 6, Split.HELD_OUT: 3},
        questions_per_video=4,
        seed=0,
        hasty_fraction=0.5,
    )
    records = read_records(tmp_path / "records.parquet")
    assert {record.demonstration for record in records} == set(Demonstration)
    assert check_questions(records) == []
    assert check_footage(tmp_path, records) == []
