"""The parity measure has teeth: each fault that is known from other systems is far beyond what it allows.

The faults are put into the running code of two ranks; the same case without one passes.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mrsp_engine import logprobs, rows
from mrsp_engine.attention.backends import Block
from mrsp_engine.attention.torch_backends import CpuFlashBackend
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.parity import QUESTION, ParityCase, compute, largest_difference
from mrsp_engine.process_groups import SequenceGroup
from mrsp_engine.testing import NoiseVideo, run_on_ranks, use_exact_norms
from mrsp_engine.tiny_model import create_tiny_qwen2_5_vl

NUM_RANKS = 2
CASE = ParityCase(
    family="qwen2_5_vl", branches="uneven", media="several videos", split=(NUM_RANKS, 1, "ring"), memory="kept"
)


def restarted_positions() -> Any:
    """Every response counts from 0 instead of going on behind its prompt."""

    def restarted(prompt_positions: Tensor, branch_lengths: tuple[int, ...]) -> Tensor:
        branches = [torch.arange(length).expand(prompt_positions.shape[0], -1) for length in branch_lengths]
        return torch.cat([prompt_positions, *branches], dim=1)

    return patch.object(rows, "continue_positions", restarted)


def unmerged_backward() -> Any:
    """Backward is given the block's own log-sum-exp rather than the joined one."""
    right = CpuFlashBackend.backward

    def wrong(self: CpuFlashBackend, block: Block, gradient: Tensor, output: Tensor, _: Tensor) -> Any:
        return right(self, block, gradient, output, self.forward(block)[1])

    return patch.object(CpuFlashBackend, "backward", wrong)


def foreign_frames() -> Any:
    """The prompt's embeddings come from another sample's video of the same size."""
    right = logprobs.score_groups

    def wrong(policy: Any, groups: list[rows.PromptGroup], **settings: Any) -> Any:
        media = [
            policy.encode_video(NoiseVideo(seed=7), range(0, 24, 2)),
            policy.encode_video(NoiseVideo(seed=8, frame_count=9, height=56, width=84), range(0, 9, 2)),
        ]
        foreign = policy.embed(policy.build_prompt(QUESTION, media)).detach()
        for group in groups:
            assert group.prompt_embeddings is not None
            group.prompt_embeddings.data.copy_(foreign)
        return right(policy, groups, **settings)

    return patch("mrsp_engine.parity.score_groups", wrong)


def late_labels() -> Any:
    """Labels are shifted within each rank's shard, so that the last of a run is given the first of the next run."""
    right = rows.PackedRow.of.__func__

    def wrong(cls: type[rows.PackedRow], groups: Any, device: torch.device) -> rows.PackedRow:
        row = right(cls, groups, device)
        token_ids = torch.zeros(row.layout.total, dtype=torch.int64)
        token_ids[row.predictors[1:]] = row.targets[:-1]
        targets = row.targets.clone()
        for ranges in row.layout.split(NUM_RANKS):
            own = torch.cat([torch.arange(run.start, run.end) for run in ranges])
            following = dict(zip(own.tolist(), own.roll(-1).tolist(), strict=True))
            for pair, predictor in enumerate(row.predictors.tolist()):
                if following.get(predictor, predictor + 1) != predictor + 1:
                    targets[pair] = token_ids[following[predictor]]
        return dataclasses.replace(row, targets=targets)

    return patch.object(rows.PackedRow, "of", classmethod(wrong))


def overscaled_loss() -> Any:
    """The gradient counts once per rank, as when every rank's loss is summed."""
    return patch("mrsp_engine.logprobs.gather_results", lambda *a: NUM_RANKS * (g := right_gather(*a)) - g.detach())


right_gather = logprobs.gather_results

FAULTS: dict[str, Callable[[], Any]] = {
    "response positions restarted at 0": restarted_positions,
    "unmerged log-sum-exp in backward": unmerged_backward,
    "another sample's frames": foreign_frames,
    "labels shifted after sharding": late_labels,
    "loss over-scaled by the ranks": overscaled_loss,
}


def measure(root: str) -> dict[str, float]:
    """The difference from the plain way with each fault, and without one, in units of what is allowed."""
    group = SequenceGroup.of(dist.group.WORLD)
    policy = load_policy(Path(root) / "model", dtype=torch.float64, store=EmbeddingStore(Path(root) / "embeddings"))
    policy.freeze_vision()
    use_exact_norms(policy.model)
    expected = {name: value.clone() for name, value in compute(policy, CASE.reference).items()}
    found = {"none": largest_difference(compute(policy, CASE, group), expected)[0]}
    for name, fault in FAULTS.items():
        with fault():
            found[name] = largest_difference(compute(policy, CASE, group), expected)[0]
    return found


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    root = tmp_path_factory.mktemp("teeth")
    create_tiny_qwen2_5_vl(root / "model", corpus=[QUESTION], num_layers=2, intermediate_size=64, vocabulary_size=400)
    return run_on_ranks(measure, NUM_RANKS, str(root))[0]


def test_without_a_fault_the_case_passes(differences: dict[str, float]) -> None:
    assert differences["none"] <= 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(differences: dict[str, float], fault: str) -> None:
    assert differences[fault] > 1000
