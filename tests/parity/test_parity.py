"""However a group is computed, its loss and every gradient are those of the plain way, for every family of models.

Ranks, heads and tokens split in every way, heads (6 query, 2 key) that don't divide, shards that end inside a response,
ranks without targets, sharing on and off, embeddings stored and fresh, activations kept, recomputed and moved away: the
loss differs by at most 1e-10, a gradient by at most 1e-9 of the norm of all. By default every two settings meet in at
least one case; `pytest tests/parity --every-case` runs all combinations.

A new family joins with one line in `FAMILIES`.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.parity import QUESTION, ParityCase, compute, covering_cases, every_case, largest_difference
from mrsp_engine.process_groups import SequenceGroup
from mrsp_engine.testing import run_on_ranks, use_exact_norms
from mrsp_engine.tiny_model import create_tiny_qwen2_5_vl

MOST_RANKS = 4


def build_qwen2_5_vl(folder: Path) -> None:
    create_tiny_qwen2_5_vl(
        folder,
        corpus=[QUESTION, "The red circle met the blue square at 00:12."],
        num_layers=2,
        intermediate_size=64,
        vocabulary_size=400,
        vision_hidden_size=64,
        vision_num_heads=2,
    )


FAMILIES: dict[str, tuple[Callable[[Path], None], bool]] = {"qwen2_5_vl": (build_qwen2_5_vl, True)}
"""For every family a function that writes a tiny checkpoint, and whether it sees videos."""
IS_SEEING = {family: is_seeing for family, (_, is_seeing) in FAMILIES.items()}


def open_family(root: Path, family: str) -> Policy:
    policy = load_policy(root / family, dtype=torch.float64, store=EmbeddingStore(root / "embeddings"))
    policy.freeze_vision()
    use_exact_norms(policy.model)
    return policy


def differences(root: str, cases: list[ParityCase]) -> list[tuple[float, str]]:
    """Compare all cases, on this process, with the outcomes stored in `root`; those without this rank come out as 0."""
    groups: dict[int, SequenceGroup] = {}
    for size in range(2, dist.get_world_size() + 1):
        process_group = dist.new_group(list(range(size)))
        if dist.get_rank() < size:
            groups[size] = SequenceGroup.of(process_group)
    policies = {family: open_family(Path(root), family) for family in {case.family for case in cases}}
    found: list[tuple[float, str]] = []
    for case in cases:
        num_ranks, policy = case.split[0], policies[case.family]
        if dist.get_rank() >= num_ranks:
            found.append((0.0, ""))
            continue
        with tempfile.TemporaryDirectory() as empty:
            policy.store = EmbeddingStore(Path(root) / "embeddings" if case.is_cached else Path(empty))
            outcome = compute(policy, case, groups.get(num_ranks))
        found.append(largest_difference(outcome, load_file(Path(root) / f"{case.subject}.safetensors")))
    return found


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest) -> list[ParityCase]:
    if request.config.getoption("--every-case", default=False):
        return list(every_case(IS_SEEING))
    return covering_cases(IS_SEEING)


@pytest.fixture(scope="module")
def by_case(cases: list[ParityCase], tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, str]]:
    """The worst difference of any rank in every case; processes are started once for all of them."""
    root = tmp_path_factory.mktemp("parity")
    references = {case.subject: case.reference for case in cases}
    for family, (build, _) in FAMILIES.items():
        build(root / family)
        policy = open_family(root, family)
        for subject, reference in references.items():
            if reference.family == family:
                outcome = compute(policy, reference)
                save_file(
                    {name: value.contiguous() for name, value in outcome.items()}, root / f"{subject}.safetensors"
                )
    of_ranks = run_on_ranks(differences, MOST_RANKS, str(root), cases, timeout_seconds=3600 * 12)
    return [max(of_case) for of_case in zip(*of_ranks, strict=True)]


def test_every_case_equals_the_plain_way(cases: list[ParityCase], by_case: list[tuple[float, str]]) -> None:
    wrong = {case: found for case, found in zip(cases, by_case, strict=True) if not found[0] <= 1}
    assert not wrong, f"{len(wrong)} of {len(cases)} cases differ, in units of what is allowed: {wrong}"


def test_the_selection_covers_what_it_says(cases: list[ParityCase]) -> None:
    for family, is_seeing in IS_SEEING.items():
        of_family = [case for case in cases if case.family == family]
        every = [case for case in every_case(IS_SEEING) if case.family == family]
        assert {(case.split, case.shares_prompt) for case in of_family} == {
            (case.split, case.shares_prompt) for case in every
        }
        assert {(case.media, case.memory, is_seeing) for case in of_family} == {
            (case.media, case.memory, is_seeing) for case in every
        }
