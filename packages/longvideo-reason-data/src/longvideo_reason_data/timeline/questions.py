"""Questions about a world, with answers, evidence and reasoning that follow from its scenes.

Four skills as in LongVideo-Reason: temporal, goal and purpose, spatial, plot and narrative. A question is asked only if
its scenes admit exactly one answer; the options are of one kind and the position of the right one is evenly
distributed, so that neither letters nor wording give the answer away. Nothing here uses frames.

Where scenes have tones, most questions are about what happens at a tone, which neither pictures nor sound tell alone.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from longvideo_reason_data.question_types import Senses
from longvideo_reason_data.records.answers import LETTERS
from longvideo_reason_data.records.record import Interval, Skill
from longvideo_reason_data.timeline.world import CHAPTER_SCENES, PITCHES, PLACES, Action, Scene, World

NUM_OPTIONS = 4
CLOCK_SECONDS = 4
SENSES_IN_TURN = (None, Senses.BOTH, Senses.SOUND, Senses.PICTURE)
"""What questions are drawn first; without sound nothing is said about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldQuestion:
    """A question with shuffled options, the right letter, the scenes that prove it and the reasoning that finds it.

    `senses` say what of the film it needs, where there is sound.
    """

    skill: Skill
    senses: Senses | None
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
    senses: Senses | None = None
    pitches: tuple[str, ...] = ()
    """Of the scenes' tones, if it is about them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Excerpt:
    """The part of a story that a question is about, and the words that name it."""

    scenes: tuple[Scene, ...]
    pitches: tuple[str, ...]
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
    kinds = [
        [draft for draft in drafts if draft.skill is skill and draft.senses is senses]
        for senses in SENSES_IN_TURN
        for skill in Skill
    ]
    for waiting in kinds:
        generator.shuffle(waiting)
    while len(chosen) < num_questions and any(kinds):
        for waiting in kinds:
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
    return " ".join(f"Around {_clock(scene)}s {scene.sentence()}." for scene in scenes)


def _clock(scene: Scene) -> int:
    return round(scene.middle_seconds / CLOCK_SECONDS) * CLOCK_SECONDS


def _tell(draft: _Draft) -> str:
    """What proves a draft, with the tones that it is about."""
    if not draft.pitches:
        return tell_story(draft.scenes)
    heard = zip(draft.scenes, draft.pitches, strict=True)
    if draft.senses is Senses.SOUND:
        return " ".join(f"Around {_clock(scene)}s the {pitch} tone sounds." for scene, pitch in heard)
    return " ".join(
        f"Around {_clock(scene)}s the {pitch} tone sounds while {scene.sentence()}." for scene, pitch in heard
    )


def _finish(draft: _Draft, world: World, letter: str, generator: random.Random) -> WorldQuestion:
    options = generator.sample(draft.wrong, NUM_OPTIONS - 1)
    options.insert(LETTERS.index(letter), draft.right)
    return WorldQuestion(
        skill=draft.skill,
        senses=draft.senses,
        question=draft.question,
        options=tuple(options),
        answer=letter,
        evidence=tuple(
            Interval(start_seconds=scene.start_seconds, end_seconds=scene.end_seconds) for scene in draft.scenes
        ),
        reasoning=_tell(draft),
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
    yield _Excerpt(scenes=world.scenes, pitches=world.pitches, characters=world.characters)
    if len(world.scenes) > CHAPTER_SCENES:
        slot_seconds = world.settings.seconds / len(world.scenes)
        for start in range(0, len(world.scenes), CHAPTER_SCENES):
            scenes = world.scenes[start : start + CHAPTER_SCENES]
            edges = (round(index * slot_seconds, 1) for index in (start, start + len(scenes)))
            between = "Between {:g}s and {:g}s: ".format(*edges)
            pitches = world.pitches[start : start + CHAPTER_SCENES]
            yield _Excerpt(scenes=scenes, pitches=pitches, characters=world.characters, between=between)


def _drafts(excerpt: _Excerpt) -> Iterator[_Draft]:
    seen = (*_temporal(excerpt), *_goal(excerpt), *_spatial(excerpt), *_plot(excerpt))
    if excerpt.pitches:
        seen = (replace(draft, senses=Senses.PICTURE) for draft in seen)
    for draft in (*seen, *_heard(excerpt), *_seen_and_heard(excerpt)):
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


def _heard(excerpt: _Excerpt) -> Iterator[_Draft]:
    """Questions that need no pictures."""

    def about(question: str, right: int, *told: int) -> _Draft:
        draft = _draft(Skill.TEMPORAL, question, excerpt.pitches[right], PITCHES, *(excerpt.scenes[at] for at in told))
        return replace(draft, senses=Senses.SOUND, pitches=tuple(excerpt.pitches[at] for at in told))

    if excerpt.pitches:
        last = len(excerpt.pitches) - 1
        yield about("Which tone sounds first?", 0, 0)
        yield about("Which tone sounds last?", last, last)
    for at, (before, after) in enumerate(pairwise(excerpt.pitches)):
        if before != after and excerpt.pitches.count(before) == 1:
            yield about(f"Which tone sounds right after the {before} tone?", at + 1, at, at + 1)


def _seen_and_heard(excerpt: _Excerpt) -> Iterator[_Draft]:
    """Questions that need pictures and sound: every place and every pitch is as likely to somebody who lacks one."""

    def about(skill: Skill, question: str, right: str, kind: tuple[str, ...], *told: int) -> _Draft:
        draft = _draft(skill, question, right, kind, *(excerpt.scenes[at] for at in told))
        return replace(draft, senses=Senses.BOTH, pitches=tuple(excerpt.pitches[at] for at in told))

    for at, (scene, pitch) in enumerate(zip(excerpt.scenes, excerpt.pitches, strict=False)):
        if excerpt.pitches.count(pitch) == 1:
            place = f"Where does somebody come while the {pitch} tone sounds?"
            yield about(Skill.SPATIAL, place, scene.place, PLACES, at)
            if at + 1 < len(excerpt.scenes):
                place = f"Where does somebody come right after the {pitch} tone?"
                yield about(Skill.TEMPORAL, place, excerpt.scenes[at + 1].place, PLACES, at, at + 1)
        if scene.action in (Action.WAIT, Action.MEET):  # a parcel is rather taken at the beginning than at the end
            if excerpt.tells_once(scene):
                yield about(Skill.PLOT, f"Which tone sounds while {_deed(scene)}?", pitch, PITCHES, at)
            if len(excerpt.scenes_of(scene.action)) == 1:
                tone = f"Which tone sounds while somebody comes for {scene.action.purpose}?"
                yield about(Skill.GOAL, tone, pitch, PITCHES, at)


def _deed(scene: Scene) -> str:
    return scene.sentence().removesuffix(f" in the {scene.place}")
