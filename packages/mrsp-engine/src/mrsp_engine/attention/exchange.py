"""How the ranks that split a row's tokens access each other's keys and values.

Every exchange calls a *visit* with some keys and values and the attention calls that use them; together the visits
cover the whole row. A single rank gets one visit, with its own tokens. `GatherExchange` computes on its own tokens
while the others arrive and then on the whole row; `RingExchange` passes slices from rank to rank, each in transit while
the previous one is used, so that no rank ever holds more than two. Nothing is kept for the backward pass: keys and
values are sent again and their gradients return to their owners, summed in at least float32.

Shape legend: L own tokens, T visited tokens, S tokens of the row, K key heads, C head channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mrsp_engine.distributed.collectives import start_transfer
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.layout import AttentionCall

Calls = tuple[AttentionCall, ...]
Visit = Callable[[Tensor, Tensor, Calls], None]
"""Receives keys and values [K, T, C] and the calls on them."""
GradientVisit = Callable[[Tensor, Tensor, Tensor, Tensor, Calls], None]
"""Receives keys, values, and the buffers to which their gradients are added, [K, T, C] each, and the calls on them."""


class KeyValueExchange(Protocol):
    """Gives this rank all keys and values that its queries attend to."""

    def circulate(self, key: Tensor, value: Tensor, visit: Visit) -> None:
        """Call `visit` with every part of the row; key and value [K, L, C] are this rank's own."""
        ...

    def circulate_back(self, key: Tensor, value: Tensor, visit: GradientVisit) -> tuple[Tensor, Tensor]:
        """The same for gradients; returns those of this rank's own keys and values, summed over all ranks."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class NoExchange:
    """One rank has all tokens."""

    calls: Calls = field(repr=False)

    def circulate(self, key: Tensor, value: Tensor, visit: Visit) -> None:
        """See `KeyValueExchange.circulate`."""
        visit(key, value, self.calls)

    def circulate_back(self, key: Tensor, value: Tensor, visit: GradientVisit) -> tuple[Tensor, Tensor]:
        """See `KeyValueExchange.circulate_back`."""
        gradients = _zero_message(key, key.shape[1])
        visit(key, value, *_unpacked(gradients), self.calls)
        return _returned(gradients, key)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GatherExchange:
    """Every rank gathers the whole row, layer by layer.

    Attributes:
        group: The ranks.
        slices: For each participating rank, this one included, the row indices of its tokens, int64.
        own_calls: Causal calls, on this rank's own tokens.
        row_calls: All other calls, on the whole row.
    """

    group: SequenceGroup
    slices: Mapping[int, Tensor]
    own_calls: Calls = field(repr=False)
    row_calls: Calls = field(repr=False)

    def circulate(self, key: Tensor, value: Tensor, visit: Visit) -> None:
        """See `KeyValueExchange.circulate`."""
        row = self._gather(key, value, lambda: visit(key, value, self.own_calls))
        visit(*_unpacked(row), self.row_calls)

    def circulate_back(self, key: Tensor, value: Tensor, visit: GradientVisit) -> tuple[Tensor, Tensor]:
        """See `KeyValueExchange.circulate_back`."""
        own = _zero_message(key, key.shape[1])
        row = self._gather(key, value, lambda: visit(key, value, *_unpacked(own), self.own_calls))
        gradients = _zero_message(key, row.shape[0])
        visit(*_unpacked(row), *_unpacked(gradients), self.row_calls)
        sends = {rank: gradients.index_select(0, self.slices[rank]) for rank in self._others()}
        transfer = start_transfer(sends, {rank: torch.empty_like(own) for rank in self._others()}, self.group)
        own += gradients.index_select(0, self.slices[self.group.rank])
        for part in transfer.wait().values():
            own += part
        return _returned(own, key)

    def _gather(self, key: Tensor, value: Tensor, meanwhile: Callable[[], None]) -> Tensor:
        own = _packed(key, value)
        buffers = {rank: own.new_empty((len(self.slices[rank]), *own.shape[1:])) for rank in self._others()}
        transfer = start_transfer(dict.fromkeys(self._others(), own), buffers, self.group)
        meanwhile()
        row = own.new_empty((sum(map(len, self.slices.values())), *own.shape[1:]))
        row.index_copy_(0, self.slices[self.group.rank], own)
        for rank, part in transfer.wait().items():
            row.index_copy_(0, self.slices[rank], part)
        return row

    def _others(self) -> list[int]:
        return [rank for rank in self.slices if rank != self.group.rank]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RingExchange:
    """Slices rotate: in every step each rank computes with one slice and passes it to the next rank.

    Attributes:
        group: The ranks.
        ring: The participating ranks, in order.
        lengths: Number of tokens of each.
        calls_by_step: The calls of each step; step s uses the tokens of the rank s places before this one.
    """

    group: SequenceGroup
    ring: Sequence[int]
    lengths: Sequence[int]
    calls_by_step: Sequence[Calls] = field(repr=False)

    def circulate(self, key: Tensor, value: Tensor, visit: Visit) -> None:
        """See `KeyValueExchange.circulate`."""
        held = _packed(key, value)
        for step, calls in enumerate(self.calls_by_step):
            coming = self._pass_on(held, step + 1) if step + 1 < len(self.ring) else None
            visit(*_unpacked(held), calls)
            held = held if coming is None else coming()

    def circulate_back(self, key: Tensor, value: Tensor, visit: GradientVisit) -> tuple[Tensor, Tensor]:
        """See `KeyValueExchange.circulate_back`; gradients follow their keys and values one step behind."""
        held = _packed(key, value)
        gradients_coming: Callable[[], Tensor] | None = None
        for step, calls in enumerate(self.calls_by_step):
            coming = self._pass_on(held, step + 1) if step + 1 < len(self.ring) else None
            gradients = _zero_message(key, held.shape[0])
            visit(*_unpacked(held), *_unpacked(gradients), calls)
            if gradients_coming is not None:
                gradients += gradients_coming()
            # After the last step they arrive at their owners.
            gradients_coming = self._pass_on(gradients, step + 1)
            held = held if coming is None else coming()
        assert gradients_coming is not None
        return _returned(gradients_coming(), key)

    def _pass_on(self, message: Tensor, step: int) -> Callable[[], Tensor]:
        """Send to the next rank and receive from the previous one for `step`; call the result to wait for it."""
        place, size = self.ring.index(self.group.rank), len(self.ring)
        following, previous = self.ring[(place + 1) % size], self.ring[(place - 1) % size]
        buffer = message.new_empty((self.lengths[(place - step) % size], *message.shape[1:]))
        transfer = start_transfer({following: message}, {previous: buffer}, self.group)
        return lambda: transfer.wait()[previous]


def _packed(key: Tensor, value: Tensor) -> Tensor:
    """Keys and values as one message, tokens first: [T, 2, K, C]."""
    return torch.stack((key.transpose(0, 1), value.transpose(0, 1)), dim=1)


def _zero_message(like: Tensor, num_tokens: int) -> Tensor:
    """A message of zero gradients for keys of this shape, in at least float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return like.new_zeros((num_tokens, 2, like.shape[0], like.shape[2]), dtype=dtype)


def _unpacked(message: Tensor) -> tuple[Tensor, Tensor]:
    """Views of a message's keys and values, [K, T, C] each."""
    key, value = message.transpose(0, 2).unbind(1)
    return key, value


def _returned(gradients: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    key, value = _unpacked(gradients.to(like.dtype))
    return key, value
