"""Writes a dataset in another layout, as a folder that can be published, and reads it back.

    README.md                  the dataset card
    data/SPLIT.parquet|jsonl   the questions
    videos/                    the videos and images
    videos.jsonl               source, licence and digest of each

The folder is written under a temporary name and renamed, so an incomplete one is never published.
"""

import json
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from longrl_files.folders import ForeignFolder
from longvideo_reason_data.atomic_files import write_text_atomic
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.exchange.export_layouts import LAYOUTS, Layout, LayoutName, Row
from longvideo_reason_data.generation.sources import place_file
from longvideo_reason_data.inspection.card import VIDEOS_LIST_NAME, list_sources, write_card
from longvideo_reason_data.parquet_rows import read_parquet_rows
from longvideo_reason_data.records.folder import RECORDS_NAME, read_dataset, read_lines, read_manifest
from longvideo_reason_data.records.medium import resolve_medium
from longvideo_reason_data.records.record import QuestionRecord, Split, describe_invalid
from longvideo_reason_data.records.versions import SCHEMA_VERSION

CARD_NAME = "README.md"
DATA_NAME = "data"

_ROWS_PER_GROUP = 1000


def export_dataset(
    dataset: Path, output: Path, name: LayoutName, *, video_root: str | None = None, force: bool = False
) -> dict[str, int]:
    """Write a dataset in another layout.

    Args:
        dataset: Its folder.
        output: The folder to write; it must not exist yet or be empty.
        name: The layout.
        video_root: Location of the dataset's folder for the program that reads the export. If given, no media are
            copied; otherwise they are, with paths relative to `output`.
        force: Replace an earlier export there; nothing else is ever replaced.

    Returns:
        The number of questions in each split.

    Raises:
        UsageError: When there is no such dataset, or the output already exists.
        DataError: When a record or video is damaged, or something can't be written.
    """
    layout = LAYOUTS[name]
    if video_root is not None and not layout.names_media:
        raise UsageError(
            f"--video-root {video_root}: the layout {name} keeps videos inside its folder; omit this option"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not force:
            raise UsageError(f"{output}: already exists; replace it with --force, or choose another --output")
        if not (output / VIDEOS_LIST_NAME).is_file() or not (output / DATA_NAME).is_dir():
            raise UsageError(f"{output}: isn't an export, so --force doesn't replace it; choose another --output")
    if output.parent.parent == dataset:
        ForeignFolder(dataset, error=DataError).names(output.parent.name)  # no link to elsewhere
    records = read_dataset(dataset)
    if not records:
        raise DataError(f"{dataset / RECORDS_NAME}: contains no questions to export")
    kinds = {medium.kind for record in records for medium in record.media}
    if len(kinds) > 1 and not layout.mixes_kinds:
        raise UsageError(
            f"{dataset}: questions about {' and '.join(sorted(f'{kind}s' for kind in kinds))}, of which the program of "
            f"the layout {name} takes one kind per dataset; choose another layout with --to"
        )
    schema = layout.make_schema(kinds)
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(6)}")
    prefix = f"{video_root.rstrip('/')}/" if video_root else ""
    try:
        counts = _write_splits(temporary, layout, records, schema, prefix)
        if video_root is None:
            for medium in {medium.path: medium for record in records for medium in record.media}.values():
                place_file(resolve_medium(dataset, medium), temporary / medium.path)
        write_text_atomic(
            temporary / VIDEOS_LIST_NAME, "".join(json.dumps(row) + "\n" for row in list_sources(records))
        )
        files = {split: f"{DATA_NAME}/{split}.{layout.suffix}" for split in counts}
        card = write_card(dataset.resolve().name, records, read_manifest(dataset), files=files, layout=layout.name)
        write_text_atomic(temporary / CARD_NAME, card)
        if output.exists():
            replaced = temporary.with_name(f"{temporary.name}.old")
            output.rename(replaced)
            temporary.rename(output)
            shutil.rmtree(replaced)
        else:
            temporary.rename(output)
    except OSError as error:
        raise DataError(f"{output}: can't be written ({error.strerror or error}); choose another --output") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


def read_export(folder: Path, name: LayoutName) -> list[QuestionRecord]:
    """Read back what `export_dataset` wrote.

    Returns:
        The records, split by split in the order of `Split`.

    Raises:
        UsageError: When the folder has no export in this layout.
        DataError: When a row breaks the rules or contradicts itself.
    """
    layout = LAYOUTS[name]
    names = [f"{DATA_NAME}/{split}.{layout.suffix}" for split in Split]
    export = ForeignFolder(folder, error=DataError)
    existing = [name for name in names if folder.is_dir() and export.has(name)]
    if not existing:
        raise UsageError(f"{folder}: no {DATA_NAME}/SPLIT.{layout.suffix} in it; expected an export with --to {name}")
    return [
        _read_row(layout, folder / name, number, row)
        for name in existing
        for number, row in enumerate(_read_rows(folder, name))
    ]


def _write_splits(
    folder: Path, layout: Layout, records: Sequence[QuestionRecord], schema: pa.Schema, prefix: str
) -> dict[str, int]:
    counts: dict[str, int] = {}
    (folder / DATA_NAME).mkdir(parents=True)
    for split in Split:
        chosen = [record for record in records if record.split is split]
        if not chosen:
            continue
        path = folder / DATA_NAME / f"{split}.{layout.suffix}"
        rows = (
            layout.write_row(record, [prefix + medium.path for medium in record.media], number)
            for number, record in enumerate(chosen)
        )
        _write_rows(path, rows, schema)
        counts[str(split)] = len(chosen)
    return counts


def _write_rows(path: Path, rows: Iterable[Row], schema: pa.Schema) -> None:
    if path.suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return
    remaining = iter(rows)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(remaining, _ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _read_rows(folder: Path, name: str) -> Iterator[Row]:
    if name.endswith(".jsonl"):
        yield from (line.content for line in read_lines(folder, name))
    else:
        yield from read_parquet_rows(ForeignFolder(folder, error=DataError).open(name), folder / name)


def _read_row(layout: Layout, path: Path, number: int, row: Row) -> QuestionRecord:
    place = f"{path}: row {number}"
    try:
        fields = layout.find_record(row)
        if fields.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"{place}: has version {fields['schema_version']}, but this program reads exports of version "
                f"{SCHEMA_VERSION}; export the dataset again"
            )
        record = QuestionRecord.model_validate(fields)
        media = layout.find_places(row, record)
    except ValidationError as error:
        raise DataError(f"{place}: {describe_invalid(error)}") from error
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"{place}: isn't in the layout {layout.name} ({error!r}); export the dataset again") from error
    if len(media) != len(record.media):
        raise DataError(f"{place} ({record.question_id}): {len(media)} media, but its record has {len(record.media)}")
    expected = layout.write_row(record, media, number)
    # A column that other rows need is null in this one.
    changed = [name for name in expected | row if row.get(name) != expected.get(name)]
    if not all(found.endswith(medium.path) for found, medium in zip(media, record.media, strict=True)):
        changed.append("the place of a medium")
    if changed:
        raise DataError(f"{place} ({record.question_id}): {changed[0]} differs from its record; export it again")
    return record
