"""How the ranks of a group divide attention: by heads, by tokens, and how keys and values are exchanged.

A small cost model decides for every row; each part can also be set by hand. It weighs the bytes a rank sends and
receives in one layer, forward and backward, against the computation that can hide them. It uses nominal rates unless
measured ones are given, so that the same row is divided the same way in every run.

- By heads: queries, keys, values and outputs are sent twice; the bytes fall with the number of ranks.
- By tokens: every rank receives all keys and values for its query heads. A gather is one exchange that little
  computation hides; a ring hides each step behind the computation of the previous one, at the cost of one message delay
  per step.
"""

from dataclasses import dataclass
from typing import Literal

from mrsp_engine.attention.heads import AttentionHeads
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.layout import PackedLayout

Exchange = Literal["gather", "ring"]
EXCHANGES: tuple[Exchange, ...] = ("gather", "ring")
BACKWARD_PER_FORWARD = 2.5  # ratio of matrix products in attention's backward pass to those in its forward pass


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRates:
    """The speed of one rank.

    Attributes:
        flops_per_second: In attention.
        bytes_per_second: Sent to, or received from, all other ranks together.
        message_seconds: Delay of one exchange, however small.
    """

    flops_per_second: float
    bytes_per_second: float
    message_seconds: float

    @classmethod
    def nominal(cls, device_type: str) -> "MachineRates":
        """Round figures: accelerators linked directly, or cores of one machine."""
        if device_type == "cpu":
            return cls(flops_per_second=3e10, bytes_per_second=2e9, message_seconds=2e-4)
        return cls(flops_per_second=4e14, bytes_per_second=2e11, message_seconds=2e-5)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSettings:
    """Settings by hand; what isn't set is chosen by the cost model.

    Attributes:
        backend: Name of an attention backend (entry points of `mrsp_engine.attention`).
        head_ranks: Number of ranks that split the heads; divides the ranks and the query heads.
        exchange: How ranks that split the tokens get each other's keys and values.
        rates: Measured rates for the cost model (`mrsp_engine.attention.rates.measure_rates`); the same on all ranks.
    """

    backend: str | None = None
    head_ranks: int | None = None
    exchange: Exchange | None = None
    rates: MachineRates | None = None

    def __post_init__(self) -> None:
        if self.exchange is not None and self.exchange not in EXCHANGES:
            raise EngineUsageError(f"exchange={self.exchange!r}: expected one of {', '.join(EXCHANGES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSplit:
    """A division into `head_ranks × token_ranks` ranks."""

    head_ranks: int
    token_ranks: int
    exchange: Exchange


def choose_split(
    layout: PackedLayout,
    heads: AttentionHeads,
    num_ranks: int,
    settings: AttentionSettings,
    *,
    item_bytes: int,
    device_type: str,
) -> RowSplit:
    """Return the cheapest division of a row that the settings allow.

    Raises:
        EngineUsageError: `head_ranks` doesn't divide the ranks or the query heads.
    """
    possible = [ranks for ranks in range(1, num_ranks + 1) if num_ranks % ranks == 0 and heads.query % ranks == 0]
    if settings.head_ranks is not None and settings.head_ranks not in possible:
        raise EngineUsageError(
            f"head_ranks={settings.head_ranks}: {num_ranks} ranks and {heads.query} query heads allow "
            f"{', '.join(map(str, possible))}"
        )
    candidates = [
        RowSplit(head_ranks=head_ranks, token_ranks=num_ranks // head_ranks, exchange=exchange)
        for head_ranks in ([settings.head_ranks] if settings.head_ranks else possible)
        for exchange in ((settings.exchange,) if settings.exchange else EXCHANGES)
    ]
    rates = settings.rates or MachineRates.nominal(device_type)
    return min(candidates, key=lambda split: predict_seconds(layout, heads, split, rates, item_bytes=item_bytes))


def predict_seconds(
    layout: PackedLayout, heads: AttentionHeads, split: RowSplit, rates: MachineRates, *, item_bytes: int
) -> float:
    """Seconds of one layer's attention on each rank, forward and backward together."""
    own_heads = heads.query // split.head_ranks
    own_key_heads = _most_key_heads(heads, split.head_ranks)
    pairs = layout.num_visible_pairs / split.token_ranks
    forward = 4 * pairs * own_heads * heads.channels / rates.flops_per_second
    compute = (forward, forward * BACKWARD_PER_FORWARD)

    own_tokens = layout.total / (split.head_ranks * split.token_ranks)
    traded = own_tokens * (2 * heads.query + 2 * own_key_heads * split.head_ranks) * heads.channels * item_bytes
    traded *= (split.head_ranks - 1) / split.head_ranks
    messages = 4 if split.head_ranks > 1 else 0
    seconds = 2 * traded / rates.bytes_per_second + messages * rates.message_seconds

    steps = split.token_ranks - 1
    slice_size = layout.total / split.token_ranks * 2 * own_key_heads * heads.channels
    held = slice_size * item_bytes / rates.bytes_per_second
    returned = slice_size * max(item_bytes, 4) / rates.bytes_per_second
    if not steps:
        return seconds + sum(compute)
    if split.exchange == "gather":
        # Hidden only behind the few causal blocks of this rank's own tokens.
        return seconds + sum(compute) + steps * (2 * held + returned) + 3 * rates.message_seconds
    per_step = [part / split.token_ranks for part in compute]
    ring = steps * max(per_step[0], held + rates.message_seconds) + per_step[0]
    ring += steps * max(per_step[1], held + returned + 2 * rates.message_seconds) + per_step[1]
    return seconds + ring + returned + rates.message_seconds


def _most_key_heads(heads: AttentionHeads, head_ranks: int) -> int:
    needed = [heads.key_heads(rank, head_ranks) for rank in range(head_ranks)]
    return max(part.stop - part.start for part in needed)
