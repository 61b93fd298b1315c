"""The form of one question in each layout, and how it is read back.

Every layout contains the record itself in addition to what its program requires, so nothing is lost: TRL and EasyR1
pass additional columns to reward functions, verl keeps them in `extra_info`. Reading back uses this record, and
compares everything else with what would be written for it; a row that was changed in only one of the two is refused.

Media are in the order of the record: as blocks, or as `<video>` and `<image>` placeholders before the text, which
programs replace with the next entries of `videos` and `images`.

| layout | file | a row |
|---|---|---|
| `hf` | Parquet | the record |
| `jsonl` | JSON lines | the record |
| `trl` | JSON lines | `prompt` and `completion` as conversations of content blocks, and the record |
| `verl` | Parquet | `data_source`, `prompt`, `videos`, `images`, `ability`, `reward_model`, `extra_info` |
| `easyr1` | Parquet | `problem`, `answer`, `videos` or `images`, and the record |

TRL's rows are deliberately not Parquet: a content block has only the keys of its type, which columns can't express.
Every split has a `completion`, because `datasets` gives all splits the same columns; GRPO ignores it. A list is omitted
if no question has such media: EasyR1 uses `videos` only if there is no column `images`, so it supports datasets with
one kind of media.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.records.answers import format_prompt, format_response
from longvideo_reason_data.records.medium import MediumKind
from longvideo_reason_data.records.record import QuestionRecord
from longvideo_reason_data.records.versions import RECORDS_SCHEMA

Row = dict[str, Any]
LayoutName = Literal["hf", "jsonl", "trl", "verl", "easyr1"]

DATA_SOURCE = "longvideo_reason_data"
PLACES = {MediumKind.VIDEO: "<video>", MediumKind.IMAGE: "<image>"}
_RESERVED = (*PLACES.values(), "<audio>")
_LISTS = {MediumKind.VIDEO: "videos", MediumKind.IMAGE: "images"}
_TEXT_LIST = pa.list_(pa.string())


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One of the layouts.

    Attributes:
        name: Its name.
        suffix: Extension of its files: "parquet" or "jsonl".
        names_media: Whether rows contain paths of media that a program opens directly.
        mixes_kinds: Whether its program supports videos and images in one dataset.
        write_row: Creates a row from a record, the paths of its media and its number in the file.
        find_record: Finds the fields of the record in a row.
        find_places: Finds the paths of a record's media in its row.
        make_schema: Creates the columns for the given kinds of media; for Parquet.
    """

    name: LayoutName
    suffix: Literal["parquet", "jsonl"]
    names_media: bool
    mixes_kinds: bool = True
    write_row: Callable[[QuestionRecord, Sequence[str], int], Row]
    find_record: Callable[[Row], Row]
    find_places: Callable[[Row, QuestionRecord], list[str]]
    make_schema: Callable[[Collection[MediumKind]], pa.Schema]


def _record_row(record: QuestionRecord, places: Sequence[str], number: int) -> Row:
    return record.model_dump(mode="json")


def _trl_row(record: QuestionRecord, places: Sequence[str], number: int) -> Row:
    media = [
        {"type": str(medium.kind), str(medium.kind): place} for medium, place in zip(record.media, places, strict=True)
    ]
    question = {"type": "text", "text": format_prompt(record.question, record.options)}
    response = {"type": "text", "text": format_response(record.reasoning, record.answer)}
    return {
        "prompt": [{"role": "user", "content": [*media, question]}],
        "completion": [{"role": "assistant", "content": [response]}],
        **record.model_dump(mode="json"),
    }


def _verl_row(record: QuestionRecord, places: Sequence[str], number: int) -> Row:
    return {
        "data_source": DATA_SOURCE,
        "prompt": [{"role": "user", "content": _with_places(record)}],
        **{
            name: [{"type": str(kind), str(kind): place} for place in _places_of(record, places, kind)]
            for kind, name in _lists_of(record).items()
        },
        "ability": str(record.skill),
        "reward_model": {"style": "rule", "ground_truth": record.answer},
        "extra_info": {"index": number, **record.model_dump(mode="json")},
    }


def _easyr1_row(record: QuestionRecord, places: Sequence[str], number: int) -> Row:
    lists = {name: _places_of(record, places, kind) for kind, name in _lists_of(record).items()}
    return {"problem": _with_places(record), **lists, **record.model_dump(mode="json")}


def _lists_of(record: QuestionRecord) -> dict[MediumKind, str]:
    """Names of the lists that contain the record's media."""
    return {kind: name for kind, name in _LISTS.items() if any(medium.kind is kind for medium in record.media)}


def _places_of(record: QuestionRecord, places: Sequence[str], kind: MediumKind) -> list[str]:
    """The paths of the media of a kind."""
    return [place for medium, place in zip(record.media, places, strict=True) if medium.kind is kind]


def _places_in_order(record: QuestionRecord, lists: Mapping[str, Sequence[str]]) -> list[str]:
    """The paths in the order of the record, from lists of videos and images."""
    remaining = {kind: iter(lists[name]) for kind, name in _LISTS.items()}
    return [next(remaining[medium.kind], "") for medium in record.media]


def _with_places(record: QuestionRecord) -> str:
    """Write the question after the placeholders that the program replaces with the media."""
    prompt = format_prompt(record.question, record.options)
    if found := [place for place in _RESERVED if place in prompt]:
        raise DataError(
            f"{record.question_id}: its text contains {found[0]!r}, which the program would replace with a file; "
            f""
            "remove or reword the question"
        )
    return "".join(PLACES[medium.kind] for medium in record.media) + prompt


def _plain_schema(kinds: Collection[MediumKind]) -> pa.Schema:
    return RECORDS_SCHEMA


def _verl_schema(kinds: Collection[MediumKind]) -> pa.Schema:
    lists = [
        pa.field(_LISTS[kind], pa.list_(pa.struct([("type", pa.string()), (str(kind), pa.string())])))
        for kind in MediumKind
        if kind in kinds
    ]
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema(
        [
            pa.field("data_source", pa.string()),
            pa.field("prompt", pa.list_(message)),
            *lists,
            pa.field("ability", pa.string()),
            pa.field("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
            pa.field("extra_info", pa.struct([pa.field("index", pa.int64()), *RECORDS_SCHEMA])),
        ]
    )


def _easyr1_schema(kinds: Collection[MediumKind]) -> pa.Schema:
    lists = [pa.field(_LISTS[kind], _TEXT_LIST) for kind in MediumKind if kind in kinds]
    return pa.schema([pa.field("problem", pa.string()), *lists, *RECORDS_SCHEMA])


def _without(*names: str) -> Callable[[Row], Row]:
    return lambda row: {name: value for name, value in row.items() if name not in names}


LAYOUTS: dict[LayoutName, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            name="hf",
            suffix="parquet",
            names_media=False,
            write_row=_record_row,
            find_record=_without(),
            find_places=lambda row, record: [medium.path for medium in record.media],
            make_schema=_plain_schema,
        ),
        Layout(
            name="jsonl",
            suffix="jsonl",
            names_media=False,
            write_row=_record_row,
            find_record=_without(),
            find_places=lambda row, record: [medium.path for medium in record.media],
            make_schema=_plain_schema,
        ),
        Layout(
            name="trl",
            suffix="jsonl",
            names_media=True,
            write_row=_trl_row,
            find_record=_without("prompt", "completion"),
            find_places=lambda row, record: [block[block["type"]] for block in row["prompt"][0]["content"][:-1]],
            make_schema=_plain_schema,
        ),
        Layout(
            name="verl",
            suffix="parquet",
            names_media=True,
            write_row=_verl_row,
            find_record=lambda row: _without("index")(row["extra_info"]),
            find_places=lambda row, record: _places_in_order(
                record,
                {_LISTS[kind]: [item[kind] for item in row.get(_LISTS[kind]) or ()] for kind in MediumKind},
            ),
            make_schema=_verl_schema,
        ),
        Layout(
            name="easyr1",
            suffix="parquet",
            names_media=True,
            write_row=_easyr1_row,
            mixes_kinds=False,
            find_record=_without("problem", *_LISTS.values()),
            find_places=lambda row, record: _places_in_order(
                record, {name: row.get(name) or () for name in _LISTS.values()}
            ),
            make_schema=_easyr1_schema,
        ),
    )
}
