"""Draws captions: square pictures with flat shapes on a dark ground, in random places that agree with the caption.

Shape legend: 3 colour channels, E edge of a picture in pixels, T edge of a thing.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from longrl_omni.generation.pictures.captions import Colour, PictureCaption, Shape

EDGE = 32
"""Edge of a picture, in pixels."""
CELL = 8
"""Edge of the cells of a board on which things lie, in pixels: one patch of the tiny model."""
THING = 6
"""Edge of a thing, in pixels."""
MARGIN = 2
"""Least distance of things, in pixels, and the width of a pixel of the tiny model."""
GROUND = 0.08
"""Brightness of the ground."""
COLOURS: dict[Colour, tuple[float, float, float]] = {
    Colour.RED: (0.9, 0.15, 0.15),
    Colour.GREEN: (0.15, 0.75, 0.2),
    Colour.BLUE: (0.2, 0.35, 0.95),
    Colour.YELLOW: (0.95, 0.85, 0.15),
}
Place = tuple[int, int]
"""Row and column of the upper left corner of a thing."""


def draw(caption: PictureCaption, random_source: random.Random) -> Tensor:
    """A picture [3, E, E] of the caption, with values from 0 to 1; the things lie at random in their half."""
    picture_3EE = torch.full((3, EDGE, EDGE), GROUND)
    for things, is_left in ((caption.first, True), (caption.second, False)):
        for place in _choose_places(things.count, is_left, random_source):
            paint(picture_3EE, place, things.shape, things.colour)
    return picture_3EE


def paint(picture_3EE: Tensor, place: Place, shape: Shape, colour: Colour) -> None:
    """Paint one thing into a picture; parts outside of it are cut off."""
    row, column = place
    rows, columns = slice(max(row, 0), row + THING), slice(max(column, 0), column + THING)
    patch_3TT = picture_3EE[:, rows, columns]
    covered = outline(shape)[max(-row, 0) :, max(-column, 0) :][: patch_3TT.shape[1], : patch_3TT.shape[2]]
    patch_3TT[:, covered] = torch.tensor(COLOURS[colour])[:, None]


def outline(shape: Shape) -> Tensor:
    """The pixels [T, T] that a thing covers."""
    if shape is Shape.SQUARE:
        return torch.ones(THING, THING, dtype=torch.bool)
    from_centre_T = torch.arange(THING) - (THING - 1) / 2
    return from_centre_T[:, None].square() + from_centre_T.square() < (THING / 2) ** 2 - 0.5


def _choose_places(count: int, is_left: bool, random_source: random.Random) -> Sequence[Place]:
    """Places of things in the left or the right half of the picture, apart from each other."""
    half = EDGE // 2
    while True:
        places: list[Place] = []
        for _ in range(20 * count):
            row = random_source.randrange(EDGE // CELL) * CELL
            column = random_source.randrange(half // CELL) * CELL + (0 if is_left else half)
            row, column = (start + random_source.choice((0, MARGIN)) for start in (row, column))
            if all(max(abs(row - other[0]), abs(column - other[1])) >= THING + MARGIN for other in places):
                places.append((row, column))
            if len(places) == count:
                return places
