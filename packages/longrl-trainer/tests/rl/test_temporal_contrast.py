"""What the order of frames is worth: the shuffled videos, the weights that follow, and what they do to a gradient."""

import dataclasses
import importlib.util

import numpy as np
import pytest
import torch

from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.grpo import train_grpo
from longrl_trainer.objectives.base import build_objective
from longrl_trainer.objectives.terms import temporal_weight
from longrl_trainer.questions.loading import load_questions
from longrl_trainer.questions.question import build_question_prompt
from longrl_trainer.rewards.base import RewardResult, RewardStatus
from longrl_trainer.rewards.registry import ResponseScore, load_rewards
from longrl_trainer.rl.groups import compare_groups, judge_groups
from longrl_trainer.rl.temporal_contrast import (
    ShuffledMedium,
    TemporalContrast,
    can_shuffle,
    contrast_metrics,
    refuse_single_groups,
    share_of_right_answers,
)
from longrl_trainer.rl.update import PolicyUpdate
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.runs.step_meter import PASSING
from longrl_trainer.seeds import derive_seed
from longrl_trainer.training.opening import open_policy, open_training_policy
from longrl_trainer.training.optimizer import Optimizer
from longrl_trainer.training.scoring import RowScoring
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.encoding.step_media import StepMedia
from mrsp_engine.rollout.base import Refusal, RefusalReason, Rollout
from mrsp_engine.rollout.transformers import TransformersRolloutEngine
from mrsp_engine.testing.fixtures import run_on_ranks

VIDEO = MediaReference(key="0" * 64, grid_thw=(4, 4, 4), seconds_per_grid=1.0, num_tokens=16)


@pytest.mark.parametrize(
    ("ordered", "shuffled", "margin", "weight"),
    [(0.75, 0.5, 0.0, 1.3), (0.5, 0.5, 0.0, 1.0), (0.25, 0.5, 0.0, 1.0), (0.75, 0.5, 0.25, 1.0), (1.0, 0.5, 0.25, 1.3)],
)
def test_the_weight_by_hand(ordered, shuffled, margin, weight):
    assert temporal_weight(ordered, shuffled, bonus=0.3, margin=margin) == weight


def test_what_the_journal_says_by_hand():
    found = [
        TemporalContrast(ordered=0.75, shuffled=0.25, weight=1.3),
        TemporalContrast(ordered=0.5, shuffled=0.5, weight=1.0),
        TemporalContrast(ordered=0.25, shuffled=0.75, weight=1.0),
        TemporalContrast(ordered=1.0, shuffled=0.5, weight=1.3),
    ]
    assert contrast_metrics(found) == {
        "prompts": 4,
        "ordered_better_rate": 0.5,
        "ordered": 0.625,
        "shuffled": 0.5,
        "weight": pytest.approx(1.15),
    }
    assert contrast_metrics([])["weight"] is None


def test_right_answers_are_counted_by_the_rewards_that_judge_answers(world):
    def score(**values):
        return ResponseScore(
            terms={name: RewardResult(value=value, status=RewardStatus.OK) for name, value in values.items()}, total=0.0
        )

    rewards = load_rewards({"answer": 0.9, "format": 0.1})
    scores = [score(answer=1.0, format=0.0), score(answer=0.0, format=1.0), score(answer=None, format=1.0)]
    assert share_of_right_answers(scores, rewards, world.records[0]) == 0.5
    by_form = load_rewards({"format": 0.1, "repetition": 0.3})
    scores = [score(format=1.0, repetition=-1.0), score(format=1.0, repetition=0.0)]
    assert share_of_right_answers(scores, by_form, world.records[0]) == pytest.approx((-0.5 + 0.25) / 2)
    assert share_of_right_answers([], rewards, world.records[0]) is None


def test_an_order_is_another_one_of_its_own_for_each_seed():
    pair = dataclasses.replace(VIDEO, grid_thw=(2, 4, 4))
    assert {ShuffledMedium.of(pair, seed=seed).order for seed in range(20)} == {(1, 0)}
    found = [ShuffledMedium.of(VIDEO, seed=seed) for seed in range(50)]
    assert all(sorted(medium.order) == [0, 1, 2, 3] != list(medium.order) for medium in found)
    assert found == [ShuffledMedium.of(VIDEO, seed=seed) for seed in range(50)]
    names = {medium.reference.key for medium in found}
    assert len(names) == len({medium.order for medium in found}) > 10
    assert VIDEO.key not in names
    assert can_shuffle(VIDEO)
    assert not can_shuffle(dataclasses.replace(VIDEO, modality="image"))
    assert not can_shuffle(dataclasses.replace(VIDEO, grid_thw=(1, 4, 4)))


class Film:
    """Frames in memory."""

    def __init__(self, frames):
        self.frames = frames
        self.content_digest = f"{frames.sum():064d}"
        self.frame_count, self.height, self.width, _ = frames.shape
        self.timestamps = np.arange(self.frame_count) / 4

    def read(self, indices):
        return self.frames[list(indices)]


def test_shuffled_rows_are_those_of_the_video_with_its_groups_in_that_order(started, tmp_path):
    policy = open_policy(started.grpo(tmp_path, dtype="float64", model__store=tmp_path / "store").model, "float64")
    frames = np.random.default_rng(0).integers(0, 256, (8, 56, 56, 3), dtype=np.uint8)
    source = policy.encode_video(Film(frames), range(8))
    shuffled = ShuffledMedium.of(source, seed=3)
    moved = np.concatenate([frames[2 * group : 2 * group + 2] for group in shuffled.order])
    policy.encoder.content = "embeddings"
    other = Film(moved)
    other.content_digest = "f" * 64
    expected = policy.store.get(policy.encode_video(other, range(8)).key)
    rows = policy.store.get(source.key)
    torch.testing.assert_close(shuffled.arrange(rows), expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(rows, expected)


@pytest.fixture
def group(started, tmp_path):
    """One group of four responses, two of them right, with a policy in float64."""
    config = started.grpo(tmp_path / "run", dtype="float64", max_response_tokens=24, max_logprob_gap=1e9)
    policy = open_training_policy(config)
    question = load_questions(config.data, policy, progress=SilentProgress()).kept[0]
    prompt = build_question_prompt(policy, question, None)
    right = question.record.answer
    wrong = "ABCD"[("ABCD".index(right) + 1) % 4]
    texts = [
        f"<think>It is {number}.</think><answer>{letter}</answer>" for number, letter in enumerate([right, wrong] * 2)
    ]
    rollouts = [
        Rollout(token_ids=(*ids, policy.end_token_ids[0]), logprobs=(-1.0,) * (len(ids) + 1), text=text, finished=True)
        for text in texts
        for ids in [policy.tokenizer.encode(text, add_special_tokens=False)]
    ]
    (judged,) = judge_groups(
        [(question, prompt, rollouts)],
        rewards=load_rewards({"answer": 0.9, "format": 0.1}),
        objective=build_objective(config),
    )
    return config, policy, judged


def gradient_of(policy, group, config):
    """The gradient of a step with this group alone, all weights in one row."""
    optimizer = Optimizer(policy.model, weight_decay=0.0, max_gradient_norm=1e9)
    update = PolicyUpdate(
        policy=policy,
        optimizer=optimizer,
        objective=build_objective(config),
        scoring=RowScoring.of(config, policy),
        max_logprob_gap=1e9,
    )
    update.run([group], StepMedia(policy, []), 0.0)
    found = [value.double().flatten() for name, value in optimizer.state_tensors().items() if "exp_avg/" in name]
    return torch.cat(found)


def difference(found, expected):
    """The norm of the difference, as a share of what is expected."""
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())


def test_an_added_constant_vanishes_in_the_gradient_and_the_weight_does_not(group):
    config, policy, judged = group
    plain = gradient_of(policy, judged, config)
    raised = [
        dataclasses.replace(score, total=score.total + 0.3 * score.terms["answer"].value) for score in judged.scores
    ]
    (added,) = compare_groups([dataclasses.replace(judged, scores=tuple(raised))], build_objective(config))
    assert added.rewards != judged.rewards
    assert difference(gradient_of(policy, added, config), plain) < 1e-5
    weighed = gradient_of(policy, dataclasses.replace(judged, prompt_weight=1.3), config)
    assert difference(weighed, 1.3 * plain) < 1e-6
    assert difference(weighed, plain) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    ["dr_grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "gdpo", "gspo", "cispo", "sapo"],
)
def test_the_weight_counts_with_every_estimator(group, objective):
    config, policy, judged = group
    config = type(config)(
        **{name: getattr(config, name) for name in config.model_fields_set} | {"objective": objective}
    )
    (compared,) = compare_groups([judged], build_objective(config))
    plain = gradient_of(policy, compared, config)
    weighed = gradient_of(policy, dataclasses.replace(compared, prompt_weight=1.3), config)
    assert difference(weighed, 1.3 * plain) < 1e-6


def lasting(config):
    lines = read_json_lines(config.output / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in PASSING} for line in lines]


@pytest.mark.parametrize(
    "vision", [pytest.param("frozen", marks=pytest.mark.slow), pytest.param("all", marks=pytest.mark.long)]
)
def test_a_run_weighs_by_order_and_goes_on_with_the_same_orders(started, tmp_path, vision):
    settings = {"objective": "t_grpo", "prompts_per_step": 4, "max_response_tokens": 24, "learning_rate": 1e-2}
    settings |= {"train_vision": vision, "journal_groups": 4}
    at_once = started.grpo(tmp_path / "at once", steps=4, **settings)
    train_grpo(at_once)
    lines = lasting(at_once)
    groups = read_json_lines(at_once.output / "rollouts.jsonl")
    for line in lines:
        contrast = line["temporal"]
        assert contrast["prompts"] == 4
        assert contrast["ordered"] == pytest.approx(line["rewards"]["answer"])
        weights = [group["prompt_weight"] for group in groups if group["step"] == line["step"]]
        assert set(weights) <= {1.0, 1.3}
        assert contrast["ordered_better_rate"] == weights.count(1.3) / 4
        assert contrast["weight"] == pytest.approx(sum(weights) / 4)
    assert {group["prompt_weight"] for group in groups} == {1.0, 1.3}, "the test needs both"
    if vision == "frozen":
        assert all(line["frames_encoded"] == 0 for line in lines)  # nothing is encoded again
    train_grpo(started.grpo(tmp_path / "run", steps=2, **settings))
    train_grpo(started.grpo(tmp_path / "run", steps=4, **settings))
    assert lasting(started.grpo(tmp_path / "run", steps=4, **settings)) == lines


class SeededByPrompt(TransformersRolloutEngine):
    """Draws for a prompt the same random numbers on every rank."""

    def generate(self, prompts, sampling):
        return [
            super(SeededByPrompt, self).generate(
                [prompt], dataclasses.replace(sampling, seed=derive_seed(0, sampling.num_samples, *prompt.token_ids))
            )[0]
            for prompt in prompts
        ]


def train(values: str) -> None:
    config = GrpoConfig.model_validate_json(values)
    policy, sampled = (open_policy(config.model, config.dtype) for _ in range(2))
    train_grpo(config, policy=policy, engine=SeededByPrompt(sampled))


@pytest.mark.slow
@pytest.mark.parametrize("vision", ["frozen", "all"])
def test_a_sampler_of_the_callers_has_a_store_of_its_own(started, tmp_path, vision):
    options = {"objective": "t_grpo", "steps": 1, "prompts_per_step": 4, "train_vision": vision}
    config = started.grpo(tmp_path / "run", **options)
    train_grpo(config, engine=TransformersRolloutEngine(open_policy(config.model, config.dtype)))
    (line,) = lasting(config)
    assert (line["temporal"]["prompts"], line["prompts_refused"]) == (4, {})


class RefusesShuffledFrames(TransformersRolloutEngine):
    """Lacks the embeddings of shuffled videos, of which half as many responses are asked for."""

    def generate(self, prompts, sampling):
        if sampling.num_samples == 2:
            return [Refusal(reason=RefusalReason.EMBEDDING_UNUSABLE, message="it is gone") for _ in prompts]
        return super().generate(prompts, sampling)


@pytest.mark.slow
def test_shuffled_frames_that_the_sampler_always_refuses_are_not_passed_over(started, tmp_path):
    config = started.grpo(tmp_path / "run", objective="t_grpo", steps=1, prompts_per_step=4)
    with pytest.raises(TrainerError, match="the sampler refused every question with shuffled frames: it is gone"):
        train_grpo(config, engine=RefusesShuffledFrames(open_policy(config.model, config.dtype)))


@pytest.mark.long
def test_ranks_find_the_same_contrasts(started, tmp_path):
    options = {"objective": "t_grpo", "steps": 3, "prompts_per_step": 3, "max_response_tokens": 24, "dtype": "float64"}
    alone, together = (started.grpo(tmp_path / name, learning_rate=1e-2, **options) for name in ("alone", "together"))
    train(alone.model_dump_json())
    run_on_ranks(train, 2, together.model_dump_json())
    mine, others = lasting(together), lasting(alone)
    assert [line["temporal"] for line in mine] == [line["temporal"] for line in others]
    assert [line["loss"] for line in mine] == pytest.approx([line["loss"] for line in others], rel=1e-6)
    assert any(line["temporal"]["weight"] > 1 for line in mine)
    assert [line["row_tokens"] for line in mine] == [line["row_tokens"] for line in others]
    waiting = [line["padding_fraction"] for line in read_json_lines(together.output / "metrics.jsonl")]
    assert all(0 <= share < 1 for share in waiting)
    assert any(waiting)  # three prompts for two ranks


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_reads_shuffled_videos_by_their_names(started, tmp_path):
    options = {"objective": "t_grpo", "steps": 3, "prompts_per_step": 4, "max_response_tokens": 24}
    config = started.grpo(tmp_path / "run", sampler__engine="vllm", **options)
    train_grpo(config)
    for line in read_json_lines(config.output / "metrics.jsonl"):
        assert (line["temporal"]["prompts"], line["prompts_refused"]) == (4, {})
        assert line["temporal"]["ordered"] == pytest.approx(line["rewards"]["answer"])
        assert line["moved_bytes"]["weights_to_sampler"] == 386304  # of the language model, in float32
    assert any(line["temporal"]["ordered"] != line["temporal"]["shuffled"] for line in lasting(config))


def test_questions_without_an_order_are_asked_once(album, tmp_path):
    """Of the album's questions those about three images have none; those about videos and images have one."""
    config = album.grpo(tmp_path / "run", steps=1, prompts_per_step=10, journal_groups=10, temporal_weight=0.5)
    train_grpo(config)
    (line,) = lasting(config)
    assert line["temporal"]["prompts"] == 8
    groups = read_json_lines(config.output / "rollouts.jsonl")
    about_images = [group for group in groups if not any(path.endswith(".mp4") for path in group["media"])]
    assert [group["prompt_weight"] for group in about_images] == [1.0, 1.0]


def test_without_a_weight_nothing_is_asked_twice(started, tmp_path):
    config = started.grpo(tmp_path / "run", steps=1)
    train_grpo(config)
    (line,) = lasting(config)
    assert "temporal" not in line


def test_blind_training_has_nothing_to_shuffle(started, tmp_path):
    with pytest.raises(TrainerUsageError, match=r"temporal_weight=0\.3 with blind=true"):
        started.grpo(tmp_path / "run", objective="t_grpo", blind=True)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ({"num_frames": 2}, r"num_frames=2: there is nothing .* encodes 2 frames together, .*; expected 3 or more, or"),
        ({"num_frames": None, "fps": 1.0, "max_frames": 1}, r"max_frames=1: there is nothing to shuffle, because the"),
    ],
)
def test_frames_that_are_all_encoded_together_are_refused_before_a_model_is_loaded(started, tmp_path, frames, words):
    settings = {f"data__{name}": value for name, value in frames.items()}
    config = started.grpo(tmp_path / "run", objective="t_grpo", **settings)
    with pytest.raises(TrainerUsageError, match=rf"^temporal_weight=0\.3 with data\.{words}"):
        train_grpo(config)
    assert not config.output.exists()
    refuse_single_groups(started.grpo(tmp_path / "run", objective="t_grpo", data__num_frames=3))
    refuse_single_groups(started.grpo(tmp_path / "run", data__num_frames=2))


def test_a_model_that_encodes_frames_alone_needs_two(started, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    place = {"model__folder": tmp_path, "objective": "t_grpo"}
    refuse_single_groups(started.grpo(tmp_path / "run", data__num_frames=2, **place))
    with pytest.raises(TrainerUsageError, match=r"because it is one; expected 2 or more, or temporal_weight=0"):
        refuse_single_groups(started.grpo(tmp_path / "run", data__num_frames=1, **place))
