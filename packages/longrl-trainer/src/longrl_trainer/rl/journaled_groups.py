"""Groups as a run's journal keeps them for people: question, responses, how they were judged, and each token's gap.

Written after the update, whose scores show where sampler and trainer think differently.
"""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from longrl_trainer.rl.groups import RolloutGroup
from longvideo_reason_data.records.answers import parse_response
from longvideo_reason_data.records.record import QuestionRecord

GAP_DECIMALS = 5
_INCOMPLETE = "\ufffd"
_MOST_TOKENS_A_CHARACTER = 4


def describe_group(
    group: RolloutGroup, tokenizer: PreTrainedTokenizerBase, token_gaps: Sequence[Sequence[float]] = ()
) -> dict[str, Any]:
    """A group for its journal.

    Args:
        group: The group.
        tokenizer: The model's tokenizer.
        token_gaps: For each judged response the trainer's minus the sampler's log-probability of every token; none if
            the group wasn't scored.
    """
    record = group.question.record
    gaps = iter(token_gaps)
    tokens = [
        token_pieces(tokenizer, rollout.token_ids, next(gaps)) if token_gaps and advantage is not None else None
        for rollout, advantage in zip(group.rollouts, group.advantages, strict=True)
    ]
    return {
        "question_id": record.question_id,
        "media": [medium.path for medium in record.media],
        "skill": str(record.skill),
        "question": record.question,
        "options": list(record.options),
        "answer": record.answer,
        "prompt_weight": group.prompt_weight,
        "responses": [
            {
                "text": rollout.text,
                "finished": rollout.finished,
                "parsed": _read_answer(rollout.text, record),
                "rewards": {name: result.value for name, result in score.terms.items()},
                "statuses": {name: str(result.status) for name, result in score.terms.items()},
                "compared": {name: result.parsed for name, result in score.terms.items() if result.parsed is not None},
                "reward": score.total,
                "advantage": advantage,
                "tokens": pieces,
            }
            for rollout, score, advantage, pieces in zip(
                group.rollouts, group.scores, group.advantages, tokens, strict=True
            )
        ],
    }


def token_pieces(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], gaps: Sequence[float]
) -> list[tuple[str, float]]:
    """The text of every token with its gap; tokens that are parts of one character are one piece, with the largest gap.

    Args:
        tokenizer: The model's tokenizer.
        token_ids: The response.
        gaps: The trainer's minus the sampler's log-probability of each token.
    """
    pieces: list[tuple[str, float]] = []
    start = 0
    for end in range(1, len(token_ids) + 1):
        text = str(tokenizer.decode(list(token_ids[start:end])))
        is_part = text.endswith(_INCOMPLETE) and end - start < _MOST_TOKENS_A_CHARACTER and end < len(token_ids)
        if not is_part:
            pieces.append((text, round(max(gaps[start:end], key=abs), GAP_DECIMALS) + 0.0))  # never -0.0
            start = end
    return pieces


def _read_answer(text: str, record: QuestionRecord) -> str | None:
    parsed = parse_response(text, record.options)
    return parsed.letter if record.options else parsed.text
