"""What ranks exchanged, put side by side: whether they would come to the end."""

from dataclasses import replace

import pytest

from mrsp_engine.rehearsal.messages import Exchange, find_hang

ALL, PAIR = ("all", (0, 1, 2)), ("pair", (0, 1))


def collective(kind: str, num_bytes: int, group: tuple[str, tuple[int, ...]] = ALL) -> Exchange:
    return Exchange(kind=kind, group=group[0], ranks=group[1], num_bytes=num_bytes)


def message(kind: str, peer: int, num_bytes: int) -> Exchange:
    return Exchange(kind=kind, group=ALL[0], ranks=ALL[1], num_bytes=num_bytes, peer=peer)


def ring(num_bytes: int = 8) -> list[list[Exchange]]:
    """Every rank sends to the next one and receives from the one before, between two collectives."""
    return [
        [
            collective("all_gather", 12),
            message("send", (rank + 1) % 3, num_bytes),
            message("receive", (rank - 1) % 3, num_bytes),
            *([collective("all_reduce", 4, PAIR)] if rank < 2 else []),
            collective("all_reduce", 4),
        ]
        for rank in range(3)
    ]


def test_ranks_that_agree_come_to_the_end() -> None:
    assert find_hang(ring()) is None
    assert find_hang([[], [], []]) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ranks: ranks[1].reverse(), "rank 0 comes to its exchange 1, all_gather of 12 bytes, and rank 1 to its"),
        (lambda ranks: ranks[2].pop(), "rank 0 waits forever at its exchange 5, all_reduce of 4 bytes"),
        (lambda ranks: ranks[2].pop(2), "nobody receives a send of 8 bytes to rank 2"),
        (lambda ranks: ranks[0].pop(1), "rank 1 is at receive of 8 bytes from rank 0"),
        (lambda ranks: ranks[0].insert(2, ranks[0].pop(1)), None),
        (lambda ranks: ranks[0].append(ranks[0].pop(3)), "waits forever at its exchange 4, all_reduce of 4 bytes"),
        (lambda ranks: ranks[1].__setitem__(0, replace(ranks[1][0], num_bytes=16)), "and rank 1 to its exchange 1, al"),
        (lambda ranks: ranks[1].__setitem__(0, replace(ranks[1][0], kind="broadcast")), "broadcast of 12 bytes"),
        (lambda ranks: ranks[1].__setitem__(1, replace(ranks[1][1], num_bytes=9)), "which sends a send of 9 bytes"),
    ],
)
def test_ranks_that_disagree_are_found(change: object, words: str | None) -> None:
    ranks = ring()
    change(ranks)  # type: ignore[operator]
    reason = find_hang(ranks)
    if words is None:
        assert reason is None
    else:
        assert reason is not None
        assert words in reason


def test_a_message_that_may_still_be_received_is_no_hang() -> None:
    ranks = [[message("send", 1, 8)], [], []]
    assert find_hang(ranks, running=[1]) is None
    assert find_hang(ranks) is not None


def test_a_rank_that_may_still_come_is_waited_for() -> None:
    """What one rank tells may arrive before what another one told earlier."""
    first = collective("plain objects", 8, PAIR)
    ranks = [[first], [first, first], []]
    assert find_hang(ranks, running=[0, 1]) is None
    assert find_hang(ranks, running=[1]) is not None
