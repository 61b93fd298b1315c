"""Reward for a mathematical answer, however it is written: by math-verify, in processes that can be killed.

Needs the extra `math`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from queue import SimpleQueue

from pydantic import BaseModel, ConfigDict, Field

from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.rewards.base import RewardRequest, RewardResult, RewardStatus
from longrl_trainer.rewards.verifiers.comparison import find_answer
from longrl_trainer.rewards.verifiers.killable_process import KillableProcess, ProcessFailedError
from longvideo_reason_data.question_types import QuestionType

_LONGEST_ANSWER = 1000  # characters
_WORKER = "longrl_trainer.rewards.verifiers.algebra"
_CANT_JUDGE = RewardResult(value=None, status=RewardStatus.VERIFIER_ERROR)


class MathematicsSettings(BaseModel):
    """How answers are compared."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    timeout_seconds: float = Field(default=10.0, gt=0, le=600)
    """Longest time for one answer; the response is not judged if it takes longer."""
    num_processes: int = Field(default=2, ge=1, le=64)
    """Answers compared at the same time."""


class MathematicsReward:
    """1 for an expression that equals the right one."""

    Settings = MathematicsSettings
    question_types = frozenset({QuestionType.MATHEMATICS})

    def __init__(self, settings: MathematicsSettings) -> None:
        if find_spec("math_verify") is None:
            raise TrainerUsageError("rewards.mathematics: math-verify isn't installed; install longrl-trainer[math]")
        self._num_processes = settings.num_processes
        self._idle: SimpleQueue[KillableProcess] = SimpleQueue()
        for _ in range(settings.num_processes):
            self._idle.put(KillableProcess(_WORKER, settings.timeout_seconds))

    def judge(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """Judge responses."""
        with ThreadPoolExecutor(self._num_processes) as threads:
            return list(threads.map(self._judge, requests))

    def _judge(self, request: RewardRequest) -> RewardResult:
        said = find_answer(request.response_text, finished=request.finished)
        if isinstance(said, RewardStatus):
            return RewardResult(value=0.0, status=said)
        if len(said) > _LONGEST_ANSWER:
            return RewardResult(value=0.0, status=RewardStatus.NO_ANSWER)
        process = self._idle.get()
        try:
            answer = process.ask({"given": said, "right": request.record.answer})
        except ProcessFailedError:
            return _CANT_JUDGE
        finally:
            self._idle.put(process)
        if "is_right" not in answer:
            return _CANT_JUDGE
        return RewardResult(value=float(answer["is_right"]), status=RewardStatus.OK, parsed=said)
