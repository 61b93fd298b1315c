"""Why a dataset is empty: the most frequent reasons for dropping its items, in words.

A build or a filter that keeps nothing has run correctly but is useless, so it ends as a failure. Everything else about
it is recorded as usual; this module summarises it in one line.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from longrl_files.messages import visible
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.language_model.requests import Outcome
from longvideo_reason_data.records.notes import DroppedNote, FilteredNote

_NUM_REASONS = 3
_DETAIL_CHARACTERS = 80

_STAGES = {
    "caption": ("the description of a segment", "--captions.max-tokens"),
    "question": ("a question", "--questions.max-tokens"),
    "rewrite": ("the rewritten reasoning", "--questions.max-tokens"),
}
_OUTCOMES = {
    Outcome.RATE_LIMITED: "was refused by a busy server",
    Outcome.TIMEOUT: "took the server too long",
    Outcome.TRUNCATED: "was cut off; raise {setting}",
    Outcome.ONLY_REASONING: "was never begun, because reasoning used up all tokens; raise {setting}",
    Outcome.REFUSED: "was refused by the model",
    Outcome.INVALID: "wasn't in the required form",
    Outcome.SERVER_ERROR: "failed with a server error",
    Outcome.CONNECTION: "was lost with the connection",
    Outcome.DAMAGED_INPUT: "needed a frame that can't be decoded",
    Outcome.OVER_BUDGET: "exceeded the budget; raise --max-cost",
    Outcome.REJECTED: "was rejected by the server",
}


def refuse_empty(
    dataset: Path, num_questions: int, num_kept: int, dropped: Iterable[DroppedNote | FilteredNote]
) -> None:
    """Raise an error with the most frequent reasons if no question is left.

    Args:
        dataset: Its folder.
        num_questions: Number of questions requested.
        num_kept: Number of questions kept.
        dropped: What was dropped.

    Raises:
        DataError: When there are none.
    """
    if num_kept:
        return
    counts: Counter[str] = Counter()
    details: dict[str, str] = {}
    for item in dropped:
        counts[item.reason] += 1
        details.setdefault(item.reason, visible(item.detail, _DETAIL_CHARACTERS))
    told = [
        f"{f'{count} times' if count > 1 else 'once'} {in_words(reason)}"
        + (f" ({details[reason]})" if details[reason] else "")
        for reason, count in counts.most_common(_NUM_REASONS)
    ]
    raise DataError(f"{dataset}: none of {num_questions} questions was kept: {'; '.join(told) or 'there were none'}")


def in_words(reason: str) -> str:
    """Express a reason in words."""
    stage, _, outcome = reason.partition("_")
    if stage in _STAGES and outcome in set(Outcome) and Outcome(outcome) in _OUTCOMES:
        thing, setting = _STAGES[stage]
        return f"{thing} {_OUTCOMES[Outcome(outcome)].format(setting=setting)}"
    return reason.replace("_", " ")
