"""Which rank computes which rows: every group once, even costs, and as few ranks per row as fit."""

import dataclasses
import importlib.util
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from longrl_trainer.config.sections import ParallelSection, SamplerSection
from longrl_trainer.config.stages import SftConfig
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.training.division import RowCosts, choose_sequence_ranks, divide_by_cost
from longrl_trainer.training.opening import check_sampler, check_sharding
from longrl_trainer.training.ranks import ALONE, Ranks, check_sequence_ranks
from longrl_trainer.training.scoring import RowScoring
from mrsp_engine.attention.split import AttentionSettings
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.layout import Branch, GroupLengths, PackedLayout
from mrsp_engine.planner.hardware import HARDWARE
from mrsp_engine.planner.memory import Strategy
from mrsp_engine.planner.published import MODELS
from mrsp_engine.prompts import Prompt
from mrsp_engine.rows import PromptGroup

COSTS = RowCosts(
    shape=MODELS["Qwen2.5-VL-7B"],
    hardware=HARDWARE["H100"],
    memory_bytes=80e9,
    settings=AttentionSettings(),
    item_bytes=2,
    strategy=Strategy(sharding="everything"),
)
HOUR = PackedLayout((GroupLengths(230_000, (1024,) * 8),))
SHORT = PackedLayout((GroupLengths(2_000, (512,) * 8),))


def place(rank: int, num_ranks: int, sequence_ranks: int = 1) -> Ranks:
    """One rank's place; planning exchanges nothing, so there is no process group."""

    def members(size: int) -> SequenceGroup:
        return SequenceGroup(process_group=cast(Any, None), rank=rank % size, size=size)

    shared = members(sequence_ranks) if sequence_ranks > 1 else None
    return Ranks(group=members(num_ranks), sequence_group=shared)


def group(prompt: int, *branches: int) -> PromptGroup:
    ids = (0,) * prompt
    laid_out = Prompt(token_ids=ids, expanded_ids=ids, positions=torch.arange(prompt)[None], media=())
    return PromptGroup(prompt=laid_out, branches=[Branch(token_ids=(0,) * length) for length in branches])


GROUPS = [group(length, *branches) for length, branches in ((9, (5, 5)), (400, (30, 9, 2)), (80, (7,)), (90, (8, 8)))]


@pytest.mark.parametrize("share_prompt", [True, False])
@pytest.mark.parametrize("row_tokens", [None, 200])
@pytest.mark.parametrize("sequence_ranks", [1, 2, 4])
def test_every_group_is_computed_by_one_data_rank_and_all_make_equally_many_passes(
    sequence_ranks: int, row_tokens: int | None, share_prompt: bool
) -> None:
    plans = [
        RowScoring(
            parallel=ParallelSection(row_tokens=row_tokens),
            costs=COSTS,
            share_prompt=share_prompt,
            ranks=place(rank, 4, sequence_ranks),
        ).plan(GROUPS)
        for rank in range(4)
    ]
    assert len({tuple(turn.num_passes for turn in plan) for plan in plans}) == 1
    computed = [index for plan in plans[::sequence_ranks] for turn in plan for index in turn.members]
    assert sorted(computed) == list(range(len(GROUPS)))
    for first in range(0, 4, sequence_ranks):
        assert all(plan == plans[first] for plan in plans[first : first + sequence_ranks])


def test_groups_are_divided_by_cost_not_by_number() -> None:
    shares = divide_by_cost([1.0, 1.0, 9.0, 1.0, 1.0, 1.0], 2)
    assert sorted(map(sorted, shares)) == [[0, 1, 3, 4, 5], [2]]
    assert divide_by_cost([3.0], 3) == [[0], [], []]
    # A long prompt costs more than twice what two of half its length do.
    long, half = (COSTS.seconds(PackedLayout((GroupLengths(tokens, (512,)),))) for tokens in (200_000, 100_000))
    assert long > 2 * half


def test_as_many_ranks_share_a_row_as_is_fastest_and_fits() -> None:
    assert choose_sequence_ranks(COSTS, [SHORT] * 32, 8) == 1
    assert choose_sequence_ranks(COSTS, [HOUR], 8) == 8
    few = choose_sequence_ranks(COSTS, [HOUR] * 8, 8)
    plenty = dataclasses.replace(COSTS, memory_bytes=1e15)
    assert few > choose_sequence_ranks(plenty, [HOUR] * 8, 8)
    recomputed = dataclasses.replace(COSTS, strategy=Strategy(sharding="everything", is_checkpointed=True))
    assert few > choose_sequence_ranks(recomputed, [HOUR] * 8, 8)
    # Heads that must be split can't be split among fewer ranks.
    by_heads = dataclasses.replace(COSTS, settings=AttentionSettings(head_ranks=4))
    assert choose_sequence_ranks(by_heads, [SHORT] * 32, 8) == 4


def test_a_row_that_is_too_short_is_refused_by_all_ranks_before_any_computes() -> None:
    short = [*GROUPS, group(1, 1)]
    for rank in range(8):
        scoring = RowScoring(parallel=ParallelSection(), costs=COSTS, ranks=place(rank, 8, 4))
        with pytest.raises(EngineUsageError, match=r"a row of 2 tokens .* \(sequence_ranks\)"):
            scoring.plan(short)


def sft(**changes: Any) -> SftConfig:
    values: dict[str, Any] = {
        "output": Path("run"),
        "learning_rate": 1e-3,
        "model": {"folder": Path("model")},
        "data": {"dataset": Path("dataset"), "split": "train_sft", "num_frames": 4},
    }
    return SftConfig.model_validate(values | changes)


def test_divisions_and_shardings_that_are_impossible_are_refused() -> None:
    with pytest.raises(TrainerUsageError, match=r"parallel\.sequence_ranks=3 with 8 processes: expected one of 1, 2"):
        check_sequence_ranks(3, 8)
    muon = sft(optimizer="muon")
    check_sharding(muon, ALONE)
    with pytest.raises(TrainerUsageError, match=r'optimizer="muon" needs whole matrices.*sharding\.kind="none"'):
        check_sharding(muon, place(0, 2))
    check_sharding(sft(optimizer="muon", sharding={"kind": "none"}), place(0, 2))
    with pytest.raises(TrainerUsageError, match=r"sharding\.shard_ranks=3: expected a divisor of the 2 processes"):
        check_sharding(sft(sharding={"shard_ranks": 3}), place(0, 2))
    with pytest.raises(TrainerUsageError, match=r"sampler\.tensor_ranks=4: expected a divisor of .* processes, 2"):
        check_sampler(SamplerSection(tensor_ranks=4), place(0, 2))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dtype": "float64"}, r'dtype="float64" with sharding.kind="zero3": .* float32 at most'),
        ({"train_vision": "projector"}, r'train_vision="projector" with sharding.kind="zero3": .*language model alone'),
        ({"lora": {"rank": 4, "alpha": 8, "vision": True}}, r"lora.vision=true with sharding.kind"),
        ({"optimizer": "muon"}, r'optimizer="muon" needs whole matrices'),
        ({"sharding": {"kind": "zero3", "shard_ranks": 2}}, r"sharding.shard_ranks=2 with sharding.kind.*omit it"),
    ],
)
def test_what_deepspeed_cannot_train_is_refused(
    changes: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    config = sft(**({"sharding": {"kind": "zero3"}} | changes))
    check_sharding(config, ALONE)
    with pytest.raises(TrainerUsageError, match=expected):
        check_sharding(config, place(0, 2))


def test_a_kind_whose_package_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainerUsageError, match=r'"zero2" needs DeepSpeed.*install longrl-trainer\[deepspeed\]'):
        check_sharding(sft(sharding={"kind": "zero2"}), place(0, 2))


@pytest.mark.parametrize(
    ("device", "sharding", "num_ranks", "expected"),
    [
        ("cpu", {"offload": "all"}, 2, r'sharding.offload="all": the model is computed on CPUs'),
        ("cuda", {"offload": "all"}, 1, r'sharding.offload="all": only what several processes share'),
        ("cuda", {"kind": "none", "offload": "all"}, 2, r'sharding.offload="all": only what several processes share'),
        ("cuda", {"offload": "optimizer"}, 2, r'"optimizer" with sharding.kind="fsdp2": expected "none" or "all"$'),
        ("cuda", {"kind": "zero2", "offload": "all"}, 2, r'"zero2": expected "none" or "optimizer"$'),
        ("cuda", {"offload": "all"}, 2, None),
        ("cuda", {"kind": "zero3", "offload": "all"}, 2, None),
        ("cuda", {"kind": "zero2", "offload": "optimizer"}, 2, None),
    ],
)
def test_only_what_can_be_in_host_memory_is_kept_there(
    device: str, sharding: dict[str, Any], num_ranks: int, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")  # in place of a GPU
    config = sft(sharding=sharding, model={"folder": Path("model"), "device": device})
    ranks = ALONE if num_ranks == 1 else place(0, num_ranks)
    with nullcontext() if expected is None else pytest.raises(TrainerUsageError, match=expected):
        check_sharding(config, ranks)
