"""A row split over ranks gives the loss and the gradients of one rank, for the model of the quickstart.

Relative error at most 1e-9 in float64, for every parameter and for the prompt's embeddings, whatever the number of
ranks: heads (6 query, 2 key) that don't divide among them, uneven slices, ranks without a single target.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mrsp_engine.collectives import sum_gradients
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.process_groups import SequenceGroup
from mrsp_engine.testing import NoiseVideo, run_on_ranks, use_exact_norms
from mrsp_engine.tiny_model import create_tiny_qwen2_5_vl

TOLERANCE = 1e-9
GROUP_SIZES = (2, 3, 4)
Outcomes = dict[str, dict[str, Tensor]]
"""For every case by name: its loss, log-probs, entropies and gradients by name."""
QUESTION = "Which shape left first?\nA. red circle\nB. blue square"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One group: does its prompt show a video, and (tokens, first scored token) of its branches."""

    has_video: bool
    branches: tuple[tuple[int, int], ...]


CASES = {
    "group": Case(has_video=True, branches=((40, 0), (13, 0), (28, 0), (61, 0))),
    "questions over one video": Case(has_video=True, branches=((25, 11), (30, 20), (7, 7), (19, 3))),
    "one target for all ranks": Case(has_video=True, branches=((1, 0),)),
    "no video": Case(has_video=False, branches=((3, 0), (0, 0), (9, 2))),
}


def outcomes(folder: str, embeddings: str, group: SequenceGroup | None = None) -> Outcomes:
    """Loss and gradients of all cases, on this process alone or together with its group."""
    policy = load_policy(Path(folder), dtype=torch.float64, store=EmbeddingStore(Path(embeddings)))
    policy.freeze_vision()
    use_exact_norms(policy.model)
    return {name: outcome(policy, case, group) for name, case in CASES.items()}


def outcomes_by_group_size(folder: str, embeddings: str) -> dict[int, Outcomes]:
    """The same by every group of the first 2, 3, … ranks that this process belongs to."""
    by_size: dict[int, Outcomes] = {}
    for size in GROUP_SIZES:
        process_group = dist.new_group(list(range(size)))
        if dist.get_rank() < size:
            by_size[size] = outcomes(folder, embeddings, SequenceGroup.of(process_group))
    return by_size


def outcome(policy: Policy, case: Case, group: SequenceGroup | None) -> dict[str, Tensor]:
    media = [policy.encode_video(NoiseVideo(), range(0, 24, 2))] if case.has_video else []
    prompt = policy.build_prompt(QUESTION, media)
    generator = torch.Generator().manual_seed(11)
    branches = [
        Branch(token_ids=tuple(torch.randint(0, 256, (length,), generator=generator).tolist()), scored_from=start)
        for length, start in case.branches
    ]
    prompt_embeddings = nn.Parameter(policy.embed(prompt).detach())
    policy.model.zero_grad()
    scores = score_branches(
        policy, prompt, branches, temperature=0.8, sequence_group=group, prompt_embeddings=prompt_embeddings
    )
    logprobs, entropies = torch.cat(scores.logprobs), torch.cat(scores.entropies)
    weights = torch.randn(len(logprobs), generator=generator, dtype=torch.float64)
    loss = (weights * logprobs + 0.1 * logprobs**2).sum() / len(logprobs)
    loss.backward()
    trained = {name: parameter for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    trained["prompt"] = prompt_embeddings
    if group is not None:
        sum_gradients(trained.values(), group)
    gradients = {f"d {name}": weight.grad.clone() for name, weight in trained.items() if weight.grad is not None}
    return {"loss": loss.detach(), "logprobs": logprobs.detach(), "entropies": entropies, **gradients}


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("parity")
    create_tiny_qwen2_5_vl(root / "model", corpus=[QUESTION, "The red circle met the blue square at 00:12."])
    return str(root / "model"), str(root / "embeddings")


@pytest.fixture(scope="module")
def alone(folders: tuple[str, str]) -> Outcomes:
    return outcomes(*folders)


@pytest.fixture(scope="module")
def together(folders: tuple[str, str]) -> list[dict[int, Outcomes]]:
    """What every rank found; starting processes costs far more than the cases, so they are started once."""
    return run_on_ranks(outcomes_by_group_size, max(GROUP_SIZES), *folders, timeout_seconds=400)


@pytest.mark.parametrize("size", GROUP_SIZES)
def test_ranks_equal_one(alone: Outcomes, together: list[dict[int, Outcomes]], size: int) -> None:
    of_ranks = [by_size[size] for by_size in together if size in by_size]
    assert len(of_ranks) == size
    for of_rank in of_ranks:
        for case, expected in alone.items():
            assert of_rank[case].keys() == expected.keys()
            for name, value in expected.items():
                assert relative(of_rank[case][name], value) <= TOLERANCE, f"{case}: {name}"
