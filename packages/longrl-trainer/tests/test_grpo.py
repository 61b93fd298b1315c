"""GRPO end to end with a real sampler, and the parts of its step that can be checked exactly."""

import dataclasses
import json
from collections import Counter
from importlib.metadata import EntryPoint

import pytest
import torch

from longrl_trainer.errors import TrainerError
from longrl_trainer.evaluation.evaluate import evaluate
from longrl_trainer.grpo import order_questions, train_grpo
from longrl_trainer.objectives.base import build_objective
from longrl_trainer.questions.candidates import find_control_tokens
from longrl_trainer.questions.loading import load_questions
from longrl_trainer.questions.order import Cursor
from longrl_trainer.questions.question import build_question_prompt
from longrl_trainer.rewards import registry
from longrl_trainer.rewards.base import RewardResult, RewardStatus
from longrl_trainer.rewards.registry import load_rewards
from longrl_trainer.rl.groups import judge_groups
from longrl_trainer.rl.sampling import draw_responses
from longrl_trainer.rl.step_metrics import rollout_metrics
from longrl_trainer.rl.update import PolicyUpdate, weigh_groups
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.runs.step_meter import PASSING
from longrl_trainer.training.opening import open_policy, open_training_policy
from longrl_trainer.training.optimizer import Optimizer
from longrl_trainer.training.scoring import RowScoring
from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.record import QuestionRecord, write_records
from mrsp_engine.encoding.step_media import StepMedia
from mrsp_engine.rollout.transformers import TransformersRolloutEngine


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_two_steps_end_to_end(started, tmp_path, temperature):
    config = started.grpo(tmp_path / "run", group_size=8, max_response_tokens=24, temperature=temperature)
    result = train_grpo(config)
    lines = read_json_lines(config.output / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    assert result.rewards == [line["reward"] for line in lines]
    for line in lines:
        assert line["reward"] == pytest.approx(0.9 * line["rewards"]["answer"] + 0.1 * line["rewards"]["format"])
        assert line["accuracy"] == line["rewards"]["answer"]
        assert line["groups"] == 2
        assert 0 < line["finished_rate"] <= 1
        assert line["entropy"] > 0
        assert line["clip_fraction"] == 0  # with one update the ratio is 1
        assert line["logprob_gap"]["mean_abs"] < 1e-5
        assert set(line["seconds"]) == {"encode", "rollout", "reward", "update", "sync"}
        assert line["frames_encoded"] == 0  # once for all runs, before the first
    settings = json.loads((config.output / "settings.json").read_text())["settings"]
    assert settings["max_logprob_gap"] == 1e-5  # resolved, by the dtype
    assert result.logprob_gap_mean_abs == max(line["logprob_gap"]["mean_abs"] for line in lines)
    groups = read_json_lines(config.output / "rollouts.jsonl")
    assert [group["step"] for group in groups] == [1, 1, 2, 2]
    for group in groups:
        assert len(group["responses"]) == 8
        for response in group["responses"]:
            assert response["rewards"]["answer"] == float(response["parsed"] == group["answer"])
    scored = [response for group in groups for response in group["responses"] if response["tokens"]]
    assert scored
    for response in scored:
        assert "".join(text for text, _ in response["tokens"]).startswith(response["text"])
        assert max(abs(gap) for _, gap in response["tokens"]) <= result.logprob_gap_max_abs + 1e-5
    trained = open_policy(config.model.model_copy(update={"folder": result.model_folder}), "float32")
    assert trained.name == "qwen2_5_vl"


@pytest.mark.slow
def test_rewards_rise(started, tmp_path):
    config = started.grpo(
        tmp_path / "run",
        seed=1,
        steps=40,
        prompts_per_step=8,
        learning_rate=2e-3,
        max_response_tokens=24,
        checkpoint_every_steps=1000,
    )
    rewards = train_grpo(config).rewards
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15, rewards


@pytest.fixture
def step(started, tmp_path):
    """The state of one step before the update, in float64."""
    config = started.grpo(tmp_path / "run", dtype="float64", prompts_per_step=4, max_response_tokens=24)
    policy = open_training_policy(config)
    questions = load_questions(config.data, policy, progress=SilentProgress()).kept
    taken = order_questions(questions, config).select(Cursor(), lambda _: False)
    asked = [questions[place] for (place,) in taken.items]
    prompts = [build_question_prompt(policy, question, None) for question in asked]
    drawn = draw_responses(TransformersRolloutEngine(policy), prompts, config, step=0)
    rewards = load_rewards(config.rewards)
    groups = judge_groups(
        list(zip(asked, prompts, drawn, strict=True)), rewards=rewards, objective=build_objective(config)
    )
    return config, policy, groups


def gradient_after(policy, groups, config, reference=None):
    """First moments after one update: the clipped gradient, scaled in the same way in every call."""
    optimizer = Optimizer(policy.model, weight_decay=0.0, max_gradient_norm=1e9)
    update = PolicyUpdate(
        policy=policy,
        optimizer=optimizer,
        objective=build_objective(config),
        scoring=RowScoring.of(config, policy, temperature=config.temperature),
        reference=reference,
        num_updates=config.updates_per_batch,
        max_logprob_gap=config.logprob_gap_limit,
    )
    statistics = update.run(groups, StepMedia(policy, []), 0.0)
    return {name: value for name, value in optimizer.state_tensors().items() if "exp_avg/" in name}, statistics


def test_groups_without_spread_add_nothing_to_the_gradient_but_keep_their_weight(step):
    config, policy, groups = step
    spread = [group for group in groups if group.has_spread]
    flat = [group for group in groups if not group.has_spread]
    if not flat:
        flat = [dataclasses.replace(groups[0], scores=groups[0].scores[:1] * 4, advantages=(0.0,) * 4)]
    assert spread
    alone, _ = gradient_after(policy, spread, config)
    together, _ = gradient_after(policy, [*flat, *spread], config)
    tokens = [sum(len(rollout.token_ids) for group in part for rollout, _ in group.judged()) for part in (spread, flat)]
    factor = tokens[0] / sum(tokens)
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value * factor, rtol=1e-5, atol=1e-9)


def test_a_placeholder_of_media_inside_a_response_gets_no_reward_and_is_trained_away(step):
    config, policy, (group, *_) = step
    token = policy.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    hacked = dataclasses.replace(
        group.rollouts[0], text=f"<think>x</think><answer>{group.question.record.answer}</answer>"
    )
    hacked = dataclasses.replace(hacked, token_ids=(token, *hacked.token_ids[1:]))
    plain = dataclasses.replace(hacked, token_ids=group.rollouts[0].token_ids)
    (judged,) = judge_groups(
        [(group.question, group.prompt, [plain, hacked])],
        rewards=load_rewards({"answer": 1.0, "format": 0.0}),
        objective=build_objective(config),
        control_tokens=find_control_tokens(policy),
    )
    assert judged.rewards == (1.0, 0.0)
    journal = rollout_metrics([judged])
    assert journal["accuracy"] == journal["rewards"]["answer"] == 0.5
    assert journal["format_rate"] == journal["rewards"]["format"] == journal["control_token_rate"] == 0.5
    assert judged.advantages[1] < 0
    config = config.model_copy(update={"max_logprob_gap": 1e9})  # it was not the sampler that wrote it
    gradients, _ = gradient_after(policy, [judged], config)
    assert all(bool(value.isfinite().all()) for value in gradients.values())
    assert any(bool(value.any()) for value in gradients.values())


class ReadReward:
    """1 for an open question's colour anywhere in the response; can't judge a response that is empty."""

    question_types = frozenset({QuestionType.OPEN})

    def score(self, response_text: str, *, finished: bool, record: QuestionRecord) -> RewardResult:
        if not response_text.strip():
            return RewardResult(value=None, status=RewardStatus.VERIFIER_ERROR)
        return RewardResult(value=float(record.answer in response_text), status=RewardStatus.OK)


def test_open_and_choice_questions_are_trained_and_evaluated_together(started, tmp_path, monkeypatch):
    records = [
        record.model_copy(update={"options": (), "answer": record.options["ABCD".index(record.answer)]})
        if place % 2
        else record
        for place, record in enumerate(started.records)
    ]
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    (dataset / "videos").symlink_to(started.dataset / "videos")
    write_records(dataset / "records.parquet", records)
    world = dataclasses.replace(started, dataset=dataset)
    more = {"data__follow_links": True, "max_response_tokens": 24}
    without = train_grpo(world.grpo(tmp_path / "without", steps=1, **more))
    assert without.questions == {"input": 8, "kept": 4, "dropped": {"no_reward": 4}}

    entry = EntryPoint(name="read", value="here:ReadReward", group=registry.ENTRY_POINT_GROUP)
    known = registry.known_rewards() | {"read": entry}
    load = EntryPoint.load
    monkeypatch.setattr(registry, "known_rewards", lambda _: known)
    monkeypatch.setattr(EntryPoint, "load", lambda point: ReadReward if point.name == "read" else load(point))
    rewards = {"answer": 0.9, "read": 0.9, "format": 0.1}
    config = world.grpo(tmp_path / "run", prompts_per_step=8, steps=1, journal_groups=8, rewards=rewards, **more)
    result = train_grpo(config)
    assert result.questions == {"input": 8, "kept": 8, "dropped": {}}
    groups = read_json_lines(config.output / "rollouts.jsonl")
    assert sorted(bool(group["options"]) for group in groups) == [False] * 4 + [True] * 4
    for group in groups:
        name, other = ("answer", "read") if group["options"] else ("read", "answer")
        for response in group["responses"]:
            assert response["statuses"][other] == "not_applicable"
            total = 0.9 * response["rewards"][name] + 0.1 * response["rewards"]["format"]
            assert response["reward"] == pytest.approx(total)

    judged = {"answer": 1.0, "read": 1.0}
    evaluated = evaluate(world.evaluation(tmp_path / "e.json", rewards=judged, **more))
    assert (evaluated.count, evaluated.questions["kept"]) == (8, 8)
    open_items = [item for item in evaluated.items if len(item.answer) > 1]
    assert [item.score for item in open_items] == [float(item.answer in item.response) for item in open_items]
    assert evaluated.chance == 0.125
    default = evaluate(world.evaluation(tmp_path / "d.json", **more))
    assert default.questions == {"input": 8, "kept": 4, "dropped": {"no_reward": 4}}
    assert default.items == [item for item in evaluated.items if len(item.answer) == 1]


def test_the_update_is_the_policy_gradient(step):
    """With one update the gradient is that of `-sum(weight * advantage * logprob)`, without any ratio."""
    from mrsp_engine.logprobs import score_branches

    config, policy, groups = step
    found, _ = gradient_after(policy, groups, config)
    loss = torch.zeros((), dtype=torch.float64)
    for group, weights in zip(groups, weigh_groups(groups, build_objective(config)), strict=True):
        scores = score_branches(policy, group.prompt, group.branches(), share_prompt=False)
        for (_, advantage), weight, logprobs in zip(group.judged(), weights, scores.logprobs, strict=True):
            loss = loss - weight * advantage * logprobs.sum()
    loss.backward()
    for name, parameter in policy.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[f"exp_avg/{name}"], 0.1 * parameter.grad, rtol=1e-5, atol=1e-9)


def test_the_reference_pulls_back(step):
    config, policy, groups = step
    config = config.model_copy(update={"kl_coefficient": 0.5})
    same = open_policy(config.model, "float64")
    without, plain = gradient_after(policy, groups, config.model_copy(update={"kl_coefficient": 0.0}))
    at_the_start, statistics = gradient_after(policy, groups, config, same)
    assert plain.metrics()["kl"] == 0
    assert statistics.metrics()["kl"] == pytest.approx(0, abs=1e-12)
    for name, value in without.items():
        torch.testing.assert_close(at_the_start[name], value, rtol=1e-5, atol=1e-9)
    with torch.no_grad():
        same.language_model_head.weight.mul_(1.5)
    _, statistics = gradient_after(policy, groups, config, same)
    assert statistics.metrics()["kl"] > 0.01


def test_several_updates_on_the_same_rollouts_move_the_ratio_into_the_clip(started, tmp_path):
    config = started.grpo(tmp_path / "run", steps=3, updates_per_batch=4, learning_rate=2e-2, max_response_tokens=24)
    train_grpo(config)
    lines = read_json_lines(config.output / "metrics.jsonl")
    assert max(line["clip_fraction"] or 0 for line in lines) > 0.01
    assert all(line["logprob_gap"]["mean_abs"] < 1e-4 for line in lines)


def test_a_sampler_that_is_not_the_trainers_model_stops_the_run(started, world, tmp_path):
    config = started.grpo(tmp_path / "run", max_response_tokens=24)
    stranger = TransformersRolloutEngine(open_policy(world.sft(tmp_path).model, "float32"))
    stranger.update_weights = lambda policy: None
    with pytest.raises(TrainerError, match=r"sampler and trainer disagree: .*gap [\d.]+e.*`max_logprob_gap`"):
        train_grpo(config, engine=stranger)
    assert not (config.output / "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("num_lost", [1, 2])
def test_refused_prompts_are_counted_and_nothing_takes_their_place(started, tmp_path, num_lost):
    config = started.grpo(tmp_path / "run", steps=1, max_response_tokens=24)
    engine = TransformersRolloutEngine(open_policy(config.model, "float32"))
    generate = engine.generate

    def without_embeddings(prompt):
        return dataclasses.replace(
            prompt, media=tuple(dataclasses.replace(medium, key="0" * 64) for medium in prompt.media)
        )

    def generate_with_loss(prompts, sampling):
        return generate([*map(without_embeddings, prompts[:num_lost]), *prompts[num_lost:]], sampling)

    engine.generate = generate_with_loss
    if num_lost == 2:
        with pytest.raises(TrainerError, match="refused every prompt of this step: embedding"):
            train_grpo(config, engine=engine)
        return
    train_grpo(config, engine=engine)
    (line,) = read_json_lines(config.output / "metrics.jsonl")
    assert line["groups"] == 1
    assert line["prompts_refused"] == {"embedding_unusable": 1}


def test_the_gap_is_measured_even_when_no_group_has_spread(world, tmp_path):
    config = world.grpo(tmp_path / "run", steps=1)  # the untrained model is never right
    train_grpo(config)
    line = read_json_lines(config.output / "metrics.jsonl")[0]
    assert line["groups_without_spread"] == 2
    assert line["gradient_norm"] == 0
    assert line["entropy"] is None
    assert 0 < line["logprob_gap"]["mean_abs"] < 1e-4


def test_every_question_comes_once_per_epoch_in_an_order_of_its_own(world, tmp_path):
    config = world.grpo(tmp_path, prompts_per_step=3)
    order, cursor, chosen = order_questions(range(7), config), Cursor(), []
    for _ in range(14):
        taken = order.select(cursor, lambda _: False)
        chosen += [place for (place,) in taken.items]
        cursor = taken.after
    epochs = [chosen[start : start + 7] for start in range(0, 42, 7)]
    assert all(Counter(epoch) == Counter(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3


def test_the_same_step_draws_the_same_responses_and_another_step_others(step, started, tmp_path):
    config, policy, groups = step
    engine = TransformersRolloutEngine(policy)
    prompts = [group.prompt for group in groups]
    first = draw_responses(engine, prompts, config, step=7)
    other = draw_responses(engine, prompts, config, step=8)
    assert draw_responses(engine, prompts, config, step=7) == first != other


def test_without_spread_a_step_takes_more_questions_up_to_the_bound(world, tmp_path):
    config = world.grpo(tmp_path / "run", steps=1, extra_rounds=2)  # the untrained model is never right
    train_grpo(config)
    (line,) = read_json_lines(config.output / "metrics.jsonl")
    assert (line["rounds"], line["groups"], line["groups_without_spread"], line["groups_trained"]) == (3, 6, 6, 2)
    assert line["gradient_norm"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("part", ["frozen", "all"])
def test_dynamic_sampling_fills_a_step_with_groups_that_teach_and_goes_on_where_it_was(started, tmp_path, part):
    settings = {
        "seed": 3,
        "objective": "dapo",
        "extra_rounds": 3,
        "rewards": {"answer": 1.0},
        "max_response_tokens": 24,
        "overlong_buffer": 0.0,
        "learning_rate": 1e-2,
        "train_vision": part,
    }
    at_once = started.grpo(tmp_path / "at_once", steps=4, **settings)
    train_grpo(at_once)
    lines = read_json_lines(at_once.output / "metrics.jsonl")
    assert max(line["rounds"] for line in lines) > 1, "the test needs a step that takes questions more than once"
    for line in lines:
        spread = line["groups"] - line["groups_without_spread"]
        assert line["groups"] == 2 * line["rounds"]
        assert line["groups_trained"] == (min(spread, 2) or 2)
        assert line["rounds"] == 4 or spread >= 2
    train_grpo(started.grpo(tmp_path / "run", steps=2, **settings))
    train_grpo(started.grpo(tmp_path / "run", steps=4, **settings))
    again = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    for line in (*lines, *again):
        for name in (*PASSING, "frames_encoded"):
            line.pop(name, None)
    assert again == lines


@pytest.mark.slow
def test_in_bfloat16_importance_weights_correct_the_sampler_and_are_logged(started, tmp_path):
    config = started.grpo(tmp_path / "run", dtype="bfloat16", steps=1, max_response_tokens=24, kl_coefficient=0.01)
    train_grpo(config)
    (line,) = read_json_lines(config.output / "metrics.jsonl")
    assert line["logprob_gap"]["mean_abs"] > 1e-4  # rounded differently by sampler and trainer
    assert 0.9 < line["effective_sample_fraction"] < 1
    settings = json.loads((config.output / "settings.json").read_text())["settings"]
    assert settings["sampler_correction"] == "token_truncate"
