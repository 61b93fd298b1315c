"""The figures of a step, by hand and from runs."""

import json

import pytest

from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.step_meter import peak_of
from longrl_trainer.sft import train_sft
from longrl_trainer.training.opening import open_policy
from longrl_trainer.training.scoring import StepWork, Turn
from mrsp_engine.attention.heads import AttentionHeads
from mrsp_engine.layout import GroupLengths, PackedLayout
from mrsp_engine.planner.shapes import ModelShape
from mrsp_engine.rollout.base import count_received, language_weights
from mrsp_engine.rollout.transformers import TransformersRolloutEngine

SHAPE = ModelShape(
    name="small",
    hidden_size=4,
    num_layers=2,
    heads=AttentionHeads(query=2, key=1, channels=2),
    intermediate_size=8,
    vocab_size=10,
    is_tied=False,
    max_positions=100,
)
LONG, SHORT = (PackedLayout((GroupLengths(*lengths),)) for lengths in ((3, (2, 1)), (2, (1,))))
# Matrix weights of a layer: 2 x 4 x (2 + 1) x 2 of attention, 3 x 4 x 8 of the feed-forward layer; of the head 4 x 10.
LINEAR = 2 * 2 * (48 + 96) * 6 + 2 * 40 * 3, 2 * 2 * (48 + 96) * 3 + 2 * 40 * 1
# Query-key pairs: 6 in the prompt, 9 between it and the responses, 3 + 1 in them; 3 + 2 + 1 in the short row.
ATTENTION = 4 * 2 * 2 * 2 * 19, 4 * 2 * 2 * 2 * 6


def test_the_work_of_a_step_by_hand():
    turn = Turn(members=(0,), passes=((LONG,), (SHORT,)))
    work = StepWork.of([turn], SHAPE, num_trained=1, has_adapters=False)
    assert (work.logical_tokens, work.computed_tokens, work.waiting_tokens) == (5 + 4 + 3, 6 + 3, 3)
    assert work.padding_fraction == 3 / 12
    assert work.operations == 3 * (sum(LINEAR) + sum(ATTENTION))
    several = StepWork.of([turn], SHAPE, num_trained=2, num_scored=1, has_adapters=True)
    assert several.operations == 3 * sum(LINEAR) + 2 * sum(LINEAR) + 3 * sum(ATTENTION) + 4 * sum(ATTENTION)
    idle = StepWork.of([Turn(members=(), passes=((SHORT, SHORT), ()))], SHAPE, num_trained=1, has_adapters=False)
    assert (idle.computed_tokens, idle.padding_fraction) == (6, 0.5)


def metrics(config):
    return read_json_lines(config.output / "metrics.jsonl")


@pytest.mark.slow
def test_grpo_says_how_fast_it_was_and_what_it_moved(started, tmp_path):
    """A run with a store of its own, a sampler with a model of its own, and nothing prepared ahead."""
    options = {
        "steps": 5,
        "max_response_tokens": 24,
        "journal_groups": 2,
        "prefetch_steps": 0,
        "model__store": tmp_path / "store",
        "peak_operations": 1e9,
    }
    config = started.grpo(tmp_path / "run", **options)
    policy, sampled = (open_policy(config.model, "float32") for _ in range(2))
    sampled.store = policy.store
    train_grpo(config, policy=policy, engine=TransformersRolloutEngine(sampled))
    lines, drawn = metrics(config), read_json_lines(config.output / "rollouts.jsonl")
    weight_bytes = sum(tensor.nbytes for _, tensor in language_weights(policy))
    stored = list((tmp_path / "store").rglob("*.safetensors"))
    (size,) = {path.stat().st_size for path in stored}
    rows_bytes = 8 * 64 * 4  # two groups of frames, four tokens each, of 64 numbers in float32
    for line in lines:
        num_tokens = line["response_tokens"] * 8
        assert line["tokens_per_second"]["sampler"] == pytest.approx(num_tokens / line["seconds"]["rollout"])
        rows, seconds = line["row_tokens"], line["seconds"]["update"]
        assert line["tokens_per_second"]["trainer"] == pytest.approx(rows["logical"] / seconds)
        assert line["tokens_per_second"]["trainer_computed"] == pytest.approx(rows["computed"] / seconds)
        assert 4 * rows["computed"] > rows["logical"] > 2 * rows["computed"]
        assert line["padding_fraction"] == 0
        assert line["moved_bytes"]["weights_to_sampler"] == weight_bytes
    # Eight questions about four videos, two in each step.
    assert sum(line["store"]["misses"] for line in lines) == 4 == len(stored)
    assert lines[0]["store"]["hits"] + lines[0]["store"]["misses"] == len(
        {path for group in drawn if group["step"] == 1 for path in group["media"]}
    )
    assert lines[4]["store"]["misses"] == 0 < lines[4]["store"]["hits"]
    # Two videos in each step: their rows when they are new, all of the file when it is found, then its header.
    read = [line["moved_bytes"]["embeddings_read"] for line in lines]
    assert read == [2 * size] * 4 + [2 * (size - rows_bytes)]

    unshared = started.grpo(tmp_path / "unshared", **options, share_prompt=False)
    train_grpo(unshared)
    for line, other in zip(lines, metrics(unshared), strict=True):
        assert other["row_tokens"]["computed"] == other["row_tokens"]["logical"] == line["row_tokens"]["logical"]
        assert other["moved_bytes"]["weights_to_sampler"] == 0  # it samples with the model in training
        # The prompt is computed four times, so as many operations more per second are needed for the same utilisation.
        work = [of["utilisation"] * of["seconds"]["update"] for of in (line, other)]
        assert 2 * work[0] < work[1] < 4 * work[0]


def test_sft_says_how_fast_it_was(world, tmp_path):
    config = world.sft(tmp_path / "run", epochs=1, rows_per_step=1)
    train_sft(config)
    for line in metrics(config):
        assert line["row_tokens"]["computed"] < line["row_tokens"]["logical"] < 2 * line["row_tokens"]["computed"]
        rows, seconds = line["row_tokens"], line["seconds"]["update"]
        assert line["tokens_per_second"] == {
            "trainer": pytest.approx(rows["logical"] / seconds),
            "trainer_computed": pytest.approx(rows["computed"] / seconds),
        }
        assert "utilisation" not in line  # nobody knows the peak of this machine
        assert "weights_to_sampler" not in line["moved_bytes"]
    settings = json.loads((config.output / "settings.json").read_text())["settings"]
    assert settings["peak_operations"] is None


def test_the_peak_of_an_unknown_device_is_not_made_up(started, tmp_path):
    assert peak_of(open_policy(started.grpo(tmp_path).model, "bfloat16")) is None


def test_a_sampler_that_does_not_count_is_not_counted(started, tmp_path):
    class FourMethods:
        def generate(self, prompts, sampling): ...

        def update_weights(self, policy): ...

        def sleep(self): ...

        def close(self): ...

    assert count_received(FourMethods()) is None
