"""Processes one video: describes its segments, requests questions, rewrites their reasoning, and checks them.

This is the complete second and third stage for that video, and the same wherever it runs. Segments are described one
after the other, and the questions of one skill are requested one after the other, because each request lists the
previous ones; the skills are processed in parallel. The result doesn't depend on timing or on other videos.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from longvideo_reason_data.errors import DataError, first_error
from longvideo_reason_data.filtering.rules import check_question
from longvideo_reason_data.generation.captions import Caption, caption_segments
from longvideo_reason_data.generation.plan import BuildPlan
from longvideo_reason_data.generation.questions import propose_question
from longvideo_reason_data.generation.reasoning import rewrite_reasoning
from longvideo_reason_data.generation.shards import DescribedSegment, DraftedQuestion, Dropped, VideoShard, make_dropped
from longvideo_reason_data.generation.sources import SourceVideo
from longvideo_reason_data.language_model.requests import Asks, Outcome, Reply, Request
from longvideo_reason_data.language_model.resampling import LostQuestion
from longvideo_reason_data.media.subtitles.reading import read_subtitles
from longvideo_reason_data.media.video_file import VideoFile
from longvideo_reason_data.records.drafts import QuestionDraft
from longvideo_reason_data.records.record import Skill

# These fail in the same way when retried; after any other failure, a later run may succeed.
_LASTING = frozenset(
    {
        Outcome.ANSWERED,
        Outcome.TRUNCATED,
        Outcome.ONLY_REASONING,
        Outcome.REFUSED,
        Outcome.INVALID,
        Outcome.DAMAGED_INPUT,
    }
)

_QUESTION_REPEATED = "question_repeated"
_NO_CAPTIONS = "no_captions"


@dataclass(slots=True, kw_only=True)
class _Counted:
    """Passes on requests, counts them, and records whether one failed temporarily."""

    model: Asks
    num_requests: int = 0
    all_lasting: bool = True

    async def ask(self, request: Request) -> Reply:
        reply = await self.model.ask(request)
        self.num_requests += 1
        self.all_lasting = self.all_lasting and reply.outcome in _LASTING
        return reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """Callbacks for progress bars.

    Attributes:
        segment: Called after each segment.
        question: Called after each question.
    """

    segment: Callable[[], None] = lambda: None
    question: Callable[[], None] = lambda: None


async def generate(source: SourceVideo, plan: BuildPlan, model: Asks, advance: Advance | None = None) -> VideoShard:
    """Make the questions of a video.

    Args:
        source: The video.
        plan: The settings of the build.
        model: Whom to ask.
        advance: Callbacks for progress.

    Raises:
        DataError: When the file can no longer be read, or no request at all can be answered.
    """
    advance = advance or Advance()
    counted = _Counted(model=model)
    video = await asyncio.to_thread(VideoFile.open, source.path, decoder=plan.settings.decoder)
    subtitles = await asyncio.to_thread(read_subtitles, video, plan.settings.subtitles)
    captions, lost = await caption_segments(
        counted,
        video,
        source.segments,
        cues=subtitles.cues,
        model=plan.captioner,
        prompts=plan.prompts,
        settings=plan.settings.captions,
        on_segment=advance.segment,
    )
    asking = _Asking(model=counted, source=source, plan=plan, captions=captions, advance=advance)
    try:
        async with asyncio.TaskGroup() as tasks:
            for skill in Skill:
                tasks.create_task(asking.ask_skill(skill))
    except* DataError as group:
        raise first_error(group) from None
    asking.drop_repeated()
    lost_segments = [
        make_dropped("segments", f"{source.digest[:16]}#{item.segment.number}", f"caption_{item.outcome}", item.detail)
        for item in lost
    ]
    return VideoShard(
        config_digest=plan.config_digests["questions"],
        source=source,
        num_questions=plan.settings.questions.quotas.total,
        num_requests=counted.num_requests,
        is_settled=counted.all_lasting,
        segments=tuple(
            DescribedSegment(
                number=caption.segment.number,
                start_seconds=caption.segment.start_seconds,
                end_seconds=caption.segment.end_seconds,
                caption=caption.text,
                speech=caption.speech,
            )
            for caption in captions
        ),
        questions=tuple(
            DraftedQuestion(question_id=question_id, skill=skill, draft=draft)
            for question_id, (skill, draft) in sorted(asking.drafts.items())
        ),
        dropped=(*lost_segments, *sorted(asking.dropped, key=lambda item: item.item)),
    )


@dataclass(slots=True, kw_only=True)
class _Asking:
    """The questions about one video."""

    model: Asks
    source: SourceVideo
    plan: BuildPlan
    captions: Sequence[Caption]
    advance: Advance
    drafts: dict[str, tuple[Skill, QuestionDraft]] = field(default_factory=dict[str, tuple[Skill, QuestionDraft]])
    dropped: list[Dropped] = field(default_factory=list[Dropped])

    async def ask_skill(self, skill: Skill) -> None:
        """Request the questions of one skill, one after the other."""
        earlier: list[str] = []
        for number in range(1, self.plan.settings.questions.quotas.of(skill) + 1):
            question_id = f"{self.source.digest[:16]}-{skill}-{number:03}"
            if not self.captions:
                self._drop(question_id, _NO_CAPTIONS)
            else:
                draft = await self._ask(question_id, skill, number, earlier)
                if isinstance(draft, LostQuestion):
                    self._drop(question_id, draft.reason, draft.detail)
                elif reasons := check_question(draft, self.source.duration_seconds):
                    self._drop(question_id, reasons[0], ", ".join(reasons))
                else:
                    self.drafts[question_id] = (skill, draft)
            self.advance.question()

    async def _ask(
        self, question_id: str, skill: Skill, number: int, earlier: list[str]
    ) -> QuestionDraft | LostQuestion:
        plan = self.plan
        settings = plan.settings.questions
        proposal = await propose_question(
            self.model,
            self.captions,
            duration_seconds=self.source.duration_seconds,
            skill=skill,
            number=number,
            earlier=earlier,
            open_ended=_share_of(question_id) < settings.open_ended_share,
            model=plan.model,
            prompts=plan.prompts,
            settings=settings,
        )
        if isinstance(proposal, LostQuestion):
            return proposal
        earlier.append(proposal.question)
        return await rewrite_reasoning(self.model, proposal, model=plan.model, prompts=plan.prompts, settings=settings)

    def drop_repeated(self) -> None:
        """Keep the first of several questions with the same wording."""
        seen: dict[str, str] = {}
        for question_id, (_, draft) in sorted(self.drafts.items()):
            words = " ".join(draft.question.casefold().split())
            if words in seen:
                del self.drafts[question_id]
                self._drop(question_id, _QUESTION_REPEATED, f"the same words as {seen[words]}")
            else:
                seen[words] = question_id

    def _drop(self, question_id: str, reason: str, detail: str = "") -> None:
        self.dropped.append(make_dropped("questions", question_id, reason, detail))


def _share_of(name: str) -> float:
    """Map every name to a fixed number between 0 and 1."""
    return int.from_bytes(hashlib.sha256(f"open:{name}".encode()).digest()[:8]) / 2**64
