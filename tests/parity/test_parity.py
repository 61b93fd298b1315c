"""However a group is computed, its loss and every gradient equal those of the plain path, for every family.

Ranks, heads and tokens split in every way, heads (6 query, 2 key; 28 query, 4 key; 3 of linear layers) that don't
divide, shards that end inside a response, ranks without targets, sharing on and off, embeddings stored, encoded first
and encoded with gradients, activations kept, recomputed and offloaded: the loss differs by at most 1e-10, a gradient by
at most 1e-9 of the norm of all. By default every pair of settings occurs in at least one case, and corner cases of more
than two settings are listed (`CORNERS`); `pytest tests/parity --every-case` runs all combinations.

Every case is a separate test, on ranks that are started once. A new family is added with one line in `FAMILIES`.
"""

import functools
from collections.abc import Iterator
from dataclasses import fields
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.language_policy import LanguagePolicy
from mrsp_engine.layout import GroupLengths, PackedLayout
from mrsp_engine.testing.exactness import (
    BRANCHES,
    ParityCase,
    ParityFamily,
    compute,
    covering_cases,
    every_case,
    largest_difference,
)
from mrsp_engine.testing.fixtures import RankPool, run_on_ranks, use_exact_norms
from mrsp_engine.tiny.families import build_tiny
from mrsp_engine.tiny.language import LanguageSizes, generation_config

SIZES = LanguageSizes(
    hidden_size=192, num_layers=2, num_heads=6, num_key_value_heads=2, intermediate_size=64, vocabulary_size=400
)
FAMILIES = {
    "qwen2": ParityFamily(is_seeing=False),
    "qwen2_5_omni": ParityFamily(is_seeing=True),
    "qwen2_5_vl": ParityFamily(is_seeing=True),
    "qwen3": ParityFamily(is_seeing=False),
    "qwen3_5": ParityFamily(is_seeing=True),
    "qwen3_5_moe": ParityFamily(is_seeing=True, splits=((1, 1, "gather"), (2, 1, "ring"), (4, 2, "gather"))),
    "qwen3_vl": ParityFamily(is_seeing=True),
    "qwen3_vl_moe": ParityFamily(is_seeing=True, splits=((1, 1, "gather"), (2, 1, "ring"), (4, 2, "gather"))),
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
"""28 query and 4 key heads, as in a model of 7B; on 7 ranks the query heads of some use two key heads."""
TRAINED_CASES = [
    ParityCase(
        family=family,
        branches="two groups",
        media="videos and an image",
        split=(4, 1, exchange),
        shares_prompt=shares_prompt,
        vision="trained",
        memory="checkpointed",
    )
    for family in FAMILIES
    if FAMILIES[family].is_seeing
    for exchange, shares_prompt in (("gather", True), ("ring", False))
]
"""A trained tower, on ranks of which some own no token of a medium but still receive its gradient."""
FILM_CASES = [
    ParityCase(
        family="qwen2_5_omni",
        branches=branches,
        media="a heard film",
        split=split,
        shares_prompt=shares_prompt,
        vision=vision,
        memory=memory,
    )
    for branches, split, shares_prompt, vision, memory in (
        ("uneven", (1, 1, "gather"), True, "stored", "kept"),
        ("uneven", (2, 1, "ring"), True, "encoded", "checkpointed"),
        ("uneven", (3, 1, "gather"), False, "stored", "offloaded"),
        ("two groups", (2, 2, "gather"), True, "stored", "kept"),
        ("two groups", (4, 2, "ring"), True, "trained", "kept"),
    )
]
"""Rows of pictures and of sound lie between each other, and what divides a row among ranks lies inside of the film."""
CORNERS = [*MANY_HEADS_CASES, *TRAINED_CASES, *FILM_CASES]
MOST_RANKS = 8
SECONDS_PER_CASE = 50.0


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


@functools.cache
def open_family(root: str, family: str) -> LanguagePolicy:
    policy = load_policy(Path(root) / family, dtype=torch.float64, store=EmbeddingStore(Path(root) / "embeddings"))
    assert isinstance(policy, LanguagePolicy)
    use_exact_norms(policy.model)
    return policy


@functools.cache
def group_of(num_ranks: int) -> SequenceGroup | None:
    """The first ranks; every rank has to request the same numbers in the same order."""
    process_group = dist.new_group(list(range(num_ranks)))
    return SequenceGroup.of(process_group) if dist.get_rank() < num_ranks else None


def compute_references(root: str, references: list[ParityCase]) -> None:
    """The results of the plain path, each by one rank, written to files."""
    for reference in references[dist.get_rank() :: dist.get_world_size()]:
        outcome = compute(open_family(root, reference.family), reference)
        path = Path(root) / f"{reference.subject}.safetensors"
        save_file({name: value.contiguous() for name, value in outcome.items()}, path)


def difference(root: str, case: ParityCase) -> tuple[float, str]:
    """The difference between this rank's result and the plain path's; 0 on a rank that the case doesn't need."""
    num_ranks = case.split[0]
    group = None if num_ranks == 1 else group_of(num_ranks)
    if dist.get_rank() >= num_ranks:
        return 0.0, ""
    policy = open_family(root, case.family)
    stored = "embeddings" if case.vision == "stored" else f"embeddings of {case}"
    policy.store = EmbeddingStore(Path(root) / stored)
    outcome = compute(policy, case, group)
    return largest_difference(outcome, load_file(Path(root) / f"{case.subject}.safetensors"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", chosen_cases(metafunc.config), ids=name_of)


def chosen_cases(config: pytest.Config) -> list[ParityCase]:
    is_every = config.getoption("--every-case", default=False)
    return [*CORNERS, *(every_case(FAMILIES) if is_every else covering_cases(FAMILIES))]


def name_of(case: ParityCase) -> str:
    ranks, head_ranks, exchange = case.split
    sharing = "shared" if case.shares_prompt else "unshared"
    return f"{case.subject}, {ranks} ranks, {head_ranks} by heads, {exchange}, {sharing}, {case.vision}, {case.memory}"


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankPool]:
    with RankPool(MOST_RANKS, timeout_seconds=SECONDS_PER_CASE) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def root(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with all checkpoints and the result of each case's subject on the plain path."""
    root = tmp_path_factory.mktemp("parity")
    for family in (*FAMILIES, MANY_HEADS):
        build(family, root / family)
    references = {case.subject: case.reference for case in chosen_cases(pytestconfig)}
    run_on_ranks(compute_references, 2, str(root), list(references.values()), timeout_seconds=3600)
    return str(root)


@pytest.mark.slow
def test_a_case_equals_the_plain_way(case: ParityCase, ranks: RankPool, root: str) -> None:
    worst, name = max(ranks.call(difference, root, case))
    assert worst <= 1, f"{name} differs by {worst} times what is allowed"


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_the_branches_are_what_they_are_chosen_for(num_ranks: int) -> None:
    """Ranks meet inside a response of "uneven", and all but one have nothing to predict in "one target"."""
    lengths = {name: tuple(length for length, _ in groups[0]) for name, groups in BRANCHES.items()}
    uneven = PackedLayout((GroupLengths(120, lengths["uneven"]),))
    inner = {token for run in uneven.ranges[0].branches for token in range(run.start + 1, run.end)}
    assert any(part.start in inner for owned in uneven.split(num_ranks) for part in owned)
    single = PackedLayout((GroupLengths(120, lengths["one target"]),))
    owners = [any(part.start <= 119 < part.end for part in owned) for owned in single.split(num_ranks)]
    assert owners.count(True) == 1


def test_the_selection_covers_what_it_says() -> None:
    chosen, every = covering_cases(FAMILIES), list(every_case(FAMILIES))
    for first, second in combinations([field.name for field in fields(ParityCase)], 2):
        of_every = {(getattr(case, first), getattr(case, second)) for case in every}
        assert {(getattr(case, first), getattr(case, second)) for case in chosen} == of_every, f"{first} and {second}"
