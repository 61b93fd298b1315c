"""What an evaluation on a benchmark leaves in its folder, and reading it again.

settings.json     the resolved settings, and digests of the model and the questions
responses.jsonl   every batch of responses, written before it is used; a run continues after the last one
answers.jsonl     one line for each judged response
judge/            the journal and the ledger of a judge of open answers, if there is one
result.json       the record of the run and its scores, written last
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from longrl_files.folders import ForeignFolder
from longrl_files.json_text import UnfitJsonError, parse_json
from longrl_files.messages import visible
from longrl_trainer.durable import LINK_CURE, new_file, write_json
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.evaluation.scoring.answers import BenchmarkAnswer
from longrl_trainer.evaluation.scoring.scores import Baselines, ProtocolScores

RESULT_NAME, ANSWERS_NAME, RESPONSES_NAME = "result.json", "answers.jsonl", "responses.jsonl"
LONGEST_LINE = 2**24

ReadT = TypeVar("ReadT")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRecord:
    """The frames shown under all protocols with one number of frames.

    Attributes:
        num_frames: The setting.
        digest: SHA-256 over every video's file, frames, times and sizes.
        num_videos: Number of videos that were shown.
        fewest: Frames of the video with the fewest.
        most: Frames of that with the most.
        smallest: Smallest height and width in pixels.
        largest: Largest height and width.
    """

    num_frames: int
    digest: str
    num_videos: int
    fewest: int
    most: int
    smallest: tuple[int, int]
    largest: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRecord:
    """The prompts under one protocol: SHA-256 over all of them, and the first one without subtitles."""

    protocol: str
    digest: str
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedVideo:
    """A video whose questions couldn't be asked.

    Attributes:
        video: Its name in the folder, or as published if it isn't there.
        problem: Why, as one word.
        detail: The same in a line.
        num_questions: Number of questions about it, all wrong.
    """

    video: str
    problem: str
    detail: str
    num_questions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRecord:
    """What has to be known to interpret the scores, or to get them again.

    Attributes:
        benchmark: Name of the benchmark.
        title: Its title.
        tables: The tables that were read.
        questions_digest: SHA-256 over all questions.
        num_questions: Questions that were to be asked; the denominator.
        num_published: Questions in the tables.
        num_videos: Videos that they are about.
        num_subtitled: Videos among them with a subtitle file.
        flawed: Questions without a right option, by id.
        unused_videos: Videos whose questions couldn't be asked.
        subtitle_problems: What couldn't be read of subtitles.
        model: Folder of the model, or of the run that it is a checkpoint of.
        model_digest: SHA-256 over its files.
        sampler: The engine.
        decoder: The decoding library with its version.
        frames: Of each number of frames.
        prompts: Of each protocol.
        official: Whether the benchmark's own extraction is known here.
        versions: Of the libraries.
        settings: All settings.
        model_step: After how many steps of the run; None if the model isn't named by a run.
        open_answers_by: What decided on open answers: `words`, or a judge's name; empty if there are none.
        undecided: Ids of open questions with an answer that the judge gave no judgement on, which isn't counted as
            right.
    """

    benchmark: str
    title: str
    tables: tuple[str, ...]
    questions_digest: str
    num_questions: int
    num_published: int
    num_videos: int
    num_subtitled: int
    flawed: dict[str, str]
    unused_videos: list[UnusedVideo]
    subtitle_problems: list[str]
    model: str
    model_digest: str
    sampler: str
    decoder: str
    frames: list[FrameRecord]
    prompts: list[PromptRecord]
    official: bool
    versions: dict[str, str]
    settings: dict[str, Any]
    model_step: int | None = None
    open_answers_by: str = ""
    undecided: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResult:
    """The record of a run and its scores; the fields are the keys of `result.json`."""

    record: BenchmarkRecord
    baselines: Baselines
    scores: list[ProtocolScores] = field(default_factory=list[ProtocolScores])


def write_result(folder: Path, result: BenchmarkResult, answers: Sequence[BenchmarkAnswer]) -> None:
    """Write the judged responses, then the result."""
    with new_file(folder / ANSWERS_NAME) as file:
        for answer in answers:
            file.write(json.dumps(asdict(answer), ensure_ascii=False).encode(errors="replace") + b"\n")
    write_json(folder / RESULT_NAME, asdict(result))


def read_result(folder: Path) -> BenchmarkResult:
    """Read the result of a finished run.

    Raises:
        TrainerUsageError: There is none in the folder, or it was written by something else.
    """
    files = _require_run(folder)
    return _validated(BenchmarkResult, files.read_json(RESULT_NAME), folder / RESULT_NAME)


def read_answers(folder: Path) -> list[BenchmarkAnswer]:
    """Read the judged responses of a finished run; errors as `read_result`."""
    files = _require_run(folder)
    path = folder / ANSWERS_NAME
    answers: list[BenchmarkAnswer] = []
    with files.open(ANSWERS_NAME) as file:
        for line in iter(partial(file.readline, LONGEST_LINE), b""):
            try:
                answers.append(_validated(BenchmarkAnswer, parse_json(line), path))
            except UnfitJsonError as error:
                raise TrainerUsageError(f"{path}: not readable as JSON lines ({visible(str(error))})") from error
    return answers


def _require_run(folder: Path) -> ForeignFolder:
    files = ForeignFolder(folder, error=TrainerUsageError, link_cure=LINK_CURE)
    if not folder.is_dir() or not files.has(RESULT_NAME):
        raise TrainerUsageError(f"{folder}: no {RESULT_NAME} in it; expected the output of longrl evaluate --benchmark")
    return files


def _validated(kind: type[ReadT], values: object, path: Path) -> ReadT:
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = visible(".".join(map(str, first["loc"])), 60)
        raise TrainerUsageError(
            f"{path}: {place}: {visible(first['msg'])}; expected what longrl evaluate --benchmark writes"
        ) from error
