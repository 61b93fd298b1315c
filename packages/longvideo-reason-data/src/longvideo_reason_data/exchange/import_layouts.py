"""How one published question looks in each layout, and how it is read.

| | LongVideo-Reason | Video-R1 |
|---|---|---|
| question | `problem` | `problem` |
| options | the end of `problem` | `options`, or the end of `problem` |
| answer | `answer`, with or without `<answer>` | `solution`, in `<answer>` |
| reasoning | `reasoning` | `process`, in `<think>` |
| video | `videos`, a path | `path` |

Options are read as `longvideo_reason_data.records.options` reads them. A place such as `<video>` around a question is
the business of the program that it was written for, and is taken off; inside a question it says something that a record
can't, and drops it. Neither layout has evidence or, in most files, a skill; questions get the skill that the user
names, or are dropped.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from longvideo_reason_data.records.answers import LETTERS, ParseStatus, parse_response
from longvideo_reason_data.records.options import read_options, split_options
from longvideo_reason_data.records.record import NUM_OPTIONS, Skill

ImportLayout = Literal["longvideo-reason", "video-r1"]

_TAGGED = re.compile(r"<(think|answer)>(.*?)</\1>", re.DOTALL)
# `<video>`, `<image_1>`, `<|video_pad|>`, `<|vision_start|>`, `<im_start>` and their like.
_PLACE = r"<\|?/?(?:video|image|img|audio|vision|im_start|im_end)(?:[\s_-]?\w+)*\|?>"
_PLACES_AROUND = re.compile(rf"^(?:\s*{_PLACE})+|(?:{_PLACE}\s*)+$", re.IGNORECASE)
_SOME_PLACE = re.compile(_PLACE, re.IGNORECASE)
_FIELDS = {  # of the video, the answer and the reasoning
    "longvideo-reason": ("videos", "answer", "reasoning"),
    "video-r1": ("path", "solution", "process"),
}
# So that a letter shows itself as one where there are no options.
_ANY_OPTIONS = tuple(f"\0{letter}" for letter in LETTERS[:10])
_SKILLS = {
    "temporal": Skill.TEMPORAL,
    "temporal reasoning": Skill.TEMPORAL,
    "goal": Skill.GOAL,
    "goal and purpose": Skill.GOAL,
    "goal and purpose reasoning": Skill.GOAL,
    "spatial": Skill.SPATIAL,
    "spatial reasoning": Skill.SPATIAL,
    "plot": Skill.PLOT,
    "plot and narrative": Skill.PLOT,
    "plot and narrative reasoning": Skill.PLOT,
}
_SKILL_NAMES = ("skill", "question_type", "problem_type", "category")


class UnusableError(Exception):
    """A question that can't become a record.

    Args:
        reason: Why, in one word that can be counted.
        detail: What exactly is wrong.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedQuestion:
    """A published question, as far as it doesn't hang on its video.

    Attributes:
        video: Path of the video, as the file gives it.
        question: Its words.
        options: Four, or none.
        answer: A letter, or words when there are no options.
        reasoning: What leads there; may be empty.
        skill: What it asks of the viewer.
    """

    video: str
    question: str
    options: tuple[str, ...]
    answer: str
    reasoning: str
    skill: Skill


def read_question(row: Mapping[str, Any], layout: ImportLayout, skill: Skill | None) -> PublishedQuestion:
    """Understand one row.

    Args:
        row: The row.
        layout: How it is laid out.
        skill: Of questions that don't say theirs; None drops them.

    Raises:
        UnusableError: When it can't become a record.
    """
    if (kind := row.get("data_type", "video")) != "video":
        raise UnusableError("not_a_video", f"its data_type is {kind!r}")
    video_name, answer_name, reasoning_name = _FIELDS[layout]
    video, answer = _text(row, video_name), _untag(_text(row, answer_name), "answer")
    question, options = _read_words(row)
    answer = _read_answer(answer, options)
    skill = next((_SKILLS[name] for name in _named_skills(row) if name in _SKILLS), skill)
    if skill is None:
        raise UnusableError("skill_unknown", "no skill is given; --skill names one for such questions")
    reasoning = _untag(str(row.get(reasoning_name) or ""), "think")
    return PublishedQuestion(
        video=video, question=question, options=options, answer=answer, reasoning=reasoning, skill=skill
    )


def _read_words(row: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Read a question and its options."""
    question, at_its_end = split_options(_PLACES_AROUND.sub("", _text(row, "problem")).strip())
    options = read_options(row) or at_its_end
    if at_its_end and at_its_end != options:
        raise UnusableError("options_unclear", "the options at the end of its words aren't those of its field")
    if options and len(options) != NUM_OPTIONS:
        raise UnusableError("options_not_four", f"{len(options)} options, expected {NUM_OPTIONS} or none")
    for words in (question, *options):
        if place := _SOME_PLACE.search(words):
            raise UnusableError("placeholder_inside", f"the place {place[0]!r} stands inside its words")
    return question, options


def _read_answer(answer: str, options: tuple[str, ...]) -> str:
    """Find the letter of the right option, or leave the words of an open question as they are."""
    parsed = parse_response(f"<answer>{answer}</answer>", options or _ANY_OPTIONS)
    if options and parsed.letter is None:
        raise UnusableError("answer_unclear", f"the answer {answer[:60]!r} is none of the options")
    if not options and parsed.status is not ParseStatus.NO_ANSWER:
        raise UnusableError("options_missing", f"the answer {answer[:60]!r} is a letter, and no options can be read")
    return parsed.letter or answer


def _text(item: Mapping[str, Any], name: str) -> str:
    value = item.get(name)
    if isinstance(value, list) and len(cast(list[object], value)) == 1:
        value = cast(list[object], value)[0]
    if not isinstance(value, str) or not value.strip():
        raise UnusableError("field_missing", f"{name!r} is {str(value)[:60]!r}, expected text")
    return value.strip()


def _named_skills(item: Mapping[str, Any]) -> list[str]:
    values = [item.get(name) for name in _SKILL_NAMES]
    return [re.sub(r"[\s_/&-]+", " ", value.lower()).strip() for value in values if isinstance(value, str)]


def _untag(text: str, tag: str) -> str:
    """Take what stands in a tag, or the text itself when the tag isn't there."""
    found = [match[2] for match in _TAGGED.finditer(text) if match[1] == tag]
    return (found[-1] if found else text).strip()
