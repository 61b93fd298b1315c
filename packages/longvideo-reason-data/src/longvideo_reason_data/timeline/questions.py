"""Questions about a world, with answers, evidence and reasoning that follow from its scenes.

Four skills as in LongVideo-Reason: temporal, goal and purpose, spatial, plot and narrative. A question is asked only
where its scenes admit exactly one answer; the options are of one kind and the place of the right one is dealt out
evenly, so that neither letters nor wording give the answer away. Nothing here has seen a frame.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from longvideo_reason_data.answers import LETTERS
from longvideo_reason_data.records import Interval, Skill
from longvideo_reason_data.timeline.world import PLACES, Action, Scene, World

NUM_OPTIONS = 4
CLOCK_SECONDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldQuestion:
    """A question with shuffled options, the right letter, the scenes that prove it and the reasoning that finds it."""

    skill: Skill
    question: str
    options: tuple[str, ...]
    answer: str
    evidence: tuple[Interval, ...]
    reasoning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    skill: Skill
    question: str
    right: str
    wrong: tuple[str, ...]
    scenes: tuple[Scene, ...]


def create_questions(world: World, letters: Iterator[str], num_questions: int) -> list[WorldQuestion]:
    """Draw questions about one world, skills in turn; `letters` deals the place of the right option.

    Returns fewer than asked for where the story does not hold that many different questions.
    """
    generator = random.Random(f"questions {world.name}")
    drafts = [draft for draft in _drafts(world) if len(draft.wrong) >= NUM_OPTIONS - 1]
    chosen: list[_Draft] = []
    by_skill = {skill: [draft for draft in drafts if draft.skill is skill] for skill in Skill}
    for waiting in by_skill.values():
        generator.shuffle(waiting)
    while len(chosen) < num_questions and any(by_skill.values()):
        for waiting in by_skill.values():
            if waiting and len(chosen) < num_questions:
                chosen.append(waiting.pop())
    return [_finish(draft, world, next(letters), generator) for draft in chosen]


def deal_letters(name: str) -> Iterator[str]:
    """Deal the letters A to D without end: every four are all four, in an order that no pattern repeats."""
    generator = random.Random(f"letters {name}")
    while True:
        yield from generator.sample(LETTERS[:NUM_OPTIONS], NUM_OPTIONS)


def tell_story(scenes: tuple[Scene, ...]) -> str:
    """The scenes as timed sentences; a glance at the clock, not a stop-watch."""
    return " ".join(
        f"Around {round(scene.middle_seconds / CLOCK_SECONDS) * CLOCK_SECONDS}s {scene.sentence()}." for scene in scenes
    )


def _finish(draft: _Draft, world: World, letter: str, generator: random.Random) -> WorldQuestion:
    options = generator.sample(draft.wrong, NUM_OPTIONS - 1)
    options.insert(LETTERS.index(letter), draft.right)
    return WorldQuestion(
        skill=draft.skill,
        question=draft.question,
        options=tuple(options),
        answer=letter,
        evidence=tuple(
            Interval(start_seconds=scene.start_seconds, end_seconds=scene.end_seconds) for scene in draft.scenes
        ),
        reasoning=tell_story(draft.scenes),
    )


def _others(values: tuple[str, ...], *excluded: str | None) -> tuple[str, ...]:
    return tuple(value for value in values if value not in excluded)


def _drafts(world: World) -> Iterator[_Draft]:
    yield from _temporal(world)
    yield from _goal(world)
    yield from _spatial(world)
    yield from _plot(world)


def _temporal(world: World) -> Iterator[_Draft]:
    scenes = world.scenes
    if scenes[0].partner is None:
        first = scenes[0].actor
        yield _Draft(
            skill=Skill.TEMPORAL,
            question="Who is seen first?",
            right=first,
            wrong=_others(world.characters, first),
            scenes=scenes[:1],
        )
    for before, after in pairwise(scenes):
        if after.partner is None and after.actor not in before.people and _told_once(world, before):
            yield _Draft(
                skill=Skill.TEMPORAL,
                question=f"Who is seen right after {_deed(before)}?",
                right=after.actor,
                wrong=_others(world.characters, after.actor),
                scenes=(before, after),
            )


def _goal(world: World) -> Iterator[_Draft]:
    purposes = tuple(action.purpose for action in Action)
    for scene in world.scenes:
        if sum(scene.actor in other.people for other in world.scenes) == 1:
            right = scene.action.purpose
            yield _Draft(
                skill=Skill.GOAL,
                question=f"For what does {scene.actor} come?",
                right=right,
                wrong=_others(purposes, right),
                scenes=(scene,),
            )
    deliveries = [scene for scene in world.scenes if scene.action is Action.BRING]
    for scene in deliveries:
        if len(deliveries) == 1 and scene.partner is not None:
            yield _Draft(
                skill=Skill.GOAL,
                question=f"For whom does {scene.actor} take the parcel?",
                right=scene.partner,
                wrong=_others(world.characters, scene.partner),
                scenes=(scene,),
            )


def _spatial(world: World) -> Iterator[_Draft]:
    for scene in world.scenes:
        if _told_once(world, scene):
            yield _Draft(
                skill=Skill.SPATIAL,
                question=f"Where is it that {_deed(scene)}?",
                right=scene.place,
                wrong=_others(PLACES, scene.place),
                scenes=(scene,),
            )


def _plot(world: World) -> Iterator[_Draft]:
    taken = [scene for scene in world.scenes if scene.action is Action.TAKE]
    brought = [scene for scene in world.scenes if scene.action is Action.BRING]
    if len(brought) == 1 and len(taken) == 1:
        carrier, receiver = brought[0].actor, brought[0].partner or ""
        yield _Draft(
            skill=Skill.PLOT,
            question="Who has the parcel in the end?",
            right=receiver,
            wrong=_others(world.characters, receiver),
            scenes=(taken[0], brought[0]),
        )
        yield _Draft(
            skill=Skill.PLOT,
            question="Who carries the parcel?",
            right=carrier,
            wrong=_others(world.characters, carrier),
            scenes=(taken[0], brought[0]),
        )


def _deed(scene: Scene) -> str:
    return scene.sentence().removesuffix(f" in the {scene.place}")


def _told_once(world: World, scene: Scene) -> bool:
    """Whether the words describe one scene only; who met whom reads both ways."""

    def same(other: Scene) -> bool:
        return other.action is scene.action and (
            set(other.people) == set(scene.people) if scene.action is Action.MEET else other.people == scene.people
        )

    return sum(same(other) for other in world.scenes) == 1
