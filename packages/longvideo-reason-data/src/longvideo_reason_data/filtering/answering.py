"""Has a question answered several times under one condition, and counts the answers.

The options are rotated by one position for each answer, so that a model that always names the same letter is right once
in four times, not always or never. A missing answer (a failed server, a damaged frame) isn't a wrong answer: the
question is then not measured, and the caller reports it.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from longvideo_reason_data.filtering.conditions import Material
from longvideo_reason_data.filtering.judging import Judge
from longvideo_reason_data.filtering.option_shortcuts import plain_words
from longvideo_reason_data.filtering.settings import FilterSettings
from longvideo_reason_data.language_model.requests import Asks, Outcome, Reply, Request
from longvideo_reason_data.prompts.templates import Prompts
from longvideo_reason_data.records.answers import LETTERS, ParseStatus, format_prompt, parse_response
from longvideo_reason_data.records.pass_rates import Condition, PassRate
from longvideo_reason_data.records.record import QuestionRecord

# Outcomes caused by the model; the others are caused by the server.
_SAID_SOMETHING = frozenset({Outcome.ANSWERED, Outcome.TRUNCATED, Outcome.REFUSED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmeasured:
    """A condition under which a question couldn't be measured, and the reason."""

    condition: Condition
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """One answer: index of the chosen option in the record's order, whether it is right, whether it is an answer."""

    place: int | None
    is_right: bool
    is_answer: bool


class Answerer:
    """Has questions answered.

    Args:
        client: The client of the server.
        prompts: The prompts, of which `answer` is used.
        settings: Number of answers and limits on length.
        judge: Compares the answers to open questions; without it they must match exactly.
    """

    def __init__(self, client: Asks, prompts: Prompts, settings: FilterSettings, judge: Judge | None = None) -> None:
        self._client, self._prompts, self._settings, self._judge = client, prompts, settings, judge

    async def measure(
        self, record: QuestionRecord, condition: Condition, material: Material, *, model: str
    ) -> PassRate | Unmeasured:
        """Have a question answered under a condition.

        Args:
            record: The question.
            condition: The condition of the material.
            material: The model's material.
            model: Name of the model that answers.

        Raises:
            DataError: When the server can't be used at all.
        """
        is_policy = condition is Condition.ROLLOUTS
        num_samples = self._settings.num_rollouts if is_policy else self._settings.num_samples
        temperature = self._settings.rollout_temperature if is_policy else self._settings.temperature
        answers = await asyncio.gather(
            *(
                self._answer(
                    record,
                    material,
                    model=model,
                    temperature=temperature,
                    sample_index=number,
                    turn=0 if is_policy else number,  # a policy is trained with the options in their order
                )
                for number in range(num_samples)
            )
        )
        return _count(record, condition, model, answers)

    async def measure_reasoning(self, record: QuestionRecord, judge: Judge) -> PassRate | Unmeasured:
        """Have a choice question answered from its recorded reasoning.

        Raises:
            DataError: When the server can't be used at all.
        """
        letters = await asyncio.gather(
            *(judge.supported_letter(record, sample_index=number) for number in range(self._settings.num_judge_samples))
        )
        answers = [
            letter if isinstance(letter, Reply) else _chosen(record, None if letter is None else LETTERS.index(letter))
            for letter in letters
        ]
        return _count(record, Condition.REASONING, judge.model, answers)

    async def _answer(
        self,
        record: QuestionRecord,
        material: Material,
        *,
        model: str,
        temperature: float,
        sample_index: int,
        turn: int,
    ) -> _Answer | Reply:
        """Ask once; returns the server's reply if there is no answer."""
        num_options = len(record.options)
        order = [(place + turn) % num_options for place in range(num_options)]
        options = [record.options[place] for place in order]
        text = self._prompts.fill(
            "answer",
            material=material.text,
            question=format_prompt(record.question, options),
            form="one letter" if options else "a few words",
        )
        request = Request(
            model=model,
            parts=(*material.parts, text),
            max_tokens=self._settings.max_tokens,
            temperature=temperature,
            sample_index=sample_index,
            prompt_digest=self._prompts.digest_of("answer"),
        )
        reply = await self._client.ask(request)
        if reply.outcome not in _SAID_SOMETHING:
            return reply
        parsed = parse_response("" if reply.outcome is Outcome.REFUSED else reply.text, options)
        if options:
            return _chosen(record, None if parsed.letter is None else order[LETTERS.index(parsed.letter)])
        said = parsed.text if parsed.status is ParseStatus.OK and parsed.text else ""
        is_right: bool | Reply = said == record.answer or plain_words(said) == plain_words(record.answer) != ""
        if said and not is_right and self._judge is not None:
            is_right = await self._judge.same_answer(record.question, record.answer, said)
        if isinstance(is_right, Reply):
            return is_right
        return _Answer(place=None, is_right=is_right, is_answer=bool(said))


def _chosen(record: QuestionRecord, place: int | None) -> _Answer:
    is_right = place is not None and LETTERS[place] == record.answer
    return _Answer(place=place, is_right=is_right, is_answer=place is not None)


def _count(
    record: QuestionRecord, condition: Condition, model: str, answers: Sequence[_Answer | Reply]
) -> PassRate | Unmeasured:
    """Summarise the answers to one question."""
    failed = [answer for answer in answers if isinstance(answer, Reply)]
    if len(failed) < len(answers) and all(reply.outcome is Outcome.ONLY_REASONING for reply in failed):
        # A model that sometimes thinks for too long fails; one that always does has too few tokens.
        silent = _Answer(place=None, is_right=False, is_answer=False)
        answers, failed = [silent if isinstance(answer, Reply) else answer for answer in answers], []
    came = [answer for answer in answers if isinstance(answer, _Answer)]
    if failed:
        outcomes = Counter(reply.outcome for reply in failed)
        shown = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        return Unmeasured(condition=condition, detail=f"{condition}: {shown} of {len(answers)}; {failed[0].text[:120]}")
    places = Counter(answer.place for answer in came)
    return PassRate(
        condition=condition,
        model=model,
        num_asked=len(came),
        num_right=sum(answer.is_right for answer in came),
        num_unanswered=sum(not answer.is_answer for answer in came),
        num_chosen=tuple(places[place] for place in range(len(record.options))),
    )
