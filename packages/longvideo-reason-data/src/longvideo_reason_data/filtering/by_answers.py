"""Filters questions by having models answer them.

Free checks come first (`longvideo_reason_data.filtering.by_words`). Then each question is answered under one condition
after the other, until its answers cause it to be dropped: most unsuitable questions cost eight short requests without
frames. Conditions that can't drop a question under the thresholds are asked only if they are named, and last. Kept
questions are answered under all that are asked, and their records have the results.

Of a dropped question it is known why it was dropped first; what it would have got under the conditions behind is not,
so it may have other faults that its reason doesn't name. The cheap conditions come first: without frames, with one, the
reasoning and the descriptions alone, then many frames. The evidence isn't asked before the full video although it has
fewer frames: neither drops a question alone, as the better of the two counts, and ambiguity is that of both together.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from longvideo_reason_data.errors import DataError, UsageError, first_error
from longvideo_reason_data.filtering.answering import Answerer, Unmeasured
from longvideo_reason_data.filtering.by_words import Filtered, MeasuredQuestion, sort_questions
from longvideo_reason_data.filtering.conditions import material_for
from longvideo_reason_data.filtering.decontamination import fingerprint_records
from longvideo_reason_data.filtering.evaluation_sets import EvaluationSet
from longvideo_reason_data.filtering.judging import Judge
from longvideo_reason_data.filtering.rules import decide
from longvideo_reason_data.filtering.settings import FilterSettings
from longvideo_reason_data.language_model.requests import Asks
from longvideo_reason_data.media.decoders.base import DecoderName
from longvideo_reason_data.prompts.pictures import VideoPictures
from longvideo_reason_data.prompts.templates import Prompts
from longvideo_reason_data.records.drop_reasons import Reason, Verdict
from longvideo_reason_data.records.medium import open_medium
from longvideo_reason_data.records.pass_rates import Condition, PassRate
from longvideo_reason_data.records.record import QuestionRecord, Split, list_media

_Result = TypeVar("_Result")

# Conditions that are measured together before the question is judged again; cheap ones first.
_DECIDING = (
    (Condition.BLIND,),
    (Condition.SINGLE_FRAME,),
    (Condition.REASONING,),
    (Condition.CAPTIONS,),
    (Condition.FULL, Condition.EVIDENCE),
    (Condition.ROLLOUTS,),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterModels:
    """Who is asked.

    Attributes:
        answerer: Answers under every condition except the last two.
        judge: Compares open answers and answers from the reasoning; must differ from the answerer.
        policy: Its rollouts measure the difficulty of questions.

    Raises:
        UsageError: When the judge is the answerer.
    """

    answerer: str
    judge: str | None = None
    policy: str | None = None

    def __post_init__(self) -> None:
        if self.judge is not None and self.judge == self.answerer:
            raise UsageError(f"the judge is {self.judge!r}, the model itself; expected another one; change --judge")


@dataclass(kw_only=True)
class QuestionFilter:
    """Filters questions with the help of models.

    Attributes:
        client: Whom to ask.
        models: Who is asked.
        prompts: Those that `prompt_files.ANSWERING_PROMPTS` names.
        settings: Everything else.
        captions: Descriptions and subtitles of each video, line by line, by its digest; without any, that condition
            isn't measured.
        on_question: Called after each question, for a progress bar.
        decoder: The decoding library.
        num_videos_at_once: Videos (or sets of media shown together) whose frames are in memory at a time.
    """

    client: Asks
    models: FilterModels
    prompts: Prompts
    settings: FilterSettings
    captions: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    on_question: Callable[[], None] = field(default=lambda: None)
    decoder: DecoderName = DecoderName.PYAV
    num_videos_at_once: int = 16

    def __post_init__(self) -> None:
        self._judge = (
            Judge(self.client, self.models.judge, self.prompts, self.settings)
            if self.models.judge is not None
            else None
        )
        self._answerer = Answerer(self.client, self.prompts, self.settings, self._judge)

    async def run(
        self, folder: Path, records: Sequence[QuestionRecord], evaluation_sets: Sequence[EvaluationSet] = ()
    ) -> Filtered:
        """Filter the questions of a dataset.

        Args:
            folder: The dataset's folder.
            records: The questions; existing pass rates are measured again, using answers in the journal.
            evaluation_sets: Evaluation sets that must not be among them.

        Raises:
            DataError: When the server can't be used at all, or the judge can't be relied on.
        """
        await self.check_judge()
        fingerprints = await asyncio.to_thread(fingerprint_records, folder, records, decoder=self.decoder)
        known = await asyncio.to_thread(sort_questions, records, fingerprints, evaluation_sets)
        for _ in known.dropped:
            self.on_question()
        free = asyncio.Semaphore(self.num_videos_at_once)

        async def one_video(group: Sequence[QuestionRecord]) -> list[MeasuredQuestion]:
            async with free:
                return await self.measure_video(folder, group)

        measured = await _run_all([one_video(group) for group in known.remaining])
        return known.join(chain.from_iterable(measured))

    async def check_judge(self) -> None:
        """Test the judge, if there is one, on answers with known verdicts.

        Raises:
            DataError: When it can't be relied on.
        """
        if self._judge is not None:
            await self._judge.check()

    async def measure_video(self, folder: Path, records: Sequence[QuestionRecord]) -> list[MeasuredQuestion]:
        """Have questions with the same media answered.

        Args:
            folder: The dataset's folder.
            records: The questions; all have the same media in the same order.

        Returns:
            Each question with its pass rates, and why it is dropped, if it is.

        Raises:
            DataError: When the server can't be used at all.
        """
        shown: dict[str, VideoPictures] = {}
        try:
            for digest, medium in list_media(records[:1]).items():
                file = await asyncio.to_thread(open_medium, folder, medium, decoder=self.decoder)
                shown[digest] = VideoPictures(
                    file, digest, max_side=self.settings.max_side, jpeg_quality=self.settings.jpeg_quality
                )
        except UsageError:
            raise
        except DataError as error:
            for _ in records:
                self.on_question()
            return [(record, Verdict(reason=Reason.VIDEO_UNREADABLE, detail=str(error))) for record in records]
        pictures = [shown[digest] for digest in records[0].digests]
        return await _run_all([self._measure(record, pictures) for record in records])

    async def _measure(self, record: QuestionRecord, pictures: Sequence[VideoPictures]) -> MeasuredQuestion:
        """Have one question answered until it is dropped or all conditions are measured."""
        rates: list[PassRate] = []
        verdict: Verdict | None = None
        if not record.options and self._judge is None:
            verdict = Verdict(reason=Reason.UNMEASURED, detail="an open question needs a judge; set --judge")
        for phase in self._phases():
            if verdict is not None:
                break
            outcomes = await asyncio.gather(
                *(
                    self._measure_under(condition, record, pictures)
                    for condition in phase
                    if self._asks(condition, record)
                )
            )
            rates += [outcome for outcome in outcomes if isinstance(outcome, PassRate)]
            failed = [outcome.detail for outcome in outcomes if isinstance(outcome, Unmeasured)]
            verdict = decide(record, rates, self.settings.thresholds)
            if verdict is None and failed:
                verdict = Verdict(reason=Reason.UNMEASURED, detail="; ".join(failed))
        self.on_question()
        return record.model_copy(update={"pass_rates": tuple(rates)}), verdict

    def _phases(self) -> list[tuple[Condition, ...]]:
        """The conditions in the order in which they are asked; those that decide nothing come last, all together."""
        only_measured = self.settings.asked_conditions - self.settings.deciding_conditions
        deciding = [tuple(one for one in phase if one not in only_measured) for phase in _DECIDING]
        return [*deciding, tuple(one for one in Condition if one in only_measured)]

    def _asks(self, condition: Condition, record: QuestionRecord) -> bool:
        if condition is Condition.REASONING:
            has_reasoning = bool(record.reasoning) and bool(record.options)
            return self._judge is not None and has_reasoning and self.settings.asks_reasoning
        if condition is Condition.ROLLOUTS:
            return self.models.policy is not None and record.split is Split.TRAIN_RL
        return condition in self.settings.asked_conditions

    async def _measure_under(
        self, condition: Condition, record: QuestionRecord, pictures: Sequence[VideoPictures]
    ) -> PassRate | Unmeasured | None:
        """Measure one condition; None if it doesn't apply."""
        if condition is Condition.REASONING and self._judge is not None:
            return await self._answerer.measure_reasoning(record, self._judge)
        lines = [self.captions.get(digest, ()) for digest in record.digests]
        material = material_for(condition, record, pictures, lines, self.settings)
        if material is None:
            return None
        model = self.models.policy if condition is Condition.ROLLOUTS else self.models.answerer
        return await self._answerer.measure(record, condition, material, model=model or self.models.answerer)


async def _run_all(works: Sequence[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """Run in parallel; the first failure ends all of them."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work) for work in works]
    except* DataError as group:
        raise first_error(group) from None
    return [task.result() for task in running]
