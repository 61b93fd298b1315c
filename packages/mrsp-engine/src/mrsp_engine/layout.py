"""Visibility and ownership of tokens in a packed row of groups `[prompt | branch 0 | branch 1 | …][prompt | …]…`.

Pure arithmetic over token indices: no tensors, no processes, no model. A branch attends causally to the whole prompt of
its group and to itself, not to other branches or groups. From that rule follow the attention calls between any set of
queries and any set of keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from mrsp_engine.errors import EngineUsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """What follows the shared prompt in one sequence.

    Attributes:
        token_ids: The tokens after the prompt.
        scored_from: Tokens before this index are only context (the tail of a question); the rest is scored.
    """

    token_ids: tuple[int, ...]
    scored_from: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.scored_from <= len(self.token_ids):
            raise ValueError(f"scored_from={self.scored_from} lies outside a branch of {len(self.token_ids)} tokens")


@dataclass(frozen=True, slots=True)
class TokenRange:
    """Tokens `start` to `end` (exclusive)."""

    start: int
    end: int

    def __len__(self) -> int:
        return max(0, self.end - self.start)

    def within(self, other: "TokenRange") -> "TokenRange":
        """The tokens in both ranges; empty if there are none."""
        return TokenRange(max(self.start, other.start), min(self.end, other.end))

    def moved(self, distance: int) -> "TokenRange":
        """The same number of tokens, shifted by an offset."""
        return TokenRange(self.start + distance, self.end + distance)


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One block of attention: a run of queries against a run of keys.

    Attributes:
        queries: Range of indices into the queries.
        keys: Range of indices into the keys.
        causal: Queries and keys are the same tokens, and each attends to itself and to earlier ones. Otherwise every
            query attends to every key.
    """

    queries: TokenRange
    keys: TokenRange
    causal: bool


@dataclass(frozen=True, slots=True)
class GroupLengths:
    """Number of tokens of one group's prompt and of each of its branches."""

    prompt: int
    branches: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.prompt < 1:
            raise ValueError(f"prompt={self.prompt}: a group needs a prompt of at least one token")
        if any(length < 0 for length in self.branches):
            raise ValueError(f"branches={self.branches}: lengths can't be negative")

    @property
    def total(self) -> int:
        """Tokens of prompt and branches together."""
        return self.prompt + sum(self.branches)


@dataclass(frozen=True, slots=True)
class GroupRanges:
    """The position of one group in its row."""

    prompt: TokenRange
    branches: tuple[TokenRange, ...]

    @property
    def responses(self) -> TokenRange:
        """All branches together."""
        return TokenRange(self.prompt.end, self.branches[-1].end if self.branches else self.prompt.end)


@dataclass(frozen=True)
class PackedLayout:
    """The groups that make up one packed row."""

    groups: tuple[GroupLengths, ...]

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("a packed row needs at least one group")

    @cached_property
    def ranges(self) -> tuple[GroupRanges, ...]:
        """The position of each group."""
        found: list[GroupRanges] = []
        start = 0
        for group in self.groups:
            bounds = [start, start + group.prompt]
            for length in group.branches:
                bounds.append(bounds[-1] + length)
            prompt, *branches = (TokenRange(low, high) for low, high in pairwise(bounds))
            found.append(GroupRanges(prompt, tuple(branches)))
            start = bounds[-1]
        return tuple(found)

    @property
    def total(self) -> int:
        """Number of tokens S in the row."""
        return sum(group.total for group in self.groups)

    @property
    def num_visible_pairs(self) -> int:
        """Number of query-key pairs that attention has to compute."""
        pairs = 0
        for group in self.groups:
            responses = sum(group.branches)
            pairs += group.prompt * (group.prompt + 1) // 2 + responses * group.prompt
            pairs += sum(length * (length + 1) // 2 for length in group.branches)
        return pairs

    def split(self, token_ranks: int, head_ranks: int = 1) -> tuple[tuple[TokenRange, ...], ...]:
        """Divide the row among `token_ranks × head_ranks` ranks: the ranges of each, in row order.

        Every group's prompt is cut into twice as many pieces as there are token ranks, and each gets one from either
        end, which balances causal attention (zigzag); the branches, whose tokens all cost about the same, are cut into
        one piece per token rank. The tokens of a token rank are then cut evenly among its head ranks, which are
        neighbours: rank = token rank × head_ranks + head rank. Pieces may be uneven and, in a short row, empty.
        """
        if token_ranks < 1 or head_ranks < 1:
            raise ValueError(f"token_ranks={token_ranks}, head_ranks={head_ranks}: expected at least one of each")
        by_rank: list[tuple[TokenRange, ...]] = []
        for rank in range(token_ranks):
            pieces: list[TokenRange] = []
            for group in self.ranges:
                prompt = _cut(group.prompt, 2 * token_ranks)
                pieces += prompt[rank], prompt[2 * token_ranks - 1 - rank], _cut(group.responses, token_ranks)[rank]
            owned = _joined(pieces)
            whole = TokenRange(0, sum(map(len, owned)))
            by_rank += [_taken(owned, part) for part in _cut(whole, head_ranks)]
        return tuple(by_rank)

    def attention_calls(
        self, queries: Sequence[TokenRange] | None = None, keys: Sequence[TokenRange] | None = None
    ) -> tuple[AttentionCall, ...]:
        """The calls between two sets of row tokens; by default the whole row.

        Causal calls come first. Where the keys contain the queries, those calls cover every query exactly once.

        Raises:
            ValueError: The keys contain some tokens of a run of queries, but not all.
        """
        whole = (TokenRange(0, self.total),)
        own_queries, own_keys = (
            _numbered(whole if queries is None else queries),
            _numbered(whole if keys is None else keys),
        )
        causal: list[AttentionCall] = []
        seen_by: dict[TokenRange, list[TokenRange]] = {}
        for group in self.ranges:
            for segment in (group.prompt, *group.branches):
                for query, to_query in _clipped(own_queries, segment):
                    own = query.moved(to_query)
                    for key, to_key in _clipped(own_keys, segment):
                        same = key.within(query)
                        if len(same) and same != query:
                            raise ValueError(f"keys {key} cover a part of queries {query}")
                        if len(same):
                            causal.append(AttentionCall(own, same.moved(to_key), causal=True))
                        before = key.within(TokenRange(segment.start, query.start))
                        if len(before):
                            seen_by.setdefault(before.moved(to_key), []).append(own)
                    if segment is not group.prompt:
                        for key, to_key in _clipped(own_keys, group.prompt):
                            seen_by.setdefault(key.moved(to_key), []).append(own)
        full = [AttentionCall(query, key, causal=False) for key, seers in seen_by.items() for query in _joined(seers)]
        return tuple(causal + full)


def pack_rows(lengths: Sequence[int], row_tokens: int | None) -> list[list[int]]:
    """Pack groups of the given lengths into rows of at most `row_tokens`; returns the indices of each row's groups.

    Longest first, each into the first row with room (first-fit decreasing); a group longer than that gets its own row.
    Without a limit every group has its own row.
    """
    if row_tokens is None:
        return [[index] for index in range(len(lengths))]
    if row_tokens < 1:
        raise EngineUsageError(f"row_tokens={row_tokens}: expected at least 1, or None for one group per row")
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = next((row for row, room in enumerate(free) if lengths[index] <= room), None)
        if place is None:
            rows.append([index])
            free.append(row_tokens - lengths[index])
        else:
            rows[place].append(index)
            free[place] -= lengths[index]
    return [sorted(row) for row in sorted(rows, key=min)]


def _cut(run: TokenRange, num_pieces: int) -> list[TokenRange]:
    bounds = [run.start + len(run) * piece // num_pieces for piece in range(num_pieces + 1)]
    return [TokenRange(low, high) for low, high in pairwise(bounds)]


def _joined(ranges: Sequence[TokenRange]) -> tuple[TokenRange, ...]:
    """Drop empty ranges and merge adjacent ones."""
    joined: list[TokenRange] = []
    for run in ranges:
        if not len(run):
            continue
        if joined and joined[-1].end == run.start:
            joined[-1] = TokenRange(joined[-1].start, run.end)
        else:
            joined.append(run)
    return tuple(joined)


def _numbered(ranges: Sequence[TokenRange]) -> list[tuple[TokenRange, int]]:
    """Ranges with the offset from a row index to the index within the concatenated ranges."""
    numbered: list[tuple[TokenRange, int]] = []
    offset = 0
    for run in ranges:
        numbered.append((run, offset - run.start))
        offset += len(run)
    return numbered


def _clipped(numbered: Sequence[tuple[TokenRange, int]], segment: TokenRange) -> Iterator[tuple[TokenRange, int]]:
    for run, distance in numbered:
        part = run.within(segment)
        if len(part):
            yield part, distance


def _taken(ranges: Sequence[TokenRange], part: TokenRange) -> tuple[TokenRange, ...]:
    """The row tokens at the indices `part` of the concatenated ranges."""
    taken = [part.within(run.moved(distance)).moved(-distance) for run, distance in _numbered(ranges)]
    return tuple(run for run in taken if len(run))
