"""The forms that records have on disk: the present one and the one before, as rows of plain values.

| version | a question names | who demonstrates |
|---|---|---|
| 2 | one video, as `video_path`, `video_digest`, `video_duration_seconds` | a guess is told by its `source` |
| 3 | any number of `media` | `demonstration` |

A file of version 2 is read as if it had been written today; files are written in the present version only. What a
record says doesn't change with the form, so neither does its digest: a record that version 2 could have held is
digested in that form. Nothing here checks what a row says.
"""

from typing import Any, Final, Literal

SCHEMA_VERSION: Final[Literal[3]] = 3
BEFORE = 2
READABLE = (BEFORE, SCHEMA_VERSION)

_SOURCE = "timeline world"
_GUESSED_SOURCE = "timeline world, hasty demonstration"
_VIDEO_NAMES = ("path", "digest", "duration_seconds")

Row = dict[str, Any]


def upgrade_row(row: Row) -> Row:
    """Turn a row of version 2 into one of the present version."""
    upgraded = {name: value for name, value in row.items() if not name.startswith("video_")}
    upgraded["media"] = [{"kind": "video"} | {name: row.get(f"video_{name}") for name in _VIDEO_NAMES}]
    if row.get("schema_version") == BEFORE:  # another number is damage, for whoever checks the row to find
        upgraded["schema_version"] = SCHEMA_VERSION
    if row.get("source") == _GUESSED_SOURCE:
        upgraded |= {"source": _SOURCE, "demonstration": "guessed"}
    return upgraded


def digested_row(row: Row) -> Row:
    """The row of which a record's digest is made: of version 2 if that could say the same, else the row itself."""
    is_guess = row["demonstration"] == "guessed"
    if [medium["kind"] for medium in row["media"]] != ["video"] or (is_guess and row["source"] != _SOURCE):
        return row
    before = {name: value for name, value in row.items() if name not in ("media", "demonstration")}
    before |= {f"video_{name}": row["media"][0][name] for name in _VIDEO_NAMES}
    before["evidence"] = [{name: value for name, value in span.items() if name != "medium"} for span in row["evidence"]]
    return before | {"schema_version": BEFORE, "source": _GUESSED_SOURCE if is_guess else row["source"]}
