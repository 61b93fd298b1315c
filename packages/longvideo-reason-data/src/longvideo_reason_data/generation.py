"""The part of a build that waits for a language model: all videos are described and asked about side by side."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from rich.progress import Progress

from longvideo_reason_data.accounts import Accounts
from longvideo_reason_data.build_settings import BuildSettings
from longvideo_reason_data.captions import Caption, caption_segments
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.filters import check_question
from longvideo_reason_data.language_model import LanguageModel
from longvideo_reason_data.ledger import Ledger
from longvideo_reason_data.prompt_files import Prompts
from longvideo_reason_data.questions import LostQuestion, QuestionDraft, draft_question
from longvideo_reason_data.records import Skill, Split
from longvideo_reason_data.response_cache import ResponseCache
from longvideo_reason_data.segments import Segment
from longvideo_reason_data.videos import VideoFile


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceVideo:
    """A video of the build."""

    video: VideoFile
    digest: str
    dataset_path: str
    split: Split
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftedQuestion:
    """A question that passed the filters."""

    source: SourceVideo
    skill: Skill
    question_id: str
    draft: QuestionDraft


class QuestionWriter:
    """The part of a build that waits for a language model."""

    def __init__(
        self,
        cache: ResponseCache,
        ledger: Ledger,
        prompts: Prompts,
        settings: BuildSettings,
        accounts: Accounts,
        progress: Progress,
        *,
        model: str,
        captioner: str,
    ) -> None:
        self._cache, self._ledger = cache, ledger
        self._prompts, self._settings = prompts, settings
        self._accounts, self._progress = accounts, progress
        self._model, self._captioner = model, captioner
        self._drafted: list[DraftedQuestion] = []

    async def run(self, sources: Sequence[SourceVideo], base_url: str) -> list[DraftedQuestion]:
        """Describe all videos and ask for their questions."""
        settings = self._settings
        num_questions = len(Skill) * settings.questions.questions_per_skill
        self._segments_bar = self._progress.add_task("segments", total=sum(len(source.segments) for source in sources))
        self._questions_bar = self._progress.add_task("questions", total=num_questions * len(sources))
        client = LanguageModel(
            base_url,
            self._cache,
            ledger=self._ledger,
            num_parallel=settings.num_parallel,
            num_attempts=settings.num_attempts,
            timeout_seconds=settings.timeout_seconds,
            first_wait_seconds=settings.first_wait_seconds,
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
            max_cost=settings.exact_max_cost,
            picture_tokens=settings.picture_tokens,
        )
        # As many videos at a time as there may be requests: a video waits for one caption after the other.
        free = asyncio.Semaphore(settings.num_parallel)
        async with client:
            try:
                async with asyncio.TaskGroup() as tasks:
                    for source in sources:
                        tasks.create_task(self._video(client, source, free))
            except* DataError as group:
                raise _first_error(group) from None
        return sorted(self._drafted, key=lambda item: item.question_id)

    async def _video(self, client: LanguageModel, source: SourceVideo, free: asyncio.Semaphore) -> None:
        async with free:
            captions, lost = await caption_segments(
                client,
                source.video,
                source.segments,
                model=self._captioner,
                prompts=self._prompts,
                settings=self._settings.captions,
                on_segment=lambda: self._progress.advance(self._segments_bar),
            )
            for item in lost:
                name = f"{source.dataset_path}#{item.segment.number}"
                self._accounts.drop("segments", name, f"caption_{item.outcome}", item.detail)
            async with asyncio.TaskGroup() as tasks:
                for skill in Skill:
                    for number in range(1, self._settings.questions.questions_per_skill + 1):
                        tasks.create_task(self._question(client, source, captions, skill, number))

    async def _question(
        self, client: LanguageModel, source: SourceVideo, captions: Sequence[Caption], skill: Skill, number: int
    ) -> None:
        question_id = f"{source.digest[:16]}-{skill}-{number}"
        try:
            if not captions:
                self._accounts.drop("questions", question_id, "no_captions")
                return
            draft = await draft_question(
                client,
                captions,
                duration_seconds=source.video.duration_seconds,
                skill=skill,
                number=number,
                model=self._model,
                prompts=self._prompts,
                settings=self._settings.questions,
            )
            if isinstance(draft, LostQuestion):
                self._accounts.drop("questions", question_id, f"question_{draft.outcome}", draft.detail)
            elif reasons := check_question(draft, source.video.duration_seconds):
                self._accounts.drop("questions", question_id, reasons[0], ", ".join(reasons))
            else:
                drafted = DraftedQuestion(source=source, skill=skill, question_id=question_id, draft=draft)
                self._drafted.append(drafted)
        finally:
            self._accounts.num_input["questions"] += 1
            self._progress.advance(self._questions_bar)


def _first_error(group: BaseExceptionGroup[DataError]) -> DataError:
    first = group.exceptions[0]
    return _first_error(first) if isinstance(first, BaseExceptionGroup) else first
