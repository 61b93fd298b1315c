"""Filtering questions: by their words, against each other and benchmarks, and by having them really answered.

What costs nothing comes first. Then each question is answered under one condition after the other, and is asked no more
as soon as its answers drop it: most unfit questions cost eight short requests without a picture. Questions that stay
are answered under all conditions, and their record says how.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from longvideo_reason_data.answering import Answerer, Unmeasured
from longvideo_reason_data.benchmarks import Benchmark
from longvideo_reason_data.conditions import material_for
from longvideo_reason_data.dataset_checks import fingerprint_records
from longvideo_reason_data.decoders.base import DecoderName
from longvideo_reason_data.decontamination import DecontaminationReport, find_contamination
from longvideo_reason_data.drop_reasons import Reason, Verdict
from longvideo_reason_data.errors import DataError, UsageError, first_error
from longvideo_reason_data.filter_settings import FilterSettings
from longvideo_reason_data.filters import check_question, decide
from longvideo_reason_data.judging import Judge
from longvideo_reason_data.model_requests import Asks
from longvideo_reason_data.near_duplicates import find_repeated_questions
from longvideo_reason_data.pass_rates import Condition, PassRate
from longvideo_reason_data.prompt_files import Prompts
from longvideo_reason_data.records import QuestionRecord, Split, resolve_video
from longvideo_reason_data.video_fingerprint import Fingerprint, find_same_footage
from longvideo_reason_data.video_pictures import VideoPictures
from longvideo_reason_data.videos import VideoFile

_Result = TypeVar("_Result")

# Conditions that are measured together before the question is judged again; cheap and decisive ones first.
_PHASES = (
    (Condition.BLIND,),
    (Condition.SINGLE_FRAME,),
    (Condition.FULL, Condition.EVIDENCE),
    (Condition.REASONING,),
    (Condition.ROLLOUTS,),
    (Condition.CAPTIONS, Condition.FEW_FRAMES, Condition.SCRAMBLED),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterModels:
    """Who is asked.

    Attributes:
        answerer: Answers under every condition but the last two.
        judge: Compares open answers and answers from the reasoning; another model than the answerer.
        policy: Whose rollouts tell how difficult a question is.

    Raises:
        UsageError: When the judge is the answerer.
    """

    answerer: str
    judge: str | None = None
    policy: str | None = None

    def __post_init__(self) -> None:
        if self.judge is not None and self.judge == self.answerer:
            raise UsageError(f"the judge is {self.judge!r} like the model itself, expected another one; change --judge")


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedQuestion:
    """A question that isn't kept, with the pass rates measured until then, and why."""

    record: QuestionRecord
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """What came of filtering; kept and dropped together are all questions.

    Attributes:
        kept: Questions with their pass rates, in order of their ids.
        dropped: The others, in order of their ids.
        decontamination: What was found of the benchmarks.
    """

    kept: tuple[QuestionRecord, ...]
    dropped: tuple[DroppedQuestion, ...]
    decontamination: DecontaminationReport


def filter_by_words(
    records: Sequence[QuestionRecord], fingerprints: Mapping[str, Fingerprint], benchmarks: Sequence[Benchmark] = ()
) -> tuple[dict[str, Verdict], DecontaminationReport]:
    """Find the questions that are unfit without asking anybody.

    Args:
        records: The questions.
        fingerprints: Of their videos, by digest.
        benchmarks: What must not be among them.

    Returns:
        The verdict on each unfit question by its id, and what was found of the benchmarks.
    """
    verdicts: dict[str, Verdict] = {}
    report = find_contamination(records, fingerprints, benchmarks)
    for question_id, found in report.by_question().items():
        detail = f"{found.benchmark}, row {found.row}, by its {found.net}, {found.likeness:.0%} alike"
        verdicts[question_id] = Verdict(reason=Reason.IN_BENCHMARK, detail=detail)
    for record in records:
        reasons = check_question(record, record.video_duration_seconds)
        if reasons and record.question_id not in verdicts:
            verdicts[record.question_id] = Verdict(reason=reasons[0], detail=", ".join(reasons))
    # Only among the fit ones, or a question would be dropped for the sake of one that is dropped itself.
    fit = [record for record in records if record.question_id not in verdicts]
    for question_id, (kept, alike) in find_repeated_questions(fit, find_same_footage(fingerprints)).items():
        verdicts[question_id] = Verdict(
            reason=Reason.NEAR_DUPLICATE, detail=f"asks what {kept} asks, {alike:.0%} alike"
        )
    return verdicts, report


@dataclass(kw_only=True)
class QuestionFilter:
    """Filters questions with the help of models.

    Attributes:
        client: Whom to ask.
        models: Who is asked.
        prompts: Those that `prompt_files.ANSWERING_PROMPTS` names.
        settings: Everything else.
        captions: What is seen and said in each video, line by line, by its digest; where there are no lines, that
            condition isn't measured.
        on_question: Called after each question, for a progress bar.
        decoder: Which library makes the pictures.
        num_videos_at_once: Videos whose pictures are in memory at a time.
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
        self, folder: Path, records: Sequence[QuestionRecord], benchmarks: Sequence[Benchmark] = ()
    ) -> Filtered:
        """Filter the questions of a dataset.

        Args:
            folder: The dataset, in which the videos are.
            records: The questions; pass rates that they have are measured anew, from the journal where it knows them.
            benchmarks: What must not be among them.

        Raises:
            DataError: When the server is of no use at all, or the judge can't be relied on.
        """
        if self._judge is not None:
            await self._judge.check()
        fingerprints = await asyncio.to_thread(fingerprint_records, folder, records, decoder=self.decoder)
        verdicts, report = await asyncio.to_thread(filter_by_words, records, fingerprints, benchmarks)
        kept: list[QuestionRecord] = []
        dropped = [
            DroppedQuestion(record=record, verdict=verdicts[record.question_id])
            for record in records
            if record.question_id in verdicts
        ]
        for _ in dropped:
            self.on_question()
        by_video: dict[str, list[QuestionRecord]] = {}
        for record in records:
            if record.question_id not in verdicts:
                by_video.setdefault(record.video_digest, []).append(record)
        free = asyncio.Semaphore(self.num_videos_at_once)

        async def one_video(group: Sequence[QuestionRecord]) -> None:
            async with free:
                for measured, verdict in await self.measure_video(folder, group):
                    if verdict is None:
                        kept.append(measured)
                    else:
                        dropped.append(DroppedQuestion(record=measured, verdict=verdict))

        await _run_all([one_video(group) for group in by_video.values()])
        return Filtered(
            kept=tuple(sorted(kept, key=lambda record: record.question_id)),
            dropped=tuple(sorted(dropped, key=lambda item: item.record.question_id)),
            decontamination=report,
        )

    async def measure_video(
        self, folder: Path, records: Sequence[QuestionRecord]
    ) -> list[tuple[QuestionRecord, Verdict | None]]:
        """Have the questions about one video answered.

        Args:
            folder: The dataset, in which the video is.
            records: The questions.

        Returns:
            Each question with its pass rates, and why it is dropped, if it is.

        Raises:
            DataError: When the server is of no use at all.
        """
        try:
            video = await asyncio.to_thread(VideoFile.open, resolve_video(folder, records[0]), decoder=self.decoder)
        except UsageError:
            raise
        except DataError as error:
            for _ in records:
                self.on_question()
            return [(record, Verdict(reason=Reason.VIDEO_UNREADABLE, detail=str(error))) for record in records]
        pictures = VideoPictures(
            video,
            records[0].video_digest,
            max_side=self.settings.max_side,
            jpeg_quality=self.settings.jpeg_quality,
        )
        return await _run_all([self._measure(record, pictures) for record in records])

    async def _measure(self, record: QuestionRecord, pictures: VideoPictures) -> tuple[QuestionRecord, Verdict | None]:
        """Have one question answered until it is dropped or all conditions are measured."""
        rates: list[PassRate] = []
        verdict: Verdict | None = None
        if not record.options and self._judge is None:
            verdict = Verdict(reason=Reason.UNMEASURED, detail="an open question needs a judge; set --judge")
        for phase in _PHASES:
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

    def _asks(self, condition: Condition, record: QuestionRecord) -> bool:
        if condition is Condition.REASONING:
            return self._judge is not None and bool(record.reasoning) and bool(record.options)
        if condition is Condition.ROLLOUTS:
            return self.models.policy is not None and record.split is Split.TRAIN_RL
        return condition in self.settings.conditions

    async def _measure_under(
        self, condition: Condition, record: QuestionRecord, pictures: VideoPictures
    ) -> PassRate | Unmeasured | None:
        """Measure one condition; None where it has nothing to show."""
        if condition is Condition.REASONING and self._judge is not None:
            return await self._answerer.measure_reasoning(record, self._judge)
        lines = self.captions.get(record.video_digest, ())
        material = material_for(condition, record, pictures, lines, self.settings)
        if material is None:
            return None
        model = self.models.policy if condition is Condition.ROLLOUTS else self.models.answerer
        return await self._answerer.measure(record, condition, material, model=model or self.models.answerer)


async def _run_all(works: Sequence[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """Run side by side; the first failure ends all of them."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work) for work in works]
    except* DataError as group:
        raise first_error(group) from None
    return [task.result() for task in running]
