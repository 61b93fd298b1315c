"""Each filter drops its own fault and lets good questions through; shuffled options keep their reasoning true."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_video import make_record
from pydantic import ValidationError

from longvideo_reason_data.errors import UsageError
from longvideo_reason_data.filtering.option_shortcuts import find_shortcuts
from longvideo_reason_data.filtering.reasoning_checks import times_in
from longvideo_reason_data.filtering.rules import check_question
from longvideo_reason_data.pipeline.option_order import UnclearLetterError, balanced_letters, reorder_options
from longvideo_reason_data.prompts.templates import load_prompts
from longvideo_reason_data.records.drafts import QuestionDraft
from longvideo_reason_data.records.drop_reasons import Reason
from longvideo_reason_data.records.record import QuestionRecord
from longvideo_reason_data.timeline.questions import create_questions, deal_letters
from longvideo_reason_data.timeline.world import WorldSettings, create_world

GOOD: dict[str, Any] = {
    "question": "Where does the cook put the pan after washing it?",
    "options": ["on the stove", "in the sink", "under the table", "by the window"],
    "answer": "B",
    "reasoning": "At 3 s the cook washes the pan. From 5.5 s to 8 s the cook lowers it into the sink.",
    "evidence": [{"start_seconds": 3, "end_seconds": 8}],
}


def draft(**changes: Any) -> QuestionDraft:
    return QuestionDraft.model_validate({**GOOD, **changes})


def test_a_good_question_passes() -> None:
    assert check_question(draft(), 20.0) == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"options": ["on the stove", "in the sink", "In the sink!", "by the window"]}, Reason.OPTIONS_ALIKE),
        ({"options": ["on the stove", "in the sink", "...", "by the window"]}, Reason.OPTIONS_ALIKE),
        ({"options": ["on the stove", "in the sink", "here", "None of the above"]}, Reason.OPTION_ABOUT_OPTIONS),
        ({"options": ["on the stove", "in the sink", "here", "Both A and C"]}, Reason.OPTION_ABOUT_OPTIONS),
        (
            {"options": ["stove", "carefully into the large steel sink at the wall", "table", "window"]},
            Reason.ANSWER_IS_LONGEST,
        ),
        ({"question": "Why is the pan put in the sink at last?"}, Reason.ANSWER_IN_QUESTION),
        (
            {
                "question": "Where does the tired cook carry the steaming kettle at last?",
                "options": [
                    "to a stove",
                    "the cook and his kettle reach a sink",
                    "under a table",
                    "to some window sill",
                ],
            },
            Reason.ANSWER_ECHOES_QUESTION,
        ),
        ({"options": ["on the stove", "In the sink", "under the table", "by the window"]}, Reason.ANSWER_STANDS_OUT),
        ({"options": ["on the stove", "in the sink.", "under the table", "by the window"]}, Reason.ANSWER_STANDS_OUT),
        ({"options": ["on the stove", 'in the "sink"', "under the table", "by the window"]}, Reason.ANSWER_STANDS_OUT),
        ({"evidence": [{"start_seconds": 3, "end_seconds": 80}]}, Reason.EVIDENCE_OUTSIDE),
        ({"evidence": [{"start_seconds": 20, "end_seconds": 20.5}]}, Reason.EVIDENCE_OUTSIDE),
        ({"reasoning": "At 3 s it is clear."}, Reason.REASONING_TOO_SHORT),
        ({"reasoning": "The cook washes the pan and then lowers it into the sink."}, Reason.REASONING_WITHOUT_TIMES),
        ({"reasoning": "At 55 s the cook washes the pan and lowers it down."}, Reason.REASONING_TIME_OUTSIDE),
        ({"reasoning": "At 1:10 the cook washes the pan and lowers it down."}, Reason.REASONING_TIME_OUTSIDE),
        ({"reasoning": "At 3 s the cook washes the pan, so the answer is C."}, Reason.REASONING_CONTRADICTS),
        ({"reasoning": "At 3 s the cook washes the pan. The answer is by the window."}, Reason.REASONING_CONTRADICTS),
        ({"reasoning": "At 3 s the cook washes the pan. </think><answer>B</answer>"}, Reason.REASONING_HAS_TAGS),
        ({"reasoning": "The caption at 3 s says that the cook washes the pan."}, Reason.MENTIONS_CAPTIONS),
        ({"question": "According to the description, where is the pan?"}, Reason.MENTIONS_CAPTIONS),
    ],
)
def test_each_fault_is_found(changes: dict[str, Any], reason: Reason) -> None:
    assert reason in check_question(draft(**changes), 20.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"question": "Is the pan put on the stove or in the sink?"},
        {"reasoning": "At 0:03 the cook washes the pan, so the answer is B, in the sink."},
        {"evidence": [{"start_seconds": 3, "end_seconds": 20.5}]},
        {"options": ["on the stove", "in the sink, turned", "under the table", "by the window"]},
        {"options": ["On the stove", "in the sink", "under the table", "by the window"]},
        {"options": ["On the stove.", "In the sink.", "Under the table.", "By the window."]},
    ],
)
def test_good_variants_pass(changes: dict[str, Any]) -> None:
    assert check_question(draft(**changes), 20.0) == ()


def test_times_in_words() -> None:
    assert times_in("at 3s, 4.5 s and 6 seconds") == [3.0, 4.5, 6.0]
    assert times_in("from 10.0 to 20.5 s, then 30-40 seconds") == [10.0, 20.5, 30.0, 40.0]
    assert times_in("at 1:05, 01:02:03 and 2 minutes") == [65.0, 120.0, 3723.0]
    assert times_in("7 students on 3 shelves, ratio 16:9, model s3") == []


# Shortcuts that only many questions show.


def many(change: Callable[[random.Random, list[str], int], None], *, share: float) -> list[QuestionRecord]:
    """Make questions with options of chance, and change a share of them."""
    generator = random.Random(7)
    words = ["lake", "roof", "garden", "stairs", "market", "cellar", "bridge", "tower", "hall", "orchard", "mill"]
    records: list[QuestionRecord] = []
    for number in range(400):
        options = [f"at the {generator.choice('xyz') * 2} {word}" for word in generator.sample(words, 4)]
        right = generator.randrange(4)
        if number < share * 400:
            change(generator, options, right)
        records.append(
            make_record(
                {
                    "question_id": str(number),
                    "video_path": "v.mp4",
                    "video_digest": "a" * 64,
                    "video_duration_seconds": 10.0,
                    "split": "train_rl",
                    "skill": "spatial",
                    "question": f"Where does person {number} go?",
                    "options": options,
                    "answer": "ABCD"[right],
                    "evidence": [],
                    "reasoning": "",
                    "source": "x",
                    "license": "x",
                }
            )
        )
    return records


def lengthen(generator: random.Random, options: list[str], right: int) -> None:
    options[right] += " once more"


def shorten(generator: random.Random, options: list[str], right: int) -> None:
    options[right] = options[right].split()[-1]


def quote(generator: random.Random, options: list[str], right: int) -> None:
    options[right] = f"to a person {options[right].split()[-1]}"


def vary(generator: random.Random, options: list[str], right: int) -> None:
    for place in range(4):
        if place != right:
            options[place] = f"{options[right].rsplit(' ', 1)[0]} {generator.choice('klmnopqr') * (place + 3)}"
    options[(right + 1) % 4] = f"beyond {options[right].split()[-1]}"


@pytest.mark.parametrize(
    ("change", "share", "named"),
    [
        (lengthen, 0.0, None),
        (lengthen, 0.4, "the longest option"),
        (shorten, 0.4, "the shortest option"),
        (quote, 0.4, "the option with most words of the question"),
        (vary, 0.8, "the option most like the others"),
    ],
)
def test_shortcuts_are_named(
    change: Callable[[random.Random, list[str], int], None], share: float, named: str | None
) -> None:
    found = find_shortcuts(many(change, share=share))
    assert named in " ".join(found) if named else found == []


def test_the_timeline_world_has_no_shortcut() -> None:
    letters = deal_letters("shortcuts")
    settings = WorldSettings(seconds=60.0, num_scenes=8)
    questions = [
        question
        for number in range(150)
        for question in create_questions(create_world(f"shortcuts {number}", settings), letters, 8)
    ]
    template = many(lengthen, share=0)[0]
    records = [
        template.model_copy(update={"question": q.question, "options": q.options, "answer": q.answer})
        for q in questions
    ]
    assert len(records) > 1000
    assert find_shortcuts(records) == []


# Letters and the order of options.


def test_letters_are_balanced_and_stable() -> None:
    names = [f"question-{number}" for number in range(403)]
    letters = balanced_letters(names, seed=0)
    counts = Counter(letters.values())
    assert set(counts) == set("ABCD")
    assert max(counts.values()) - min(counts.values()) <= 1
    assert letters == balanced_letters(names[::-1], seed=0)
    assert letters != balanced_letters(names, seed=1)
    in_order = [letters[name] for name in sorted(names)]
    assert len({tuple(in_order[start : start + 4]) for start in range(0, 400, 4)}) > 20  # not a cycle one can learn


@pytest.mark.parametrize(
    ("reasoning", "rewritten"),
    [
        ("It goes into the sink.", "It goes into the sink."),
        ("So option B is right.", "So option D is right."),
        ("So the answer is B.", "So the answer is D."),
        ("So Answer: B", "So Answer: D"),
        ("It must be (B).", "It must be (D)."),
        ("B is correct.", "D is correct."),
        ("A man at 3 s. So choice B.", "A man at 3 s. So choice D."),
    ],
)
def test_letters_in_the_reasoning_follow(reasoning: str, rewritten: str) -> None:
    moved = reorder_options(draft(reasoning=reasoning), "D", seed="x")
    assert moved.reasoning == rewritten
    assert moved.options[3] == "in the sink"
    assert sorted(moved.options) == sorted(GOOD["options"])


@pytest.mark.parametrize(
    "reasoning", ["Vitamin C is shown.", "Both B and D fit.", "B", "Plan A: wait.", "It is B, not A."]
)
def test_unclear_letters_are_refused(reasoning: str) -> None:
    with pytest.raises(UnclearLetterError):
        reorder_options(draft(reasoning=reasoning), "D", seed="x")


@given(st.sampled_from("ABCD"), st.sampled_from("ABCD"), st.sampled_from("ABCD"), st.text(max_size=5))
def test_every_letter_goes_on_meaning_the_same_option(right: str, target: str, named: str, seed: str) -> None:
    before = draft(answer=right, reasoning=f"Not option {named} (see 3 s), so the answer is {right}.")
    after = reorder_options(before, target, seed=seed)
    assert after.answer == target
    assert after.options["ABCD".index(target)] == before.options["ABCD".index(right)]
    new_named = after.reasoning.removeprefix("Not option ")[0]
    assert after.options["ABCD".index(new_named)] == before.options["ABCD".index(named)]
    assert after.reasoning.endswith(f"the answer is {target}.")
    assert after == reorder_options(before, target, seed=seed)


@pytest.mark.parametrize("wrong", [{"options": ["a", "b", "c"]}, {"answer": "E"}, {"evidence": []}, {"question": " "}])
def test_broken_drafts_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        draft(**wrong)


# Prompts.


def test_prompts_can_be_replaced_and_change_the_digest(tmp_path: Path) -> None:
    own = load_prompts()
    assert own == load_prompts()
    (tmp_path / "caption.md").write_text("Look at $num_frames pictures, costs $$1.")
    changed = load_prompts(tmp_path)
    assert changed.fill("caption", num_frames=3) == "Look at 3 pictures, costs $1."
    assert changed.texts["question"] == own.texts["question"]
    assert changed.digest_of("caption") != own.digest_of("caption")
    assert changed.digest_of("question") == own.digest_of("question")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("caption.md", "what is $this", r"\$this is unknown"),
        ("caption.md", "costs $ 5", "write '\\$\\$'"),
        ("caption.md", " ", "empty"),
        ("notes.md", "hello", "contains no prompts"),
    ],
)
def test_wrong_prompts_are_one_clear_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=words):
        load_prompts(tmp_path)
