"""The timeline world without options, and the judge that the benchmark of objectives asks about answers to it."""

import sys
from pathlib import Path

import pytest

from longrl_trainer.rewards.base import RewardRequest
from longrl_trainer.rewards.registry import load_rewards
from longrl_trainer.runs.judging import judge_responses, open_rewards
from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.answers import format_response
from longvideo_reason_data.records.record import Split, read_records
from longvideo_reason_data.timeline.dataset import write_timeline_dataset
from longvideo_reason_data.timeline.world import WorldSettings

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from open_answers import JUDGE_MODEL, serve_judge, write_open_dataset


@pytest.mark.slow
def test_the_judge_gives_a_reward_for_the_text_of_the_right_option_alone(tmp_path):
    world = WorldSettings(seconds=8.0, num_scenes=4, scene_seconds=1.0, num_characters=4, size_pixels=64)
    choices = write_timeline_dataset(
        tmp_path / "choices", world, videos={Split.TRAIN_RL: 1}, questions_per_video=3, seed=0
    )
    folder = write_open_dataset(tmp_path / "choices", tmp_path / "open")
    questions = read_records(write_open_dataset(tmp_path / "choices", folder) / "records.parquet")
    assert {record.question_type for record in questions} == {QuestionType.OPEN}
    assert all((folder / record.media[0].path).is_file() for record in questions)
    expected: list[float] = []
    requests: list[RewardRequest] = []
    for choice, record in zip(choices, questions, strict=True):
        for letter, option in zip("ABCD", choice.options, strict=True):
            said = format_response("It is seen.", option.upper() + ".")
            requests.append(RewardRequest(response_text=said, finished=True, record=record))
            expected.append(float(letter == choice.answer))
    with serve_judge() as address:
        rewards = load_rewards({"judge": {"weight": 1.0, "base_url": address, "model": JUDGE_MODEL}})
        with open_rewards(rewards, tmp_path / "rewards"):
            assert [score.total for score in judge_responses(rewards, requests)] == expected
