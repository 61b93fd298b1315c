"""However a group is computed, its loss and every gradient are those of the plain way, for every family of models.

Ranks, heads and tokens split in every way, heads (6 query, 2 key; 28 query, 4 key) that don't divide, shards that end
inside a response, ranks without targets, sharing on and off, embeddings stored, encoded first and encoded with
gradients, activations kept, recomputed and moved away: the loss differs by at most 1e-10, a gradient by at most 1e-9 of
the norm of all. By default every two settings meet in at least one case; `pytest tests/parity --every-case` runs all
combinations.

A new family joins with one line in `FAMILIES`.
"""

from collections.abc import Iterable
from dataclasses import fields
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.language_policy import LanguagePolicy
from mrsp_engine.parity import ParityCase, ParityFamily, compute, covering_cases, every_case, largest_difference
from mrsp_engine.process_groups import SequenceGroup
from mrsp_engine.testing import run_on_ranks, use_exact_norms
from mrsp_engine.tiny_families import build_tiny
from mrsp_engine.tiny_language import LanguageSizes, generation_config

SIZES = LanguageSizes(
    hidden_size=192, num_layers=2, num_heads=6, num_key_value_heads=2, intermediate_size=64, vocabulary_size=400
)
FAMILIES = {
    "qwen2": ParityFamily(is_seeing=False),
    "qwen2_5_vl": ParityFamily(is_seeing=True),
    "qwen3": ParityFamily(is_seeing=False),
    "qwen3_vl": ParityFamily(is_seeing=True),
    "vila": ParityFamily(is_seeing=True),
}
MANY_HEADS = "qwen3 with 28 heads"
MANY_HEADS_CASES = [
    ParityCase(family=MANY_HEADS, branches=branches, media="no media", split=split, shares_prompt=shares_prompt)
    for branches, split, shares_prompt in (
        ("two groups", (3, 1, "gather"), False),
        ("uneven", (3, 1, "ring"), True),
        ("questions", (4, 4, "gather"), True),
        ("two groups", (4, 2, "ring"), True),
        ("uneven", (7, 7, "gather"), True),
        ("questions", (8, 4, "ring"), True),
        ("uneven", (8, 2, "gather"), True),
        ("questions", (8, 1, "ring"), True),
    )
]
"""28 query and 4 key heads, as in a model of 7B; on 7 ranks the query heads of some look at two key heads."""


def build(family: str, folder: Path) -> None:
    if family != MANY_HEADS:
        build_tiny(family, folder, sizes=SIZES)
        return
    build_tiny("qwen3", folder, sizes=SIZES)
    config = Qwen3Config.from_pretrained(folder)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 28, 4, 8
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    model.generation_config = generation_config(config)
    model.save_pretrained(folder)


def open_family(root: Path, family: str) -> LanguagePolicy:
    policy = load_policy(root / family, dtype=torch.float64, store=EmbeddingStore(root / "embeddings"))
    assert isinstance(policy, LanguagePolicy)
    use_exact_norms(policy.model)
    return policy


def differences(root: str, cases: list[ParityCase]) -> list[tuple[float, str]]:
    """Compare all cases, on this process, with the outcomes stored in `root`; those without this rank come out as 0."""
    groups: dict[int, SequenceGroup] = {}
    for size in sorted({case.split[0] for case in cases} - {1}):
        process_group = dist.new_group(list(range(size)))
        if dist.get_rank() < size:
            groups[size] = SequenceGroup.of(process_group)
    policies: dict[str, LanguagePolicy] = {}
    found: list[tuple[float, str]] = []
    for number, case in enumerate(cases):
        num_ranks = case.split[0]
        if dist.get_rank() >= num_ranks:
            found.append((0.0, ""))
            continue
        if case.family not in policies:
            policies[case.family] = open_family(Path(root), case.family)
        policy = policies[case.family]
        policy.store = EmbeddingStore(
            Path(root) / ("embeddings" if case.vision == "stored" else f"embeddings {number}")
        )
        outcome = compute(policy, case, groups.get(num_ranks))
        found.append(largest_difference(outcome, load_file(Path(root) / f"{case.subject}.safetensors")))
    return found


def compare(root: Path, cases: list[ParityCase]) -> list[tuple[float, str]]:
    """The worst difference of any rank in every case; processes are started once for all of them."""
    references = {case.subject: case.reference for case in cases}
    for family in {case.family: None for case in cases}:
        build(family, root / family)
        policy = open_family(root, family)
        for subject, reference in references.items():
            if reference.family == family:
                save_file(contiguous(compute(policy, reference).items()), root / f"{subject}.safetensors")
    num_ranks = max(case.split[0] for case in cases)
    of_ranks = run_on_ranks(differences, num_ranks, str(root), cases, timeout_seconds=3600 * 12)
    return [max(of_case) for of_case in zip(*of_ranks, strict=True)]


def contiguous(outcome: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in outcome}


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest) -> list[ParityCase]:
    if request.config.getoption("--every-case", default=False):
        return list(every_case(FAMILIES))
    return covering_cases(FAMILIES)


@pytest.fixture(scope="module")
def by_case(cases: list[ParityCase], tmp_path_factory: pytest.TempPathFactory) -> dict[ParityCase, tuple[float, str]]:
    every = [*MANY_HEADS_CASES, *cases]
    return dict(zip(every, compare(tmp_path_factory.mktemp("parity"), every), strict=True))


def test_every_case_equals_the_plain_way(cases: list[ParityCase], by_case: dict[ParityCase, tuple[float, str]]) -> None:
    wrong = {case: by_case[case] for case in cases if not by_case[case][0] <= 1}
    assert not wrong, f"{len(wrong)} of {len(cases)} cases differ, in units of what is allowed: {wrong}"


@pytest.mark.parametrize("case", MANY_HEADS_CASES, ids=lambda case: f"{case.split}")
def test_heads_that_do_not_divide(case: ParityCase, by_case: dict[ParityCase, tuple[float, str]]) -> None:
    worst, name = by_case[case]
    assert worst <= 1, name


def test_the_selection_covers_what_it_says(cases: list[ParityCase]) -> None:
    every = list(every_case(FAMILIES))
    for first, second in combinations([field.name for field in fields(ParityCase)], 2):
        of_every = {(getattr(case, first), getattr(case, second)) for case in every}
        assert {(getattr(case, first), getattr(case, second)) for case in cases} == of_every, f"{first} and {second}"
