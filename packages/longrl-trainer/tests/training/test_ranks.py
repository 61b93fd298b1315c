"""Training with two processes, weights sharded: the same run as with one, every video encoded once."""

import contextlib
import dataclasses
import hashlib
import json
from collections import Counter
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longrl_trainer.config.stages import GrpoConfig, SftConfig
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.step_meter import PASSING
from longrl_trainer.seeds import derive_seed
from longrl_trainer.sft import train_sft
from longrl_trainer.training.opening import open_policy
from longrl_trainer.training.ranks import ALONE
from longvideo_reason_data.media.video_file import VideoFile
from mrsp_engine.distributed.sharded_weights import whole_tensor
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.rollout.transformers import TransformersRolloutEngine
from mrsp_engine.testing.fixtures import run_on_ranks

NUM_RANKS = 2


class StopError(Exception):
    """A run is interrupted."""


class StoppingEngine(TransformersRolloutEngine):
    """Allows two steps."""

    num_calls = 0

    def generate(self, prompts: Any, sampling: Any) -> Any:
        self.num_calls += 1
        if self.num_calls == 3:
            raise StopError
        return super().generate(prompts, sampling)


class InTurns(TransformersRolloutEngine):
    """One process that samples like two, with the random numbers that they would draw."""

    def generate(self, prompts: Any, sampling: Any) -> Any:
        shares = [
            super(InTurns, self).generate(
                prompts[rank::NUM_RANKS],
                dataclasses.replace(sampling, seed=derive_seed(sampling.seed, "rank", rank)),
            )
            for rank in range(NUM_RANKS)
        ]
        return [shares[place % NUM_RANKS][place // NUM_RANKS] for place in range(len(prompts))]


def train_on_ranks(sft_values: str, grpo_values: str) -> dict[str, Any]:
    """SFT, then GRPO that is interrupted and continued; returns what this rank did and its final state."""
    decoded: list[tuple[str, int]] = []
    read = VideoFile.read

    def note_and_read(video: VideoFile, indices: Any) -> Any:
        decoded.extend((video.path.name, int(index)) for index in indices)
        return read(video, indices)

    VideoFile.read = note_and_read
    sft = train_sft(SftConfig.model_validate_json(sft_values))
    other = SftConfig.model_validate_json(sft_values).model_copy(update={"seed": 7})
    with pytest.raises(TrainerUsageError, match=r"contains another run: settings\.seed was 0 and is now 7"):
        train_sft(other)  # only the first rank checks, and all of them stop
    decoded.clear()

    config = GrpoConfig.model_validate_json(grpo_values)
    interrupted, sampled = (open_policy(config.model, config.dtype) for _ in range(2))
    sampled.store = interrupted.store
    with contextlib.suppress(StopError):
        train_grpo(config, policy=interrupted, engine=StoppingEngine(sampled))
    is_finished = (config.output / "result.json").exists()
    policy = open_policy(config.model, config.dtype)
    grpo = train_grpo(config, policy=policy)
    again = train_grpo(config)
    weights = hashlib.sha256()
    for tensor in policy.model.state_dict().values():
        weights.update(whole_tensor(tensor).numpy().tobytes())
    return {
        "sft": dataclasses.asdict(sft) | {"seconds": None},
        "grpo": dataclasses.asdict(grpo),
        "is_same_again": again == grpo,
        "was_interrupted": not is_finished,
        "is_sharded": policy.is_sharded,
        "decoded": decoded,
        "weights": weights.hexdigest(),
        "encodes": EmbeddingStore(config.model.store).counters.encodes,
    }


def weights_of(folder: Any) -> torch.Tensor:
    tensors = load_file(folder / "model.safetensors")
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def comparable(lines: list[dict[str, Any]]) -> dict[str, float]:
    """All numbers of a journal except times, by their path."""
    found: dict[str, float] = {}

    def walk(place: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name not in PASSING:
                    walk(f"{place} {name}", inner)
        elif value is not None:
            found[place] = value

    for line in lines:
        walk(str(line["step"]), line)
    return found


@pytest.mark.slow
def test_two_processes_train_as_one(started, tmp_path):
    sft = {"epochs": 1, "dtype": "float64", "rows_per_step": 4}
    grpo = {
        "steps": 3,
        "prompts_per_step": 3,
        "max_response_tokens": 24,
        "dtype": "float64",
        "kl_coefficient": 0.1,
        "updates_per_batch": 2,
        "checkpoint_every_steps": 2,
    }
    together = {
        "sft": started.sft(tmp_path / "sft 2", **sft, parallel__row_tokens=400),
        "grpo": started.grpo(tmp_path / "grpo 2", **grpo, model__store=tmp_path / "store 2"),
    }
    ranks = run_on_ranks(train_on_ranks, NUM_RANKS, *(config.model_dump_json() for config in together.values()))

    # Every rank reports the same and ends with the same weights, to the bit.
    shared = [{name: value for name, value in seen.items() if name != "decoded"} for seen in ranks]
    assert shared[0] == shared[1]
    assert shared[0]["was_interrupted"]
    assert shared[0]["is_same_again"]
    assert shared[0]["is_sharded"]

    # Every video is encoded once, every frame decoded by one rank, over the interruption too.
    decoded = Counter(frame for seen in ranks for frame in seen["decoded"])
    films = {path for path, _ in decoded}
    assert len(films) == shared[0]["encodes"] == 4
    assert set(decoded.values()) == {1}
    assert len(decoded) == 4 * together["grpo"].data.num_frames
    assert all(seen["decoded"] for seen in ranks)

    # One process does the same.
    alone = {
        "sft": started.sft(tmp_path / "sft 1", **sft),
        "grpo": started.grpo(tmp_path / "grpo 1", **grpo, model__store=tmp_path / "store 1"),
    }
    train_sft(alone["sft"])
    policy = open_policy(alone["grpo"].model, "float64")
    train_grpo(alone["grpo"], policy=policy, engine=InTurns(policy))
    begun = weights_of(started.model)
    for stage, config in alone.items():
        journals = [read_json_lines(run.output / "metrics.jsonl") for run in (together[stage], config)]
        # The model's norms round to float32 inside, whatever its dtype.
        assert comparable(journals[0]) == pytest.approx(comparable(journals[1]), rel=1e-4, abs=1e-6)
        ends = [weights_of(run.output / "model") for run in (together[stage], config)]
        assert (ends[0] - ends[1]).norm() < 1e-3 * (ends[1] - begun).norm()
    groups = [(run.output / "rollouts.jsonl").read_text().splitlines() for run in (together["grpo"], alone["grpo"])]
    texts = [[[r["text"] for r in json.loads(line)["responses"]] for line in lines] for lines in groups]
    assert texts[0] == texts[1]


def test_alone_everything_is_the_own_share():
    assert ALONE.is_first
    assert ALONE.divide([1, 2, 3], lambda share: [2 * item for item in share]) == [2, 4, 6]
    assert ALONE.ask_first(lambda: "answer") == "answer"
