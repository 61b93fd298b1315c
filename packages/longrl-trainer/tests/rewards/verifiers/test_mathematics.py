"""Mathematical answers, compared in real processes; one that hangs or ends is killed and its response not judged."""

import time

import pytest
from typed_questions import ask, respond

from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.rewards.base import RewardRequest, RewardStatus
from longrl_trainer.rewards.registry import load_rewards
from longrl_trainer.rewards.verifiers import mathematics
from longvideo_reason_data.question_types import QuestionType

TOWER = "9^{9^{9}}"


def judge(pairs, **settings):
    (weighted,) = load_rewards({"mathematics": {"weight": 1.0, **settings}})
    requests = [
        RewardRequest(response_text=respond(said), finished=True, record=ask(right, QuestionType.MATHEMATICS))
        for said, right in pairs
    ]
    return weighted.judge(requests)


@pytest.mark.slow
def test_answers_are_right_however_they_are_written_and_what_hangs_is_not_judged(monkeypatch):
    pytest.importorskip("math_verify")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    cases = {
        ("1/2", r"\frac{1}{2}"): 1.0,
        (r"\boxed{\frac12}", "0.5"): 1.0,
        (r"$\sqrt{8}$", r"2\sqrt{2}"): 1.0,
        ("The answer is $5$.", "5"): 1.0,
        ("(x+1)^2", "x^2+2x+1"): 1.0,
        ("4", "5"): 0.0,
        ("1, 2, 3, 4, 5", "5"): 0.0,
        (":", "5"): 0.0,
        ("no idea", "5"): 0.0,
        ("__import__('os').abort()", "5"): 0.0,
        ("5" * 2000, "5"): 0.0,
    }
    judged = judge(cases)
    assert {case: result.value for case, result in zip(cases, judged, strict=True)} == cases
    started = time.monotonic()
    hung, right, unreadable = judge([(TOWER, "5"), ("3", "3"), ("3", "a boat")], timeout_seconds=3)
    assert time.monotonic() - started < 30
    assert (hung.value, hung.status) == (None, RewardStatus.VERIFIER_ERROR)
    assert right.value == 1.0
    assert unreadable.value is None


def test_without_the_extra_it_is_one_line(monkeypatch):
    monkeypatch.setattr(mathematics, "find_spec", lambda name: None)
    with pytest.raises(TrainerUsageError, match=r"^rewards\.mathematics: .*; install longrl-trainer\[math\]$"):
        load_rewards({"mathematics": 1.0})
