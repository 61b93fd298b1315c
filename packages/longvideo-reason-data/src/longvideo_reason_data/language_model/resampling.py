"""Asking for another sample of an answer that is of no use.

An answer that breaks its form, or is refused, is asked for again as another sample, a truncated one with more room; any
other failure concerns every sample alike, and the client has tried those again already as often as that can help.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from longvideo_reason_data.language_model.requests import Asks, Outcome, Request

Answer = TypeVar("Answer")

WORTH_ANOTHER_SAMPLE = (Outcome.INVALID, Outcome.REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class LostQuestion:
    """A question that wasn't had.

    Attributes:
        reason: Why.
        outcome: How the last request for it ended.
        detail: What the server said.
    """

    reason: str
    outcome: Outcome
    detail: str

    @classmethod
    def at(cls, stage: str, outcome: Outcome, detail: str) -> "LostQuestion":
        """One that got lost in a stage because a request ended so."""
        return cls(reason=f"{stage}_{outcome}", outcome=outcome, detail=detail)


async def ask_for_use(
    language_model: Asks,
    request: Request,
    read: Callable[[str], Answer | LostQuestion],
    *,
    stage: str,
    num_samples: int,
) -> Answer | LostQuestion:
    """Ask until an answer is of use.

    Args:
        language_model: Whom to ask.
        request: What to ask; its samples are counted from 0.
        read: Takes what is wanted from an answer, or says what is wrong with it.
        stage: Begins the reason of a loss.
        num_samples: At most so many are asked for.

    Returns:
        What was read, or why the last sample wasn't of use.

    Raises:
        DataError: When the server is of no use at all.
    """
    lost = LostQuestion.at(stage, Outcome.INVALID, "")
    for sample_index in range(num_samples):
        request = replace(request, sample_index=sample_index)
        reply = await language_model.ask(request)
        if reply.outcome is Outcome.ANSWERED:
            answer = read(reply.text)
            if not isinstance(answer, LostQuestion):
                return answer
            lost = answer
            continue
        lost = LostQuestion.at(stage, reply.outcome, reply.text)
        if reply.outcome in (Outcome.TRUNCATED, Outcome.ONLY_REASONING):
            request = replace(request, max_tokens=2 * request.max_tokens)
        elif reply.outcome not in WORTH_ANOTHER_SAMPLE:
            break
    return lost
