"""Captions such as "two red circles left of one blue square": a small grammar, read and written in both directions.

A caption names two kinds of things of different colours and how they lie. All captions have eight words, so that each
word has a place of its own. Independent of how pictures are drawn or generated.
"""

import random
from dataclasses import dataclass
from enum import StrEnum

from longrl_files.messages import visible
from longrl_trainer.errors import TrainerUsageError

NUMBER_WORDS = ("one", "two", "three")


class Colour(StrEnum):
    """The colours of things."""

    RED = "red"
    GREEN = "green"
    BLUE = "blue"
    YELLOW = "yellow"


class Shape(StrEnum):
    """The shapes of things."""

    CIRCLE = "circle"
    SQUARE = "square"


RELATION_WORDS = ("left", "of")
"""All first things lie to the left of all second ones. With "right of" besides, what lies where would depend on order,
relation and side together and on no two of them: a parity, which a tiny model hasn't learned in the minutes it has.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Things:
    """Some things of one kind."""

    count: int
    colour: Colour
    shape: Shape

    @property
    def words(self) -> tuple[str, str, str]:
        """As three words."""
        noun = self.shape.value if self.count == 1 else f"{self.shape.value}s"
        return NUMBER_WORDS[self.count - 1], self.colour.value, noun


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureCaption:
    """What a picture shows: the first things to the left of the second things."""

    first: Things
    second: Things

    @property
    def words(self) -> tuple[str, ...]:
        """Its eight words."""
        return (*self.first.words, *RELATION_WORDS, *self.second.words)

    @property
    def text(self) -> str:
        """As a sentence."""
        return " ".join(self.words)


VOCABULARY = tuple(
    dict.fromkeys(
        [
            *NUMBER_WORDS,
            *(colour.value for colour in Colour),
            *(f"{shape.value}{ending}" for shape in Shape for ending in ("", "s")),
            *RELATION_WORDS,
        ]
    )
)
"""Every word that a caption may have."""
NUM_WORDS = 8


def parse_caption(text: str) -> PictureCaption:
    """The caption that a sentence states.

    Raises:
        TrainerUsageError: It isn't one.
    """
    words = tuple(text.split())
    refusal = TrainerUsageError(
        f"the caption {visible(repr(text), 80)} is none of the world of pictures; expected one like "
        '"two red circles left of one blue square"'
    )
    if len(words) != NUM_WORDS:
        raise refusal
    try:
        caption = PictureCaption(first=_parse_things(words[:3]), second=_parse_things(words[5:]))
    except ValueError:
        raise refusal from None
    if caption.words != words or caption.first.colour is caption.second.colour:
        raise refusal
    return caption


def draw_caption(random_source: random.Random, *, most_things: int = len(NUMBER_WORDS)) -> PictureCaption:
    """A caption at random, with up to so many things of a kind."""
    colours = random_source.sample(list(Colour), 2)
    first, second = (
        Things(count=random_source.randint(1, most_things), colour=colour, shape=random_source.choice(list(Shape)))
        for colour in colours
    )
    return PictureCaption(first=first, second=second)


def _parse_things(words: tuple[str, ...]) -> Things:
    number, colour, noun = words
    return Things(count=NUMBER_WORDS.index(number) + 1, colour=Colour(colour), shape=Shape(noun.removesuffix("s")))
