"""Results of an evaluation: counted by hand on known responses, then with a real model."""

import json
from collections.abc import Sequence

import pytest
import torch

from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.evaluation.evaluate import EvaluationResult, evaluate, summarise
from longrl_trainer.rewards.registry import load_rewards
from longrl_trainer.training.opening import open_policy
from longvideo_reason_data.records.record import QuestionRecord
from mrsp_engine.rollout.base import Rollout
from mrsp_engine.rollout.transformers import TransformersRolloutEngine


def respond(text: str, *, finished: bool = True) -> Rollout:
    return Rollout(token_ids=(1,), logprobs=(0.0,), text=text, finished=finished)


def count(records: Sequence[QuestionRecord], texts: Sequence[str], rewards: dict[str, float]) -> EvaluationResult:
    outcomes = [[respond(text)] for text in texts]
    return summarise(records, outcomes, rewards=load_rewards(rewards), questions={}, settings={})


def test_counts_by_hand(world):
    records = [record for record in world.records if record.split == "held_out"]
    right = [f"<think>x</think><answer>{record.answer}</answer>" for record in records]
    texts = [*right[:3], "<answer>A</answer><answer>B</answer>", "no idea", "", *right[6:]]
    result = count(records, texts, {"answer": 1.0})
    assert (result.count, result.accuracy, result.unparsed_rate) == (8, 5 / 8, 3 / 8)
    assert result.well_formed_rate == 5 / 8
    assert result.chance == 0.25
    # each video's two questions rotate the options, so letters are spread: count them directly
    letters = [record.answer for record in records]
    assert result.constant == max(map(letters.count, "ABCD")) / 8
    # skills rotate: questions 0 and 4 are of one skill, and so on
    assert list(result.accuracy_by_skill.values()) == pytest.approx([0.5, 0.5, 1.0, 0.5])
    assert [item.correct for item in result.items] == [True] * 3 + [False] * 3 + [True] * 2
    assert [item.status for item in result.items][3:6] == ["ambiguous", "no_answer", "no_answer"]


def test_a_right_answer_with_a_control_token_is_wrong(world):
    records = [record for record in world.records if record.split == "held_out"]
    right = [[respond(f"<think>x</think><answer>{record.answer}</answer>")] for record in records]
    rewards = load_rewards({"answer": 1.0})
    result = summarise(
        records, right, rewards=rewards, questions={}, settings={}, control_tokens=frozenset({right[0][0].token_ids[0]})
    )
    assert (result.accuracy, result.well_formed_rate, result.items[0].correct) == (0.0, 0.0, False)
    plain = summarise(records, right, rewards=rewards, questions={}, settings={}, control_tokens=frozenset({7}))
    assert (plain.accuracy, plain.well_formed_rate) == (1.0, 1.0)


def test_an_output_that_cannot_be_written_is_refused_before_the_work(world, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainerError, match=r"cannot write .*file/x\.json"):
        evaluate(world.evaluation(tmp_path / "file" / "x.json", model__folder=tmp_path / "never looked at"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(world, tmp_path):
    with pytest.raises(TrainerUsageError, match=r'model\.device="cuda": torch finds no GPU here'):
        evaluate(world.evaluation(tmp_path / "x.json", model__device="cuda"))


def test_evaluation_end_to_end(started, tmp_path):
    config = started.evaluation(tmp_path / "deep" / "evaluation.json", max_response_tokens=24)
    result = evaluate(config)
    written = json.loads(config.output.read_text())
    assert written["accuracy"] == result.accuracy
    assert {"accuracy_standard_error", "accuracy_by_skill", "unparsed_rate", "constant", "chance"} < written.keys()
    assert written["questions"] == {"input": 8, "kept": 8, "dropped": {}}
    assert written["settings"]["data"]["num_frames"] == 4
    assert len(written["items"]) == 8
    assert set(written["items"][0]) >= {"question_id", "skill", "response", "parsed", "answer", "correct"}
    assert evaluate(config).items == result.items  # greedy: the same again
    assert result.well_formed_rate > 0.5


@pytest.mark.slow
def test_a_model_that_sees_beats_the_same_model_blind(world, tmp_path):
    from longrl_trainer.sft import train_sft

    trained = train_sft(world.sft(tmp_path / "run", epochs=150, rows_per_step=4, learning_rate=1e-2))
    options = {"model__folder": trained.model_folder, "data__split": "train_sft", "max_response_tokens": 24}
    seeing = evaluate(world.evaluation(tmp_path / "seeing.json", **options))
    blind = evaluate(world.evaluation(tmp_path / "blind.json", blind=True, **options))
    assert seeing.accuracy == 1.0  # memorised
    assert blind.accuracy < 0.75
    assert blind.settings["blind"] is True


@pytest.mark.slow
def test_a_given_sampler_takes_the_policys_weights_and_stays_open(started, world, tmp_path):
    config = started.evaluation(tmp_path / "a.json", max_response_tokens=24, limit=4)
    expected = evaluate(config)
    engine = TransformersRolloutEngine(open_policy(world.evaluation(tmp_path / "b.json").model, "float32"))
    policy = open_policy(config.model, "float32")
    assert evaluate(config, policy=policy, engine=engine).items == expected.items
    assert evaluate(config, policy=policy, engine=engine).items == expected.items
