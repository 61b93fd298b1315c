"""How one question looks in each layout, and how it is read back.

Every layout carries the record itself beside what its program asks for, so nothing is lost: TRL and EasyR1 hand further
columns to reward functions, verl keeps them in `extra_info`. Reading back takes the record from there, and compares all
the rest with what that record would be written as; a row that was changed in one place only is refused.

| layout | file | a row |
|---|---|---|
| `hf` | Parquet | the record |
| `jsonl` | JSON lines | the record |
| `trl` | JSON lines | `prompt` and `completion` as conversations of content blocks, and the record |
| `verl` | Parquet | `data_source`, `prompt`, `videos`, `ability`, `reward_model`, `extra_info` |
| `easyr1` | Parquet | `problem`, `answer`, `videos`, and the record |

TRL's rows are no Parquet on purpose: a content block has the keys of its type and no others, which columns can't say.
Every split has a `completion`, because `datasets` gives all splits the same columns; GRPO doesn't look at it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from longvideo_reason_data.errors import DataError
from longvideo_reason_data.records.answers import format_prompt, format_response
from longvideo_reason_data.records.record import QuestionRecord

Row = dict[str, Any]
LayoutName = Literal["hf", "jsonl", "trl", "verl", "easyr1"]

DATA_SOURCE = "longvideo_reason_data"
VIDEO_PLACE = "<video>"
_PLACES = (VIDEO_PLACE, "<image>", "<audio>")
_TEXT_LIST = pa.list_(pa.string())


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One of the layouts.

    Attributes:
        name: Its name.
        suffix: Of its files: "parquet" or "jsonl".
        names_videos: Whether rows hold places of videos that a program opens as they are.
        write_row: Makes a row of a record, the place of its video and its number in the file.
        find_record: Finds the fields of the record in a row.
        find_video: Finds the place of the video in a row.
        make_schema: Makes the columns from those of records; for Parquet.
    """

    name: LayoutName
    suffix: Literal["parquet", "jsonl"]
    names_videos: bool
    write_row: Callable[[QuestionRecord, str, int], Row]
    find_record: Callable[[Row], Row]
    find_video: Callable[[Row], str]
    make_schema: Callable[[pa.Schema], pa.Schema]


def _record_row(record: QuestionRecord, video: str, number: int) -> Row:
    return record.model_dump(mode="json")


def _trl_row(record: QuestionRecord, video: str, number: int) -> Row:
    question = {"type": "text", "text": format_prompt(record.question, record.options)}
    response = {"type": "text", "text": format_response(record.reasoning, record.answer)}
    return {
        "prompt": [{"role": "user", "content": [{"type": "video", "video": video}, question]}],
        "completion": [{"role": "assistant", "content": [response]}],
        **record.model_dump(mode="json"),
    }


def _verl_row(record: QuestionRecord, video: str, number: int) -> Row:
    return {
        "data_source": DATA_SOURCE,
        "prompt": [{"role": "user", "content": _with_place(record)}],
        "videos": [{"type": "video", "video": video}],
        "ability": str(record.skill),
        "reward_model": {"style": "rule", "ground_truth": record.answer},
        "extra_info": {"index": number, **record.model_dump(mode="json")},
    }


def _easyr1_row(record: QuestionRecord, video: str, number: int) -> Row:
    return {"problem": _with_place(record), "videos": [video], **record.model_dump(mode="json")}


def _with_place(record: QuestionRecord) -> str:
    """Write the question behind the place where the program puts the video."""
    prompt = format_prompt(record.question, record.options)
    if found := [place for place in _PLACES if place in prompt]:
        raise DataError(
            f"{record.question_id}: its words hold {found[0]!r}, which the program would take for the place of a file; "
            "leave the question out or reword it"
        )
    return VIDEO_PLACE + prompt


def _plain_schema(records: pa.Schema) -> pa.Schema:
    return records


def _verl_schema(records: pa.Schema) -> pa.Schema:
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", pa.list_(message)),
            ("videos", pa.list_(pa.struct([("type", pa.string()), ("video", pa.string())]))),
            ("ability", pa.string()),
            ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
            ("extra_info", pa.struct([pa.field("index", pa.int64()), *records])),
        ]
    )


def _easyr1_schema(records: pa.Schema) -> pa.Schema:
    return pa.schema([pa.field("problem", pa.string()), pa.field("videos", _TEXT_LIST), *records])


def _without(*names: str) -> Callable[[Row], Row]:
    return lambda row: {name: value for name, value in row.items() if name not in names}


LAYOUTS: dict[LayoutName, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            name="hf",
            suffix="parquet",
            names_videos=False,
            write_row=_record_row,
            find_record=_without(),
            find_video=lambda row: row["video_path"],
            make_schema=_plain_schema,
        ),
        Layout(
            name="jsonl",
            suffix="jsonl",
            names_videos=False,
            write_row=_record_row,
            find_record=_without(),
            find_video=lambda row: row["video_path"],
            make_schema=_plain_schema,
        ),
        Layout(
            name="trl",
            suffix="jsonl",
            names_videos=True,
            write_row=_trl_row,
            find_record=_without("prompt", "completion"),
            find_video=lambda row: row["prompt"][0]["content"][0]["video"],
            make_schema=_plain_schema,
        ),
        Layout(
            name="verl",
            suffix="parquet",
            names_videos=True,
            write_row=_verl_row,
            find_record=lambda row: _without("index")(row["extra_info"]),
            find_video=lambda row: row["videos"][0]["video"],
            make_schema=_verl_schema,
        ),
        Layout(
            name="easyr1",
            suffix="parquet",
            names_videos=True,
            write_row=_easyr1_row,
            find_record=_without("problem", "videos"),
            find_video=lambda row: row["videos"][0],
            make_schema=_easyr1_schema,
        ),
    )
}
