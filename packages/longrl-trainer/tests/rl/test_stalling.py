"""A run that learns nothing says so, once, with what to change."""

import pytest

from longrl_trainer.rl.stalling import PATIENCE_STEPS, StallWatch, describe_step
from longrl_trainer.runs.progress import SilentProgress

GOOD = {
    "reward": 0.4,
    "groups": 4,
    "groups_without_spread": 1,
    "truncated_rate": 0.0,
    "accuracy": 0.35,
    "response_tokens": 88.2,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reward": 0.0, "groups_without_spread": 4}, "longrl sft"),
        ({"groups_without_spread": 4}, "group_size"),
        ({"truncated_rate": 0.75}, "75% of the responses were cut off"),
    ],
)
def test_what_lasts_is_told_once_and_again_only_after_it_has_passed(world, tmp_path, change, words):
    watch, bad = StallWatch(world.grpo(tmp_path / "run"), SilentProgress()), GOOD | change
    told = [watch.look(bad) for _ in range(2 * PATIENCE_STEPS)]
    assert [len(lines) for lines in told] == [0] * (PATIENCE_STEPS - 1) + [1] + [0] * PATIENCE_STEPS
    assert words in told[PATIENCE_STEPS - 1][0]
    assert watch.look(GOOD) == []
    assert [len(watch.look(bad)) for _ in range(PATIENCE_STEPS)][-1] == 1


def test_a_run_that_learns_is_left_alone(world, tmp_path):
    watch = StallWatch(world.grpo(tmp_path / "run"), SilentProgress())
    assert not any(watch.look(GOOD) for _ in range(3 * PATIENCE_STEPS))


def test_a_step_without_options_has_no_accuracy():
    assert describe_step(GOOD) == "accuracy 35%, reward 0.400, 88 tokens"
    assert describe_step(GOOD | {"accuracy": None}) == "reward 0.400, 88 tokens"
