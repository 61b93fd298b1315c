"""The timeline world: seeded little stories with exact ground truth.

A cast of coloured shapes plays one scene after another on a stage with named places: somebody waits, two meet, one
takes a parcel and later brings it to another. Between scenes the stage is empty, so that a viewer with too few frames
misses a part of the story. A world is a list of scenes with exact times; it is independent of pixels (`rendering`),
samples (`tones`) and questions (`questions`).

Where there is sound, a tone sounds as long as each scene lasts. Pitches and places are then drawn by turns, apart from
each other and from what happens: who wants to know where somebody comes at a tone has to hear and to see.

The same settings describe twenty seconds or two hours: scenes are drawn one after another from one seed.
"""

import math
import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "diamond")
PLACES = ("garden", "market", "harbour", "mill")
PITCHES = ("deep", "middle", "high", "shrill")
CHAPTER_SCENES = 5


class Action(StrEnum):
    """What happens in a scene."""

    WAIT = "wait"
    MEET = "meet"
    TAKE = "take"
    BRING = "bring"

    @property
    def purpose(self) -> str:
        """The purpose of somebody who does this."""
        return {"wait": "rest", "meet": "company", "take": "collection", "bring": "delivery"}[self.value]


class WorldSettings(BaseModel):
    """Length and difficulty of a world; the default is that of the quickstart."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float = Field(default=32.0, ge=8.0, allow_inf_nan=False, description="Length of the video in seconds.")
    num_scenes: int = Field(default=4, ge=3, description="Number of scenes; every five of them have a parcel.")
    frames_per_second: int = Field(default=4, ge=1, le=60, description="Frame rate of the rendered file.")
    size_pixels: int = Field(
        default=160,
        ge=64,
        le=2048,
        description="Width and height of the frames; a multiple of 16, otherwise the encoder's padding is random.",
    )
    num_characters: int = Field(default=4, ge=4, le=len(COLOURS), description="Number of colours; more are harder.")
    scene_seconds: float = Field(
        default=3.0, gt=0.5, allow_inf_nan=False, description="Duration of a scene; shorter is harder."
    )
    sound: bool = Field(default=False, description="A tone sounds during each scene, and questions are about it too.")

    @classmethod
    def of_length(cls, seconds: float, **others: Any) -> Self:
        """A world with a scene for every eight seconds but at least three, which are shorter where time is short."""
        if not math.isfinite(seconds) or seconds < 8.0:
            return cls(seconds=seconds, **others)  # refused
        num_scenes = max(3, int(seconds / 8))
        longest = math.floor((seconds / num_scenes - 1.0) * 1000) / 1000
        return cls(seconds=seconds, num_scenes=num_scenes, scene_seconds=min(3.0, longest), **others)

    @model_validator(mode="after")
    def _scenes_fit(self) -> Self:
        slot_seconds = self.seconds / self.num_scenes
        if slot_seconds < self.scene_seconds + 1.0:
            most = int(self.seconds / (self.scene_seconds + 1.0))
            raise ValueError(
                f"{self.num_scenes} scenes of {self.scene_seconds:g} s do not fit into {self.seconds:g} s with a pause "
                f"between them: at most {most}; set num_scenes, scene_seconds or seconds"
            )
        if self.size_pixels % 16:
            raise ValueError(f"size_pixels must be a multiple of 16, got {self.size_pixels}")
        return self

    @property
    def characters(self) -> tuple[str, ...]:
        """The colours that may occur."""
        return COLOURS[: self.num_characters]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One scene: who does what, with whom, where and when."""

    start_seconds: float
    end_seconds: float
    action: Action
    actor: str
    partner: str | None
    place: str

    @property
    def middle_seconds(self) -> float:
        """The time at which all participants are in place."""
        return (self.start_seconds + self.end_seconds) / 2

    @property
    def people(self) -> tuple[str, ...]:
        """The participants that are visible in the scene."""
        return (self.actor,) if self.partner is None else (self.actor, self.partner)

    def sentence(self) -> str:
        """The scene as a clause, without its time."""
        match self.action:
            case Action.WAIT:
                deed = "waits"
            case Action.MEET:
                deed = f"meets {self.partner}"
            case Action.TAKE:
                deed = "takes the parcel"
            case Action.BRING:
                deed = f"brings the parcel to {self.partner}"
        return f"{self.actor} {deed} in the {self.place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A story: the name it was drawn from, its settings, the shape of each colour and the scenes in order.

    `pitches` has the pitch of every scene's tone, and is empty without sound.
    """

    name: str
    settings: WorldSettings
    shapes: dict[str, str]
    scenes: tuple[Scene, ...]
    pitches: tuple[str, ...] = ()

    @property
    def characters(self) -> tuple[str, ...]:
        """The colours that may occur."""
        return self.settings.characters


def create_world(name: str, settings: WorldSettings) -> World:
    """Draw the story that belongs to a name; the name is the seed.

    Scenes fill equal slots, each at a random time inside its slot. Each chapter of five scenes has one parcel: it is
    taken in one scene and brought to somebody in a later one; the others wait or meet.
    """
    generator = random.Random(f"world {name}")
    people = settings.characters
    shapes = {colour: generator.choice(SHAPES) for colour in COLOURS}
    actions: list[tuple[Action, str, str | None]] = []
    while len(actions) < settings.num_scenes:
        actions += _draw_chapter(generator, people, min(CHAPTER_SCENES, settings.num_scenes - len(actions)))
    pitches = _draw_by_turns(f"pitches {name}", PITCHES, settings.num_scenes) if settings.sound else ()
    places = _draw_by_turns(f"places {name}", PLACES, settings.num_scenes) if settings.sound else ()
    slot_seconds = settings.seconds / settings.num_scenes
    scenes: list[Scene] = []
    for index, (action, actor, partner) in enumerate(actions):
        slack_seconds = slot_seconds - settings.scene_seconds - 0.5
        start = index * slot_seconds + 0.25 + generator.random() * slack_seconds
        scenes.append(
            Scene(
                start_seconds=round(start, 3),
                end_seconds=round(start + settings.scene_seconds, 3),
                action=action,
                actor=actor,
                partner=partner,
                place=places[index] if places else generator.choice(PLACES),
            )
        )
    return World(name=name, settings=settings, shapes=shapes, scenes=tuple(scenes), pitches=pitches)


def _draw_chapter(
    generator: random.Random, people: tuple[str, ...], num_scenes: int
) -> list[tuple[Action, str, str | None]]:
    """Draw up to a chapter of scenes; with three or more, one parcel is taken and brought."""
    chapter: list[tuple[Action, str, str | None]] = []
    for _ in range(num_scenes):
        actor, partner = generator.sample(people, 2)
        meets = generator.random() < 0.5
        chapter.append((Action.MEET, actor, partner) if meets else (Action.WAIT, actor, None))
    if num_scenes >= 3:
        taken, brought = sorted(generator.sample(range(num_scenes), 2))
        carrier, receiver = generator.sample(people, 2)
        chapter[taken] = (Action.TAKE, carrier, None)
        chapter[brought] = (Action.BRING, carrier, receiver)
    return chapter


def _draw_by_turns(name: str, values: tuple[str, ...], num_scenes: int) -> tuple[str, ...]:
    """A value for every scene, none twice in a chapter before all have been there."""
    generator = random.Random(name)
    drawn: list[str] = []
    while len(drawn) < num_scenes:
        num_further = max(0, CHAPTER_SCENES - len(values))
        chapter = [*generator.sample(values, len(values)), *generator.choices(values, k=num_further)]
        length = min(CHAPTER_SCENES, num_scenes - len(drawn))
        drawn += generator.sample(chapter[:length], length)
    return tuple(drawn)
