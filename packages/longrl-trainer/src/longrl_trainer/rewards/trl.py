"""Reward functions as TRL's trainers take them, named in a recipe as `module:function`.

    [rewards]
    "my_rewards:brevity" = 0.2

A function gets lists, with one entry per response, as keywords: `prompts` and `completions` as conversations, and every
field of the record as a column, besides `solution`, which is its answer. It returns a list of numbers, also as a
coroutine. None means that it can't judge, and the response is left out; TRL counts it as 0 beside other functions. The
module is imported because the recipe names it; no folder is added to the path for that.
"""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from typing import Any, cast

from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.rewards.base import RewardRequest, RewardResult, RewardStatus
from longvideo_reason_data.records.answers import format_prompt

RewardFunction = Callable[..., Sequence[float | None] | Awaitable[Sequence[float | None]]]


class TrlReward:
    """A reward of one of TRL's functions.

    Args:
        name: `module:function`.

    Raises:
        TrainerUsageError: There is no such function.
    """

    def __init__(self, name: str) -> None:
        self._function = _import(name)

    async def judge(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """Judge responses."""
        rows: list[dict[str, Any]] = [
            {**each.record.model_dump(mode="json"), "solution": each.record.answer} for each in requests
        ]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        returned = self._function(
            prompts=[_say("user", format_prompt(each.record.question, each.record.options)) for each in requests],
            completions=[_say("assistant", each.response_text) for each in requests],
            **columns,
        )
        values = await returned if inspect.isawaitable(returned) else returned
        return [
            RewardResult(value=None, status=RewardStatus.VERIFIER_ERROR)
            if value is None
            else RewardResult(value=float(value), status=RewardStatus.OK)
            for value in values
        ]


def _say(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def _import(name: str) -> RewardFunction:
    module_name, _, function_name = name.partition(":")
    try:
        module = import_module(module_name)
    except Exception as error:  # anything may be raised by a module
        raise TrainerUsageError(
            f"rewards.{name}: {module_name!r} can't be imported ({type(error).__name__}: {error}); install it, or add "
            "its folder to PYTHONPATH"
        ) from error
    function: object = getattr(module, function_name, None)
    if not callable(function):
        raise TrainerUsageError(
            f"rewards.{name}: {module_name} has no function {function_name!r}; expected one of TRL's"
        )
    return cast(RewardFunction, function)
