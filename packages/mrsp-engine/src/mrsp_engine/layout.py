"""Who sees whom, and who owns what, in a packed row `[prompt | branch 0 | branch 1 | …]`.

Pure arithmetic over token indices: no tensors, no processes, no model. A branch sees the whole prompt and itself,
causally, and no other branch. From that rule follow the attention calls a rank has to make for the tokens it owns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """What follows the shared prompt in one sequence.

    Attributes:
        token_ids: The tokens after the prompt.
        scored_from: Tokens before this index are context only (the tail of a question); the rest is scored.
    """

    token_ids: tuple[int, ...]
    scored_from: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.scored_from <= len(self.token_ids):
            raise ValueError(f"scored_from={self.scored_from} lies outside a branch of {len(self.token_ids)} tokens")


@dataclass(frozen=True, slots=True)
class TokenRange:
    """Tokens `start` to `end` (exclusive) of a packed row."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One block of attention: some queries of a rank against a run of keys.

    Attributes:
        queries: Range in the rank's own order of tokens.
        keys: Range in the packed row.
        causal: Queries and keys are the same tokens and each sees itself and what came before.
        merge: An earlier call already covered these queries; the two results are joined by log-sum-exp.
    """

    queries: TokenRange
    keys: TokenRange
    causal: bool
    merge: bool


@dataclass(frozen=True)
class PackedLayout:
    """The lengths that make up one packed row."""

    prompt_length: int
    branch_lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.prompt_length < 1:
            raise ValueError(f"prompt_length={self.prompt_length}: a packed row needs a prompt of at least one token")
        if any(length < 0 for length in self.branch_lengths):
            raise ValueError(f"branch_lengths={self.branch_lengths}: lengths can't be negative")

    @classmethod
    def of(cls, prompt_length: int, branches: Sequence[Branch]) -> "PackedLayout":
        """Lay out `branches` behind a prompt."""
        return cls(prompt_length, tuple(len(branch.token_ids) for branch in branches))

    @cached_property
    def branches(self) -> tuple[TokenRange, ...]:
        """Where each branch lies in the row."""
        ranges: list[TokenRange] = []
        start = self.prompt_length
        for length in self.branch_lengths:
            ranges.append(TokenRange(start, start + length))
            start += length
        return tuple(ranges)

    @property
    def branch_starts(self) -> tuple[int, ...]:
        """First token of each branch."""
        return tuple(branch.start for branch in self.branches)

    @property
    def total(self) -> int:
        """Number of tokens S in the row."""
        return self.prompt_length + sum(self.branch_lengths)

    def split(self, num_ranks: int) -> tuple[tuple[TokenRange, ...], ...]:
        """Divide the row among ranks: for each rank its ranges, in row order; together they are the whole row.

        The prompt is cut into twice as many pieces as ranks and each rank takes one from either end, which evens out
        causal attention; the branches, whose tokens all cost about the same, are cut into one piece per rank. Pieces
        may be uneven and, in a short row, empty.
        """
        if num_ranks < 1:
            raise ValueError(f"num_ranks={num_ranks}: expected at least one rank")
        prompt = _cut(0, self.prompt_length, 2 * num_ranks)
        responses = _cut(self.prompt_length, self.total, num_ranks)
        return tuple(
            _joined((prompt[rank], prompt[2 * num_ranks - 1 - rank], responses[rank])) for rank in range(num_ranks)
        )

    def attention_calls(self, owned: Sequence[TokenRange] | None = None) -> tuple[AttentionCall, ...]:
        """The calls that give every owned token its attention; all of the row is owned if nothing is said."""
        owned = (TokenRange(0, self.total),) if owned is None else owned
        return tuple(self._prompt_calls(owned)) + tuple(self._branch_calls(owned))

    def _prompt_calls(self, owned: Sequence[TokenRange]) -> Iterator[AttentionCall]:
        offset = 0
        for run in owned:
            start, end = run.start, min(run.end, self.prompt_length)
            if start < end:
                queries = TokenRange(offset, offset + end - start)
                if start > 0:
                    yield AttentionCall(queries, TokenRange(0, start), causal=False, merge=False)
                yield AttentionCall(queries, TokenRange(start, end), causal=True, merge=start > 0)
            offset += len(run)

    def _branch_calls(self, owned: Sequence[TokenRange]) -> Iterator[AttentionCall]:
        own_calls: list[AttentionCall] = []
        first_query: int | None = None
        offset = 0
        for run in owned:
            for branch in self.branches:
                start, end = max(run.start, branch.start), min(run.end, branch.end)
                if start >= end:
                    continue
                queries = TokenRange(offset + start - run.start, offset + end - run.start)
                first_query = queries.start if first_query is None else first_query
                if start > branch.start:
                    own_calls.append(AttentionCall(queries, TokenRange(branch.start, start), causal=False, merge=True))
                own_calls.append(AttentionCall(queries, TokenRange(start, end), causal=True, merge=True))
            offset += len(run)
        if first_query is not None:
            # A rank's ranges are in row order, so its branch tokens are the end of its own order: one call for all.
            prompt = TokenRange(0, self.prompt_length)
            yield AttentionCall(TokenRange(first_query, offset), prompt, causal=False, merge=False)
            yield from own_calls


def _cut(start: int, end: int, num_pieces: int) -> list[TokenRange]:
    bounds = [start + (end - start) * piece // num_pieces for piece in range(num_pieces + 1)]
    return [TokenRange(low, high) for low, high in pairwise(bounds)]


def _joined(ranges: Sequence[TokenRange]) -> tuple[TokenRange, ...]:
    """Drop empty ranges and join neighbours."""
    joined: list[TokenRange] = []
    for run in ranges:
        if not len(run):
            continue
        if joined and joined[-1].end == run.start:
            joined[-1] = TokenRange(joined[-1].start, run.end)
        else:
            joined.append(run)
    return tuple(joined)
