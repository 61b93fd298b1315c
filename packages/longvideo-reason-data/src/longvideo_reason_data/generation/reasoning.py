"""From reasoning grouped by time range to one continuous text that still says when everything is seen.

The reasoner's steps and their labels would teach a policy to number its thoughts and to mention captions that it never
gets. The rewrite removes both. It must keep the times: both ends of each range have to be mentioned, and no time that
isn't in the steps. What fails in every sample is dropped with its reason. Whether the text otherwise means the same as
the steps isn't checked here.
"""

import re
from collections.abc import Sequence
from enum import StrEnum

from longvideo_reason_data.filtering.reasoning_checks import times_in
from longvideo_reason_data.generation.settings import QuestionSettings
from longvideo_reason_data.language_model.requests import Asks, Outcome, Request
from longvideo_reason_data.language_model.resampling import LostQuestion, ask_for_use
from longvideo_reason_data.prompts.templates import Prompts
from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.drafts import QuestionDraft, QuestionProposal, ReasoningStep


class RewriteFault(StrEnum):
    """A problem of a rewritten reasoning."""

    KEEPS_LABELS = "rewrite_keeps_labels"
    MENTIONS_CAPTIONS = "rewrite_mentions_captions"
    LOSES_TIMES = "rewrite_loses_times"
    INVENTS_TIMES = "rewrite_invents_times"


# Writers round to whole seconds.
_TOLERANCE_SECONDS = 0.51
_LABEL = re.compile(
    r"\b(?:step|stage|part|segment|clip|range|thought)s?\s{0,2}#?\d|^\s{0,8}(?:[-*•#]|\d{1,3}[.)])\s|\*\*",
    re.IGNORECASE | re.MULTILINE,
)
_CAPTIONS = re.compile(r"\bcaption(?:s|ed|er|ing)?\b", re.IGNORECASE)


async def rewrite_reasoning(
    language_model: Asks,
    proposal: QuestionProposal,
    *,
    model: str,
    prompts: Prompts,
    settings: QuestionSettings,
) -> QuestionDraft | LostQuestion:
    """Request the reasoning of a question as one text.

    Args:
        language_model: Whom to ask.
        proposal: The question.
        model: Name of the reasoner.
        prompts: The prompts, of which `rewrite` is used.
        settings: Number of samples and limits on length.

    Raises:
        DataError: When no request at all can be answered.
    """
    options = [f"{letter}. {option}" for letter, option in zip(LETTERS, proposal.options, strict=False)]
    answer = proposal.options[LETTERS.index(proposal.answer)] if proposal.options else proposal.answer
    text = prompts.fill(
        "rewrite",
        steps="\n".join(_line(step) for step in sorted(proposal.reasoning, key=lambda step: step.start_seconds)),
        question=proposal.question,
        options="\n".join(options),
        answer=answer,
    )
    request = Request(
        model=model,
        parts=(text,),
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        prompt_digest=prompts.digest_of("rewrite"),
    )

    def read(answer: str) -> QuestionDraft | LostQuestion:
        written = answer.rpartition("</think>")[2].strip()
        fault = find_rewrite_fault(proposal.reasoning, written)
        if fault is not None:
            return LostQuestion(reason=fault, outcome=Outcome.INVALID, detail=written)
        if not written:
            return LostQuestion.at("rewrite", Outcome.INVALID, written)
        kept = proposal.model_dump(include={"question", "evidence", "options", "answer"})
        return QuestionDraft.model_validate({**kept, "reasoning": " ".join(written.split())})

    return await ask_for_use(language_model, request, read, stage="rewrite", num_samples=settings.num_samples)


def find_rewrite_fault(steps: Sequence[ReasoningStep], written: str) -> RewriteFault | None:
    """Return what is wrong with a rewritten reasoning, or None if it has exactly the times of the steps.

    Args:
        steps: The reasoning by time range.
        written: The same as one text.
    """
    if _LABEL.search(written):
        return RewriteFault.KEEPS_LABELS
    if _CAPTIONS.search(written):
        return RewriteFault.MENTIONS_CAPTIONS
    named = times_in(written)
    ends = [seconds for step in steps for seconds in (step.start_seconds, step.end_seconds)]
    if any(not _is_among(seconds, named) for seconds in ends):
        return RewriteFault.LOSES_TIMES
    # A time inside a range and the length of a range are allowed.
    known = [*times_in(" ".join(step.thought for step in steps)), *(s.end_seconds - s.start_seconds for s in steps)]
    for seconds in named:
        inside = any(
            step.start_seconds - _TOLERANCE_SECONDS <= seconds <= step.end_seconds + _TOLERANCE_SECONDS
            for step in steps
        )
        if not inside and not _is_among(seconds, known):
            return RewriteFault.INVENTS_TIMES
    return None


def _is_among(seconds: float, others: Sequence[float]) -> bool:
    return any(abs(seconds - other) <= _TOLERANCE_SECONDS for other in others)


def _line(step: ReasoningStep) -> str:
    return f"[{step.start_seconds:.1f} s to {step.end_seconds:.1f} s] {step.thought}"
