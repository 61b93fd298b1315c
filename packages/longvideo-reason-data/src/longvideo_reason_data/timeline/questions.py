"""Questions about a world, with answers, evidence and reasoning that follow from its scenes.

Four skills as in LongVideo-Reason: temporal, goal and purpose, spatial, plot and narrative. A question is asked only if
its scenes admit exactly one answer; the options are of one kind and the position of the right one is evenly
distributed, so that neither letters nor wording give the answer away. Nothing here uses frames.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.record import Interval, Skill
from longvideo_reason_data.timeline.world import CHAPTER_SCENES, PLACES, Action, Scene, World

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Excerpt:
    """The part of a story that a question is about, and the words that name it."""

    scenes: tuple[Scene, ...]
    characters: tuple[str, ...]
    between: str = ""

    def scenes_of(self, action: Action) -> tuple[Scene, ...]:
        return tuple(scene for scene in self.scenes if scene.action is action)

    def tells_once(self, scene: Scene) -> bool:
        """Whether the words describe exactly one scene; a meeting can be described from both sides."""

        def same(other: Scene) -> bool:
            return other.action is scene.action and (
                set(other.people) == set(scene.people) if scene.action is Action.MEET else other.people == scene.people
            )

        return sum(same(other) for other in self.scenes) == 1


def create_questions(world: World, letters: Iterator[str], num_questions: int) -> list[WorldQuestion]:
    """Draw questions about one world, skills in turn; `letters` yields the position of the right option.

    Returns fewer than requested if the story doesn't have that many different questions.
    """
    generator = random.Random(f"questions {world.name}")
    drafts = [draft for part in _excerpts(world) for draft in _drafts(part) if len(draft.wrong) >= NUM_OPTIONS - 1]
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
    """Yield the letters A to D forever: every four contain all four, in random order."""
    generator = random.Random(f"letters {name}")
    while True:
        yield from generator.sample(LETTERS[:NUM_OPTIONS], NUM_OPTIONS)


def tell_story(scenes: tuple[Scene, ...]) -> str:
    """The scenes as sentences with rounded times."""
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


def _draft(skill: Skill, question: str, right: str, kind: tuple[str, ...], *scenes: Scene) -> _Draft:
    """A question whose wrong options are all other values of the right one's kind."""
    return _Draft(
        skill=skill,
        question=question,
        right=right,
        wrong=tuple(value for value in kind if value != right),
        scenes=scenes,
    )


def _excerpts(world: World) -> Iterator[_Excerpt]:
    """The whole story, and in a longer one each chapter by its times: in two hours, little happens only once."""
    yield _Excerpt(scenes=world.scenes, characters=world.characters)
    if len(world.scenes) > CHAPTER_SCENES:
        slot_seconds = world.settings.seconds / len(world.scenes)
        for start in range(0, len(world.scenes), CHAPTER_SCENES):
            scenes = world.scenes[start : start + CHAPTER_SCENES]
            edges = (round(index * slot_seconds, 1) for index in (start, start + len(scenes)))
            between = "Between {:g}s and {:g}s: ".format(*edges)
            yield _Excerpt(scenes=scenes, characters=world.characters, between=between)


def _drafts(excerpt: _Excerpt) -> Iterator[_Draft]:
    for draft in (*_temporal(excerpt), *_goal(excerpt), *_spatial(excerpt), *_plot(excerpt)):
        question = draft.question
        if excerpt.between:
            question = excerpt.between + question[0].lower() + question[1:]
        yield replace(draft, question=question)


def _temporal(excerpt: _Excerpt) -> Iterator[_Draft]:
    scenes = excerpt.scenes
    if scenes[0].partner is None:
        yield _draft(Skill.TEMPORAL, "Who is seen first?", scenes[0].actor, excerpt.characters, scenes[0])
    for before, after in pairwise(scenes):
        if after.partner is None and after.actor not in before.people and excerpt.tells_once(before):
            question = f"Who is seen right after {_deed(before)}?"
            yield _draft(Skill.TEMPORAL, question, after.actor, excerpt.characters, before, after)


def _goal(excerpt: _Excerpt) -> Iterator[_Draft]:
    purposes = tuple(action.purpose for action in Action)
    for scene in excerpt.scenes:
        if sum(scene.actor in other.people for other in excerpt.scenes) == 1:
            yield _draft(Skill.GOAL, f"For what does {scene.actor} come?", scene.action.purpose, purposes, scene)
    brought = excerpt.scenes_of(Action.BRING)
    if len(brought) == 1:
        question = f"For whom does {brought[0].actor} take the parcel?"
        yield _draft(Skill.GOAL, question, brought[0].people[1], excerpt.characters, brought[0])


def _spatial(excerpt: _Excerpt) -> Iterator[_Draft]:
    for scene in excerpt.scenes:
        if excerpt.tells_once(scene):
            yield _draft(Skill.SPATIAL, f"Where is it that {_deed(scene)}?", scene.place, PLACES, scene)


def _plot(excerpt: _Excerpt) -> Iterator[_Draft]:
    taken, brought = excerpt.scenes_of(Action.TAKE), excerpt.scenes_of(Action.BRING)
    if len(brought) == 1 and len(taken) == 1:
        carrier, receiver = brought[0].people
        told = (taken[0], brought[0])
        yield _draft(Skill.PLOT, "Who has the parcel in the end?", receiver, excerpt.characters, *told)
        yield _draft(Skill.PLOT, "Who carries the parcel?", carrier, excerpt.characters, *told)


def _deed(scene: Scene) -> str:
    return scene.sentence().removesuffix(f" in the {scene.place}")
