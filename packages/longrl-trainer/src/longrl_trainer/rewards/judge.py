"""Reward for open answers: a language model behind any OpenAI-compatible server says whether an answer is right."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from longrl_trainer.rewards.answer_judge import AnswerJudge, OpenAnswer
from longrl_trainer.rewards.base import RewardRequest, RewardResult, RewardStatus
from longrl_trainer.rewards.judge_settings import JudgeSettings
from longrl_trainer.rewards.verifiers.comparison import find_answer
from longvideo_reason_data.question_types import QuestionType


class JudgeReward:
    """1 for an open answer that a judge finds right, 0 for others; no value where it gives no judgement."""

    Settings = JudgeSettings
    question_types = frozenset({QuestionType.OPEN})

    def __init__(self, settings: JudgeSettings) -> None:
        self._judge = AnswerJudge(settings, "rewards.judge")

    def opened(self, folder: Path) -> AbstractContextManager[None]:
        """Open the journal and the ledger, and try the judge; see `JournaledReward`."""
        return self._judge.opened(folder)

    async def judge(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """Judge responses; one that gets no judgement isn't judged.

        Raises:
            StoppedError: No judgement has come for longer than the recipe's patience, or `max_cost` is used up.
        """
        if not self._judge.is_open:
            return [RewardResult(value=None, status=RewardStatus.VERIFIER_ERROR)] * len(requests)
        said = [find_answer(each.response_text, finished=each.finished) for each in requests]
        asked = {place: answer for place, answer in enumerate(said) if not isinstance(answer, RewardStatus)}
        judged = await self._judge.judge(
            [
                OpenAnswer(question=requests[place].record.question, right=requests[place].record.answer, given=answer)
                for place, answer in asked.items()
            ]
        )
        judgements = dict(zip(asked, judged, strict=True))
        return [_result(answer, judgements.get(place)) for place, answer in enumerate(said)]


def _result(answer: str | RewardStatus, is_right: bool | None) -> RewardResult:
    if isinstance(answer, RewardStatus):
        return RewardResult(value=0.0, status=answer)
    if is_right is None:
        return RewardResult(value=None, status=RewardStatus.VERIFIER_ERROR, parsed=answer)
    return RewardResult(value=float(is_right), status=RewardStatus.OK, parsed=answer)
