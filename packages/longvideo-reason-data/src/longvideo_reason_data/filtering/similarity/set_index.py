"""Finding the sets that are alike among very many, exactly and without comparing each with each.

Two sets whose Jaccard index is large share so many members that, with the members of all sets in one order, some of
the first few have to be shared already (prefix filter: Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and Srikant 2007;
with sizes and positions: Xiao, Wang, Lin and Yu 2008). The rarest come first, so a word that half of the sets hold
brings nobody together. Members are told apart by hashes, which may bring sets together that aren't alike but never miss
any; whoever uses an index compares what it finds.
"""

from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_POSITION_BITS = 32
_SKETCH_WORDS = 4  # Sandes, Teodoro and Melo 2020
_POSITION = (1 << _POSITION_BITS) - 1


class RankedSets:
    """Sets whose members are numbers, the rarer the smaller; 4 bytes each.

    Args:
        sets: The sets; they are gone through once.
    """

    def __init__(self, sets: Iterable[Iterable[str]]) -> None:
        hashes, ends = array("q"), array("q", [0])
        for members in sets:
            hashes.extend(map(hash, members))
            ends.append(len(hashes))
        _, numbers, counts = np.unique(np.frombuffer(hashes, dtype=np.int64), return_inverse=True, return_counts=True)
        ranks = np.empty(len(counts), dtype=np.int64)
        ranks[np.argsort(counts, kind="stable")] = np.arange(len(counts))
        self._ends = np.frombuffer(ends, dtype=np.int64)
        self.sizes: NDArray[np.int64] = np.diff(self._ends)
        # The number of the set in the upper half sorts members within their sets.
        rows = np.repeat(np.arange(len(ends) - 1), self.sizes)
        sorted_members = np.sort((rows << 32) | ranks[numbers])
        self._members: NDArray[np.uint32] = (sorted_members & 0xFFFFFFFF).astype(np.uint32)
        self._sketches = _sketch(self._members, self.sizes)
        self.num_lone = int(np.count_nonzero(counts == 1))
        """Members below this number are in one set only."""

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> list[int]:
        """The members of a set in ascending order."""
        return self._members[self._ends[place] : self._ends[place + 1]].tolist()

    def may_share(self, place: int, others: Sequence[int], fewest_shared: NDArray[np.int64]) -> NDArray[np.int64]:
        """Choose the sets that may share enough members with one of them, by a look at their sketches.

        Args:
            place: The one.
            others: Places of the others.
            fewest_shared: How many members two sets have to share, by the sizes of both together.

        Returns:
            Places, in the given order.
        """
        places = np.array(others, dtype=np.int64)
        # Bits that one sketch alone has are of members that one set alone has.
        num_unshared = np.bitwise_count(self._sketches[places] ^ self._sketches[place]).sum(axis=1)
        size_of_both = self.sizes[places] + self.sizes[place]
        return places[num_unshared <= size_of_both - 2 * fewest_shared[size_of_both]]


class SetIndex:
    """Sets among which those that are like another one are found.

    Args:
        sets: All sets; those that are added are found.
        at_least: Smallest Jaccard index of sets that are alike.
    """

    def __init__(self, sets: RankedSets, at_least: float) -> None:
        self._sets, self._at_least = sets, at_least
        largest = 2 * int(sets.sizes.max(initial=0))
        self._fewest_shared = np.array([_fewest_shared(size, at_least) for size in range(largest + 1)], dtype=np.int64)
        # By room, size and member: where the member stands in which set, as one number.
        self._rooms: dict[Hashable, dict[int, dict[int, list[int]]]] = {}

    def add(self, place: int, rooms: Sequence[Hashable] = (None,)) -> None:
        """Add a set.

        Args:
            place: Its place among all sets.
            rooms: It is only found by who looks into one of them.
        """
        members = self._sets[place]
        size = len(members)
        smallest = next((other for other in range(1, size) if other / size >= self._at_least), size)
        telling = list(self._telling(members, size - smallest + 1))
        for room in rooms if telling else ():
            by_member = self._rooms.setdefault(room, {}).setdefault(size, {})
            for position, member in telling:
                by_member.setdefault(member, []).append(place << _POSITION_BITS | position)

    def find(self, place: int, rooms: Sequence[Hashable] = (None,)) -> list[int]:
        """Find the added sets that are like another one.

        Args:
            place: Its place among all sets.
            rooms: Where to look.

        Returns:
            Their places in ascending order, each one once.
        """
        members = self._sets[place]
        size = len(members)
        found: set[int] = set()
        for room in rooms:
            for other_size, by_member in self._rooms.get(room, {}).items():
                fewest = int(self._fewest_shared[size + other_size])
                last = other_size - fewest
                if last < 0:
                    continue
                for _, member in self._telling(members, size - fewest + 1):
                    entries = by_member.get(member)
                    if entries:
                        found.update([entry >> _POSITION_BITS for entry in entries if entry & _POSITION <= last])
        if not found:
            return []
        known = frozenset(members)
        others = self._sets.may_share(place, sorted(found), self._fewest_shared)
        return [other for other in others.tolist() if self._are_alike(known, size, other)]

    def _telling(self, members: Sequence[int], num_first: int) -> Iterator[tuple[int, int]]:
        """The first members with their positions, without those that no other set has."""
        for position in range(min(num_first, len(members))):
            if members[position] >= self._sets.num_lone:
                yield position, members[position]

    def _are_alike(self, known: frozenset[int], size: int, other: int) -> bool:
        members = self._sets[other]
        return sum(map(known.__contains__, members)) >= self._fewest_shared[size + len(members)]


def _sketch(members: NDArray[np.uint32], sizes: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Make a bit for each member of each set, of which two may have the same: uint64 [sets, words]."""
    sketches = np.zeros((len(sizes), _SKETCH_WORDS), dtype=np.uint64)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    bits = np.left_shift(np.uint64(1), (members % 64).astype(np.uint64))
    np.bitwise_or.at(sketches, (rows, members // 64 % _SKETCH_WORDS), bits)
    return sketches


def _fewest_shared(size_of_both: int, at_least: float) -> int:
    """How many members two sets have to share so that their Jaccard index is large enough."""
    num_shared = max(1, int(at_least / (1 + at_least) * size_of_both) - 1)
    while num_shared < size_of_both and num_shared / (size_of_both - num_shared) < at_least:
        num_shared += 1
    return num_shared
