"""Datasets that others published, turned into records: the JSON layouts of LongVideo-Reason and Video-R1.

| | LongVideo-Reason | Video-R1 |
|---|---|---|
| question | `problem`, options as its last lines | `problem`, and `options` as `A. …` |
| answer | `answer`, with or without `<answer>` | `solution`, in `<answer>` |
| reasoning | `reasoning` | `process`, in `<think>` |
| media | `videos` and `images`, a path or a list of them | `path`, and what it is in `data_type` |

Both are an array of objects or one object per line. Their media come separately and rarely all; a question whose media
aren't there, or that isn't one this package can hold, is dropped with its reason, never mended by guessing. Neither
layout has evidence or, in most files, a skill; questions get the skill that the user names, or are dropped.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from longvideo_reason_data.atomic_files import write_text_atomic
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.exchange.published_media import MediaFolder, UnusableError, named_media, place_media
from longvideo_reason_data.generation.shards import Dropped, make_dropped
from longvideo_reason_data.generation.sources import place_file
from longvideo_reason_data.records.answers import LETTERS, parse_response
from longvideo_reason_data.records.folder import DROPPED_NAME, MANIFEST_NAME, RECORDS_NAME, hash_records
from longvideo_reason_data.records.medium import MediumKind, NonEmpty, RecordMedium
from longvideo_reason_data.records.record import (
    NUM_OPTIONS,
    QuestionRecord,
    Skill,
    Split,
    describe_invalid,
    write_records,
)
from longvideo_reason_data.records.splits import SplitFractions, assign_splits

ImportLayout = Literal["longvideo-reason", "video-r1"]

_OPTION = re.compile(r"^\s*\(?([A-Z])\s?[.):]\s*(\S.*)$")
_TAGGED = re.compile(r"<(think|answer)>(.*?)</\1>", re.DOTALL)
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


class ImportSettings(BaseModel):
    """How published questions become records.

    Attributes:
        layout: Of the file.
        skill: Of questions that don't say theirs; None drops them.
        source: Where the videos are from.
        license: Under which licence they are.
        splits: Shares of the splits.
        seed: Decides splits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: ImportLayout
    skill: Skill | None = None
    source: NonEmpty | None = None
    license: NonEmpty = "unknown"
    splits: SplitFractions = SplitFractions()
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    media: tuple[tuple[MediumKind, str], ...]
    question: str
    options: tuple[str, ...]
    answer: str
    reasoning: str
    skill: Skill


def import_dataset(file: Path, videos: Path, output: Path, settings: ImportSettings) -> dict[str, Any]:
    """Turn a published file and a folder of videos into a dataset.

    Args:
        file: JSON or JSON lines.
        videos: The folder that the paths in it are relative to.
        output: The dataset's folder, new or empty.
        settings: How.

    Returns:
        The manifest, as it is written.

    Raises:
        UsageError: When a file or folder is missing, or the output is taken.
        DataError: When nothing of it can be used, or something can't be written.
    """
    if not file.is_file():
        raise UsageError(f"{file}: no such file; expected the JSON of {settings.layout}")
    if not videos.is_dir():
        raise UsageError(f"{videos}: no such folder; expected the videos of {file.name}, set --videos")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output}: is already there; remove it or choose another folder with --output")
    folder = MediaFolder(videos)
    records: list[QuestionRecord] = []
    dropped: list[Dropped] = []
    num_items = 0
    for number, item in enumerate(_read_items(file)):
        num_items += 1
        question_id = f"{file.stem}-{number:07d}"
        try:
            question = _read_question(item, settings)
            media = tuple(folder.find(kind, name) for kind, name in question.media)
            record = _make_record(question_id, question, item, media, settings)
        except UnusableError as error:
            dropped.append(make_dropped("questions", question_id, error.reason, str(error)))
        else:
            records.append(record)
    if not records:
        first = f"; the first: {dropped[0].reason}, {dropped[0].detail}" if dropped else ""
        raise DataError(f"{file}: none of its {num_items} questions can be used{first}")
    records = assign_splits(records, settings.splits, seed=settings.seed)
    used = {medium for record in records for medium in record.media}
    for (_, path), medium in folder.found.items():
        if isinstance(medium, RecordMedium) and medium in used:
            place_file(path, output / medium.path)
    counts = dict(sorted(Counter(item.reason for item in dropped).items()))
    manifest: dict[str, Any] = {
        "input": {"questions": num_items},
        "kept": {"questions": len(records)},
        "dropped": counts,
        "stages": {"questions": {"input": num_items, "kept": len(records), "dropped": counts}},
        "imported": {"file": file.name, "layout": settings.layout},
        "dataset_hash": hash_records(records),
    }
    lines = "".join(json.dumps(item.model_dump(mode="json"), ensure_ascii=False) + "\n" for item in dropped)
    write_text_atomic(output / DROPPED_NAME, lines)
    write_text_atomic(output / MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")
    write_records(output / RECORDS_NAME, records)
    return manifest


def _read_items(file: Path) -> Iterator[Mapping[str, Any]]:
    """Read an array of objects, or one object per line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            items: list[object] = json.loads(text)
        else:
            items = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not readable as JSON or JSON lines ({error})") from error
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise DataError(f"{file}: item {number} is {type(item).__name__}, expected an object with a question")
        yield cast(dict[str, Any], item)


def _read_question(item: Mapping[str, Any], settings: ImportSettings) -> _Question:
    """Understand one item of either layout."""
    if settings.layout == "video-r1":
        answer, reasoning = _text(item, "solution"), str(item.get("process") or "")
        question, options = _text(item, "problem"), _unlabel([str(option) for option in item.get("options") or ()])
    else:
        answer, reasoning = _text(item, "answer"), str(item.get("reasoning") or "")
        question, options = _split_options(_text(item, "problem"))
    question, media = place_media(question, named_media(item, settings.layout))
    if options and len(options) != NUM_OPTIONS:
        raise UnusableError("options_not_four", f"{len(options)} options, expected {NUM_OPTIONS} or none")
    answer = _untag(answer, "answer")
    if options:
        parsed = parse_response(f"<answer>{answer}</answer>", options)
        if parsed.letter is None:
            raise UnusableError("answer_unclear", f"the answer {answer[:60]!r} is none of the options")
        answer = parsed.letter
    skill = next((_SKILLS[name] for name in _named_skills(item) if name in _SKILLS), settings.skill)
    if skill is None:
        raise UnusableError("skill_unknown", "no skill is given; --skill names one for such questions")
    return _Question(
        media=media,
        question=question,
        options=options,
        answer=answer,
        reasoning=_untag(reasoning, "think"),
        skill=skill,
    )


def _make_record(
    question_id: str,
    question: _Question,
    item: Mapping[str, Any],
    media: tuple[RecordMedium, ...],
    settings: ImportSettings,
) -> QuestionRecord:
    """Make a record; its split is decided when all are known."""
    try:
        return QuestionRecord(
            question_id=question_id,
            media=media,
            split=Split.TRAIN_SFT,
            skill=question.skill,
            question=question.question,
            options=question.options,
            answer=question.answer,
            evidence=(),
            reasoning=question.reasoning,
            source=settings.source or str(item.get("data_source") or settings.layout),
            license=settings.license,
        )
    except ValidationError as error:
        raise UnusableError("record_invalid", describe_invalid(error)) from error


def _text(item: Mapping[str, Any], name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UnusableError("field_missing", f"{name!r} is {str(value)[:60]!r}, expected text")
    return value.strip()


def _split_options(problem: str) -> tuple[str, tuple[str, ...]]:
    """Take options off the end of a question: the last lines, lettered A, B, C, … in order."""
    lines = problem.split("\n")
    lettered = [(place, match) for place, line in enumerate(lines) if (match := _OPTION.match(line))]
    starts = [index for index, (_, match) in enumerate(lettered) if match[1] == "A"]
    if not starts:
        return problem, ()
    tail = lettered[starts[-1] :]
    first = tail[0][0]
    rest = [line for line in lines[first:] if line.strip()]
    in_order = "".join(match[1] for _, match in tail) == LETTERS[: len(tail)]
    if len(tail) < 2 or not in_order or len(rest) != len(tail) or not "".join(lines[:first]).strip():
        return problem, ()
    return "\n".join(lines[:first]).strip(), tuple(match[2].strip() for _, match in tail)


def _unlabel(options: Sequence[str]) -> tuple[str, ...]:
    """Take the letters off options, if every one has its own."""
    matches = [_OPTION.match(option) for option in options]
    if all(match and match[1] == letter for match, letter in zip(matches, LETTERS, strict=False)):
        return tuple(match[2].strip() for match in matches if match)
    return tuple(option.strip() for option in options)


def _named_skills(item: Mapping[str, Any]) -> list[str]:
    values = [item.get(name) for name in _SKILL_NAMES]
    return [re.sub(r"[\s_/&-]+", " ", value.lower()).strip() for value in values if isinstance(value, str)]


def _untag(text: str, tag: str) -> str:
    """Take what stands in a tag, or the text itself when the tag isn't there."""
    found = [match[2] for match in _TAGGED.finditer(text) if match[1] == tag]
    return (found[-1] if found else text).strip()
