"""What a rank exchanged, in order, and whether all ranks together would come to the end of it.

Independent of how exchanges are written down. Collectives wait for all ranks of their group, receiving waits for the
message, sending doesn't wait. Messages between two ranks arrive in the order in which they were sent.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

__all__ = ["Exchange", "find_hang"]

SEND, RECEIVE = "send", "receive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One call of one rank.

    Attributes:
        kind: "send", "receive", or the name of a collective.
        group: Name of the group.
        ranks: Its ranks, numbered among all ranks.
        num_bytes: Bytes of what is exchanged: the whole of what is gathered or scattered, or the message.
        peer: The other rank of a message, numbered among all ranks; None for a collective.
        place: What was being computed.
    """

    kind: str
    group: str
    ranks: tuple[int, ...]
    num_bytes: int
    peer: int | None = None
    place: str = ""

    def describe(self) -> str:
        """In a few words."""
        what = f"{self.kind} of {self.num_bytes:,} bytes"
        if self.peer is not None:
            what += f" {'to' if self.kind == SEND else 'from'} rank {self.peer}"
        return f"{what} ({self.place})" if self.place else what


def find_hang(by_rank: Sequence[Sequence[Exchange]], *, running: Collection[int] = ()) -> str | None:
    """Why the ranks would wait for each other forever, or exchange something of unequal size; None if they wouldn't.

    Args:
        by_rank: The exchanges of every rank.
        running: Ranks whose lists may go on. While one of them has come to the end of its list, none waits in vain.
    """
    done = [0] * len(by_rank)
    sent: dict[tuple[str, int, int], deque[Exchange]] = {}
    while True:
        has_moved = False
        for rank, exchanges in enumerate(by_rank):
            while done[rank] < len(exchanges):
                current = exchanges[done[rank]]
                if current.kind == SEND:
                    sent.setdefault((current.group, rank, _peer(current)), deque()).append(current)
                    done[rank] += 1
                elif current.kind == RECEIVE:
                    messages = sent.get((current.group, _peer(current), rank))
                    if not messages:
                        break
                    message = messages.popleft()
                    if message.num_bytes != current.num_bytes:
                        return f"rank {rank} waits for a {current.describe()}, which sends a {message.describe()}"
                    done[rank] += 1
                else:
                    waiting = [_at(by_rank[other], done[other]) for other in current.ranks]
                    if any(
                        found is None or found.peer is not None or found.group != current.group for found in waiting
                    ):
                        break  # not there yet
                    for other, found in zip(current.ranks, waiting, strict=True):
                        if found is not None and (found.kind, found.num_bytes) != (current.kind, current.num_bytes):
                            return (
                                f"rank {rank} comes to {_count(done[rank])}, {current.describe()}, and rank {other} to "
                                f"{_count(done[other])}, {found.describe()}"
                            )
                    for other in current.ranks:
                        done[other] += 1
                has_moved = True
        if not has_moved:
            break
    if any(done[rank] == len(by_rank[rank]) for rank in running):
        return None
    for rank, exchanges in enumerate(by_rank):
        current = _at(exchanges, done[rank])
        if current is not None:
            return f"rank {rank} waits forever at {_count(done[rank])}, {current.describe()}; {_others(by_rank, done)}"
    lost = next((messages[0] for messages in sent.values() if messages), None)
    return None if lost is None else f"nobody receives a {lost.describe()}"


def _others(by_rank: Sequence[Sequence[Exchange]], done: Sequence[int]) -> str:
    places: list[str] = []
    for rank, exchanges in enumerate(by_rank):
        current = _at(exchanges, done[rank])
        places.append(f"rank {rank} " + ("is at its end" if current is None else f"is at {current.describe()}"))
    return ", ".join(places)


def _at(exchanges: Sequence[Exchange], place: int) -> Exchange | None:
    return exchanges[place] if place < len(exchanges) else None


def _peer(exchange: Exchange) -> int:
    if exchange.peer is None:
        raise ValueError(f"{exchange.kind} without another rank")
    return exchange.peer


def _count(place: int) -> str:
    return f"its exchange {place + 1}"
