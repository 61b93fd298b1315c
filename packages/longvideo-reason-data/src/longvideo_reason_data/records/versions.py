"""The formats of records on disk: the current and the previous one, as rows of plain values.

| version | media of a question | kind of demonstration | |---|---|---|
| 2 | one video, as `video_path`, `video_digest`, `video_duration_seconds` | a guess is marked in `source` |
| 3 | any number of `media` | `demonstration` |

Files of version 3 may lack `answer_type`, which is null where the options say enough, and `senses`, which is null where
it isn't known. A file of version 2 is read as if
it had the current version; files are only written in the current version. The content of a record doesn't depend on the
format, so neither does its digest: a record that version 2 can represent is digested in that format. The content of
rows is not checked here.
"""

from typing import Any, Final, Literal

import pyarrow as pa

SCHEMA_VERSION: Final[Literal[3]] = 3
BEFORE = 2
READABLE = (BEFORE, SCHEMA_VERSION)

VERSION_KEY = b"longvideo_reason_data.schema_version"
_MEDIUM_TYPE = pa.struct(
    [
        pa.field("kind", pa.string()),
        pa.field("path", pa.string()),
        pa.field("digest", pa.string()),
        pa.field("duration_seconds", pa.float64()),
    ]
)
_INTERVAL_TYPE = pa.struct(
    [
        pa.field("start_seconds", pa.float64()),
        pa.field("end_seconds", pa.float64()),
        pa.field("medium", pa.int32()),
    ]
)
_PASS_RATE_TYPE = pa.struct(
    [
        pa.field("condition", pa.string()),
        pa.field("model", pa.string()),
        pa.field("num_asked", pa.int32()),
        pa.field("num_right", pa.int32()),
        pa.field("num_unanswered", pa.int32()),
        pa.field("num_chosen", pa.list_(pa.int32())),
    ]
)
RECORDS_SCHEMA = pa.schema(
    [
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("media", pa.list_(_MEDIUM_TYPE), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("skill", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("options", pa.list_(pa.string()), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("answer_type", pa.string()),
        pa.field("senses", pa.string()),
        pa.field("evidence", pa.list_(_INTERVAL_TYPE), nullable=False),
        pa.field("reasoning", pa.string(), nullable=False),
        pa.field("demonstration", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("license", pa.string(), nullable=False),
        pa.field("pass_rates", pa.list_(_PASS_RATE_TYPE), nullable=False),
    ],
    metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()},
)
"""The columns of a records file."""
_SOURCE = "timeline world"
_GUESSED_SOURCE = "timeline world, hasty demonstration"
_VIDEO_NAMES = ("path", "digest", "duration_seconds")
_LATER_NAMES = ("answer_type", "senses")
"""Columns that came after version 3, and may be missing in its files."""

Row = dict[str, Any]


def upgrade_row(row: Row) -> Row:
    """Convert a row of version 2 to the current version."""
    upgraded = {name: value for name, value in row.items() if not name.startswith("video_")}
    upgraded["media"] = [{"kind": "video"} | {name: row.get(f"video_{name}") for name in _VIDEO_NAMES}]
    if row.get("schema_version") == BEFORE:  # another number is damage, which validation of the row finds
        upgraded["schema_version"] = SCHEMA_VERSION
    if row.get("source") == _GUESSED_SOURCE:
        upgraded |= {"source": _SOURCE, "demonstration": "guessed"}
    return upgraded


def digested_row(row: Row) -> Row:
    """The row from which a record's digest is computed: of version 2 if that can represent it, else the row itself.

    A type of answer and senses that aren't stated leave no trace in it.
    """
    row = {name: value for name, value in row.items() if value is not None or name not in _LATER_NAMES}
    if not row.keys().isdisjoint(_LATER_NAMES):
        return row
    is_guess = row["demonstration"] == "guessed"
    if [medium["kind"] for medium in row["media"]] != ["video"] or (is_guess and row["source"] != _SOURCE):
        return row
    before = {name: value for name, value in row.items() if name not in ("media", "demonstration")}
    before |= {f"video_{name}": row["media"][0][name] for name in _VIDEO_NAMES}
    before["evidence"] = [{name: value for name, value in span.items() if name != "medium"} for span in row["evidence"]]
    return before | {"schema_version": BEFORE, "source": _GUESSED_SOURCE if is_guess else row["source"]}
