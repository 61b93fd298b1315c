"""The scores of one protocol: accuracy over every question, with all that is needed to interpret it.

A question asked with rotated options counts with the share of its responses that are right, so each question has the
same weight. Nothing leaves the denominator: questions that couldn't be asked, and responses without a readable answer,
are wrong, and their numbers are given.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longrl_trainer.evaluation.scoring.answers import BenchmarkAnswer
from longrl_trainer.evaluation.scoring.series import PublishedScore, published_score
from longrl_trainer.evaluation.scoring.statistics import clustered_standard_error, mean
from longvideo_reason_data.benchmarks.questions import Benchmark, BenchmarkQuestion


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupScore:
    """Accuracy on the questions of one group, with a standard error clustered by video."""

    accuracy: float
    standard_error: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolScores:
    """The scores under one protocol; rates are shares of all responses, asked or not.

    Attributes:
        protocol: Name of the protocol.
        mode: Its mode.
        num_frames: Frames shown; 0 if the video isn't.
        subtitles: Whether subtitles are.
        accuracy: Share of right answers among all questions.
        standard_error: Clustered by video.
        official_accuracy: The same with the benchmark's own extraction; None if that isn't known here.
        official_standard_error: Clustered by video.
        accuracy_under_all_rotations: Share of questions right whichever option is first; None if options aren't
            rotated.
        published: The benchmark's own score, if that isn't plain accuracy.
        official_published: The same with the benchmark's own extraction.
        groups: Accuracy by group and value.
        count: Number of questions.
        num_responses: Number of times that one was asked or should have been.
        unparsed_rate: No answer was found, or several.
        truncated_rate: The response was cut off.
        not_asked: Numbers of those that weren't asked, by reason.
        mean_tokens: Mean length of the responses.
    """

    protocol: str
    mode: str
    num_frames: int
    subtitles: bool
    accuracy: float
    standard_error: float
    official_accuracy: float | None
    official_standard_error: float | None
    accuracy_under_all_rotations: float | None
    published: PublishedScore | None
    official_published: PublishedScore | None
    groups: dict[str, dict[str, GroupScore]]
    count: int
    num_responses: int
    unparsed_rate: float
    truncated_rate: float
    not_asked: dict[str, int]
    mean_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Baselines:
    """What one gets without a model.

    Attributes:
        chance: Mean accuracy of random letters; open questions count as wrong.
        constant_letter: The letter that is right most often; empty if there are only open questions.
        constant: Accuracy of always giving it.
    """

    chance: float
    constant_letter: str
    constant: float


def find_baselines(questions: Sequence[BenchmarkQuestion]) -> Baselines:
    """Compute what guessing gives."""
    letters = Counter(question.answer for question in questions if question.options and question.answer)
    letter, count = min(letters.items(), key=lambda item: (-item[1], item[0]), default=("", 0))
    chance = mean([1 / len(item.options) if item.options and item.answer else 0.0 for item in questions])
    return Baselines(chance=chance, constant_letter=letter, constant=count / max(1, len(questions)))


def score_protocol(
    benchmark: Benchmark,
    questions: Sequence[BenchmarkQuestion],
    answers: Sequence[BenchmarkAnswer],
    *,
    mode: str,
    num_frames: int,
    subtitles: bool,
) -> ProtocolScores:
    """Score all answers under one protocol.

    Args:
        benchmark: The benchmark.
        questions: Every question that was to be asked.
        answers: Of each question one for each rotation.
        mode: Mode of the protocol.
        num_frames: Its number of frames.
        subtitles: Whether it has subtitles.
    """
    by_question: dict[str, list[BenchmarkAnswer]] = {question.question_id: [] for question in questions}
    for answer in answers:
        by_question[answer.question_id].append(answer)
    videos = [by_question[question.question_id][0].video for question in questions]
    values = _values(questions, by_question, lambda answer: float(answer.correct))
    is_known = all(answer.official_score is not None for answer in answers)
    official = _values(questions, by_question, lambda answer: answer.official_score or 0.0) if is_known else None
    rotates = any(len(of_question) > 1 for of_question in by_question.values())
    return ProtocolScores(
        protocol=answers[0].protocol,
        mode=mode,
        num_frames=num_frames,
        subtitles=subtitles,
        accuracy=mean(values),
        standard_error=clustered_standard_error(values, videos),
        official_accuracy=None if official is None else mean(official),
        official_standard_error=None if official is None else clustered_standard_error(official, videos),
        accuracy_under_all_rotations=mean([float(value == 1.0) for value in values]) if rotates else None,
        published=_published(benchmark, questions, by_question, lambda answer: float(answer.correct)),
        official_published=_published(benchmark, questions, by_question, lambda answer: answer.official_score or 0.0)
        if is_known
        else None,
        groups=_score_groups(benchmark, questions, values, videos),
        count=len(questions),
        num_responses=len(answers),
        unparsed_rate=mean([answer.status in ("no_answer", "ambiguous") for answer in answers]),
        truncated_rate=mean([not answer.finished and not answer.problem for answer in answers]),
        not_asked=dict(sorted(Counter(answer.problem for answer in answers if answer.problem).items())),
        mean_tokens=mean([answer.num_tokens for answer in answers if not answer.problem]),
    )


def _values(
    questions: Sequence[BenchmarkQuestion],
    by_question: dict[str, list[BenchmarkAnswer]],
    value: Callable[[BenchmarkAnswer], float],
) -> list[float]:
    """The mean value of each question's answers."""
    return [mean([value(answer) for answer in by_question[question.question_id]]) for question in questions]


def _published(
    benchmark: Benchmark,
    questions: Sequence[BenchmarkQuestion],
    by_question: dict[str, list[BenchmarkAnswer]],
    value: Callable[[BenchmarkAnswer], float],
) -> PublishedScore | None:
    """The benchmark's own score; with rotated options, that of each rotation is computed and the mean is taken."""
    num_rotations = max(len(answers) for answers in by_question.values())
    found: list[PublishedScore] = []
    for rotation in range(num_rotations):
        of_rotation = {name: value(answers[rotation % len(answers)]) for name, answers in by_question.items()}
        score = published_score(benchmark.layout, questions, lambda question: of_rotation[question.question_id])  # noqa: B023
        if score is None:
            return None
        found.append(score)
    errors = [score.standard_error for score in found if score.standard_error is not None]
    return PublishedScore(
        score=mean([score.score for score in found]),
        standard_error=mean(errors) if errors else None,
        count=found[0].count,
    )


def _score_groups(
    benchmark: Benchmark, questions: Sequence[BenchmarkQuestion], values: Sequence[float], videos: Sequence[str]
) -> dict[str, dict[str, GroupScore]]:
    members: dict[str, dict[str, list[int]]] = {name: {} for name in benchmark.layout.groups}
    for place, question in enumerate(questions):
        for name, tags in question.groups.items():
            for tag in tags:
                members[name].setdefault(tag, []).append(place)
    return {
        name: {tag: _score_members(places, values, videos) for tag, places in sorted(tags.items())}
        for name, tags in members.items()
        if tags
    }


def _score_members(places: Sequence[int], values: Sequence[float], videos: Sequence[str]) -> GroupScore:
    chosen = [values[place] for place in places]
    error = clustered_standard_error(chosen, [videos[place] for place in places])
    return GroupScore(accuracy=mean(chosen), standard_error=error, count=len(chosen))
