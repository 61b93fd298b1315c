"""The arithmetic of packed rows: every token owned once, every visible pair attended once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrsp_engine.layout import Branch, PackedLayout, TokenRange

layouts = st.builds(PackedLayout, st.integers(1, 40), st.lists(st.integers(0, 15), max_size=6).map(tuple))


def visible(layout: PackedLayout) -> np.ndarray:
    """Who sees whom, straight from the definition; [S, S]."""
    home = np.full(layout.total, -1)
    for number, branch in enumerate(layout.branches):
        home[branch.start : branch.end] = number
    index = np.arange(layout.total)
    same_or_prompt = (home[None, :] == -1) | (home[None, :] == home[:, None])
    return (index[None, :] <= index[:, None]) & same_or_prompt


@given(layouts, st.integers(1, 9))
def test_every_token_is_owned_once(layout: PackedLayout, num_ranks: int) -> None:
    by_rank = layout.split(num_ranks)
    owned = sorted(token for ranges in by_rank for run in ranges for token in range(run.start, run.end))
    assert len(by_rank) == num_ranks
    assert owned == list(range(layout.total))
    for ranges in by_rank:
        assert list(ranges) == sorted(ranges, key=lambda run: run.start)


@given(layouts, st.integers(1, 9))
def test_calls_cover_exactly_the_visible_pairs(layout: PackedLayout, num_ranks: int) -> None:
    expected = visible(layout).astype(int)
    for ranges in layout.split(num_ranks):
        tokens = [token for run in ranges for token in range(run.start, run.end)]
        counted = np.zeros((len(tokens), layout.total), dtype=int)
        started = np.zeros(len(tokens), dtype=bool)
        for call in layout.attention_calls(ranges):
            block = np.ones((len(call.queries), len(call.keys)), dtype=int)
            if call.causal:
                assert tokens[call.queries.start : call.queries.end] == list(range(call.keys.start, call.keys.end))
                block = np.tril(block)
            counted[call.queries.start : call.queries.end, call.keys.start : call.keys.end] += block
            # A call may join earlier results only where all of its queries have one, and replace only where none has.
            assert (started[call.queries.start : call.queries.end] == call.merge).all()
            started[call.queries.start : call.queries.end] = True
        assert started.all()
        np.testing.assert_array_equal(counted, expected[tokens])


def test_ranks_share_causal_work_evenly() -> None:
    layout = PackedLayout(4096, (64,) * 8)
    pairs = [
        sum(len(call.queries) * len(call.keys) // (2 if call.causal else 1) for call in layout.attention_calls(ranges))
        for ranges in layout.split(8)
    ]
    assert max(pairs) / min(pairs) < 1.02


def test_starts_and_total() -> None:
    layout = PackedLayout.of(5, [Branch(token_ids=(1, 2, 3)), Branch(token_ids=()), Branch(token_ids=(4,))])
    assert layout.branch_starts == (5, 8, 8)
    assert layout.total == 9
    assert layout.branches[0] == TokenRange(5, 8)


def test_impossible_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="prompt_length=0"):
        PackedLayout(0, (3,))
    with pytest.raises(ValueError, match="negative"):
        PackedLayout(3, (-1,))
    with pytest.raises(ValueError, match="scored_from=3"):
        Branch(token_ids=(1, 2), scored_from=3)
    with pytest.raises(ValueError, match="num_ranks=0"):
        PackedLayout(3, ()).split(0)
