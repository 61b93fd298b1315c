"""The benchmarks' own extractions, where they differ from each other and from ours."""

import pytest

from longrl_trainer.evaluation.scoring.official import EXTRACTIONS, judge_officially
from longvideo_reason_data.benchmarks.layouts import LAYOUTS
from longvideo_reason_data.records.answers import parse_response

OPTIONS = ("a red wall", "a green door", "a blue car", "a white dog")


def test_an_extraction_belongs_to_a_layout():
    assert set(EXTRACTIONS) < set(LAYOUTS)
    assert judge_officially("cgbench", "B", OPTIONS, "B") is None


@pytest.mark.parametrize(
    ("benchmark", "response", "official", "ours"),
    [
        ("videomme", "The best answer is C", "C", "C"),
        ("videomme", "Best answer: C", "B", "C"),  # the B of Best
        ("videomme_v2", "Best answer: C", "C", "C"),
        ("videomme", "Clearly a man leaves. The answer is D", "C", "D"),
        ("videomme", "c", "", "C"),
        ("mlvu", "The answer is (B), not A.", "B", "B"),
        ("longvideo_reason", "<think>x</think><answer>B</answer>", "B", "B"),
        ("longvideo_reason", "<answer>B.</answer>", "B.", "B"),
        ("longvideo_reason", "The answer is B", "The answer is B", "B"),
        ("longvideo_reason", "<answer>Therefore the final answer is: B</answer>", "B", "B"),
        ("lvbench", "(C) a blue car", "C", "C"),
        ("lvbench", "The answer is B", "T", "B"),
        ("egoschema", "B. a green door.", "B", "B"),
        ("egoschema", "a green door.", "B", "B"),
        ("egoschema", "The answer is B", "", "B"),
        ("nextqa", "It is not (A) but (C)", "C", None),
        ("nextqa", "That must be a blue car there", "C", None),
        ("perceptiontest", "B", "B", "B"),
        ("perceptiontest", "B.", "", "B"),
        ("vnbench", "B. a green door", "B", "B"),
        ("vnbench", "The Answer is C", "A", "C"),
    ],
)
def test_each_reads_in_its_own_way(benchmark, response, official, ours):
    judged = judge_officially(benchmark, response, OPTIONS, "B")
    assert judged.letter == official
    assert judged.score == float(official == "B")
    if ours is not None:
        assert parse_response(response, OPTIONS).letter == ours


def test_where_a_scorer_guesses_chance_is_counted():
    for benchmark in ("longvideobench", "nextqa"):
        assert judge_officially(benchmark, "no idea", OPTIONS, "B").score == 0.25
    assert judge_officially("videomme", "no idea", OPTIONS, "B").score == 0.0


def test_a_question_without_a_right_answer_is_never_right():
    for benchmark in EXTRACTIONS:
        assert judge_officially(benchmark, "", OPTIONS, "").score in (0.0, 0.25)
