"""Whole builds against a real server: nothing lost, nothing paid twice, the same dataset after every kill."""

import io
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from rich.console import Console

from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.generation.settings import BuildSettings, QuestionSettings, SkillQuotas
from longvideo_reason_data.inspection.check import check_dataset
from longvideo_reason_data.pipeline.build import build
from longvideo_reason_data.records.folder import hash_records, read_dataset
from longvideo_reason_data.records.record import QuestionRecord, Skill, Split, write_records

MakeVideo = Callable[..., Path]
VERSION_KEY = "longvideo_reason_data.schema_version"
QUICK = BuildSettings(window_seconds=1.0, first_wait_seconds=0.01, source="test", license="CC0")


@pytest.fixture
def films(make_video: MakeVideo, tmp_path: Path) -> Path:
    for number in range(6):
        make_video(f"films/film {number}.mp4", num_frames=60 + number, first_number=100 * number)
    return tmp_path / "films"


def run(server: Any, films: Path, output: Path, **changes: Any) -> dict[str, Any]:
    settings = QUICK.model_copy(update=changes)
    return build([films], output, base_url=server.base_url, model="model", captioner="seer", settings=settings)


def holds(manifest: dict[str, Any]) -> bool:
    """Kept plus dropped are all, at every stage."""
    return all(
        manifest["kept"][stage] + sum(manifest["stages"][stage]["dropped"].values()) == manifest["input"][stage]
        for stage in ("videos", "segments", "questions")
    ) and sum(manifest["dropped"].values()) == sum(manifest["input"].values()) - sum(manifest["kept"].values())


def test_a_build(server: Any, films: Path, tmp_path: Path) -> None:
    output = tmp_path / "dataset"
    manifest = run(server, films, output, prompt_price=10.0, completion_price=100.0)
    assert manifest["input"] == manifest["kept"] == {"videos": 6, "segments": 18, "questions": 24}
    assert manifest["dropped"] == {}
    assert manifest["calls"] == {"made": 18 + 2 * 24, "cached": 0, "failed": {}}
    assert manifest["tokens"] == {"prompt": 6600, "completion": 660}
    assert manifest["cost"] == pytest.approx(0.132)
    assert json.loads((output / "manifest.json").read_text()) == manifest
    records = read_dataset(output)
    assert len(records) == 24
    assert manifest["dataset_hash"] == hash_records(records)
    assert {record.license for record in records} == {"CC0"}
    for record in records:
        assert record.options["ABCD".index(record.answer)].startswith("towards the door")
        assert f"option {record.answer} is right" in record.reasoning
        assert (output / record.media[0].path).samefile(
            next(films.glob(f"{record.media[0].path[7:13].replace('_', ' ')}.mp4"))
        )
    assert check_dataset(output) == []
    captions = [body for body in server.bodies if body["model"] == "seer"]
    assert len(captions) == 18
    assert all(sum(part["type"] == "image_url" for part in body["messages"][0]["content"]) == 4 for body in captions)


def test_the_caption_before_is_the_context_of_the_next(server: Any, films: Path, tmp_path: Path) -> None:
    run(server, films, tmp_path / "dataset")
    texts = [body["messages"][0]["content"][-1]["text"] for body in server.bodies if body["model"] == "seer"]
    assert sum("(nothing: this is the beginning)" in text for text in texts) == 6
    assert sum("crosses the room" in text for text in texts) == 12


def test_a_second_build_pays_nothing_and_gives_the_same(server: Any, films: Path, tmp_path: Path) -> None:
    first = run(server, films, tmp_path / "dataset")
    num_asked = len(server.bodies)
    second = run(server, films, tmp_path / "dataset")
    assert len(server.bodies) == num_asked
    assert second["dataset_hash"] == first["dataset_hash"]
    assert second["calls"] == {"made": 0, "cached": first["calls"]["made"], "failed": {}}
    assert second["tokens"] == first["tokens"]
    other = run(server, films, tmp_path / "other")
    assert other["dataset_hash"] == first["dataset_hash"]


@pytest.mark.slow
def test_a_changed_prompt_asks_anew(server: Any, films: Path, tmp_path: Path) -> None:
    run(server, films, tmp_path / "dataset")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "goal.md").write_text("Ask for the purpose.")
    manifest = build(
        [films],
        tmp_path / "dataset",
        base_url=server.base_url,
        model="model",
        captioner="seer",
        prompts_folder=tmp_path / "prompts",
        settings=QUICK,
        replace=True,
    )
    # Six questions of that skill and their rewrites; captions and the other skills don't depend on this prompt.
    assert manifest["calls"]["made"] == 12


@pytest.mark.slow
def test_a_bad_server_loses_nothing(server: Any, films: Path, tmp_path: Path) -> None:
    clean = run(server, films, tmp_path / "clean")

    def fail(body: dict[str, Any], times: int) -> Any:
        generator = random.Random(f"{json.dumps(body, sort_keys=True)}{times}")
        if generator.random() > 0.3:
            return None
        return generator.choice(
            [(429, {"retry-after": "0"}, b"{}"), (429, {}, b"{}"), (500, {}, b""), (0, {}, b""), (200, {}, b"{")]
        )

    server.fail = fail
    manifest = run(server, films, tmp_path / "dataset", num_attempts=12)
    assert manifest["dataset_hash"] == clean["dataset_hash"]
    assert sum(manifest["calls"]["failed"].values()) > 0
    assert manifest["tokens"] == clean["tokens"]


def test_every_loss_has_its_reason(server: Any, films: Path, make_video: MakeVideo, tmp_path: Path) -> None:
    (films / "notes.mp4").write_text("no video")
    (films / "copy.mp4").write_bytes((films / "film 0.mp4").read_bytes())
    cut = make_video("films/cut.mp4")
    os.truncate(cut, cut.stat().st_size // 2)
    ordinary = server.reply
    kinds: Counter[str] = Counter()

    def reply(body: dict[str, Any]) -> Any:
        text = json.dumps(body)
        if body["model"] == "seer":
            return {"finish_reason": "stop", "message": {"refusal": "no"}} if "2.0 s to" in text else ordinary(body)
        for skill, name in (("Skill: time", "prose"), ("Skill: goals", "cut"), ("Skill: space", "late")):
            if skill in text:
                kinds[name] += 1
                if name == "prose":
                    return "I'd rather not use JSON."
                if name == "cut":
                    return {"finish_reason": "length", "message": {"content": '{"reasoning": "'}}
                return str(ordinary(body)).replace('0.6, "thought"', '66, "thought"')
        return ordinary(body)

    server.reply = reply
    manifest = run(server, films, tmp_path / "dataset")
    assert manifest["input"]["videos"] == 9
    assert {stage: manifest["stages"][stage]["dropped"] for stage in manifest["stages"]} == {
        "videos": {"video_duplicate": 1, "video_unreadable": 2},
        "segments": {"caption_refused": 6},
        "questions": {"question_invalid": 6, "question_truncated": 6, "rewrite_loses_times": 6},
    }
    assert manifest["kept"] == {"videos": 6, "segments": 12, "questions": 6}
    assert holds(manifest)
    assert kinds == {"prose": 18, "cut": 18, "late": 6}
    budgets = {body["max_tokens"] for body in server.bodies if "Skill: goals" in json.dumps(body)}
    assert budgets == {2048, 4096, 8192}
    dropped = [json.loads(line) for line in (tmp_path / "dataset" / "dropped.jsonl").read_text().splitlines()]
    assert len(dropped) == sum(manifest["dropped"].values())
    assert any(item["item"].endswith("cut.mp4") and "truncated" in item["detail"] for item in dropped)
    assert check_dataset(tmp_path / "dataset") == []


def test_a_video_that_breaks_off_inside_loses_its_segments_only(server: Any, films: Path, tmp_path: Path) -> None:
    path = films / "film 3.mp4"
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + 4 + (len(content) - content.index(b"mdat")) // 3
    content[middle : middle + 400] = random.Random(1).randbytes(400)
    path.write_bytes(content)
    manifest = run(server, films, tmp_path / "dataset")
    assert manifest["stages"]["segments"]["dropped"].keys() == {"caption_damaged_input"}
    assert holds(manifest)
    assert manifest["kept"]["videos"] == 6


@pytest.mark.slow
def test_a_server_that_dies_ends_the_build_and_keeps_what_was_paid(server: Any, films: Path, tmp_path: Path) -> None:
    server.fail = lambda body, times: (0, {}, b"") if len(server.answered) >= 10 else None
    with pytest.raises(DataError, match="run again to go on"):
        run(server, films, tmp_path / "dataset", num_attempts=2, num_parallel=1)
    assert not (tmp_path / "dataset" / "records.parquet").exists()
    server.fail = lambda body, times: None
    manifest = run(server, films, tmp_path / "dataset")
    assert manifest["calls"]["cached"] >= 10
    assert max(Counter(server.answered).values()) == 1


def test_progress_shows_rate_cost_and_time_left(server: Any, films: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=200)
    settings = QUICK.model_copy(update={"prompt_price": 10.0, "completion_price": 100.0})
    build([films], tmp_path / "dataset", base_url=server.base_url, model="model", settings=settings, console=console)
    last = {
        line.split()[0]: line for line in re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", shown.getvalue()).splitlines()[-3:]
    }
    assert last.keys() == {"videos", "segments", "questions"}
    assert "66 calls, cost 0.1320" in last["questions"]
    for stage, number in (("videos", 6), ("segments", 18), ("questions", 24)):
        assert f"{number}/{number}" in last[stage].replace(" ", "")
        assert re.search(r"\d/s|\d/min", last[stage])
        assert last[stage].rstrip().endswith("0:00:00")


@pytest.mark.slow
def test_quotas_and_open_questions(server: Any, films: Path, tmp_path: Path) -> None:
    quotas = SkillQuotas(temporal=3, goal=0, spatial=2, plot=1)
    questions = QuestionSettings(quotas=quotas, open_ended_share=0.5)
    manifest = run(server, films, tmp_path / "dataset", questions=questions)
    assert holds(manifest)
    records = read_dataset(tmp_path / "dataset")
    assert Counter(record.skill for record in records) == {Skill.TEMPORAL: 18, Skill.SPATIAL: 12, Skill.PLOT: 6}
    opened = [record for record in records if not record.options]
    assert 9 <= len(opened) <= 27
    assert {record.answer for record in opened} == {"to the door"}
    assert check_dataset(tmp_path / "dataset") == []
    for body in server.bodies:
        # The request for a later question lists the earlier ones of its skill.
        text = body["messages"][0]["content"][-1]["text"]
        if "This is question" in text:
            number = int(text.partition("This is question ")[2][0])
            assert text.count("  - Where does figure") == number - 1
    none_open = run(server, films, tmp_path / "choices", questions=QuestionSettings(quotas=quotas))
    assert not [record for record in read_dataset(tmp_path / "choices") if not record.options]
    assert none_open["dataset_hash"] != manifest["dataset_hash"]
    with pytest.raises(ValidationError, match="expected at least one question"):
        SkillQuotas(temporal=0, goal=0, spatial=0, plot=0)


def test_an_open_question_that_comes_with_options_is_no_answer(server: Any, films: Path, tmp_path: Path) -> None:
    ordinary = server.reply
    server.reply = lambda body: ordinary(json.loads(json.dumps(body).replace("There are no options", "")))
    questions = QuestionSettings(open_ended_share=1.0, num_samples=2)
    manifest = run(server, films, tmp_path / "dataset", questions=questions)
    assert manifest["stages"]["questions"]["dropped"] == {"question_invalid": 24}


def test_a_question_is_kept_once(server: Any, films: Path, tmp_path: Path) -> None:
    ordinary = server.reply
    server.reply = lambda body: re.sub(r"Where does figure [\w ]+\?", "Where does it go?", ordinary(body))
    manifest = run(server, films, tmp_path / "dataset")
    assert manifest["dropped"] == {"question_repeated": 18}
    assert holds(manifest)


@pytest.mark.slow
def test_what_is_said_reaches_the_captioner_and_the_dataset(server: Any, films: Path, tmp_path: Path) -> None:
    silent = run(server, films, tmp_path / "silent")
    (films / "film 2.srt").write_text("1\n00:00:01,100 --> 00:00:01,900\nMind the gap.\n")
    manifest = run(server, films, tmp_path / "dataset")
    assert manifest["stages"]["videos"]["input_digest"] == silent["stages"]["videos"]["input_digest"]
    assert manifest["stages"]["segments"]["input_digest"] != silent["stages"]["segments"]["input_digest"]
    texts = [body["messages"][0]["content"][-1]["text"] for body in server.bodies if body["model"] == "seer"]
    assert ["from 1.0 s to 2.0 s" in text for text in texts if "Mind the gap." in text] == [True]
    lines = (tmp_path / "dataset" / "segments.jsonl").read_text().splitlines()
    segments = [json.loads(line) for line in lines]
    assert len(segments) == 18
    assert [(item["number"], item["video_path"][:13]) for item in segments if item["speech"]] == [(1, "videos/film_2")]
    assert all("crosses the room" in item["caption"] for item in segments)
    assert {item["speech_origin"] for item in segments if "film_2" in item["video_path"]} == {"film 2.srt"}
    assert manifest["subtitles"] == {"found": 1, "unreadable": []}


def test_subtitles_that_cant_be_read_never_cost_a_video(server: Any, films: Path, tmp_path: Path) -> None:
    (films / "film 0.srt").write_bytes(b"")
    (films / "film 2.srt").write_text("no subtitles at all")
    progress = io.StringIO()
    manifest = build(
        [films],
        tmp_path / "dataset",
        base_url=server.base_url,
        model="model",
        settings=QUICK,
        console=Console(file=progress, width=80),
    )
    assert manifest["kept"]["videos"] == 6
    assert manifest["dropped"] == {}
    problem = f"{films / 'film 2.srt'}: its subtitles can't be read (no times"
    assert [line[: len(problem)] for line in manifest["subtitles"]["unreadable"]] == [problem]
    assert f"warning: {problem}" in progress.getvalue()
    hash_before = manifest["dataset_hash"]
    (films / "film 2.srt").unlink()
    assert run(server, films, tmp_path / "other")["dataset_hash"] == hash_before


def test_subtitles_in_a_folder_of_their_own(server: Any, films: Path, tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "said"
    folder.mkdir()
    (folder / "film 3_en.json").write_text(json.dumps([{"timestamp": [1.1, 1.9], "text": "Mind the gap."}]))
    monkeypatch.chdir(tmp_path)
    manifest = run(server, films, tmp_path / "dataset", subtitles=Path("said"))
    lines = (tmp_path / "dataset" / "segments.jsonl").read_text().splitlines()
    said = [(item["speech"], item["speech_origin"]) for item in map(json.loads, lines) if item["speech"]]
    assert said == [("Mind the gap.", "film 3_en.json")]
    assert manifest["subtitles"] == {"found": 1, "unreadable": []}
    assert manifest["settings"]["subtitles"] == str(folder)
    with pytest.raises(UsageError, match="set --subtitles"):
        run(server, films, tmp_path / "dataset", subtitles=tmp_path / "nowhere")


@pytest.mark.slow
def test_a_settled_video_is_left_alone_and_a_passing_failure_settles_none(
    server: Any, films: Path, tmp_path: Path
) -> None:
    server.fail = lambda body, times: (429, {"retry-after": "0"}, b"{}") if "Skill: goals" in json.dumps(body) else None
    first = run(server, films, tmp_path / "dataset", num_attempts=2)
    assert first["stages"]["questions"]["dropped"] == {"question_rate_limited": 6}
    server.fail = lambda body, times: None
    second = run(server, films, tmp_path / "dataset")
    assert second["dropped"] == {}
    assert second["calls"]["made"] == 12
    assert max(Counter(server.answered).values()) == 1
    assert second["dataset_hash"] == run(server, films, tmp_path / "other")["dataset_hash"]

    for video in (tmp_path / "dataset" / "shards").iterdir():
        video.write_text(video.read_text().replace('"version":1', '"version":2'))
    third = run(server, films, tmp_path / "dataset")
    assert (third["calls"]["made"], third["dataset_hash"]) == (0, second["dataset_hash"])


def test_names_and_order_of_videos_change_only_their_names(server: Any, films: Path, tmp_path: Path) -> None:
    def content(name: str) -> list[dict[str, Any]]:
        return [record.model_dump(exclude={"media": {0: {"path"}}}) for record in read_dataset(tmp_path / name)]

    run(server, films, tmp_path / "dataset", num_parallel=1)
    for number in range(6):
        (films / f"film {number}.mp4").rename(films / f"z{9 - number}.mp4")
    server.delay_seconds = 0.01
    run(server, films, tmp_path / "renamed")
    assert content("renamed") == content("dataset")
    assert max(Counter(map(json.dumps, server.bodies)).values()) == 2


def test_a_foreign_dataset_is_not_written_over(server: Any, films: Path, tmp_path: Path) -> None:
    output = tmp_path / "dataset"
    run(server, films, tmp_path / "built")
    write_records(output / "records.parquet", read_dataset(tmp_path / "built"))
    before = (output / "records.parquet").read_bytes()
    with pytest.raises(UsageError, match="contains a dataset that wasn't made by a build; choose another folder"):
        run(server, films, output)
    (output / "shards").mkdir()
    pq.write_table(pq.read_table(output / "records.parquet").replace_schema_metadata({VERSION_KEY: "99"}), output / "r")
    (output / "r").replace(output / "records.parquet")
    with pytest.raises(UsageError, match="records of version 99"):
        run(server, films, output)
    (output / "records.parquet").write_bytes(before)
    assert run(server, films, output)["kept"]["questions"] == 24


def test_nothing_to_build_from(server: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no videos in this folder"):
        run(server, tmp_path, tmp_path / "dataset")
    (tmp_path / "a.mp4").write_text("x")
    with pytest.raises(DataError, match="none of the 1 videos can be read"):
        run(server, tmp_path, tmp_path / "dataset")
    with pytest.raises(UsageError, match="no videos given"):
        build([], tmp_path / "dataset", base_url=server.base_url, model="model")


@pytest.mark.slow
def test_output_inside_the_input_is_not_its_own_input(server: Any, films: Path) -> None:
    for _ in range(2):
        manifest = run(server, films, films / "dataset")
        assert manifest["input"]["videos"] == 6


# Checking a dataset.


@pytest.fixture
def dataset(server: Any, films: Path, tmp_path: Path) -> Path:
    run(server, films, tmp_path / "dataset")
    return tmp_path / "dataset"


def rewrite(dataset: Path, change: Callable[[list[QuestionRecord]], list[QuestionRecord]]) -> list[str]:
    write_records(dataset / "records.parquet", change(read_dataset(dataset)))
    return check_dataset(dataset)


def test_check_finds_what_is_wrong(dataset: Path) -> None:
    assert check_dataset(dataset) == []
    first = read_dataset(dataset)[0]

    def lengthen(records: list[QuestionRecord]) -> list[QuestionRecord]:
        longer = [record.media[0].model_copy(update={"duration_seconds": 99.0}) for record in records]
        return [r.model_copy(update={"media": (medium,)}) for r, medium in zip(records, longer, strict=True)]

    problems = rewrite(dataset, lengthen)
    assert any("the record says 99.000 s" in problem for problem in problems)
    assert any("dataset_hash isn't that of the records" in problem for problem in problems)
    video = dataset / first.media[0].path
    content = video.read_bytes()
    video.unlink()
    assert any("is missing" in problem for problem in check_dataset(dataset))
    video.write_bytes(content + b"\0")
    assert any("is another file" in problem for problem in check_dataset(dataset))
    video.write_bytes(content[: len(content) // 2])
    assert any("truncated" in problem for problem in check_dataset(dataset))


def test_check_finds_leaks_and_unbalanced_letters(dataset: Path) -> None:
    def leak(records: list[QuestionRecord]) -> list[QuestionRecord]:
        other = Split.HELD_OUT if records[0].split is not Split.HELD_OUT else Split.TRAIN_RL
        return [records[0].model_copy(update={"split": other}), *records[1:]]

    assert any("in several splits" in problem for problem in rewrite(dataset, leak))

    def always_b(records: list[QuestionRecord]) -> list[QuestionRecord]:
        return [r.model_copy(update={"answer": "B", "split": Split.TRAIN_RL}) for r in records]

    assert any("train_rl: the right letters are unbalanced" in problem for problem in rewrite(dataset, always_b))
    assert any("no questions" in problem for problem in rewrite(dataset, lambda records: []))
