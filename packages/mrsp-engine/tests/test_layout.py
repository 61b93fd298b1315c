"""The arithmetic of packed rows: every token owned once, every visible pair attended once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrsp_engine.errors import EngineUsageError
from mrsp_engine.layout import Branch, GroupLengths, PackedLayout, TokenRange, pack_rows

groups = st.builds(GroupLengths, st.integers(1, 40), st.lists(st.integers(0, 15), max_size=5).map(tuple))
layouts = st.builds(PackedLayout, st.lists(groups, min_size=1, max_size=3).map(tuple))


def visible(layout: PackedLayout) -> np.ndarray:
    """Which tokens attend to which, straight from the definition; [S, S]."""
    group, home = np.empty(layout.total), np.full(layout.total, -1)
    start = 0
    for number, lengths in enumerate(layout.groups):
        group[start : start + lengths.total] = number
        start += lengths.prompt
        for index, length in enumerate(lengths.branches):
            home[start : start + length] = index
            start += length
    index = np.arange(layout.total)
    same_or_prompt = (home[None, :] == -1) | (home[None, :] == home[:, None])
    return (index[None, :] <= index[:, None]) & same_or_prompt & (group[None, :] == group[:, None])


def tokens_of(ranges: tuple[TokenRange, ...]) -> list[int]:
    return [token for run in ranges for token in range(run.start, run.end)]


@settings(max_examples=60)
@given(layouts, st.integers(1, 5), st.integers(1, 3))
def test_every_token_is_owned_once(layout: PackedLayout, token_ranks: int, head_ranks: int) -> None:
    by_rank = layout.split(token_ranks, head_ranks)
    assert len(by_rank) == token_ranks * head_ranks
    assert sorted(token for ranges in by_rank for token in tokens_of(ranges)) == list(range(layout.total))
    for rank, slice_of_row in enumerate(layout.split(token_ranks)):
        # The head ranks of a slice own it together, in its order.
        members = by_rank[rank * head_ranks : (rank + 1) * head_ranks]
        assert [token for ranges in members for token in tokens_of(ranges)] == tokens_of(slice_of_row)
        assert tokens_of(slice_of_row) == sorted(tokens_of(slice_of_row))


@settings(max_examples=60)
@given(layouts, st.integers(1, 5), st.booleans())
def test_calls_cover_exactly_the_visible_pairs(layout: PackedLayout, num_slices: int, is_ring: bool) -> None:
    expected = visible(layout).astype(int)
    slices = layout.split(num_slices)
    assert layout.num_visible_pairs == expected.sum()
    for own in slices:
        queries = tokens_of(own)
        counted = np.zeros((len(queries), layout.total), dtype=int)
        for keys_held in slices if is_ring else [(TokenRange(0, layout.total),)]:
            keys = tokens_of(keys_held)
            calls = layout.attention_calls(own, keys_held)
            assert sorted(calls, key=lambda call: not call.causal) == list(calls)
            started = np.zeros(len(queries), dtype=int)
            for call in calls:
                block = np.ones((len(call.queries), len(call.keys)), dtype=int)
                if call.causal:
                    same = queries[call.queries.start : call.queries.end]
                    assert same == keys[call.keys.start : call.keys.end]
                    started[call.queries.start : call.queries.end] += 1
                    block = np.tril(block)
                columns = keys[call.keys.start : call.keys.end]
                counted[np.ix_(range(call.queries.start, call.queries.end), columns)] += block
            if keys_held == own or not is_ring:
                assert (started == 1).all()
        np.testing.assert_array_equal(counted, expected[queries])


def test_ranks_share_causal_work_evenly() -> None:
    layout = PackedLayout((GroupLengths(4096, (64,) * 8), GroupLengths(1000, (300, 7))))
    pairs = [
        sum(len(call.queries) * len(call.keys) // (2 if call.causal else 1) for call in layout.attention_calls(ranges))
        for ranges in layout.split(8)
    ]
    assert max(pairs) / min(pairs) < 1.02


def test_one_rank_makes_three_kinds_of_calls() -> None:
    """The causal prompt, every branch by itself, and all branches at once against the prompt."""
    calls = PackedLayout((GroupLengths(5, (3, 0, 1)),)).attention_calls()
    assert [(call.queries, call.keys, call.causal) for call in calls] == [
        (TokenRange(0, 5), TokenRange(0, 5), True),
        (TokenRange(5, 8), TokenRange(5, 8), True),
        (TokenRange(8, 9), TokenRange(8, 9), True),
        (TokenRange(5, 9), TokenRange(0, 5), False),
    ]


def test_short_groups_share_rows() -> None:
    assert pack_rows([5, 9, 3, 20, 4], 10) == [[0, 4], [1], [2], [3]]
    assert pack_rows([5, 9], None) == [[0], [1]]
    assert pack_rows([], 8) == []
    with pytest.raises(EngineUsageError, match="row_tokens=0"):
        pack_rows([1], 0)


@given(st.lists(st.integers(1, 30), max_size=12), st.integers(1, 40))
def test_every_group_gets_one_row(lengths: list[int], row_tokens: int) -> None:
    rows = pack_rows(lengths, row_tokens)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for row in rows:
        assert len(row) == 1 or sum(lengths[index] for index in row) <= row_tokens


def test_impossible_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="prompt=0"):
        GroupLengths(0, (3,))
    with pytest.raises(ValueError, match="negative"):
        GroupLengths(3, (-1,))
    with pytest.raises(ValueError, match="scored_from=3"):
        Branch(token_ids=(1, 2), scored_from=3)
    with pytest.raises(ValueError, match="token_ranks=0"):
        PackedLayout((GroupLengths(3, ()),)).split(0)
    with pytest.raises(ValueError, match="at least one group"):
        PackedLayout(())
    with pytest.raises(ValueError, match="cover a part of queries"):
        PackedLayout((GroupLengths(8, ()),)).attention_calls((TokenRange(0, 8),), (TokenRange(0, 4),))
