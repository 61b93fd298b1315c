"""Looks at a picture and finds its things: by rule, without a model, and the same for every caption.

Each pixel has the colour whose direction from the ground is nearest, or that of the ground. A thing is a connected
region of one colour of about the right size; a speck is ignored, and a larger blot is no thing, but a fault.
Two rewards look at the same findings: `checker` at count, colour and place, and `likeness`, which is meant to be held
out, at how much the picture resembles clean things of the right shapes on an empty ground.

Shape legend: B pictures, C colours, 3 colour channels, E edge of a picture in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from longrl_omni.generation.pictures.captions import Colour, PictureCaption, Things, parse_caption
from longrl_omni.generation.pictures.drawing import COLOURS, EDGE, GROUND, THING, paint
from longrl_omni.generation.rewards.base import PictureRequest
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.rewards.base import RewardResult, RewardStatus

LEAST_PIXELS, MOST_PIXELS = 14, 64
"""Sizes of a thing; drawn ones have 24 (circle) or 36 pixels."""
COVERED = 0.5
"""How far from the ground towards a colour a pixel must be to belong to a thing."""
SPECK_PIXELS = 8
"""Regions smaller than this are ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a picture shows.

    Attributes:
        centres: Row and column of the centre of every thing, by colour.
        num_faults: Regions that are too small or too large for a thing.
    """

    centres: dict[Colour, list[tuple[float, float]]]
    num_faults: int

    def describe(self) -> str:
        """The number of things by colour, for people."""
        counts = [f"{len(centres)} {colour}" for colour, centres in self.centres.items() if centres]
        return ", ".join([*counts, f"{self.num_faults} faults"] if self.num_faults else counts) or "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureVerdict:
    """Which parts of a caption a picture fulfils."""

    has_first: bool
    """The right number of things in the first colour."""
    has_second: bool
    has_nothing_else: bool
    """No thing of another colour, and no fault."""
    is_placed: bool
    """Things of both colours are there, and all of the first lie to the left of all of the second."""

    @property
    def is_right(self) -> bool:
        """Whether all are."""
        return self.score == 1.0

    @property
    def score(self) -> float:
        """The share of the parts that are."""
        return (self.has_first + self.has_second + self.has_nothing_else + self.is_placed) / 4


def find_things(pictures_B3EE: Tensor) -> list[Finding]:
    """The things in pictures with values from 0 to 1."""
    offsets_B3EE = pictures_B3EE - GROUND
    directions_C3 = torch.tensor(list(COLOURS.values())) - GROUND
    lengths_C = directions_C3.norm(dim=1)
    # A pixel's colour is the nearest by its direction from the ground, so that a faint red is still a red.
    shares_BCEE = torch.einsum("bchw,kc->bkhw", offsets_B3EE, directions_C3 / lengths_C[:, None])
    nearest_BEE = shares_BCEE.argmax(dim=1)
    is_near_BEE = (shares_BCEE > COVERED * lengths_C[:, None, None]).gather(1, nearest_BEE[:, None])[:, 0]
    colours_BEE = torch.where(is_near_BEE, nearest_BEE + 1, 0)
    labels_BEE = _label_regions(colours_BEE)
    return [_describe(*found) for found in zip(colours_BEE, labels_BEE, strict=True)]


def check(finding: Finding, caption: PictureCaption) -> PictureVerdict:
    """Compare a picture with a caption: count, colour and place."""
    first, second = (finding.centres[things.colour] for things in (caption.first, caption.second))
    named = {caption.first.colour, caption.second.colour}
    gaps = [there[1] - here[1] for here in first for there in second]
    return PictureVerdict(
        has_first=len(first) == caption.first.count,
        has_second=len(second) == caption.second.count,
        has_nothing_else=not finding.num_faults
        and not any(centres for colour, centres in finding.centres.items() if colour not in named),
        is_placed=bool(gaps) and min(gaps) > 0,
    )


def measure_likeness(picture_3EE: Tensor, finding: Finding, caption: PictureCaption) -> float:
    """How much a picture resembles clean things of the captioned shapes where it shows its own: 1 for the same.

    The mean absolute difference from that drawing, as a share of what an empty ground would differ from it.
    """
    clean_3EE = torch.full((3, EDGE, EDGE), GROUND)
    empty_3EE = clean_3EE.clone()
    for things in (caption.first, caption.second):
        _paint_found(clean_3EE, finding, things)
    drawn = float((clean_3EE - empty_3EE).abs().mean())
    if drawn == 0.0:
        return 0.0
    return max(0.0, 1.0 - float((picture_3EE - clean_3EE).abs().mean()) / drawn)


class CheckerReward:
    """The share of a caption's parts that a picture fulfils: both counts with their colours, nothing else, place."""

    def judge(self, requests: Sequence[PictureRequest]) -> list[RewardResult]:
        """Judge pictures."""
        return [
            RewardResult(value=check(finding, caption).score, status=RewardStatus.OK, parsed=finding.describe())
            for _, finding, caption in _look(requests)
        ]


class AccuracyReward:
    """1 where a picture fulfils its whole caption, otherwise 0."""

    def judge(self, requests: Sequence[PictureRequest]) -> list[RewardResult]:
        """Judge pictures."""
        return [
            RewardResult(
                value=float(check(finding, caption).is_right), status=RewardStatus.OK, parsed=finding.describe()
            )
            for _, finding, caption in _look(requests)
        ]


class LikenessReward:
    """How clean the things are and whether they have the right shapes, which `checker` doesn't look at."""

    def judge(self, requests: Sequence[PictureRequest]) -> list[RewardResult]:
        """Judge pictures."""
        return [
            RewardResult(value=measure_likeness(picture, finding, caption), status=RewardStatus.OK)
            for picture, finding, caption in _look(requests)
        ]


def _look(requests: Sequence[PictureRequest]) -> list[tuple[Tensor, Finding, PictureCaption]]:
    for request in requests:
        if request.picture.shape != (3, EDGE, EDGE):
            raise TrainerUsageError(
                f"rewards: a picture has the shape {tuple(request.picture.shape)}, and the world of pictures "
                f"expects {(3, EDGE, EDGE)}; use its rewards with a model of that world"
            )
    pictures = [request.picture for request in requests]
    findings = find_things(torch.stack(pictures))
    captions = [parse_caption(request.prompt) for request in requests]
    return list(zip(pictures, findings, captions, strict=True))


def _label_regions(colours_BEE: Tensor) -> Tensor:
    """A number for every pixel, the same within a connected region of one colour and different between regions.

    Each pixel takes the largest number of its region: line by line from every side, until nothing changes.
    """
    labels_BEE = torch.arange(EDGE * EDGE).view(EDGE, EDGE).expand_as(colours_BEE).clone()
    while True:
        before_BEE = labels_BEE.clone()
        for axis in (1, 2):
            colours, labels = colours_BEE.unbind(axis), labels_BEE.unbind(axis)
            joined = [here == there for here, there in pairwise(colours)]
            for line in range(1, EDGE):
                torch.maximum(labels[line], labels[line - 1] * joined[line - 1], out=labels[line])
            for line in reversed(range(EDGE - 1)):
                torch.maximum(labels[line], labels[line + 1] * joined[line], out=labels[line])
        if torch.equal(before_BEE, labels_BEE):
            return labels_BEE


def _describe(colours_EE: Tensor, labels_EE: Tensor) -> Finding:
    names = list(COLOURS)
    centres: dict[Colour, list[tuple[float, float]]] = {colour: [] for colour in names}
    num_faults = 0
    for label in labels_EE[colours_EE > 0].unique().tolist():
        pixels = (labels_EE == label).nonzero()
        if LEAST_PIXELS <= len(pixels) <= MOST_PIXELS:
            row, column = pixels.double().mean(dim=0).tolist()
            colour = names[int(colours_EE[int(pixels[0, 0]), int(pixels[0, 1])]) - 1]
            centres[colour].append((row, column))
        elif len(pixels) >= SPECK_PIXELS:
            num_faults += 1
    return Finding(centres=centres, num_faults=num_faults)


def _paint_found(picture_3EE: Tensor, finding: Finding, things: Things) -> None:
    offset = (THING - 1) / 2
    for row, column in finding.centres[things.colour]:
        paint(picture_3EE, (round(row - offset), round(column - offset)), things.shape, things.colour)
