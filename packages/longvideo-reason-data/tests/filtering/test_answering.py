"""What a model gets under each condition, how its answers are counted, and what follows from them."""

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from one_video import make_record
from pydantic import ValidationError

from longvideo_reason_data.cli import main
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.filtering.by_answers import FilterModels, QuestionFilter
from longvideo_reason_data.filtering.by_words import Filtered
from longvideo_reason_data.filtering.rules import decide
from longvideo_reason_data.filtering.settings import FilterSettings, Thresholds
from longvideo_reason_data.generation.captions import read_captions
from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache
from longvideo_reason_data.language_model.client import LanguageModel
from longvideo_reason_data.media.video_file import digest_file
from longvideo_reason_data.pipeline.option_order import balance_options
from longvideo_reason_data.prompts.templates import ANSWERING_PROMPTS, load_prompts
from longvideo_reason_data.records.drop_reasons import Reason
from longvideo_reason_data.records.pass_rates import Condition, PassRate
from longvideo_reason_data.records.record import QuestionRecord, read_records, write_records

QUESTION = "Which number comes after the first ones?"


@pytest.fixture
def record(tmp_path: Path, make_video: Callable[..., Path]) -> QuestionRecord:
    """A question about a video of 100 frames in four seconds, whose evidence is a second and a half of it."""
    path = make_video("videos/numbers.mp4", num_frames=100)
    return make_record(
        {
            "question_id": "q",
            "video_path": "videos/numbers.mp4",
            "video_digest": digest_file(path),
            "video_duration_seconds": 4.0,
            "split": "train_rl",
            "skill": "temporal",
            "question": QUESTION,
            "options": ["seven", "eight", "nine", "eleven"],
            "answer": "C",
            "evidence": [
                {"start_seconds": 1.0, "end_seconds": 2.0},
                {"start_seconds": 3.0, "end_seconds": 3.5},
            ],
            "reasoning": "From 1 s to 2 s the number seven is there, at 3 s it is nine.",
            "source": "made for this test",
            "license": "CC0-1.0",
        }
    )


def run(
    folder: Path,
    base_url: str,
    *records: QuestionRecord,
    captions: dict[str, list[str]] | None = None,
    judge: str | None = None,
    policy: str | None = None,
    **settings: Any,
) -> Filtered:
    async def asked() -> Filtered:
        with ResponseCache(folder / "responses.jsonl") as cache:
            async with LanguageModel(base_url, cache, num_attempts=1) as client:
                return await QuestionFilter(
                    client=client,
                    models=FilterModels(answerer="model", judge=judge, policy=policy),
                    prompts=load_prompts(None, ANSWERING_PROMPTS),
                    settings=FilterSettings(**settings),
                    captions=captions or {},
                ).run(folder, records)

    return asyncio.run(asked())


def says(option: str) -> Callable[[dict[str, Any]], str]:
    """Answer with the letter of an option, whatever its position."""

    def reply(body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"][-1]["text"]
        letter = re.search(rf"^([A-D])\. {option}$", text, re.MULTILINE)
        return f"<think>I looked.</think><answer>{letter.group(1) if letter else 'none'}</answer>"

    return reply


def texts(body: dict[str, Any]) -> list[str]:
    return [part["text"] for part in body["messages"][-1]["content"] if part["type"] == "text"]


def num_pictures(body: dict[str, Any]) -> int:
    return sum(part["type"] == "image_url" for part in body["messages"][-1]["content"])


def test_each_condition_shows_what_its_name_says(tmp_path: Path, record: QuestionRecord, server: Any) -> None:
    server.reply = says("nine")
    everything = Thresholds(max_blind_rate=1, max_single_frame_rate=1)
    named = [condition for condition in Condition if condition not in (Condition.REASONING, Condition.ROLLOUTS)]
    filtered = run(
        tmp_path,
        server.base_url,
        record,
        captions={record.media[0].digest: ["[0.0 s to 4.0 s] Numbers appear."]},
        num_samples=1,
        num_full_frames=12,
        num_few_frames=3,
        num_evidence_frames=6,
        conditions=named,
        thresholds=everything,
    )
    assert {rate.condition for rate in filtered.kept[0].pass_rates} == set(named)
    shown = [(texts(body)[-1].partition("\n\n")[0], num_pictures(body)) for body in server.bodies]
    whole = "These pictures are from a video of 4.0 s, each at its time."
    assert sorted(shown) == sorted(
        [
            ("This question is about a video that you can't see.", 0),
            ("This is what a video shows, part by part.\n[0.0 s to 4.0 s] Numbers appear.", 0),
            ("This picture is from the middle of a video of 4.0 s.", 1),
            (whole, 12),
            (whole, 3),
            ("These pictures are from parts of a video, each at its time.", 6),
            ("These pictures are from parts of a video, in no particular order.", 6),
        ]
    )
    evidence, scrambled = (
        next(b for b in server.bodies if key in texts(b)[-1]) for key in ("parts of a video, each", "no part")
    )
    times = [float(text.strip("[] s")) for text in texts(evidence)[:-1]]
    assert times == sorted(times)
    assert all(1 <= time < 2 or 3 <= time < 3.5 for time in times)
    assert sum(time < 2 for time in times) == 4  # distributed by length
    pictures = [
        [part["image_url"]["url"] for part in body["messages"][-1]["content"] if part["type"] == "image_url"]
        for body in (evidence, scrambled)
    ]
    assert sorted(pictures[0]) == sorted(pictures[1])
    assert pictures[0] != pictures[1]
    assert len(texts(scrambled)) == 1  # no times
    assert "nine" not in texts(evidence)[-1].partition("\n\n")[0]


def test_options_are_turned_and_counted_in_the_order_of_the_record(
    tmp_path: Path, record: QuestionRecord, server: Any
) -> None:
    server.reply = lambda body: "<think>Always.</think><answer>B</answer>"
    blind = run(tmp_path, server.base_url, record, conditions=["blind"], num_samples=8).kept[0].pass_rates[0]
    assert (blind.num_asked, blind.num_right, blind.num_chosen) == (8, 2, (2, 2, 2, 2))
    server.reply = says("eight")
    one = run(tmp_path, server.base_url, record, conditions=["blind"], num_samples=12).kept[0].pass_rates[0]
    assert one.num_chosen == (2, 6, 2, 2)  # the first eight are from the journal


def test_a_question_that_is_lost_costs_no_more(tmp_path: Path, record: QuestionRecord, server: Any) -> None:
    server.reply = says("nine")
    filtered = run(tmp_path, server.base_url, record)
    assert [item.verdict.reason for item in filtered.dropped] == [Reason.ANSWERED_BLIND]
    assert filtered.dropped[0].verdict.detail == "blind: 8 of 8 right"
    assert len(server.bodies) == 8
    assert filtered.dropped[0].record.pass_rate(Condition.BLIND) is not None


def test_replies_without_an_answer_are_wrong_and_failures_are_no_answers(
    tmp_path: Path, record: QuestionRecord, server: Any
) -> None:
    said = iter([{"message": {"role": "assistant", "content": None, "refusal": "I can't."}}, "Hm.", "<think>cut"])
    server.reply = lambda body: next(said)
    blind = run(tmp_path, server.base_url, record, conditions=["blind"], num_samples=3).kept[0].pass_rates[0]
    assert (blind.num_asked, blind.num_right, blind.num_unanswered) == (3, 0, 3)
    server.reply = says("eight")
    server.fail = lambda body, times: (500, {}, b"{}") if body.get("seed") == 4 else None
    lost = run(tmp_path, server.base_url, record, conditions=["blind"], num_samples=5).dropped[0]
    assert lost.verdict.reason is Reason.UNMEASURED
    assert lost.verdict.detail.startswith("blind: 1 server_error of 5")
    assert lost.record.pass_rates == ()


def test_damaged_videos_drop_their_questions(tmp_path: Path, record: QuestionRecord, server: Any) -> None:
    (tmp_path / record.media[0].path).write_bytes(b"no video")
    filtered = run(tmp_path, server.base_url, record)
    assert [item.verdict.reason for item in filtered.dropped] == [Reason.VIDEO_UNREADABLE]
    assert server.bodies == []


# The judge.


def judging(verdict: Callable[[str], bool], answer: str) -> Callable[[dict[str, Any]], str]:
    def reply(body: dict[str, Any]) -> str:
        text = texts(body)[-1]
        given = re.search(r"^Answer: <<<(.*)>>>$", text, re.MULTILINE)
        if body["model"] == "seer" and given:
            return json.dumps({"same": verdict(given.group(1))})
        return f"<think>x</think><answer>{answer}</answer>"

    return reply


def test_open_answers_are_judged_by_another_model(tmp_path: Path, record: QuestionRecord, server: Any) -> None:
    question = record.model_copy(update={"options": (), "answer": "the number nine"})
    unjudged = run(tmp_path, server.base_url, question)
    assert [item.verdict.reason for item in unjudged.dropped] == [Reason.UNMEASURED]
    for answer, num_right in (("a nine", 4), ("The number nine.", 4), ("an eight", 0)):
        server.reply = judging(lambda given: "nine" in given or given == "a red umbrella", answer)
        folder = tmp_path / answer  # another journal
        shutil.copytree(tmp_path / "videos", folder / "videos")
        filtered = run(folder, server.base_url, question, judge="seer", conditions=["evidence"], num_samples=4)
        both = [*filtered.kept, *(item.record for item in filtered.dropped)]
        rate = both[0].pass_rate(Condition.EVIDENCE)
        assert rate is not None
        assert (rate.num_right, rate.num_chosen) == (num_right, ())
        assert bool(filtered.kept) == bool(num_right)


@pytest.mark.parametrize(
    ("verdict", "words"),
    [(lambda given: True, "finds ':' right"), (lambda given: False, "finds 'a red umbrella' wrong")],
)
def test_a_judge_that_can_be_talked_round_is_refused(
    tmp_path: Path, record: QuestionRecord, server: Any, verdict: Callable[[str], bool], words: str
) -> None:
    server.reply = judging(verdict, "x")
    with pytest.raises(DataError, match=words):
        run(tmp_path, server.base_url, record, judge="seer")


def test_reasoning_has_to_lead_to_the_answer(tmp_path: Path, record: QuestionRecord, server: Any) -> None:
    trusted = judging(lambda given: given == "a red umbrella", "none")

    def reply(body: dict[str, Any]) -> str:
        text = texts(body)[-1]
        if "Observations: <<<" in text:
            assert record.reasoning in text
            return says("nine" if "at 3 s it is nine" in text else "none")(body)
        return trusted(body) if body["model"] == "seer" else says("nine" if num_pictures(body) > 1 else "eight")(body)

    server.reply = reply
    conditions = ["blind", "evidence"]
    kept = run(tmp_path, server.base_url, record, judge="seer", conditions=conditions).kept
    rate = kept[0].pass_rate(Condition.REASONING)
    assert rate is not None
    assert (rate.model, rate.num_right) == ("seer", 4)
    other = record.model_copy(update={"reasoning": "From 1 s to 2 s the number seven is there, and then it is gone."})
    record = other  # what the server expects to be shown
    dropped = run(tmp_path, server.base_url, other, judge="seer", conditions=conditions).dropped
    assert [item.verdict.reason for item in dropped] == [Reason.REASONING_UNSUPPORTED]
    with pytest.raises(UsageError, match="the judge is 'model', the model itself"):
        run(tmp_path, server.base_url, other, judge="model")


def test_what_decides_nothing_is_asked_only_by_name_and_what_is_cheap_is_asked_first(
    tmp_path: Path, record: QuestionRecord, server: Any
) -> None:
    """Each condition is told from the pictures and the text of its requests."""
    trusted = judging(lambda given: given == "a red umbrella", "none")

    def reply(body: dict[str, Any]) -> str:
        if "Observations: <<<" in texts(body)[-1]:
            return says("nine")(body)
        return trusted(body) if body["model"] == "seer" else says("nine" if num_pictures(body) > 1 else "eight")(body)

    def kinds(**settings: Any) -> list[str]:
        server.bodies.clear()
        shutil.rmtree(tmp_path / "asked", ignore_errors=True)
        (tmp_path / "asked").mkdir()
        shutil.copytree(tmp_path / "videos", tmp_path / "asked" / "videos")
        found = run(
            tmp_path / "asked",
            server.base_url,
            record,
            captions={record.media[0].digest: ["[0.0 s to 4.0 s] Numbers appear."]},
            judge="seer",
            num_samples=1,
            num_full_frames=12,
            num_few_frames=3,
            num_evidence_frames=6,
            **settings,
        )
        assert len(found.kept) == 1
        shown = ["reasoning" if "<<<" in texts(body)[-1] else str(num_pictures(body)) for body in server.bodies]
        return list(dict.fromkeys(shown[8:]))  # the judge is tried first

    server.reply = reply
    assert kinds()[:3] == ["0", "1", "reasoning"]
    assert set(kinds()) == {"0", "1", "reasoning", "12", "6"}
    assert "3" in kinds(conditions=["blind", "full", "few_frames"])[-1:]
    no_reasoning = Thresholds(max_blind_rate=1, max_single_frame_rate=1, min_reasoning_rate=0)
    assert set(kinds(thresholds=no_reasoning)) == {"12", "6"}
    assert kinds(thresholds=Thresholds(max_captions_rate=0.5))[0] == "0"


# Difficulty.


@pytest.mark.parametrize(
    ("num_right", "split", "reason"),
    [
        (0, "train_rl", Reason.TOO_HARD),
        (1, "train_rl", None),
        (7, "train_rl", None),
        (8, "train_rl", Reason.TOO_EASY),
        (8, "train_sft", None),
    ],
)
def test_rollouts_of_the_policy_tell_the_difficulty(
    tmp_path: Path, record: QuestionRecord, server: Any, num_right: int, split: str, reason: Reason | None
) -> None:
    def reply(body: dict[str, Any]) -> str:
        if body["model"] == "seer":
            assert "A. seven\nB. eight\nC. nine\nD. eleven" in texts(body)[-1]  # as in training
            assert body["temperature"] == 1
            return says("nine" if body.get("seed", 0) < num_right else "eight")(body)
        return says("nine")(body)

    server.reply = reply
    question = QuestionRecord.model_validate({**record.model_dump(), "split": split})
    filtered = run(tmp_path, server.base_url, question, policy="seer", conditions=["evidence"], num_samples=4)
    assert [item.verdict.reason for item in filtered.dropped] == ([reason] if reason else [])
    result = (*filtered.kept, *(item.record for item in filtered.dropped))[0]
    rollouts = result.pass_rate(Condition.ROLLOUTS)
    assert (rollouts.num_right if rollouts else None) == (num_right if split == "train_rl" else None)


# What answers decide.


def rates(record: QuestionRecord, **chosen: tuple[int, ...]) -> list[PassRate]:
    """Make pass rates from how often each option was chosen; the rest up to eight wasn't answered."""
    return [
        PassRate(
            condition=Condition(name),
            model="m",
            num_asked=8,
            num_right=counts["ABCD".index(record.answer)],
            num_unanswered=8 - sum(counts),
            num_chosen=counts,
        )
        for name, counts in chosen.items()
    ]


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({}, None),
        ({"blind": (1, 1, 5, 1)}, None),
        ({"blind": (1, 1, 6, 0)}, Reason.ANSWERED_BLIND),
        ({"single_frame": (0, 0, 8, 0)}, Reason.ANSWERED_FROM_ONE_FRAME),
        ({"captions": (0, 0, 8, 0)}, None),
        ({"full": (0, 1, 7, 0), "evidence": (0, 0, 8, 0)}, None),
        ({"full": (2, 2, 2, 2), "evidence": (0, 0, 8, 0)}, None),  # lost among the frames, found in the evidence
        ({"full": (0, 0, 8, 0), "evidence": (2, 2, 2, 2)}, None),
        ({"full": (2, 2, 2, 2), "evidence": (2, 1, 3, 2)}, Reason.NOT_ANSWERABLE),
        ({"full": (0, 0, 0, 0), "evidence": (0, 0, 1, 0)}, Reason.NOT_ANSWERABLE),
        ({"full": (0, 8, 0, 0), "evidence": (0, 7, 1, 0)}, Reason.ANSWERED_OTHERWISE),
        ({"full": (0, 4, 4, 0), "evidence": (0, 3, 5, 0)}, Reason.AMBIGUOUS),
        ({"full": (0, 2, 6, 0), "evidence": (0, 2, 6, 0)}, Reason.AMBIGUOUS),
        ({"full": (0, 2, 6, 0)}, Reason.AMBIGUOUS),
        ({"few_frames": (8, 0, 0, 0), "scrambled": (8, 0, 0, 0)}, None),  # measured, but not a reason to drop it
    ],
)
def test_what_answers_decide(record: QuestionRecord, chosen: dict[str, tuple[int, ...]], reason: Reason | None) -> None:
    verdict = decide(record, rates(record, **chosen), Thresholds())
    assert (verdict.reason if verdict else None) == reason


def test_thresholds_can_be_set(record: QuestionRecord) -> None:
    strict = Thresholds(max_blind_rate=0.25, max_captions_rate=0.5, min_seen_rate=1)
    for chosen, reason in (
        ({"blind": (2, 2, 3, 1)}, Reason.ANSWERED_BLIND),
        ({"captions": (2, 1, 5, 0)}, Reason.ANSWERED_FROM_CAPTIONS),
        ({"full": (0, 0, 7, 1)}, Reason.NOT_ANSWERABLE),
    ):
        verdict = decide(record, rates(record, **chosen), strict)
        assert verdict is not None
        assert verdict.reason is reason


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"conditions": ["rollouts"]}, "name those with --judge and --policy"),
        ({"num_rollouts": 4}, "most_right_rollouts is 7, expected at most num_rollouts"),
        ({"thresholds": {"fewest_right_rollouts": 9}}, "fewest_right_rollouts is 9"),
        ({"num_full_frames": 8193}, "8192"),
        ({"thresholds": {"max_blind_rate": 1.5}}, "max_blind_rate"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        FilterSettings.model_validate(settings)


# Pass rates in records.


def test_pass_rates_are_stored_and_follow_their_options(tmp_path: Path, record: QuestionRecord) -> None:
    measured = record.model_copy(update={"pass_rates": tuple(rates(record, full=(0, 1, 7, 0), evidence=(0, 0, 8, 0)))})
    write_records(tmp_path / "records.parquet", [measured])
    assert read_records(tmp_path / "records.parquet") == [measured]
    for seed in range(8):
        ((moved,), unclear) = balance_options([measured], seed=seed)
        assert not unclear
        full = moved.pass_rate(Condition.FULL)
        assert full is not None
        assert full.num_chosen["ABCD".index(moved.answer)] == full.num_right == 7
        assert full.num_chosen[moved.options.index("eight")] == 1
    open_question = record.model_copy(update={"options": (), "answer": "nine"})
    assert balance_options([open_question], seed=0) == ([open_question], [])
    unclear_one = record.model_copy(update={"reasoning": "At 3 s it is either B or C, and it can't be B any more."})
    assert balance_options([unclear_one], seed=0) == ([], [unclear_one])


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_right": 5, "num_unanswered": 4},
        {"num_chosen": (1, 1, 1, 1)},
        {"num_asked": 0},
        {"condition": "asleep"},
    ],
)
def test_pass_rates_that_do_not_add_up_are_refused(wrong: dict[str, Any]) -> None:
    fine: dict[str, Any] = {"condition": "full", "model": "m", "num_asked": 8, "num_right": 5, "num_unanswered": 0}
    assert PassRate.model_validate(fine).rate == 5 / 8
    with pytest.raises(ValidationError):
        PassRate.model_validate(fine | wrong)


def test_records_refuse_pass_rates_of_other_questions(record: QuestionRecord) -> None:
    twice = [rate.model_dump() for rate in rates(record, full=(0, 0, 8, 0))] * 2
    with pytest.raises(ValidationError, match="expected each condition once"):
        QuestionRecord.model_validate({**record.model_dump(), "pass_rates": twice})
    with pytest.raises(ValidationError, match="counts other options"):
        QuestionRecord.model_validate({**record.model_dump(), "pass_rates": [twice[0] | {"num_chosen": (0, 8)}]})


# The folder and the command.


def test_captions_of_a_build_are_read(tmp_path: Path) -> None:
    assert read_captions(tmp_path) == {}
    rows = [
        {
            "video_digest": "a",
            "number": 1,
            "start_seconds": 10.0,
            "end_seconds": 20.0,
            "caption": "Rain.",
            "speech": "Oh!",
        },
        {"video_digest": "a", "number": 0, "start_seconds": 0.0, "end_seconds": 10.0, "caption": "Sun.", "speech": ""},
    ]
    (tmp_path / "segments.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert read_captions(tmp_path) == {"a": ["[0.0 s to 10.0 s] Sun.", '[10.0 s to 20.0 s] Rain. Said: "Oh!"']}
    (tmp_path / "segments.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"segments\.jsonl"):
        read_captions(tmp_path)


def test_filtering_with_other_thresholds_starts_from_everything_and_asks_nobody(
    tmp_path: Path, record: QuestionRecord, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(tmp_path / "records.parquet", [record])
    server.reply = says("nine")
    command = ["filter", str(tmp_path), "--base-url", server.base_url, "--model", "model"]
    assert main([*command, "--conditions", "blind"]) == 1
    assert "0 of 1 kept (answered_blind 1)" in capsys.readouterr().out
    assert read_records(tmp_path / "records.parquet") == []
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["dropped"] == {"answered_blind": 1}
    assert (manifest["input"]["questions"], manifest["kept"]["questions"]) == (1, 0)
    num_asked = len(server.bodies)
    assert main([*command, "--conditions", "blind", "--thresholds.max-blind-rate", "1"]) == 0
    assert "1 of 1 kept" in capsys.readouterr().out
    assert len(server.bodies) == num_asked
    kept = read_records(tmp_path / "records.parquet")
    assert [rate.num_right for rate in kept[0].pass_rates] == [8]
    assert json.loads((tmp_path / "manifest.json").read_text())["dropped"] == {}
    assert main(["stats", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["pass_rates"]["blind"]["right_rate"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nobody"], "doesn't serve 'nobody'"),
        (["--model", "model", "--judge", "model"], "expected another one; change --judge"),
        (["--model", "model", "--benchmarks", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--model", "model", "--prompts", "missing"], "contains no prompts"),
        (["--model", "model", "--num-rollouts", "3"], "most_right_rollouts is 7"),
    ],
)
def test_a_wrong_request_is_one_line_and_changes_nothing(
    tmp_path: Path,
    record: QuestionRecord,
    server: Any,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    write_records(tmp_path / "records.parquet", [record])
    try:
        code = main(["filter", str(tmp_path), "--base-url", server.base_url, *arguments])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    printed = capsys.readouterr()
    assert words in " ".join((printed.out + printed.err).split())
    assert "Traceback" not in printed.err
    assert read_records(tmp_path / "records.parquet") == [record]
    assert not (tmp_path / "filters.json").exists()
