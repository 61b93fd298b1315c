"""The form of one published question in each layout, and how it is read.

| | LongVideo-Reason | Video-R1 |
|---|---|---|
| question | `problem` | `problem` |
| options | the end of `problem` | `options`, or the end of `problem` |
| answer | `answer`, with or without `<answer>` | `solution`, in `<answer>` |
| reasoning | `reasoning` | `process`, in `<think>` |
| type of answer | | `problem_type`, if there are no options |
| media | `videos` and `images`, a path or a list of them | `path`, and what it is in `data_type` |

Options are parsed by `longvideo_reason_data.records.options`. Placeholders such as `<video>` before or after a question
give the order of several media (`longvideo_reason_data.exchange.published_media`) and are removed, as are other
programs' tokens there; inside a question they mean something that a record can't express, and the question is dropped.
Neither layout has evidence or, in most files, a skill; questions get the skill given by the user, or are dropped.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from longvideo_reason_data.exchange.published_media import UnusableError, named_media, order_media, take_places
from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.answers import LETTERS, ParseStatus, parse_response
from longvideo_reason_data.records.medium import MediumKind
from longvideo_reason_data.records.options import read_options, split_options
from longvideo_reason_data.records.record import NUM_OPTIONS, Skill

ImportLayout = Literal["longvideo-reason", "video-r1"]

_TAGGED = re.compile(r"<(think|answer)>(.*?)</\1>", re.DOTALL)
# `<video>`, `<image_1>`, `<|video_pad|>`, `<|vision_start|>`, `<im_start>` and similar tokens.
_PLACE = r"<\|?/?(?:video|image|img|audio|vision|im_start|im_end)(?:[\s_-]?\w+)*\|?>"
_PLACES_AROUND = re.compile(rf"^(?:\s*{_PLACE})+|(?:{_PLACE}\s*)+$", re.IGNORECASE)
_SOME_PLACE = re.compile(_PLACE, re.IGNORECASE)
_FIELDS = {  # of the answer and the reasoning
    "longvideo-reason": ("answer", "reasoning"),
    "video-r1": ("solution", "process"),
}
# To recognise a letter where there are no options.
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
_ANSWER_TYPES = {
    "numerical": QuestionType.NUMERIC,
    "regression": QuestionType.REGRESSION,
    "ocr": QuestionType.OCR,
    "math": QuestionType.MATHEMATICS,
}
_SKILL_NAMES = ("skill", "question_type", "problem_type", "category")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedQuestion:
    """The part of a published question that doesn't depend on its media files.

    Attributes:
        media: Kind and path of each medium, as the file gives it, in the order in which they are shown.
        question: Its text.
        options: Four, or none.
        answer: A letter, or text if there are no options.
        answer_type: How the answer is compared, if that is stated.
        reasoning: The reasoning; may be empty.
        skill: The skill that it tests.
    """

    media: tuple[tuple[MediumKind, str], ...]
    question: str
    options: tuple[str, ...]
    answer: str
    answer_type: QuestionType | None
    reasoning: str
    skill: Skill


def read_question(row: Mapping[str, Any], layout: ImportLayout, skill: Skill | None) -> PublishedQuestion:
    """Parse one row.

    Args:
        row: The row.
        layout: Its layout.
        skill: Skill of questions without one; None drops them.

    Raises:
        UnusableError: When it can't become a record.
    """
    answer_name, reasoning_name = _FIELDS[layout]
    named = named_media(row, layout)
    answer = _untag(_text(row, answer_name), "answer")
    question, options, places = _read_words(row)
    stated = None if options else _ANSWER_TYPES.get(str(row.get("problem_type")).lower())
    answer = _read_answer(answer, options, stated)
    skill = next((_SKILLS[name] for name in _named_skills(row) if name in _SKILLS), skill)
    if skill is None:
        raise UnusableError("skill_unknown", "it has no skill; set one for such questions with --skill")
    reasoning = _untag(_text(row, reasoning_name), "think") if row.get(reasoning_name) else ""
    return PublishedQuestion(
        media=order_media(places, named),
        question=question,
        options=options,
        answer=answer,
        answer_type=stated,
        reasoning=reasoning,
        skill=skill,
    )


def _read_words(row: Mapping[str, Any]) -> tuple[str, tuple[str, ...], list[MediumKind]]:
    """Read a question, its options, and the placeholders around the question and after the options."""
    front, words, behind = take_places(_text(row, "problem"))
    question, at_its_end = split_options(_PLACES_AROUND.sub("", words).strip())
    also_front, question, also_behind = take_places(question)
    question = _PLACES_AROUND.sub("", question).strip()
    options = read_options(row) or at_its_end
    if at_its_end and at_its_end != options:
        raise UnusableError("options_unclear", "the options at the end of its text differ from those of its field")
    if options and len(options) != NUM_OPTIONS:
        raise UnusableError("options_not_four", f"{len(options)} options, expected {NUM_OPTIONS} or none")
    for text in (question, *options):
        if place := _SOME_PLACE.search(text):
            raise UnusableError("placeholder_inside", f"the placeholder {place[0]!r} is inside its text")
    return question, options, [*front, *also_front, *also_behind, *behind]


def _read_answer(answer: str, options: tuple[str, ...], stated: QuestionType | None) -> str:
    """Find the letter of the right option, or return the answer to an open question unchanged."""
    if stated is QuestionType.OCR:
        return answer  # also if that is a letter
    parsed = parse_response(f"<answer>{answer}</answer>", options or _ANY_OPTIONS)
    if options and parsed.letter is None:
        raise UnusableError("answer_unclear", f"the answer {answer[:60]!r} is none of the options")
    if not options and parsed.status is not ParseStatus.NO_ANSWER:
        raise UnusableError("options_missing", f"the answer {answer[:60]!r} is a letter, but no options can be parsed")
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
    """Return the content of a tag, or the text itself if there is no such tag."""
    found = [match[2] for match in _TAGGED.finditer(text) if match[1] == tag]
    return (found[-1] if found else text).strip()
