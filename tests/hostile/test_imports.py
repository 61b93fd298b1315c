"""Importing published questions that nobody should trust, with a folder of videos that nobody should trust."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_datasets import DEEP, ESCAPES, fill_outside, write_sound_dataset
from hostile_runs import Run, require_orderly, snapshot

pytestmark = pytest.mark.long

ITEM = {
    "problem_id": 1,
    "data_type": "video",
    "problem_type": "multiple choice",
    "problem": "What is carried?",
    "options": ["A. a lamp", "B. a chair", "C. a cup", "D. a hat"],
    "process": "<think>The lamp is carried.</think>",
    "solution": "<answer>A</answer>",
    "path": "film.mp4",
}


def _text(content: str | bytes, name: str = "published.json") -> Callable[[Path, Path, Path], Path]:
    def make(folder: Path, videos: Path, outside: Path) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def _items(**changes: Any) -> Callable[[Path, Path, Path], Path]:
    return _text(json.dumps([ITEM | changes]))


def _columns(**columns: pa.Array) -> Callable[[Path, Path, Path], Path]:
    def make(folder: Path, videos: Path, outside: Path) -> Path:
        path = folder / "published.parquet"
        table = pa.table({name: [value] for name, value in ITEM.items()})
        for name, column in columns.items():
            table = table.drop_columns([name]) if name in table.column_names else table
            table = table.append_column(name, column)
        pq.write_table(table, path)
        return path

    return make


def _fifo(folder: Path, videos: Path, outside: Path) -> Path:
    os.mkfifo(folder / "published.json")
    return folder / "published.json"


def _folder(folder: Path, videos: Path, outside: Path) -> Path:
    (folder / "published.json").mkdir()
    return folder / "published.json"


def _endless(folder: Path, videos: Path, outside: Path) -> Path:
    path = folder / "published.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    return path


def _bomb(folder: Path, videos: Path, outside: Path) -> Path:
    """Kilobytes on disk, gigabytes in memory."""
    path = folder / "published.parquet"
    rows = [ITEM | {"process": "x" * 2**20}] * 600
    table = pa.Table.from_pylist(rows)
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(2):
            writer.write_table(table)
    return path


def _video(make: Callable[[Path, Path], object]) -> Callable[[Path, Path, Path], Path]:
    def change(folder: Path, videos: Path, outside: Path) -> Path:
        path = videos / "film.mp4"
        path.unlink()
        make(path, outside)
        return _items()(folder, videos, outside)

    return change


HOSTILE_IMPORTS: dict[str, Callable[[Path, Path, Path], Path]] = {
    "the table is a FIFO": _fifo,
    "the table is a folder": _folder,
    "the table is a terabyte of zeros": _endless,
    "the table is nested deep": _text(DEEP),
    "the table is binary": _text(bytes(range(256)) * 100),
    "the table is binary Parquet": _text(bytes(range(256)) * 100, "published.parquet"),
    "a Parquet of gigabytes": _bomb,
    "a CSV with a field of 20 MB": _text(f'problem_id,problem\n1,"{"x" * 20_000_000}"\n', "published.csv"),
    "a CSV with a quote that never ends": _text('problem_id,problem\n1,"why?\n' * 1000, "published.csv"),
    "a line of 20 MB": _text(json.dumps(ITEM | {"process": "x" * 20_000_000}) + "\n", "published.jsonl"),
    "a number is too large": _text(json.dumps([ITEM]).replace('"problem_id": 1', '"problem_id": 1e999')),
    "a number is none": _text(json.dumps([ITEM]).replace('"problem_id": 1', '"problem_id": NaN')),
    "an integer of a million digits": _text(
        json.dumps([ITEM]).replace('"problem_id": 1', f'"problem_id": {"9" * 10**6}')
    ),
    "an id has escapes": _items(problem_id=ESCAPES * 1000, path="none.mp4"),
    "a question is an object": _items(problem={"text": "why?"}),
    "the reasoning is an object": _items(process={"text": "because"}),
    "options are nested": _items(options=[[["a"]]] * 4),
    "a million options": _items(options=["A. a"] * 1_000_000),
    "a question of a megabyte": _items(problem="why? " * 300_000, path="none.mp4"),
    "a path leads up": _items(path="../outside/secret.mp4"),
    "a path is absolute": _items(path="/etc/hostname"),
    "a path is long": _items(path="x/" * 3000 + "film.mp4"),
    "a path has a zero": _items(path="film\0.mp4"),
    "a path has escapes": _items(path=f"{ESCAPES}.mp4"),
    "a path is a number": _items(path=3),
    "a column holds bytes": _columns(problem=pa.array([b"\xff\xfe"])),
    "a column holds structures": _columns(path=pa.array([{"bytes": b"x", "path": "../outside/secret.mp4"}])),
    "a column holds dates": _columns(problem=pa.array([0], pa.timestamp("ns"))),
    "the video is a link": _video(lambda path, outside: path.symlink_to(outside / "secret.mp4")),
    "the video is a FIFO": _video(lambda path, _: os.mkfifo(path)),
    "the video is a folder": _video(lambda path, _: path.mkdir()),
    "the video is no video": _video(lambda path, _: path.write_bytes(bytes(1000))),
}


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "dataset"
    write_sound_dataset(folder)
    return sorted((folder / "videos").iterdir())[0]


def _words(table: Path, videos: Path, output: Path) -> list[str]:
    places = ["--videos", str(videos), "--output", str(output)]
    return ["import", str(table), "--layout", "video-r1", *places, "--skill", "temporal"]


def test_a_sound_table_passes(film: Path, run_data: Run, tmp_path: Path) -> None:
    ending = run_data(_words(_items(path=film.name)(tmp_path, film.parent, tmp_path), film.parent, tmp_path / "output"))
    require_orderly(ending)
    assert ending.status == 0, ending


@pytest.mark.parametrize("name", HOSTILE_IMPORTS)
def test_an_import_ends_in_one_line(name: str, film: Path, run_data: Run, tmp_path: Path) -> None:
    videos, outside = tmp_path / "videos", tmp_path / "outside"
    videos.mkdir()
    shutil.copy(film, videos / "film.mp4")
    fill_outside(outside)
    table = HOSTILE_IMPORTS[name](tmp_path, videos, outside)
    before = snapshot(videos), snapshot(outside)
    ending = run_data(_words(table, videos, tmp_path / "output"))
    require_orderly(ending)
    assert ending.status != 0, ending
    assert (snapshot(videos), snapshot(outside)) == before
    assert not (tmp_path / "output").exists()
