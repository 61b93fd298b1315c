"""Reads the one number of an answer, with its unit, in decimal arithmetic.

    1,000   1 000   1'000   1.234,5   3,5   -2   1.5e3   12 %   $40   5 km   about 3 boats   three

A comma before three digits separates thousands, otherwise decimals; so does a point, which never separates thousands
unless a comma follows. Several different numbers are ambiguous.
"""

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal

from longrl_trainer.rewards.base import RewardStatus

_LONGEST_ANSWER = 1000  # characters; longer ones aren't a number and a few words
_THOUSANDS = r"\d{1,3}(?:,\d{3}){1,9}(?:\.\d{1,20})?|\d{1,3}(?:[ '’_]\d{3}){1,9}(?:[.,]\d{1,20})?"
_EUROPEAN = r"\d{1,3}(?:\.\d{3}){1,9},\d{1,20}"
_PLAIN = r"\d{1,30}(?:[.,]\d{1,20})?(?:[eE][+-]?\d{1,2})?|[.]\d{1,20}"
_NUMBER = re.compile(
    rf"(?<![\w.])([-+]?)[$€£¥]?(?:({_EUROPEAN})|({_THOUSANDS})|({_PLAIN}))(?![\d]|[.,]\d) ?(%|°|[A-Za-zµ]+[²³]?)?"
)
_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_WORDS = {name: Decimal(number) for number, name in enumerate(_NAMES.split())}
_WORD = re.compile(rf"\b({'|'.join(_WORDS)})\b(?:[ -]([a-z]+))?", re.IGNORECASE)

_UNITS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("mm", "millimeter", "millimetre"), ("length", "0.001")),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), ("length", "0.01")),
    **dict.fromkeys(("m", "meter", "metre"), ("length", "1")),
    **dict.fromkeys(("km", "kilometer", "kilometre"), ("length", "1000")),
    **dict.fromkeys(("inch", "inches"), ("length", "0.0254")),
    **dict.fromkeys(("ft", "foot", "feet"), ("length", "0.3048")),
    **dict.fromkeys(("mi", "mile"), ("length", "1609.344")),
    **dict.fromkeys(("ms", "millisecond"), ("time", "0.001")),
    **dict.fromkeys(("s", "sec", "second"), ("time", "1")),
    **dict.fromkeys(("min", "minute"), ("time", "60")),
    **dict.fromkeys(("h", "hr", "hour"), ("time", "3600")),
    **dict.fromkeys(("g", "gram"), ("mass", "0.001")),
    **dict.fromkeys(("kg", "kilogram"), ("mass", "1")),
    **dict.fromkeys(("m²", "sqm"), ("area", "1")),
    **dict.fromkeys(("%", "percent"), ("share", "0.01")),
    **dict.fromkeys(("°", "degree"), ("angle", "1")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number and its unit.

    Attributes:
        number: The number.
        unit: A unit that can be converted; None without one, or with any other word.
    """

    number: Decimal
    unit: str | None = None

    def in_unit_of(self, other: "Quantity") -> Decimal | None:
        """The number in the unit of another quantity, which is assumed where one has none; None if it has no such."""
        if self.unit is None or other.unit is None:
            return self.number
        (dimension, factor), (wanted, divisor) = _UNITS[self.unit], _UNITS[other.unit]
        return self.number * Decimal(factor) / Decimal(divisor) if dimension == wanted else None

    def __str__(self) -> str:
        return f"{self.number} {self.unit}" if self.unit else str(self.number)


def read_quantity(text: str) -> Quantity | RewardStatus:
    """The one number of an answer, or why there is none."""
    text = unicodedata.normalize("NFKC", text).replace("−", "-")
    if len(text) > _LONGEST_ANSWER:
        return RewardStatus.NO_ANSWER
    found: list[Quantity] = []
    for match in _NUMBER.finditer(text):
        sign, european, thousands, plain, unit = match.groups()
        if european:
            digits = european.replace(".", "").replace(",", ".")
        elif thousands:
            digits = _join_thousands(thousands)
        else:
            digits = plain.replace(",", ".")
        found.append(Quantity(number=Decimal(sign + digits), unit=_known_unit(unit)))
    if not found:
        found = [Quantity(number=_WORDS[word.lower()], unit=_known_unit(unit)) for word, unit in _WORD.findall(text)]
    if not found:
        return RewardStatus.NO_ANSWER
    return found[0] if all(other == found[0] for other in found) else RewardStatus.AMBIGUOUS


def _join_thousands(written: str) -> str:
    if re.match(r"\d{1,3},", written):
        return written.replace(",", "")
    return re.sub(r"[ '’_]", "", written).replace(",", ".")


def _known_unit(written: str | None) -> str | None:
    name = (written or "").lower().replace("2", "²")
    return next((unit for unit in (name, name.removesuffix("s")) if unit in _UNITS), None)
