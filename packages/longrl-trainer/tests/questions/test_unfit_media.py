"""A video that a model can't accept loses only its own question, in every stage, with a reason; all else continues."""

import dataclasses
import json
import re

import pytest

from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.evaluation.evaluate import evaluate
from longrl_trainer.grpo import train_grpo
from longrl_trainer.questions.length import LengthLimit, PromptLengths
from longrl_trainer.questions.loading import load_questions
from longrl_trainer.questions.question import build_question_prompt
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.sft import train_sft
from longrl_trainer.training.opening import open_policy
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.rollout.base import Refusal, RefusalReason
from mrsp_engine.rollout.transformers import TransformersRolloutEngine
from mrsp_engine.tiny.families import build_tiny, create_tiny_vila
from mrsp_engine.tiny.language import LanguageSizes

SIZES = LanguageSizes(
    hidden_size=64, num_layers=2, num_heads=2, num_key_value_heads=1, intermediate_size=64, vocabulary_size=300
)
FILMS = {
    "plain": {"num_frames": 8},
    "short": {"num_frames": 4},
    "five": {"num_frames": 5},
    "long": {"num_frames": 300},
    "thin": {"num_frames": 8, "height": 4, "width": 900},
    "speck": {"num_frames": 8, "height": 6, "width": 8},
}
# Frames requested, positions of the model, and the reasons by video; everything else is kept.
CASES = {
    "qwen2_5_vl": (60, 126, {"long": "prompt_too_long", "thin": "unfit_medium"}),
    "qwen3_vl": (60, 350, {"long": "prompt_too_long", "thin": "unfit_medium"}),
    "vila": (60, 190, {"long": "prompt_too_long", "five": "unfit_medium"}),
}


class Listening(SilentProgress):
    """Keeps the lines shown."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module", params=CASES)
def unfit(request, tmp_path_factory, film_world):
    """A world of one family with videos that it can't accept."""
    folder = tmp_path_factory.mktemp(request.param)
    num_frames, positions, reasons = CASES[request.param]
    sizes = dataclasses.replace(SIZES, max_position_embeddings=positions)
    if request.param == "vila":
        create_tiny_vila(folder / "model", sizes=sizes, pool_frames=4)
    else:
        build_tiny(request.param, folder / "model", sizes=sizes)
    return film_world(folder, FILMS), num_frames, reasons


@pytest.mark.slow
def test_every_stage_drops_it_with_its_reason_and_goes_on(unfit, tmp_path):
    world, num_frames, reasons = unfit
    options = {"data__num_frames": num_frames, "data__split": "train_rl"}
    counts = {
        "input": 6,
        "kept": 6 - len(reasons),
        "dropped": {reason: [*reasons.values()].count(reason) for reason in sorted(reasons.values())},
    }
    progress = Listening()
    assert train_sft(world.sft(tmp_path / "sft", epochs=1, **options), progress=progress).questions == counts
    [line] = progress.lines
    assert re.match(
        r"\w+: its prompt has \d+ (tokens|positions) and its response up to \d+, together more than the \d+ ", line
    )
    assert "positions the model was trained for; lower data.num_frames" in line
    assert line.endswith("; such questions are dropped")
    assert ("data.frame_pixels" in line) == ("thin" in reasons)
    report = json.loads((tmp_path / "sft" / "questions.json").read_text())["dropped_questions"]
    assert {question["question_id"]: question["reason"] for question in report} == reasons
    # What is too long is known before encoding.
    assert EmbeddingStore(world.folder / "embeddings").counters.encodes == counts["kept"]

    assert train_grpo(world.grpo(tmp_path / "grpo", steps=3, **options)).questions == counts  # all are needed
    result = evaluate(world.evaluation(tmp_path / "accuracy.json", **options))
    assert (result.questions, result.count, result.prompts_refused) == (counts, counts["kept"], {})
    assert EmbeddingStore(world.folder / "embeddings").counters.encodes == counts["kept"]


def test_the_longest_prompt_is_exact(unfit, tmp_path):
    world, num_frames, _ = unfit
    config = world.evaluation(tmp_path / "x.json", data__num_frames=num_frames, data__split="train_rl")
    policy = open_policy(config.model, "float32")
    questions = load_questions(config.data, policy, progress=SilentProgress())
    lengths = [build_question_prompt(policy, question, None).length for question in questions.kept]
    assert questions.longest_prompt == max(lengths)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_more_tokens_than_positions_are_no_reason_to_drop_a_video(family, tmp_path, film_world):
    """Unlike too much time: its positions don't shrink with fewer frames."""
    build_tiny(family, tmp_path / "model", sizes=dataclasses.replace(SIZES, max_position_embeddings=500))
    world = film_world(tmp_path, {"long": {"num_frames": 60}})
    config = world.evaluation(tmp_path / "x.json", data__num_frames=60, data__split="train_rl")
    policy = open_policy(config.model, "float32")
    [question] = load_questions(config.data, policy, progress=SilentProgress()).kept
    prompt = build_question_prompt(policy, question, None)
    limit = LengthLimit(positions=int(prompt.positions.max()) + 1 + 12, tokens=10**6)
    lengths = PromptLengths(policy, config.data, limit, lambda _: 12)
    assert prompt.length + 12 > limit.positions
    assert lengths.find_problem(question.record, question.media) is None
    assert lengths.longest_prompt == prompt.length
    assert lengths.fits(question.record, question.media)
    tight = PromptLengths(policy, config.data, limit, lambda _: 13)
    assert not tight.fits(question.record, question.media)
    problem = tight.find_problem(question.record, question.media)
    assert f"its prompt has {limit.positions - 12} positions and its response up to 13" in problem.detail
    assert problem.detail.endswith("; lower data.num_frames or data.frame_pixels")
    if family == "qwen2_5_vl":
        hours = [dataclasses.replace(question.media[0], seconds_per_grid=3600.0)]
        assert lengths.find_problem(question.record, hours).detail.endswith("; take shorter videos")
        assert "positions with the response" in lengths.describe_refused(1, 2)


def test_a_response_needs_room_too(unfit, tmp_path):
    world, _, _ = unfit
    options = {"data__num_frames": 8, "data__split": "train_rl"}
    config = world.evaluation(tmp_path / "x.json", **options)
    policy = open_policy(config.model, "float32")
    kept = load_questions(config.data, policy, progress=SilentProgress()).kept
    lengths = [int(build_question_prompt(policy, question, None).positions.max()) + 1 for question in kept]
    room = policy.max_positions - max(length for length in lengths if length + 12 <= policy.max_positions)
    fitting = evaluate(world.evaluation(tmp_path / "a.json", **options), policy=policy)
    is_timed = policy.name == "qwen2_5_vl"  # a long video takes as many positions with fewer frames
    assert fitting.questions["dropped"].get("prompt_too_long", 0) == is_timed
    questions = load_questions(
        config.data,
        policy,
        progress=SilentProgress(),
        response_tokens=lambda record: room + (record.question_id in {"plain", "long"}),
    )
    assert questions.counts()["dropped"]["prompt_too_long"] >= 1 + is_timed
    with pytest.raises(TrainerUsageError, match=r"more than the \d+ positions the model was trained"):
        load_questions(config.data, policy, progress=SilentProgress(), response_tokens=lambda _: 10**6)


def test_what_the_samplers_memory_cannot_hold_is_left_out(unfit, tmp_path):
    world, _, _ = unfit
    config = world.grpo(
        tmp_path / "x",
        data__num_frames=8,
        sampler__engine="vllm",
        sampler__memory_bytes=1024**2,
        data__split="train_rl",
    )
    policy = open_policy(config.model, "float32")
    policy.model.config.get_text_config().max_position_embeddings = 10**5
    pages = 1024**2 // (policy.key_value_bytes * 128)
    longest = load_questions(config.data, policy, progress=SilentProgress()).longest_prompt
    assert (pages - 1) * 128 >= longest + 12  # so this fits; and this doesn't:
    with pytest.raises(TrainerUsageError, match=r"more than the \d+ that sampler\.memory_bytes=1048576 has room for"):
        load_questions(
            config.data,
            policy,
            progress=SilentProgress(),
            sampler=config.sampler,
            response_tokens=lambda _: (pages - 1) * 128,
        )


class Refusing(TransformersRolloutEngine):
    """A sampler that has lost the embeddings of some prompts."""

    refused: frozenset[int] = frozenset()

    def generate(self, prompts, sampling):
        answered = super().generate(prompts, sampling)
        refusal = Refusal(reason=RefusalReason.EMBEDDING_UNUSABLE, message="embedding 12ab is gone")
        return [refusal if place in self.refused else outcome for place, outcome in enumerate(answered)]


def test_a_refused_prompt_is_counted_and_the_others_are_evaluated(world, tmp_path):
    config = world.evaluation(tmp_path / "accuracy.json")
    policy = open_policy(config.model, "float32")
    whole = evaluate(config, policy=policy)
    engine = Refusing(policy)
    engine.refused = frozenset({1, 5})
    result = evaluate(config, policy=policy, engine=engine)
    assert result.prompts_refused == {"embedding_unusable": 2}
    assert result.questions == whole.questions
    assert result.count == 6
    assert result.items == [item for place, item in enumerate(whole.items) if place not in engine.refused]
    written = json.loads(config.output.read_text())
    assert [question["question_id"] for question in written["refused"]] == [
        whole.items[1].question_id,
        whole.items[5].question_id,
    ]
    assert written["refused"][0]["detail"] == "embedding 12ab is gone"
    engine.refused = frozenset(range(8))
    with pytest.raises(TrainerError, match="refused all 8 prompts; the first: embedding 12ab is gone"):
        evaluate(config, policy=policy, engine=engine)
