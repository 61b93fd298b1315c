"""Dataset folders that nobody should trust, made by code, one for each thing that may be wrong with them.

`HOSTILE_DATASETS` names them. Each is a change to a sound dataset (`write_sound_dataset`); it gets the dataset's folder
and another folder beside it, whose files the dataset leads to and which nobody may change (`fill_outside`).
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longvideo_reason_data.records.folder import hash_records, read_dataset
from longvideo_reason_data.records.record import Split
from longvideo_reason_data.timeline.dataset import write_timeline_dataset
from longvideo_reason_data.timeline.world import WorldSettings

Change = Callable[[Path, Path], None]

NOTES = {
    "segments.jsonl": {
        "video_digest": "0" * 64,
        "start_seconds": 0.0,
        "end_seconds": 4.0,
        "caption": "a lamp",
        "speech": "",
    },
    "dropped.jsonl": {"stage": "questions", "item": "q9", "reason": "question_invalid", "detail": "no evidence"},
}
FILTERED = {"items": [{"question_id": "q8", "reason": "near_duplicate", "detail": "repeats q1"}]}
JOURNALS = ("responses.jsonl", "calls.jsonl")
FILES = ("records.parquet", "manifest.json", "filters.json", "unfiltered.parquet", *NOTES, *JOURNALS)
DEEP = "[" * 100_000 + "\n"
ESCAPES = "\x1b[2J\x1b]0;title\x07\nerror: forged"


def write_sound_dataset(folder: Path) -> None:
    """Write a dataset of a few questions about two short videos, with every file that a build and a filter leave."""
    settings = WorldSettings(seconds=16.0, num_scenes=3, frames_per_second=2)
    videos = {Split.TRAIN_RL: 1, Split.HELD_OUT: 1}
    write_timeline_dataset(folder, settings, videos=videos, questions_per_video=3, seed=0)
    shutil.copy(folder / "records.parquet", folder / "unfiltered.parquet")
    for name, note in NOTES.items():
        (folder / name).write_text(json.dumps(note) + "\n")
    for name in JOURNALS:
        (folder / name).touch()
    (folder / "filters.json").write_text(json.dumps(FILTERED))
    manifest = {"dataset_hash": hash_records(read_dataset(folder)), "settings": {"decoder": "pyav"}, "filter": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def fill_outside(folder: Path) -> None:
    """Fill the folder that hostile datasets lead to."""
    folder.mkdir()
    (folder / "secret.json").write_text(json.dumps({"key": "private"}))
    (folder / "secret.jsonl").write_text('{"key": "private"}\nan unfinished line')
    (folder / "secret.mp4").write_bytes(bytes(1000))
    (folder / "empty").mkdir()


def _link(name: str, target: str) -> Change:
    def change(dataset: Path, outside: Path) -> None:
        path = dataset / name
        if path.is_dir():
            shutil.move(path, outside / path.name)
            path.symlink_to(outside / path.name)
        else:
            path.unlink(missing_ok=True)
            path.symlink_to(outside / target)

    return change


def _replace(name: str, make: Callable[[Path], object]) -> Change:
    def change(dataset: Path, outside: Path) -> None:
        path = dataset / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        make(path)

    return change


def _write(name: str, content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return _replace(name, lambda path: path.write_bytes(data))


def _json(name: str, value: Any) -> Change:
    return _write(name, json.dumps(value) + "\n")


def _rows(edit: Callable[[list[dict[str, Any]]], object], types: Mapping[str, pa.DataType] | None = None) -> Change:
    """Change the rows of the records, and the types of some columns."""

    def change(dataset: Path, outside: Path) -> None:
        path = dataset / "records.parquet"
        table = pq.read_table(path)
        rows: list[dict[str, Any]] = table.to_pylist()
        edit(rows)
        fields = [pa.field(field.name, (types or {}).get(field.name, field.type)) for field in table.schema]
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields, metadata=table.schema.metadata)), path)

    return change


def _set(name: str, value: Any, kind: pa.DataType | None = None) -> Change:
    return _rows(lambda rows: [row.update({name: value}) for row in rows], {name: kind} if kind else None)


def _medium(**values: Any) -> Change:
    return _rows(lambda rows: [row["media"][0].update(values) for row in rows])


def _video(make: Callable[[Path, Path], object]) -> Change:
    def change(dataset: Path, outside: Path) -> None:
        path = sorted((dataset / "videos").iterdir())[0]
        path.unlink()
        make(path, outside)

    return change


def _without_column(dataset: Path, outside: Path) -> None:
    path = dataset / "records.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["answer"]), path)


def _thousand_columns(dataset: Path, outside: Path) -> None:
    path = dataset / "records.parquet"
    table = pq.read_table(path)
    for number in range(1000):
        table = table.append_column(f"column {number}", pa.array(range(table.num_rows)))
    pq.write_table(table, path)


def _invalid_unicode(dataset: Path, outside: Path) -> None:
    path = dataset / "records.parquet"
    table = pq.read_table(path)
    raw = pa.array([b"\xff\xfe"] * table.num_rows, pa.binary())
    text = pa.StringArray.from_buffers(table.num_rows, raw.buffers()[1], raw.buffers()[2])
    place = table.schema.get_field_index("question")
    pq.write_table(table.set_column(place, table.schema.field(place), text), path)


def _bomb(dataset: Path, outside: Path) -> None:
    """Kilobytes on disk, gigabytes in memory."""
    path = dataset / "records.parquet"
    schema = pq.read_schema(path)
    row = pq.read_table(path).to_pylist()[0]
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for number in range(2):
            long = [row | {"question_id": f"{number} {place}", "reasoning": "x" * 2**20} for place in range(600)]
            writer.write_table(pa.Table.from_pylist(long, schema=schema), row_group_size=10_000)


def _cut(dataset: Path, outside: Path) -> None:
    path = dataset / "records.parquet"
    path.write_bytes(path.read_bytes()[:-20])


HOSTILE_DATASETS: dict[str, Change] = {
    **{f"{name} is a link": _link(name, "secret.jsonl") for name in FILES},
    **{f"{name} is a link to nothing": _link(name, "new.json") for name in ("manifest.json", "calls.jsonl", ".owner")},
    **{f"{name} is a linked folder": _link(name, "empty") for name in ("videos", "exports", "shards")},
    **{f"{name} is a FIFO": _replace(name, os.mkfifo) for name in (*FILES, ".owner", "exports")},
    **{f"{name} is a folder": _replace(name, Path.mkdir) for name in (*FILES, ".owner")},
    ".owner is a link": _link(".owner", "secret.json"),
    "view.html is a link": _link("view.html", "secret.json"),
    **{f"{name} is nested deep": _write(name, DEEP) for name in ("manifest.json", "filters.json", *NOTES, *JOURNALS)},
    **{f"{name} is binary": _write(name, bytes(range(256)) * 10) for name in FILES},
    **{f"{name} holds another value": _json(name, [3]) for name in ("manifest.json", "filters.json", *NOTES)},
    **{f"{name} holds a line of another form": _json(name, {"stage": 3}) for name in (*NOTES, *JOURNALS)},
    "a line of 20 MB": _write("dropped.jsonl", json.dumps(NOTES["dropped.jsonl"] | {"detail": "x" * 20_000_000})),
    "the decoder is a list": _json("manifest.json", {"settings": {"decoder": ["pyav"]}}),
    "the decoder is long and has escapes": _json("manifest.json", {"settings": {"decoder": ESCAPES * 10_000}}),
    "the settings are a number": _json("manifest.json", {"settings": 3, "filter": 3, "adaptations": 3}),
    "the manifest has infinity": _write("manifest.json", '{"dataset_hash": 1e999}'),
    "the manifest has NaN": _write("manifest.json", '{"dataset_hash": NaN}'),
    "filtered items are numbers": _json("filters.json", {"items": [3]}),
    "filtered items are an object": _json("filters.json", {"items": {"a": 3}}),
    "records are cut off": _cut,
    "records have a column less": _without_column,
    "records have a thousand columns more": _thousand_columns,
    "records of a later version": _set("schema_version", 99),
    "ids are numbers": _rows(
        lambda rows: [row.update(question_id=number) for number, row in enumerate(rows)], {"question_id": pa.int64()}
    ),
    "ids are null": _set("question_id", None),
    "ids are equal": _set("question_id", "same"),
    "ids are equal and have escapes": _set("question_id", ESCAPES + "x" * 100_000),
    "a question is no text": _invalid_unicode,
    "a question of a megabyte": _set("question", "why? " * 300_000),
    "records of gigabytes": _bomb,
    "evidence is no number": _rows(
        lambda rows: [span.update(end_seconds=float("nan")) for row in rows for span in row["evidence"]]
    ),
    "evidence never ends": _rows(
        lambda rows: [span.update(end_seconds=float("inf")) for row in rows for span in row["evidence"]]
    ),
    "a video leads up": _medium(path="../outside/secret.mp4"),
    "a video has an absolute path": _medium(path="/etc/hostname"),
    "a video has a long name": _medium(path="videos/" + "x" * 300 + ".mp4"),
    "a video has a long path": _medium(path="videos/" + "x/" * 3000 + "y.mp4"),
    "a video has a name with escapes": _medium(path=f"videos/{ESCAPES}.mp4"),
    "a video has a name with a zero": _medium(path="videos/\0.mp4"),
    "a video lasts for ever": _medium(duration_seconds=float("inf")),
    "a video is a link": _video(lambda path, outside: path.symlink_to(outside / "secret.mp4")),
    "a video is a FIFO": _video(lambda path, _: os.mkfifo(path)),
    "a video is a folder": _video(lambda path, _: path.mkdir()),
    "a video is missing": _video(lambda path, _: None),
    "a video is no video": _video(lambda path, _: path.write_bytes(b"\0" * 1000)),
}
