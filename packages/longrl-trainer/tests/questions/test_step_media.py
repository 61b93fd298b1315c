"""Training the vision too: what changes, how often the tower runs, what the sampler sees, and how a run continues."""

import contextlib
import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file

from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.sft import train_sft
from longrl_trainer.training.opening import open_policy
from mrsp_engine.distributed.sharded_weights import whole_tensor
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.rollout.transformers import TransformersRolloutEngine
from mrsp_engine.testing.fixtures import run_on_ranks

NUM_VIDEOS, NUM_FRAMES = 4, 4
GRPO = {
    "prompts_per_step": 4,
    "group_size": 8,
    "max_response_tokens": 24,
    "learning_rate": 2e-3,
    "journal_groups": 4,
}


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def parts_moved(before, after):
    """Which of language model, projector and tower have different weights in two checkpoints."""
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    names = {
        "tower": {name for name in before if "visual" in name and "merger" not in name},
        "projector": {name for name in before if "merger" in name},
        "language": {name for name in before if "visual" not in name},
    }
    return {part for part, of_part in names.items() if moved & of_part}


def check_run(config, model_folder, gap, begun):
    """The counters of a finished GRPO run, and what it changed."""
    lines = read_json_lines(config.output / "metrics.jsonl")
    groups = read_json_lines(config.output / "rollouts.jsonl")
    assert lines[0]["gradient_norm"] > 0  # so the second step is sampled with other weights than the first
    videos = [{path for group in groups if group["step"] == line["step"] for path in group["media"]} for line in lines]
    encoded = [line["frames_encoded"] for line in lines]
    if config.train_vision == "all":  # every video of a step once in that step
        assert encoded == [config.updates_per_batch * NUM_FRAMES * len(of_step) for of_step in videos]
    else:  # every video once in the whole run, before the first step
        assert encoded == [0] * len(lines)
    assert EmbeddingStore(config.model.store).counters.encodes == NUM_VIDEOS
    expected = {"projector": {"projector", "language"}, "all": {"tower", "projector", "language"}}
    assert parts_moved(weights_of(begun), weights_of(model_folder)) == expected[config.train_vision]
    assert gap <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("part", ["projector", "all"])
def test_two_steps_of_grpo(started, tmp_path, part):
    config = started.grpo(
        tmp_path / "run",
        **GRPO,
        train_vision=part,
        kl_coefficient=0.1,
        updates_per_batch=2,
        model__store=tmp_path / "store",
    )
    result = train_grpo(config)
    check_run(config, result.model_folder, result.logprob_gap_mean_abs, started.model)
    lines = read_json_lines(config.output / "metrics.jsonl")
    # The reference keeps its initial vision; its embeddings of a video stay the same.
    assert all(line["kl"] > 0 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["projector", "all"])
def test_a_reference_sees_what_the_policy_sees_until_that_moves(started, tmp_path, part):
    config = started.grpo(tmp_path / "run", **GRPO, steps=1, train_vision=part, kl_coefficient=0.1)
    train_grpo(config)
    (line,) = read_json_lines(config.output / "metrics.jsonl")
    assert abs(line["kl"]) < 1e-10


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_sees_the_vision_of_every_step(started, tmp_path):
    config = started.grpo(
        tmp_path / "run", **GRPO, steps=3, train_vision="all", sampler__engine="vllm", model__store=tmp_path / "store"
    )
    result = train_grpo(config)
    check_run(config, result.model_folder, result.logprob_gap_mean_abs, started.model)


def test_a_sampler_that_keeps_old_embeddings_is_noticed(started, tmp_path):
    class Forgetful(TransformersRolloutEngine):
        old = None

        def generate(self, prompts, sampling):
            keys = [medium.key for prompt in prompts for medium in prompt.media]
            store = self._policy.store
            if self.old is None:
                self.old = store.get(keys[0]).clone()
                return super().generate(prompts, sampling)
            with store.lend(dict.fromkeys(keys, self.old)):
                return super().generate(prompts, sampling)

    config = started.grpo(tmp_path / "run", **GRPO, train_vision="projector", max_logprob_gap=1e-4)
    policy = open_policy(config.model, config.dtype)
    with pytest.raises(TrainerError, match="sampler and trainer disagree"):
        train_grpo(config, policy=policy, engine=Forgetful(policy))


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_vision(started, tmp_path):
    class StopError(Exception):
        pass

    class Stopping(TransformersRolloutEngine):
        num_calls = 0

        def generate(self, prompts, sampling):
            self.num_calls += 1
            if self.num_calls == 4:
                raise StopError
            return super().generate(prompts, sampling)

    options = GRPO | {"steps": 4, "train_vision": "all"}
    whole, broken = (started.grpo(tmp_path / name, **options) for name in ("whole", "broken"))
    train_grpo(whole)
    policy = open_policy(broken.model, broken.dtype)
    with contextlib.suppress(StopError):
        train_grpo(broken, policy=policy, engine=Stopping(policy))
    assert not (broken.output / "result.json").exists()
    train_grpo(broken)
    ends = [weights_of(config.output / "model") for config in (whole, broken)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def train_on_ranks(*all_values):
    """The final state of a rank, for several runs."""
    ends = []
    for values in all_values:
        config = GrpoConfig.model_validate_json(values)
        policy = open_policy(config.model, config.dtype)
        train_grpo(config, policy=policy)
        state = policy.model.state_dict()
        ends.append({name: whole_tensor(weight).double().sum().item() for name, weight in state.items()})
    return ends


@pytest.mark.slow
def test_two_processes_share_the_tower_and_the_projector(started, tmp_path):
    configs = [
        started.grpo(tmp_path / part, **GRPO, train_vision=part, model__store=tmp_path / f"{part} store")
        for part in ("projector", "all")
    ]
    ranks = run_on_ranks(train_on_ranks, 2, *(config.model_dump_json() for config in configs))
    assert ranks[0] == ranks[1]
    for config in configs:
        result = json.loads((config.output / "result.json").read_text())
        check_run(config, config.output / "model", result["logprob_gap_mean_abs"], started.model)


@pytest.mark.parametrize("part", ["projector", "all"])
def test_sft_trains_vision(world, tmp_path, part):
    config = world.sft(
        tmp_path / "run", train_vision=part, epochs=4, blind_fraction=0.4, model__store=tmp_path / "store"
    )
    result = train_sft(config)
    lines = read_json_lines(config.output / "metrics.jsonl")
    encoded = [line["frames_encoded"] for line in lines]
    most = config.rows_per_step * NUM_FRAMES
    if part == "projector":
        assert set(encoded) == {0}
    else:  # rows that don't show their video don't have it encoded
        assert set(encoded) <= set(range(0, most + 1, NUM_FRAMES))
        assert 0 < sum(encoded) < len(lines) * most
    moved = parts_moved(weights_of(world.model), weights_of(result.model_folder))
    assert moved == {"projector", "language"} | ({"tower"} if part == "all" else set())
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert EmbeddingStore(config.model.store).counters.encodes == NUM_VIDEOS


@pytest.mark.slow
def test_frames_may_be_kept_in_place_of_embeddings(started, tmp_path):
    configs = [
        started.grpo(tmp_path / kept, **GRPO, stored=kept, model__store=tmp_path / f"{kept} store")
        for kept in ("embeddings", "frames")
    ]
    for config in configs:
        train_grpo(config)
        assert EmbeddingStore(config.model.store).counters.encodes == NUM_VIDEOS
    lines = [read_json_lines(config.output / "metrics.jsonl") for config in configs]
    assert [[line["frames_encoded"] > 0 for line in of_run] for of_run in lines] == [[False] * 2, [True] * 2]
    rollouts = [(config.output / "rollouts.jsonl").read_text() for config in configs]
    assert rollouts[0] == rollouts[1]
    ends = [weights_of(config.output / "model") for config in configs]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert parts_moved(weights_of(started.model), ends[0]) == {"language"}


def test_what_contradicts_itself_is_refused(started, tmp_path):
    config = started.grpo(tmp_path / "run", train_vision="all", stored="frames")
    with pytest.raises(TrainerUsageError, match=r'^stored="frames" with train_vision="all".*omit `stored`'):
        train_grpo(config)
