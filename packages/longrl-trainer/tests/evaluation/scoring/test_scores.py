"""Scores by hand: groups, rotations, parse failures, the benchmarks' own scores."""

import dataclasses
import math
from pathlib import Path

import pytest

from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.evaluation.scoring.answers import BenchmarkResponse, judge_response
from longrl_trainer.evaluation.scoring.comparison import compare_answers
from longrl_trainer.evaluation.scoring.scores import find_baselines, score_protocol
from longrl_trainer.evaluation.scoring.series import published_score, score_group
from longvideo_reason_data.benchmarks.layouts import LAYOUTS, BenchmarkLayout
from longvideo_reason_data.benchmarks.questions import Benchmark, BenchmarkQuestion

COLOURS = ("red", "green", "blue", "white")


def question(number: int, answer: str = "B", video: str = "v", **changes) -> BenchmarkQuestion:
    fields = {"options": COLOURS, "groups": {"duration": ("short",)}} | changes
    return BenchmarkQuestion(
        question_id=f"q{number}", video=video, video_file=video, question="Which?", answer=answer, **fields
    )


def make(questions, name: str = "videomme", layout: BenchmarkLayout | None = None) -> Benchmark:
    return Benchmark(name=name, layout=layout or LAYOUTS[name], folder=Path(), tables=(), questions=tuple(questions))


def judge(asked: BenchmarkQuestion, text: str, *, name: str = "videomme", **changes):
    fields = {"protocol": "direct/8", "finished": True, "num_tokens": 2} | changes
    return judge_response(name, asked, BenchmarkResponse(question_id=asked.question_id, text=text, **fields))


def score(benchmark, answers):
    return score_protocol(benchmark, benchmark.questions, answers, mode="direct", num_frames=8, subtitles=False)


def test_counts_by_hand():
    groups = [{"duration": ("short",)}, {"duration": ("short",)}, {"duration": ("long",)}, {"duration": ("long",)}]
    asked = [question(place, video=f"v{place // 2}", groups=group) for place, group in enumerate(groups)]
    said = ["B", "Best answer: B", "no idea", "<answer>A</answer><answer>B</answer>"]
    answers = [
        judge(item, text, finished=place != 2) for place, (item, text) in enumerate(zip(asked, said, strict=True))
    ]
    scores = score(make(asked), answers)
    assert (scores.accuracy, scores.unparsed_rate, scores.truncated_rate) == (0.5, 0.5, 0.25)
    # by video (1, 1) and (0, 0)
    assert scores.standard_error == pytest.approx(math.sqrt(2) / 4)
    # theirs reads the B of Best, nothing in the third, and the first A of the fourth
    assert (scores.official_accuracy, [answer.official for answer in answers]) == (0.5, ["B", "B", "", "A"])
    assert {name: (item.accuracy, item.count) for name, item in scores.groups["duration"].items()} == {
        "long": (0.0, 2),
        "short": (1.0, 2),
    }
    assert [answer.status for answer in answers] == ["ok", "ok", "no_answer", "ambiguous"]


def test_a_rotated_letter_is_read_back_as_published():
    asked = question(0)
    answers = [judge(asked, letter, rotation=rotation) for rotation, letter in enumerate("BADC")]
    assert [answer.chosen for answer in answers] == ["B", "B", "B", "B"]
    assert [answer.official_score for answer in answers] == [1.0] * 4
    scores = score(make([asked]), answers)
    assert (scores.accuracy, scores.accuracy_under_all_rotations) == (1.0, 1.0)
    answers[2] = judge(asked, "A", rotation=2)
    assert (score(make([asked]), answers).accuracy, answers[2].chosen) == (0.75, "C")
    assert score(make([asked]), answers).accuracy_under_all_rotations == 0.0


def test_an_open_answer_is_right_in_other_case_and_with_an_article():
    asked = question(0, answer="red car", options=())
    right = [judge(asked, text, name="activitynetqa").correct for text in ("The red car.", "RED CAR", "red", "")]
    assert right == [True, True, False, False]
    assert judge(asked, "red car", name="activitynetqa").official_score is None


def test_a_question_without_a_right_option_is_wrong_whatever_is_said():
    asked = question(0, answer="", flaw="its answer 'K' is none of its 4 options")
    assert not any(judge(asked, letter).correct for letter in "ABCD")
    assert find_baselines([asked, question(1)]).chance == 0.125


@pytest.mark.parametrize(
    ("structure", "right", "expected"),
    [
        ("relevance", "1010", 4 / 16),
        ("relevance", "1111", 1),
        ("[1,2,3,4]", "1101", 4 / 16),
        ("[1,2,3,4]", "0111", 0),
        ("[1,2,3,4]", "1110", 9 / 16),
        ("[1,[2,3],4]", "1011", 4 / 12),
        ("[1,[2,3],4]", "1110", 7 / 12),
        ("[1,[2,3],4]", "1000", 1 / 12),
        ("[[1,2],3,4]", "0111", 1 / 10),
        ("[[1,2],3,4]", "1110", 5 / 10),
        ("[[1,2],3,4]", "1111", 1),
    ],
)
def test_groups_of_four_by_hand(structure, right, expected):
    assert score_group(structure, [digit == "1" for digit in right]) == pytest.approx(expected)


def test_four_tries_count_if_all_are_right_and_types_equally():
    layout = LAYOUTS["vnbench"]
    asked = [
        question(4 * sample + turn, series=f"s{sample}", groups={"type": (kind,)}, video=f"v{sample}")
        for sample, kind in enumerate(("ret", "ret", "cnt"))
        for turn in range(4)
    ]
    wrong = {"q2"}
    published = published_score(layout, asked, lambda item: float(item.question_id not in wrong))
    assert (published.score, published.count) == ((0.5 + 1.0) / 2, 3)


def test_a_mean_of_tasks_weighs_tasks_equally():
    asked = [question(place, groups={"task": ("count" if place else "plotQA",)}) for place in range(4)]
    published = published_score(LAYOUTS["mlvu"], asked, lambda item: float(item.question_id == "q0"))
    assert published.score == 0.5
    assert published_score(LAYOUTS["videomme"], asked, lambda _: 1.0) is None


def test_a_comparison_by_hand():
    asked = [question(place, video=f"v{place}") for place in range(8)]
    first = [judge(item, "B" if place < 2 else "A") for place, item in enumerate(asked)]
    second = [judge(item, "A" if place == 0 else "B") for place, item in enumerate(asked)]
    (found,) = compare_answers(first, second)
    assert (found.first, found.second, found.difference) == (0.25, 0.875, 0.625)
    assert (found.both_right, found.only_first, found.only_second, found.both_wrong) == (1, 1, 6, 0)
    assert found.p_value == pytest.approx(2 * 8 / 128)
    assert found.low < 0.625 < found.high
    assert found.verdict == "no significant difference"
    (worse,) = compare_answers(second, first)
    assert (worse.low, worse.high) == pytest.approx((-found.high, -found.low), abs=0.02)
    (partial,) = compare_answers(first, second[:5])
    assert (partial.num_questions, partial.num_unmatched) == (5, 3)


def test_runs_without_anything_in_common_are_refused():
    first = [judge(question(0), "B")]
    with pytest.raises(TrainerUsageError, match="no protocol in common, found direct/8 and blind"):
        compare_answers(first, [dataclasses.replace(first[0], protocol="blind")])
    with pytest.raises(TrainerUsageError, match="no question in common under direct/8"):
        compare_answers(first, [dataclasses.replace(first[0], question_id="other")])
