"""The monitor's numbers by hand, and in the journal of a run."""

import math

import pytest

from longrl_trainer.grpo import train_grpo
from longrl_trainer.objectives.advantages import GroupRewards, step_advantages
from longrl_trainer.rl.monitor import advantage_shares, entropy_bits
from longrl_trainer.runs.journal import read_json_lines
from longvideo_reason_data.records.answers import parse_response


def shares(terms, weights, name="grpo"):
    columns = list(zip(*terms, strict=True))
    totals = [math.fsum(weight * value for weight, value in zip(weights, column, strict=True)) for column in columns]
    group = GroupRewards(totals=totals, terms=terms, weights=weights, lengths=[1] * len(totals))
    return advantage_shares([(group, step_advantages([group], name)[0])])


def test_a_reward_that_is_the_same_for_all_responses_has_no_share():
    assert shares([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]], [0.5, 5.0]) == pytest.approx([1.0, 0.0])


def test_shares_follow_the_weights_where_rewards_agree_and_are_negative_where_one_disagrees():
    same = [1.0, 0.0, 0.0, 1.0]
    assert shares([same, same], [0.9, 0.3]) == pytest.approx([0.75, 0.25])
    # w (r - mean) is 0.45 and -0.05 for a right answer, of 0.4 together
    assert shares([same, [1 - value for value in same]], [0.9, 0.1]) == pytest.approx([9 / 8, -1 / 8])


@pytest.mark.parametrize("name", ["dr_grpo", "gdpo", "reinforce_plus_plus"])
def test_shares_add_up_to_one_whatever_is_compared(name):
    found = shares([[1.0, 0.0, 0.0, 1.0], [0.2, 0.9, 0.1, 0.4]], [0.9, 0.3], name)
    assert math.fsum(found) == pytest.approx(1.0)


def test_a_group_counts_by_its_advantages_and_not_by_the_size_of_its_rewards():
    terms = [[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.01, 0.0]]]
    groups = [
        GroupRewards(totals=totals, terms=of_group, weights=[1.0, 1.0], lengths=[1, 1])
        for totals, of_group in zip([[1.0, 0.0], [0.01, 0.0]], terms, strict=True)
    ]
    compared = step_advantages(groups, "grpo")
    assert advantage_shares(list(zip(groups, compared, strict=True))) == pytest.approx([0.5, 0.5], rel=1e-3)


def test_without_anything_to_learn_there_are_no_shares():
    assert shares([[1.0, 1.0]], [1.0]) == [None]
    unjudged = GroupRewards(totals=[None, 0.4], terms=[[None, 0.4]], weights=[1.0], lengths=[1, 1])
    assert advantage_shares([(unjudged, [None, None])]) == [None]


def test_the_entropy_of_letters_by_hand():
    assert entropy_bits("AABBCCDD") == 2.0
    assert entropy_bits("AAAA") == 0.0
    assert entropy_bits("AAAB") == pytest.approx(0.75 * math.log2(4 / 3) + 0.25 * 2)
    assert entropy_bits("") is None


def test_every_step_of_a_run_is_monitored(started, tmp_path):
    config = started.grpo(tmp_path / "run", max_response_tokens=24, journal_groups=2)
    train_grpo(config)
    lines = read_json_lines(config.output / "metrics.jsonl")
    groups = read_json_lines(config.output / "rollouts.jsonl")
    assert len(lines) == 2
    for line in lines:
        assert line["truncated_rate"] == pytest.approx(1 - line["finished_rate"])
        texts = [each["text"] for group in groups if group["step"] == line["step"] for each in group["responses"]]
        empty = [not (parse_response(text, "ABCD").reasoning or "").strip() for text in texts]
        assert line["empty_reasoning_rate"] == sum(empty) / len(empty) < 1
        assert 0 <= line["repetition"] < 1
        assert line["control_token_rate"] == 0.0
        known = [share for share in line["advantage_shares"].values() if share is not None]
        assert not known or math.fsum(known) == pytest.approx(1.0)
        mean = line["rewards"]["answer"]
        assert line["reward_variances"]["answer"] == pytest.approx(mean * (1 - mean))  # of zeros and ones
    assert any(line["letter_entropy_bits"] for line in lines)
