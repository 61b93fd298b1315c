"""The parity measure is sensitive: each fault known from other systems is far beyond its tolerance.

The faults are injected into the running code of two ranks; the same case without a fault passes.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mrsp_engine import logprobs, row_scorer, rows
from mrsp_engine.attention.backends.base import Block
from mrsp_engine.attention.backends.torch_fused import CpuFlashBackend
from mrsp_engine.distributed.collectives import gather_results
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.parallel import encode_media
from mrsp_engine.families import load_policy
from mrsp_engine.families.language_policy import LanguagePolicy
from mrsp_engine.testing.exactness import QUESTION, ParityCase, compute, largest_difference, parity_media
from mrsp_engine.testing.fixtures import RankPool, use_exact_norms
from mrsp_engine.tiny.families import build_tiny

NUM_RANKS = 2
CASE = ParityCase(
    family="qwen2_5_vl", branches="uneven", media="videos and an image", split=(NUM_RANKS, 1, "ring"), memory="kept"
)
TRAINED = dataclasses.replace(CASE, vision="trained")


def restarted_positions() -> Any:
    """Every response counts from 0 instead of continuing after its prompt."""

    def restarted(prompt_positions: Tensor, branch_lengths: tuple[int, ...]) -> Tensor:
        branches = [torch.arange(length).expand(prompt_positions.shape[0], -1) for length in branch_lengths]
        return torch.cat([prompt_positions, *branches], dim=1)

    return patch.object(rows, "continue_positions", restarted)


def unmerged_backward() -> Any:
    """The backward pass gets the block's own log-sum-exp rather than the joined one."""
    right = CpuFlashBackend.backward

    def wrong(self: CpuFlashBackend, block: Block, gradient: Tensor, output: Tensor, _: Tensor) -> Any:
        return right(self, block, gradient, output, self.forward(block)[1])

    return patch.object(CpuFlashBackend, "backward", wrong)


def foreign_frames() -> Any:
    """The prompt's embeddings come from another sample's video of the same size."""
    right = logprobs.score_groups

    def wrong(policy: Any, groups: list[rows.PromptGroup], **settings: Any) -> Any:
        media = parity_media(policy.encoder, CASE.media, seed=7)
        references: Any = encode_media(policy.encoder, media, policy.store, settings["sequence_group"])
        foreign = policy.embed(policy.build_prompt(QUESTION, references)).detach()
        for group in groups:
            assert group.prompt_embeddings is not None
            group.prompt_embeddings.data.copy_(foreign)
        return right(policy, groups, **settings)

    return patch("mrsp_engine.testing.exactness.score_groups", wrong)


def late_labels() -> Any:
    """Labels are shifted within each rank's shard, so that the last of a run gets the first of the next run."""
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
    return patch("mrsp_engine.row_scorer.gather_results", lambda *a: NUM_RANKS * (g := right_gather(*a)) - g.detach())


right_gather = row_scorer.gather_results


def forgotten_ranks() -> Any:
    """A rank's frames get only the gradient of the tokens that the same rank owns."""
    return patch("mrsp_engine.encoding.parallel.gather_tokens", gather_results)


FAULTS: dict[str, tuple[ParityCase, Callable[[], Any]]] = {
    "response positions restarted at 0": (CASE, restarted_positions),
    "unmerged log-sum-exp in backward": (CASE, unmerged_backward),
    "another sample's frames": (CASE, foreign_frames),
    "labels shifted after sharding": (CASE, late_labels),
    "loss over-scaled by the ranks": (CASE, overscaled_loss),
    "frames that hear of their own rank only": (TRAINED, forgotten_ranks),
}


@functools.cache
def open_policy(root: str) -> LanguagePolicy:
    policy = load_policy(Path(root) / "model", dtype=torch.float64, store=EmbeddingStore(Path(root) / "embeddings"))
    assert isinstance(policy, LanguagePolicy)
    use_exact_norms(policy.model)
    return policy


@functools.cache
def expected_of(root: str, case: ParityCase) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in compute(open_policy(root), case.reference).items()}


def measure(root: str, case: ParityCase, fault: str | None) -> float:
    """The difference of two ranks from the plain path, in units of the tolerance, with a fault or without one."""
    assert dist.group.WORLD is not None
    expected = expected_of(root, case)
    with FAULTS[fault][1]() if fault else nullcontext():
        return largest_difference(compute(open_policy(root), case, SequenceGroup.of(dist.group.WORLD)), expected)[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("teeth")
    build_tiny("qwen2_5_vl", root / "model")
    return str(root)


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankPool]:
    with RankPool(NUM_RANKS, timeout_seconds=50) as ranks:
        yield ranks


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASE, TRAINED], ids=lambda case: case.vision)
def test_without_a_fault_the_case_passes(ranks: RankPool, root: str, case: ParityCase) -> None:
    assert max(ranks.call(measure, root, case, None)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(ranks: RankPool, root: str, fault: str) -> None:
    assert min(ranks.call(measure, root, FAULTS[fault][0], fault)) > 1000
