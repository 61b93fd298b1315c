"""Who always, never or by chance knows the answer gets exactly that score, on a file of every published layout.

Only the model's answers are scripted; files, readers, extraction and scores are the real ones.
"""

import random
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from longrl_trainer.config.benchmarks import BenchmarkConfig
from longrl_trainer.config.sections import ModelSection
from longrl_trainer.evaluation.protocols import count_rotations, rotated
from longrl_trainer.evaluation.scoring.answers import BenchmarkResponse, judge_response
from longrl_trainer.evaluation.scoring.comparison import compare_answers
from longrl_trainer.evaluation.scoring.scores import find_baselines, score_protocol
from longvideo_reason_data.benchmarks.reading import read_benchmark

LAYOUT_FILES = Path(__file__).parents[2] / "packages/longvideo-reason-data/tests/benchmarks"
sys.path.insert(0, str(LAYOUT_FILES))

from layout_files import FILES, write_layout  # noqa: E402 - found only now


@pytest.fixture(params=FILES)
def benchmark(request, tmp_path):
    return read_benchmark(request.param, write_layout(tmp_path, request.param))


def ask(benchmark, answerer, *, rotate=False, unreadable=()):
    """Every question to a scripted answerer, which sees the question and its options as shown."""
    config = BenchmarkConfig(
        model=ModelSection(folder=Path()), benchmark=benchmark.name, path=Path(), output=Path(), rotate_options=rotate
    )
    answers = []
    for question in benchmark.questions:
        for rotation in range(count_rotations(question, config)):
            said = {"protocol": "direct/8", "question_id": question.question_id, "rotation": rotation}
            if question.video_file in unreadable:
                said |= {"problem": "unreadable_video", "detail": "damaged"}
            else:
                said |= {"text": answerer(question, rotated(question.options, rotation)), "finished": True}
            answers.append(judge_response(benchmark.name, question, BenchmarkResponse(**said)))
    return answers


def score(benchmark, answers):
    return score_protocol(benchmark, benchmark.questions, answers, mode="direct", num_frames=8, subtitles=False)


def oracle(question, options):
    if not question.options:
        return question.answer
    return "ABCDEFGH"[options.index(question.options["ABCDEFGH".index(question.answer)])]


def always(letter):
    return lambda question, options: letter


def test_an_oracle_is_always_right(benchmark):
    scores = score(benchmark, ask(benchmark, oracle))
    assert (scores.accuracy, scores.standard_error, scores.unparsed_rate) == (1.0, 0.0, 0.0)
    assert scores.official_accuracy in (1.0, None)
    assert scores.published is None or scores.published.score == 1.0
    assert all(value.accuracy == 1.0 for group in scores.groups.values() for value in group.values())
    rotating = score(benchmark, ask(benchmark, oracle, rotate=True))
    assert (rotating.accuracy, rotating.accuracy_under_all_rotations or 1.0) == (1.0, 1.0)


def test_a_constant_letter_gets_its_share_and_under_rotation_chance(benchmark):
    baselines = find_baselines(benchmark.questions)
    letter = baselines.constant_letter or "A"
    scores = score(benchmark, ask(benchmark, always(letter)))
    share = [question.answer for question in benchmark.questions].count(letter) / len(benchmark.questions)
    assert scores.accuracy == share == baselines.constant
    if any(question.options for question in benchmark.questions):
        rotating = score(benchmark, ask(benchmark, always(letter), rotate=True))
        assert rotating.accuracy == pytest.approx(baselines.chance, abs=1e-12)
        assert rotating.accuracy_under_all_rotations == 0.0
        num_options = len(benchmark.questions[0].options)
        assert Fraction(baselines.chance).limit_denominator(100) == Fraction(1, num_options)


def test_a_random_answerer_is_right_as_often_as_it_is(benchmark):
    generator = random.Random(3)
    said = {
        question.question_id: generator.choice("ABCDEFGH"[: len(question.options)] or ("green", "red"))
        for question in benchmark.questions
    }
    scores = score(benchmark, ask(benchmark, lambda question, _: f"<answer>{said[question.question_id]}</answer>"))
    right = [said[question.question_id] == question.answer for question in benchmark.questions]
    assert scores.accuracy == sum(right) / len(right)


def test_an_unreadable_video_stays_in_the_denominator(benchmark):
    lost = benchmark.questions[0].video_file
    num_lost = sum(question.video_file == lost for question in benchmark.questions)
    scores = score(benchmark, ask(benchmark, oracle, unreadable={lost}))
    assert scores.count == len(benchmark.questions)
    assert scores.accuracy == 1 - num_lost / scores.count
    assert scores.not_asked == {"unreadable_video": num_lost}
    assert scores.unparsed_rate == 0.0
    if scores.official_accuracy is not None:
        assert scores.official_accuracy == scores.accuracy


def test_who_says_nothing_is_never_right(benchmark):
    scores = score(benchmark, ask(benchmark, always("")))
    # Some scorers draw a letter then.
    guessed = find_baselines(benchmark.questions).chance if benchmark.name in ("longvideobench", "nextqa") else 0.0
    assert (scores.accuracy, scores.unparsed_rate) == (0.0, 1.0)
    assert scores.official_accuracy in (None, pytest.approx(guessed, abs=1e-12))


def test_a_run_differs_from_another_but_not_from_itself(benchmark):
    answers = ask(benchmark, oracle)
    (same,) = compare_answers(answers, answers)
    assert (same.difference, same.low, same.high, same.p_value, same.verdict) == (0, 0, 0, 1, "no difference")
    (worse,) = compare_answers(answers, ask(benchmark, always("")))
    assert (worse.difference, worse.only_first, worse.only_second) == (-1.0, len(benchmark.questions), 0)
