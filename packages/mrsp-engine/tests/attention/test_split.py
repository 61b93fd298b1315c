"""Any number of heads on any number of ranks, and the cost model that divides them."""

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrsp_engine.attention.heads import AttentionHeads
from mrsp_engine.attention.plan import plan_attention
from mrsp_engine.attention.split import (
    AttentionSettings,
    Exchange,
    MachineRates,
    RowSplit,
    choose_split,
    predict_seconds,
)
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.layout import GroupLengths, PackedLayout

HOUR = PackedLayout((GroupLengths(262_144, (1024,) * 8),))
GPU = MachineRates.nominal("cuda")
QWEN_7B = AttentionHeads(query=28, key=4, channels=128)
MANY_KEYS = AttentionHeads(query=32, key=32, channels=128)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 12), st.data())
def test_every_query_head_gets_its_key_head(key: int, per_key: int, ranks: int, data: st.DataObject) -> None:
    heads = AttentionHeads(query=key * per_key, key=key, channels=32)
    head_ranks = data.draw(st.sampled_from([n for n in range(1, ranks + 1) if heads.query % n == 0]))
    served: list[int] = []
    for rank in range(head_ranks):
        queries, keys = heads.query_heads(rank, head_ranks), heads.key_heads(rank, head_ranks)
        uneven = heads.uneven_key_heads(rank, head_ranks)
        runs = list(range(keys.stop - keys.start)) if uneven is None else uneven
        length, rest = divmod(queries.stop - queries.start, len(runs))
        assert rest == 0
        served += [keys.start + head for head in runs for _ in range(length)]
        # No rank receives a key head that none of its query heads uses.
        assert set(runs) == set(range(keys.stop - keys.start))
    assert served == [head // per_key for head in range(heads.query)]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 5, 7, 8, 14, 16])
def test_every_number_of_ranks_is_divided(num_ranks: int) -> None:
    split = choose_split(HOUR, QWEN_7B, num_ranks, AttentionSettings(), item_bytes=2, device_type="cuda")
    assert split.head_ranks * split.token_ranks == num_ranks
    assert QWEN_7B.query % split.head_ranks == 0


def test_what_is_set_by_hand_is_kept() -> None:
    settings = AttentionSettings(head_ranks=2, exchange="ring")
    split = choose_split(HOUR, QWEN_7B, 8, settings, item_bytes=2, device_type="cuda")
    assert split == RowSplit(head_ranks=2, token_ranks=4, exchange="ring")


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(EngineUsageError, match=r"head_ranks=8: 8 ranks and 28 query heads allow 1, 2, 4$"):
        choose_split(HOUR, QWEN_7B, 8, AttentionSettings(head_ranks=8), item_bytes=2, device_type="cuda")
    with pytest.raises(EngineUsageError, match="exchange='mail': expected one of gather, ring"):
        AttentionSettings(exchange="mail")  # type: ignore[arg-type]


def test_a_row_too_short_for_its_ranks_is_refused() -> None:
    group = SequenceGroup(process_group=cast(Any, None), rank=0, size=4)  # planning sends nothing
    short = PackedLayout((GroupLengths(1, (2,)),))
    with pytest.raises(EngineUsageError, match="a row of 3 tokens leaves some of 4 ranks without any"):
        plan_attention(short, QWEN_7B, group=group)


def seconds(heads: AttentionHeads, head_ranks: int, exchange: Exchange, rates: MachineRates) -> float:
    split = RowSplit(head_ranks=head_ranks, token_ranks=8 // head_ranks, exchange=exchange)
    return predict_seconds(HOUR, heads, split, rates, item_bytes=2)


def test_slow_links_prefer_what_sends_less() -> None:
    """With 4 key heads a gather sends less than exchanging all 28 query heads; with 32, splitting by heads wins."""
    slow = MachineRates(flops_per_second=1e18, bytes_per_second=1e10, message_seconds=0)
    assert seconds(QWEN_7B, 1, "gather", slow) < seconds(MANY_KEYS, 1, "gather", slow) / 7.9
    assert seconds(MANY_KEYS, 8, "gather", slow) < seconds(MANY_KEYS, 1, "gather", slow)
    chosen = choose_split(HOUR, MANY_KEYS, 8, AttentionSettings(rates=slow), item_bytes=2, device_type="cuda")
    assert chosen.head_ranks == 8


def test_a_ring_hides_behind_computation_and_pays_for_messages() -> None:
    assert seconds(QWEN_7B, 1, "ring", GPU) < seconds(QWEN_7B, 1, "gather", GPU)
    far = MachineRates(flops_per_second=4e14, bytes_per_second=2e11, message_seconds=1.0)
    assert seconds(QWEN_7B, 1, "gather", far) < seconds(QWEN_7B, 1, "ring", far)
