"""Asks the questions of a benchmark, batch by batch, and keeps every response before it is used.

A batch is decided by the questions alone, and its responses under one protocol are one line of the journal. So a run
that was killed continues after its last line and ends with the same responses.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from pydantic import TypeAdapter, ValidationError

from longrl_files.folders import ForeignFolder
from longrl_files.messages import visible
from longrl_trainer.config.benchmarks import BenchmarkConfig
from longrl_trainer.config.sections import FrameSettings
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.evaluation.protocols import AskingProtocol, count_rotations, spoken_at, write_text
from longrl_trainer.evaluation.scoring.answers import BenchmarkResponse
from longrl_trainer.evaluation.shown_videos import ShownFrames, ShownVideo, show_videos
from longrl_trainer.questions.candidates import control_tokens_of
from longrl_trainer.questions.length import LengthLimit
from longrl_trainer.questions.question import DroppedMedium, DropReason
from longrl_trainer.runs.journal import JsonLines
from longrl_trainer.seeds import derive_seed
from longrl_trainer.training.ranks import Ranks
from longvideo_reason_data.benchmarks.questions import Benchmark, BenchmarkQuestion
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.subtitles.reading import Subtitles, read_subtitle_file
from mrsp_engine.families.base import Policy
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout.base import Refusal, Rollout, RolloutEngine, SamplingSettings

BATCH_QUESTIONS = 64
MISSING_VIDEO = "missing_video"
VIDEO_PROBLEMS = frozenset({MISSING_VIDEO, str(DropReason.UNREADABLE_VIDEO), str(DropReason.UNFIT_MEDIUM)})
"""Reasons why no question about a video can be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionBatch:
    """Neighbouring questions, and their place among the batches."""

    number: int
    questions: tuple[BenchmarkQuestion, ...]


def divide_questions(questions: Sequence[BenchmarkQuestion]) -> list[QuestionBatch]:
    """Batches of questions, those about one video together."""
    by_video: dict[str, list[BenchmarkQuestion]] = {}
    for question in questions:
        by_video.setdefault(question.video_file or question.video, []).append(question)
    ordered = [question for of_video in by_video.values() for question in of_video]
    return [
        QuestionBatch(number=start // BATCH_QUESTIONS, questions=tuple(ordered[start : start + BATCH_QUESTIONS]))
        for start in range(0, len(ordered), BATCH_QUESTIONS)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedBatch:
    """A line of the journal: a batch under one protocol.

    Attributes:
        step: Number of the batch.
        protocol: Name of the protocol.
        prompts_digest: SHA-256 over the texts of all prompts.
        frames: What was shown of each video.
        subtitle_problems: What couldn't be read of subtitles.
        responses: Of each question and rotation one, in order.
    """

    step: int
    protocol: str
    prompts_digest: str
    frames: list[ShownFrames]
    subtitle_problems: list[str]
    responses: list[BenchmarkResponse]


def read_batches(journal: JsonLines) -> dict[tuple[str, int], AskedBatch]:
    """Read what was asked so far, by protocol and number.

    Raises:
        TrainerUsageError: The journal was written by something else.
    """
    try:
        batches = TypeAdapter(list[AskedBatch]).validate_python(journal.read())
    except ValidationError as error:
        place = visible(".".join(map(str, error.errors()[0]["loc"])), 60)
        raise TrainerUsageError(
            f"{journal.path} was written by something else ({place}); choose another `output`, or remove the folder"
        ) from error
    return {(batch.protocol, batch.step): batch for batch in batches}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One prompt that is to be sampled, or why there is none."""

    question: BenchmarkQuestion
    rotation: int
    text: str
    prompt: Prompt | None = None
    problem: str = ""
    detail: str = ""


class BenchmarkAsker:
    """Asks with one model.

    Args:
        config: The settings.
        benchmark: Where videos and subtitles are.
        policy: Builds the prompts and encodes the videos.
        sampler: Generates the responses.
        journal: Gets them.
        ranks: Processes that share the work; all call the methods together.
    """

    def __init__(
        self,
        config: BenchmarkConfig,
        benchmark: Benchmark,
        policy: Policy,
        sampler: RolloutEngine,
        journal: JsonLines,
        ranks: Ranks,
    ) -> None:
        self._config, self._policy, self._sampler = config, policy, sampler
        self._journal, self._ranks = journal, ranks
        self._folder = ForeignFolder(benchmark.folder, error=DataError)
        self._limit = LengthLimit.of(policy, config.sampler)
        self._control_tokens = control_tokens_of(policy)

    def ask(self, batch: QuestionBatch, protocols: Sequence[AskingProtocol], num_frames: int) -> None:
        """Ask a batch under protocols that show the same number of frames, and write the responses."""
        videos: Mapping[str, ShownVideo | DroppedMedium] = {}
        if num_frames:
            config = self._config
            settings = FrameSettings(
                num_frames=num_frames, frame_pixels=config.frame_pixels, video_tokens=config.video_tokens
            )
            names = list(dict.fromkeys(item.video_file for item in batch.questions if item.video_file is not None))
            videos = show_videos(self._folder, names, settings, self._policy, self._ranks)
        for protocol in protocols:
            self._ask(batch, protocol, videos)

    def _ask(
        self, batch: QuestionBatch, protocol: AskingProtocol, videos: Mapping[str, ShownVideo | DroppedMedium]
    ) -> None:
        config, problems = self._config, list[str]()
        asked = [
            self._prepare(question, rotation, protocol, videos, problems)
            for question in batch.questions
            for rotation in range(count_rotations(question, config))
        ]
        sampling = SamplingSettings(
            temperature=config.temperature,
            max_tokens=self._response_tokens(protocol),
            seed=derive_seed(config.seed, "benchmark", protocol.name, batch.number),
        )
        prompts = [item.prompt for item in asked if item.prompt is not None]
        outcomes = iter(self._sampler.generate(prompts, sampling) if prompts else [])
        responses = [_respond(item, protocol, None if item.prompt is None else next(outcomes)) for item in asked]
        texts = "\0".join(item.text for item in asked)
        line = AskedBatch(
            step=batch.number,
            protocol=protocol.name,
            prompts_digest=hashlib.sha256(texts.encode(errors="replace")).hexdigest(),
            frames=[video.frames for video in videos.values() if isinstance(video, ShownVideo)],
            subtitle_problems=sorted(set(problems)),
            responses=responses,
        )
        self._journal.append(batch.number, asdict(line))

    def _response_tokens(self, protocol: AskingProtocol) -> int:
        return self._config.thinking_tokens if protocol.mode == "thinking" else self._config.direct_tokens

    def _prepare(
        self,
        question: BenchmarkQuestion,
        rotation: int,
        protocol: AskingProtocol,
        videos: Mapping[str, ShownVideo | DroppedMedium],
        subtitle_problems: list[str],
    ) -> _Asked:
        """Build a prompt, or find out why there can't be one."""
        text = write_text(question, protocol, self._config, rotation=rotation)
        asked = _Asked(question=question, rotation=rotation, text=text)
        video: ShownVideo | DroppedMedium | None = None
        if protocol.num_frames:
            if question.video_file is None:
                return _unasked(asked, MISSING_VIDEO, f"{question.video!r} isn't in the folder")
            video = videos[question.video_file]
            if isinstance(video, DroppedMedium):
                return _unasked(asked, str(video.reason), video.detail)
        if protocol.subtitles and video is not None and question.subtitle_file is not None:
            subtitles = self._read_subtitles(question.subtitle_file)
            if subtitles.problem:
                subtitle_problems.append(subtitles.problem)
            spoken = spoken_at(subtitles.cues, video.seconds, start_seconds=question.subtitle_start_seconds)
            text = write_text(question, protocol, self._config, rotation=rotation, spoken=spoken)
        token = next((token for token in self._control_tokens if token in text), None)
        if token is not None:
            return _unasked(asked, str(DropReason.CONTROL_TOKEN), f"its text contains {token!r}, a control token")
        media = () if video is None else video.references
        excess = self._limit.find_excess(
            self._policy.prompt_length(text, media, system=self._config.system),
            self._policy.prompt_positions(text, media, system=self._config.system),
            self._response_tokens(protocol),
        )
        if excess is not None:
            detail = f"{excess.length} {excess.unit} with the response, more than the {excess.bound}"
            return _unasked(asked, str(DropReason.PROMPT_TOO_LONG), detail)
        prompt = self._policy.build_prompt(text, media, system=self._config.system)
        return _Asked(question=question, rotation=rotation, text=text, prompt=prompt)

    def _read_subtitles(self, name: str) -> Subtitles:
        return read_subtitle_file(self._folder.path(name))


def _unasked(asked: _Asked, problem: str, detail: str) -> _Asked:
    return _Asked(question=asked.question, rotation=asked.rotation, text=asked.text, problem=problem, detail=detail)


def _respond(asked: _Asked, protocol: AskingProtocol, outcome: list[Rollout] | Refusal | None) -> BenchmarkResponse:
    response = BenchmarkResponse(
        protocol=protocol.name,
        question_id=asked.question.question_id,
        rotation=asked.rotation,
        problem=asked.problem,
        detail=asked.detail,
    )
    if outcome is None:
        return response
    if isinstance(outcome, Refusal):
        return replace(response, problem=str(outcome.reason), detail=outcome.message)
    rollout = outcome[0]
    return replace(response, text=rollout.text, finished=rollout.finished, num_tokens=len(rollout.token_ids))
