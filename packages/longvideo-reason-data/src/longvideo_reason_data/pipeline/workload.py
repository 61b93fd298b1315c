"""What a build will ask, call by call, before the first request.

The number of calls is exact as long as no question is dropped on the way and no answer has to be asked for again; so it
is the most of an ordinary build, and filters that drop much ask less. Tokens are estimated: texts from the prompts
themselves at four characters a token, pictures as Qwen2.5-VL counts them (a token for 28 x 28 pixels), and what models
write from what they usually write.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean

from longvideo_reason_data.filtering.by_answers import FilterModels
from longvideo_reason_data.filtering.settings import FilterSettings
from longvideo_reason_data.generation.plan import BuildPlan
from longvideo_reason_data.generation.settings import BuildSettings
from longvideo_reason_data.generation.sources import SourceVideo
from longvideo_reason_data.language_model.accounts.prices import TokenPrice
from longvideo_reason_data.media.subtitles.reading import read_subtitles
from longvideo_reason_data.media.video_file import VideoFile
from longvideo_reason_data.pipeline.estimate import PATCH_PIXELS, BuildEstimate, EstimatedWork
from longvideo_reason_data.prompts.templates import Prompts
from longvideo_reason_data.records.pass_rates import Condition
from longvideo_reason_data.records.record import Skill

CHARACTERS_PER_TOKEN = 4
TIME_TOKENS = 6
"""What stands before a frame or a description to say when it is."""
CAPTION_TOKENS, PROPOSAL_TOKENS, REWRITE_TOKENS, ANSWER_TOKENS = 90, 300, 120, 100
QUESTION_TOKENS = 70
"""A question with its options."""
JUDGE_TRIALS = 8
_MOST_OPENED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Averages:
    """What the videos are like on average."""

    picture_tokens: dict[int, float]
    """Tokens of a frame by its longest side in pixels."""
    frames_per_second: float
    speech_tokens_per_second: float


def estimate_build(
    sources: Sequence[SourceVideo],
    plan: BuildPlan,
    *,
    models: FilterModels,
    filters: FilterSettings | None,
    answering: Prompts,
    prices: Mapping[str, TokenPrice],
) -> BuildEstimate:
    """Estimate a build.

    Args:
        sources: The videos.
        plan: The settings of the build.
        models: Who is asked by the filters.
        filters: Their settings; None if nothing is filtered.
        answering: Their prompts.
        prices: Price of each model; empty if not known.

    Raises:
        DataError: When a video can't be opened any more.
    """
    sizes = _measure(sources, plan.settings, filters)
    works = [*_generating(sources, plan, sizes)]
    if filters is not None:
        works += _filtering(sources, plan, sizes, models, filters, answering)
    return BuildEstimate(
        num_videos=len(sources),
        hours=sum(source.duration_seconds for source in sources) / 3600,
        num_segments=sum(source.num_segments for source in sources),
        num_questions=plan.settings.questions.quotas.total * len(sources),
        works=tuple(works),
        settings=plan.settings,
        prices=prices,
    )


def _measure(sources: Sequence[SourceVideo], settings: BuildSettings, filters: FilterSettings | None) -> _Averages:
    some = sources[:: max(1, len(sources) // _MOST_OPENED)][:_MOST_OPENED]
    opened = [VideoFile.open(source.path, decoder=settings.decoder) for source in some]
    speech = [sum(len(cue.text) for cue in read_subtitles(video, settings.subtitles).cues) for video in opened]
    seconds = sum(video.duration_seconds for video in opened)
    sides = {settings.captions.max_side} | ({filters.max_side} if filters else set())
    return _Averages(
        picture_tokens={
            side: fmean(_picture_tokens(video.width, video.height, side) for video in opened) for side in sides
        },
        frames_per_second=sum(video.frame_count for video in opened) / seconds,
        speech_tokens_per_second=sum(speech) / CHARACTERS_PER_TOKEN / seconds,
    )


def _picture_tokens(width: int, height: int, max_side: int) -> int:
    scale = min(1.0, max_side / max(width, height))
    return max(1, ceil(width * scale / PATCH_PIXELS)) * max(1, ceil(height * scale / PATCH_PIXELS))


def _text_tokens(prompts: Prompts, *names: str) -> float:
    return sum(len(prompts.texts[name]) for name in names) / CHARACTERS_PER_TOKEN


def _captions_tokens(source: SourceVideo, settings: BuildSettings) -> float:
    """What the descriptions of a video take in a prompt."""
    written = min(CAPTION_TOKENS, settings.captions.max_tokens)
    return source.num_segments * (written + 2 * TIME_TOKENS)


def _generating(sources: Sequence[SourceVideo], plan: BuildPlan, sizes: _Averages) -> Iterator[EstimatedWork]:
    settings, prompts = plan.settings, plan.prompts
    captions, questions = settings.captions, settings.questions
    written = min(CAPTION_TOKENS, captions.max_tokens)
    picture = sizes.picture_tokens[captions.max_side]
    num_segments = sum(source.num_segments for source in sources)
    seconds = sum(source.duration_seconds for source in sources)
    shown = min(captions.num_frames * num_segments, seconds * sizes.frames_per_second)
    yield EstimatedWork(
        name="descriptions",
        model=plan.captioner,
        calls=num_segments,
        prompt_tokens=num_segments * (_text_tokens(prompts, "caption") + written)
        + shown * picture
        + seconds * sizes.speech_tokens_per_second,
        completion_tokens=num_segments * written,
        num_parallel=max(1, min(settings.num_parallel, len(sources))),
    )
    read = 0.0
    for skill in Skill:
        quota = questions.quotas.of(skill)
        fixed = _text_tokens(prompts, "question", skill.value, "choice")
        earlier = QUESTION_TOKENS / 2 * quota * (quota - 1) / 2
        read += sum(quota * (fixed + _captions_tokens(source, settings)) + earlier for source in sources)
    num_questions = questions.quotas.total * len(sources)
    read += num_questions * (_text_tokens(prompts, "rewrite") + QUESTION_TOKENS + REWRITE_TOKENS)
    yield EstimatedWork(
        name="questions",
        model=plan.model,
        calls=2 * num_questions,
        prompt_tokens=read,
        completion_tokens=num_questions
        * (min(PROPOSAL_TOKENS, questions.max_tokens) + min(REWRITE_TOKENS, questions.max_tokens)),
        num_parallel=settings.num_parallel,
    )


def _filtering(
    sources: Sequence[SourceVideo],
    plan: BuildPlan,
    sizes: _Averages,
    models: FilterModels,
    filters: FilterSettings,
    answering: Prompts,
) -> Iterator[EstimatedWork]:
    settings, quota = plan.settings, plan.settings.questions.quotas.total
    asked = _text_tokens(answering, "answer") + QUESTION_TOKENS
    frame = sizes.picture_tokens[filters.max_side] + TIME_TOKENS
    calls, read = 0, 0.0
    full = 0.0
    for source in sources:
        num_frames = max(1, round(source.duration_seconds * sizes.frames_per_second))
        full = min(filters.num_full_frames, num_frames) * frame
        material = {
            Condition.SINGLE_FRAME: frame,
            Condition.FULL: full,
            Condition.FEW_FRAMES: min(filters.num_few_frames, num_frames) * frame,
            Condition.EVIDENCE: min(filters.num_evidence_frames, num_frames) * frame,
            Condition.SCRAMBLED: min(filters.num_evidence_frames, num_frames) * frame,
            Condition.CAPTIONS: _captions_tokens(source, settings)
            + source.duration_seconds * sizes.speech_tokens_per_second,
        }
        for condition in filters.asked_conditions:
            calls += quota * filters.num_samples
            read += quota * filters.num_samples * (asked + material.get(condition, 0.0))
    yield EstimatedWork(
        name="filter",
        model=models.answerer,
        calls=calls,
        prompt_tokens=read,
        completion_tokens=calls * min(ANSWER_TOKENS, filters.max_tokens),
        num_parallel=settings.num_parallel,
    )
    num_open = calls * settings.questions.open_ended_share
    if models.judge is not None:
        choices = quota * len(sources) * (1 - settings.questions.open_ended_share)
        reasoned = choices * filters.num_judge_samples * filters.asks_reasoning
        compared = num_open + JUDGE_TRIALS
        yield EstimatedWork(
            name="judge",
            model=models.judge,
            calls=round(reasoned + compared),
            prompt_tokens=reasoned * (_text_tokens(answering, "support") + QUESTION_TOKENS + REWRITE_TOKENS)
            + compared * (_text_tokens(answering, "same_answer") + QUESTION_TOKENS / 2),
            completion_tokens=reasoned * min(ANSWER_TOKENS, filters.max_tokens) + compared * TIME_TOKENS,
            num_parallel=settings.num_parallel,
        )
    if models.policy is not None:
        rollouts = quota * len(sources) * filters.num_rollouts * settings.splits.train_rl
        yield EstimatedWork(
            name="rollouts",
            model=models.policy,
            calls=round(rollouts),
            prompt_tokens=rollouts * (asked + full),
            completion_tokens=rollouts * min(ANSWER_TOKENS, filters.max_tokens),
            num_parallel=settings.num_parallel,
        )
