"""Headers of AV1, read as far as needed to know which pictures nothing refers to.

Decoders of H.264 and HEVC can skip such pictures themselves; the AV1 decoder can only be told once, before the first
one. In AV1 a picture leaves a trace only in the slots that it refreshes (AV1 specification, section 7.20), so one that
refreshes none may be left out. Rare features are not read; then no picture counts as unreferenced.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

_SEQUENCE_HEADER, _DELIMITER, _FRAME_HEADER, _TILES, _METADATA, _FRAME, _PADDING = 1, 2, 3, 4, 5, 6, 15
_INTER_FRAME = 1
_CHOSEN_PER_FRAME = 2
_HIGHEST_UNTIERED_LEVEL = 7
_CONFIGURATION_MARK, _NUM_CONFIGURATION_BYTES = 0x81, 4
_NUM_HEADER_BYTES = 16  # more than what is read of a frame's header


class _RareFeatureError(Exception):
    """A header uses something that isn't read here, or ends too early."""


class _Bits:
    """Reads bits, the highest first."""

    def __init__(self, content: bytes) -> None:
        self._value = int.from_bytes(content)
        self._num_left = 8 * len(content)

    def read(self, num_bits: int) -> int:
        self._num_left -= num_bits
        if self._num_left < 0:
            raise _RareFeatureError
        return self._value >> self._num_left & ((1 << num_bits) - 1)

    def refuse(self) -> None:
        """Read a flag that must not be set."""
        if self.read(1):
            raise _RareFeatureError


@dataclass(frozen=True, slots=True)
class _FrameLayout:
    """What a sequence header says about the layout of frame headers.

    Attributes:
        screen_content: 0 or 1, or 2 where each frame says whether its tools for screen content are on.
        integer_motion: 0 or 1, or 2 where each frame with these tools says whether motion is in whole pixels.
        num_order_bits: Bits of a frame's number.
    """

    screen_content: int
    integer_motion: int
    num_order_bits: int

    @classmethod
    def parse(cls, bits: _Bits) -> Self:
        """See the AV1 specification, section 5.5.1."""
        bits.read(3 + 1)  # profile, still picture
        bits.refuse()  # reduced header
        bits.refuse()  # timing
        has_display_delay = bits.read(1)
        if bits.read(5):  # several operating points: layers
            raise _RareFeatureError
        bits.read(12)
        if bits.read(5) > _HIGHEST_UNTIERED_LEVEL:
            bits.read(1)
        if has_display_delay and bits.read(1):
            bits.read(4)
        width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
        bits.read(width_bits + height_bits)
        bits.refuse()  # frame identifiers
        bits.read(3 + 4)
        has_order = bits.read(1)
        bits.read(2 * has_order)
        screen_content = _CHOSEN_PER_FRAME if bits.read(1) else bits.read(1)
        integer_motion = _CHOSEN_PER_FRAME
        if screen_content and not bits.read(1):
            integer_motion = bits.read(1)
        return cls(screen_content, integer_motion, bits.read(3) + 1 if has_order else 0)

    def refreshes_nothing(self, bits: _Bits) -> bool:
        """Return whether a picture is shown once and leaves no trace: the AV1 specification, section 5.9.2."""
        if bits.read(1):  # shows a picture that was decoded before
            return False
        kind, is_shown = bits.read(2), bits.read(1)
        if kind != _INTER_FRAME or not is_shown:
            return False
        is_resilient = bits.read(1)
        bits.read(1)
        uses_screen_content = bits.read(1) if self.screen_content == _CHOSEN_PER_FRAME else self.screen_content
        if uses_screen_content and self.integer_motion == _CHOSEN_PER_FRAME:
            bits.read(1)
        bits.read(1 + self.num_order_bits)
        if not is_resilient:
            bits.read(3)
        return bits.read(8) == 0


class Av1Pictures:
    """The pictures in the packets of a stream, which are looked at in the order of decoding."""

    def __init__(self, layout: _FrameLayout) -> None:
        self._layout: _FrameLayout | None = layout

    @classmethod
    def of(cls, configuration: bytes | None) -> Self | None:
        """Read the container's configuration of the codec; None if it isn't there or a rare feature is used."""
        if not configuration or configuration[0] != _CONFIGURATION_MARK:
            return None
        try:
            for kind, _, content in _units(memoryview(configuration)[_NUM_CONFIGURATION_BYTES:]):
                if kind == _SEQUENCE_HEADER:
                    return cls(_FrameLayout.parse(_Bits(bytes(content))))
        except _RareFeatureError:
            return None
        return None

    def count_needed_bytes(self, packet: memoryview) -> int:
        """Count the bytes of a packet before its last picture, if nothing refers to that; otherwise all.

        Args:
            packet: A temporal unit in the low-overhead format, as MP4 and Matroska store it.

        Returns:
            0 if it contains nothing else.
        """
        last_start, last_header, has_more = 0, None, False
        try:
            for kind, start, content in _units(packet):
                if kind == _SEQUENCE_HEADER:
                    self._layout = None  # should it fail
                    self._layout = _FrameLayout.parse(_Bits(bytes(content)))
                    return len(packet)
                if kind in (_FRAME, _FRAME_HEADER):
                    has_more = last_header is not None
                    last_start, last_header = start, bytes(content[:_NUM_HEADER_BYTES])
                elif kind not in (_DELIMITER, _TILES, _METADATA, _PADDING):
                    return len(packet)
            if self._layout is None or last_header is None or not self._layout.refreshes_nothing(_Bits(last_header)):
                return len(packet)
        except _RareFeatureError:
            return len(packet)
        return last_start if has_more else 0


def _units(content: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Yield the kind, the start and the content of each open bitstream unit (AV1 specification, section 5.3).

    Raises:
        _RareFeatureError: When one belongs to a layer, or the content ends too early.
    """
    place = 0
    while place < len(content):
        start, header = place, content[place]
        place += 1
        if header & 0x84:  # the forbidden bit, or layers
            raise _RareFeatureError
        length = len(content) - place
        if header & 2:
            length, place = _variable_integer(content, place)
        if length > len(content) - place:
            raise _RareFeatureError
        yield header >> 3, start, content[place : place + length]
        place += length


def _variable_integer(content: memoryview, place: int) -> tuple[int, int]:
    """Read a number in groups of seven bits, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 56, 7):
        if place >= len(content):
            break
        value |= (content[place] & 0x7F) << shift
        place += 1
        if not content[place - 1] & 0x80:
            return value, place
    raise _RareFeatureError
