"""Rewritten reasoning keeps every time of its steps, invents none, and mentions neither steps nor captions."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvideo_reason_data.generation.reasoning import RewriteFault, find_rewrite_fault, rewrite_reasoning
from longvideo_reason_data.generation.settings import QuestionSettings
from longvideo_reason_data.language_model.accounts.response_cache import ResponseCache
from longvideo_reason_data.language_model.client import LanguageModel
from longvideo_reason_data.language_model.requests import Outcome
from longvideo_reason_data.language_model.resampling import LostQuestion
from longvideo_reason_data.prompts.templates import load_prompts
from longvideo_reason_data.records.drafts import QuestionDraft, QuestionProposal, ReasoningStep
from longvideo_reason_data.records.record import Interval

STEPS = (
    ReasoningStep(start_seconds=0, end_seconds=10, thought="A red car stops at 4 s."),
    ReasoningStep(start_seconds=62.5, end_seconds=70, thought="The driver leaves towards the lake."),
)
GOOD = "From 0 to 10 s a red car stops, at 4 s. Between 62.5 s and 70 seconds the driver walks to the lake."


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        (GOOD, None),
        ("At first, 0 s to 10 s, a car stops; then, from 1:02 to 1:10, its driver goes to the lake.", None),
        (GOOD + " At 66 s he is halfway, and it all lasted 7.5 seconds.", None),
        ("Step 1: " + GOOD, RewriteFault.KEEPS_LABELS),
        ("1. From 0 to 10 s a car stops.\n2. From 62.5 to 70 s he leaves.", RewriteFault.KEEPS_LABELS),
        ("- From 0 to 10 s a car stops, from 62.5 to 70 s he leaves.", RewriteFault.KEEPS_LABELS),
        ("**Reasoning** " + GOOD, RewriteFault.KEEPS_LABELS),
        ("Segment 2 shows it. " + GOOD, RewriteFault.KEEPS_LABELS),
        ("The captions say it. " + GOOD, RewriteFault.MENTIONS_CAPTIONS),
        ("As captioned: " + GOOD, RewriteFault.MENTIONS_CAPTIONS),
        ("A red car stops, then its driver leaves towards the lake.", RewriteFault.LOSES_TIMES),
        ("From 0 to 10 s a red car stops, at 62.5 s the driver leaves.", RewriteFault.LOSES_TIMES),
        (GOOD + " At 300 s he is home.", RewriteFault.INVENTS_TIMES),
        (GOOD + " Nothing happens at 30 s.", RewriteFault.INVENTS_TIMES),
        ("", RewriteFault.LOSES_TIMES),
    ],
)
def test_faults(written: str, fault: RewriteFault | None) -> None:
    assert find_rewrite_fault(STEPS, written) is fault


spans = st.tuples(st.integers(0, 7000), st.integers(1, 100)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(spans, min_size=1, max_size=6))
def test_naming_every_range_is_enough_and_naming_one_less_is_not(ranges: Sequence[tuple[int, int]]) -> None:
    steps = [ReasoningStep(start_seconds=start, end_seconds=end, thought="it moves") for start, end in ranges]
    sentences = [f"From {start}.0 s to {end}.0 s it moves." for start, end in ranges]
    assert find_rewrite_fault(steps, " ".join(sentences)) is None
    ends = {moment for pair in ranges[1:] for moment in pair}
    if not set(ranges[0]) <= ends:
        assert find_rewrite_fault(steps, " ".join(sentences[1:])) is RewriteFault.LOSES_TIMES


@given(st.text(max_size=300))
def test_no_text_breaks_it(written: str) -> None:
    find_rewrite_fault(STEPS, written)


def proposal(options: tuple[str, ...] = ("lake", "roof", "wall", "door"), answer: str = "A") -> QuestionProposal:
    return QuestionProposal(
        question="Where does he go?",
        evidence=(Interval(start_seconds=62.5, end_seconds=70),),
        options=options,
        answer=answer,
        reasoning=STEPS,
    )


def rewrite(server: Any, tmp_path: Path, question: QuestionProposal) -> QuestionDraft | LostQuestion:
    async def run() -> QuestionDraft | LostQuestion:
        with ResponseCache(tmp_path / "responses.jsonl") as cache:
            async with LanguageModel(server.base_url, cache, first_wait_seconds=0.01) as model:
                return await rewrite_reasoning(
                    model, question, model="model", prompts=load_prompts(), settings=QuestionSettings()
                )

    return asyncio.run(run())


def test_a_rewrite_keeps_everything_else(server: Any, tmp_path: Path) -> None:
    server.reply = lambda body: f"<think>Step 1…</think>\n{GOOD}\n"
    draft = rewrite(server, tmp_path, proposal())
    assert isinstance(draft, QuestionDraft)
    assert draft.reasoning == GOOD
    assert draft.model_dump(exclude={"reasoning"}) == proposal().model_dump(exclude={"reasoning"})
    prompt = server.bodies[0]["messages"][0]["content"][0]["text"]
    assert "[62.5 s to 70.0 s] The driver leaves towards the lake." in prompt
    assert "A. lake\nB. roof" in prompt
    assert "Answer: lake" in prompt
    server.reply = lambda body: GOOD
    opened = rewrite(server, tmp_path, proposal(options=(), answer="to the lake"))
    assert isinstance(opened, QuestionDraft)
    assert (opened.options, opened.answer) == ((), "to the lake")


def test_a_faulty_rewrite_is_asked_for_again_and_then_left_out(server: Any, tmp_path: Path) -> None:
    server.reply = lambda body: GOOD if body.get("seed") == 2 else "He leaves."
    assert isinstance(rewrite(server, tmp_path, proposal()), QuestionDraft)
    assert len(server.bodies) == 3
    server.reply = lambda body: "He leaves."
    lost = rewrite(server, tmp_path / "other", proposal())
    assert isinstance(lost, LostQuestion)
    assert (lost.reason, lost.outcome) == ("rewrite_loses_times", Outcome.INVALID)
    server.reply = lambda body: {"finish_reason": "length", "message": {"content": "From 0"}}
    lost = rewrite(server, tmp_path / "third", proposal())
    assert isinstance(lost, LostQuestion)
    assert lost.reason == "rewrite_truncated"
    assert [body["max_tokens"] for body in server.bodies[-3:]] == [2048, 4096, 8192]
