"""What the files beside a dataset's records say, line by line: described segments, dropped items, filtered questions.

A folder may come from anywhere, so every line must be of its form. What a form doesn't name is ignored, since a later
version may say more.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.records.folder import read_lines, read_object
from longvideo_reason_data.records.medium import MAX_TEXT_CHARACTERS
from longvideo_reason_data.records.record import describe_invalid

FILTERS_NAME = "filters.json"

_Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARACTERS)]
_Seconds = Annotated[float, Field(allow_inf_nan=False)]


class _Note(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class SegmentNote(_Note):
    """What is seen and said in a segment of a video."""

    video_digest: _Text
    start_seconds: _Seconds
    end_seconds: _Seconds
    caption: _Text
    speech: _Text = ""


class DroppedNote(_Note):
    """An item that isn't in the dataset, and why."""

    stage: _Text
    item: _Text
    reason: _Text
    detail: _Text


class FilteredNote(_Note):
    """A question that a filter took out, and why."""

    question_id: _Text
    reason: _Text
    detail: _Text


NoteT = TypeVar("NoteT", bound=_Note)


def read_notes(dataset: Path, name: str, form: type[NoteT]) -> Iterator[tuple[int, NoteT]]:
    """Read a file of notes, one a line, each with its offset in bytes; nothing if there is no such file.

    Raises:
        DataError: When it can't be read, or a line is of another form.
    """
    for line in read_lines(dataset, name):
        yield line.offset_bytes, _validated(line.content, form, f"{dataset / name}: line {line.number}")


def read_notes_at(dataset: Path, name: str, form: type[NoteT], offsets_bytes: Iterable[int]) -> Iterator[NoteT]:
    """Read the notes that begin at some offsets of their file; see `read_notes`."""
    for offset_bytes in offsets_bytes:
        line = next(read_lines(dataset, name, offset_bytes=offset_bytes))
        yield _validated(line.content, form, f"{dataset / name}: the line at byte {offset_bytes}")


def read_filtered(dataset: Path) -> Iterator[FilteredNote]:
    """Read what a filter took out of a dataset; nothing if it wasn't filtered.

    Raises:
        DataError: When it can't be read, or isn't of the form that a filter writes.
    """
    place = f"{dataset / FILTERS_NAME}: items"
    items = read_object(dataset, FILTERS_NAME).get("items", [])
    if not isinstance(items, list):
        raise DataError(f"{place}: expected a list; filter again")
    for number, item in enumerate(items):
        yield _validated(item, FilteredNote, f"{place}: {number}")


def _validated(value: object, form: type[NoteT], place: str) -> NoteT:
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected an object; build the dataset again")
    try:
        return form.model_validate(value)
    except ValidationError as error:
        raise DataError(f"{place}: {describe_invalid(error)}; build the dataset again") from error
