"""Reads a benchmark from the folder of its download: its tables, and where its videos and subtitles are.

Every mistake is one line before anything else is done: an unknown benchmark, no table, a table of another layout. A
question whose published answer is none of its options is kept with its flaw, because it belongs to the published
denominator; if many have one, the layout is another.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from longrl_files.folders import ForeignFolder
from longrl_files.messages import visible
from longvideo_reason_data.benchmarks.layouts import BenchmarkLayout, SeriesRule, find_layout
from longvideo_reason_data.benchmarks.media_names import MediaNames
from longvideo_reason_data.benchmarks.question_rows import UnfitRowError, read_question_row, read_subtitle_name
from longvideo_reason_data.benchmarks.questions import Benchmark, BenchmarkQuestion
from longvideo_reason_data.benchmarks.rows import QUESTION_FIELDS, questions_of
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.media.containers import VIDEO_SUFFIXES
from longvideo_reason_data.tables import ROW_KEY, TABLE_SUFFIXES, Row, read_rows

SUBTITLE_SUFFIXES = frozenset({".srt", ".vtt", ".ass", ".ssa", ".json", ".jsonl"})
SERIES_SIZE = 4
"""Questions in a group of Video-MME-v2."""
MOST_COLUMN_NAMES = 3
MOST_FLAWED = 0.02
"""Largest share of questions without a possible answer; published tables have a few in a thousand."""


def read_benchmark(name: str, path: Path, *, table: str | None = None) -> Benchmark:
    """Read all questions of a benchmark.

    Args:
        name: Its name among the layouts.
        path: The folder with its tables, videos and subtitles, or the table in that folder.
        table: Name of the table inside the folder; by default the published names are looked for.

    Raises:
        UsageError: There is no such benchmark, folder or table, or the table has another layout, or none of the videos
            is in the folder.
        DataError: A file can't be read.
    """
    layout = find_layout(name)
    if path.is_file():
        path, table = path.parent, path.name
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder; expected the one with the tables and videos of {layout.title}")
    folder = ForeignFolder(path, error=DataError)
    names = list(folder.files(skips=lambda inner: PurePosixPath(inner).name.startswith(".")))
    tables = _find_tables(name, layout, path, names) if table is None else [table]
    # The tables themselves are JSON too.
    subtitles = MediaNames((other for other in names if other not in tables), SUBTITLE_SUFFIXES)
    files = _Files(
        folder=folder,
        answers=_read_answers(layout, folder, names),
        videos=MediaNames(names, VIDEO_SUFFIXES),
        subtitles=subtitles,
    )
    questions = [question for found in tables for question in _read_table(name, layout, files, found)]
    first = path / tables[0]
    if not questions:
        raise UsageError(f"{first}: no questions in it; expected the table of {layout.title}")
    questions = _complete_series(layout, questions)
    _check_ids(first, questions)
    _check_series(first, layout, questions)
    _check_flaws(first, layout, questions)
    if not any(question.video_file for question in questions):
        example = visible(repr(questions[0].video), 80)
        raise UsageError(f"{path}: none of the videos is in it, for example {example}; put them there")
    return Benchmark(name=name, layout=layout, folder=path, tables=tuple(tables), questions=tuple(questions))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """What is in a benchmark's folder besides tables of questions; `answers` are by the questions' keys."""

    folder: ForeignFolder
    answers: Mapping[str, Row] | None
    videos: MediaNames
    subtitles: MediaNames


def _find_tables(name: str, layout: BenchmarkLayout, path: Path, names: Sequence[str]) -> list[str]:
    tables = [found for found in names if PurePosixPath(found).suffix.lower() in TABLE_SUFFIXES]
    for pattern in layout.tables:
        if found := [table for table in tables if PurePosixPath(table).match(pattern)]:
            if len(found) > 1 and name == "questions":
                shown = ", ".join(visible(table, 60) for table in found[:4])
                raise UsageError(f"{path}: {len(found)} tables, {shown}; set the one to read with --table")
            return found
    raise UsageError(
        f"{path}: no table of {layout.title} in it; expected {' or '.join(layout.tables)}, or its name in --table"
    )


def _read_answers(layout: BenchmarkLayout, folder: ForeignFolder, names: Sequence[str]) -> dict[str, Row] | None:
    """Read the table with answers by the questions' keys; None if there is none."""
    patterns = layout.answer_tables
    found = next((name for name in names for pattern in patterns if PurePosixPath(name).match(pattern)), None)
    if found is None:
        return None
    rows = list(read_rows(folder.path(found)))
    key = layout.answer_key
    if len(rows) == 1 and key not in rows[0]:  # answers by keys
        return {name: {layout.answer[0]: value} for name, value in rows[0].items()}
    return {str(row.get(key, row.get(ROW_KEY))): row for row in rows}


def _read_table(name: str, layout: BenchmarkLayout, files: _Files, table: str) -> Iterator[BenchmarkQuestion]:
    """Read the questions of one table; of those without an answer where another table has answers, only the others."""
    counts: Counter[str] = Counter()
    for number, row in enumerate(read_rows(files.folder.path(table)), start=1):
        for item in questions_of(row):
            if files.answers is not None and not any(field in item for field in layout.answer):
                found = files.answers.get(str(item.get(layout.answer_key)))
                if found is None:
                    continue
                item = {**item, **found}
            try:
                question = read_question_row(layout, item)
            except UnfitRowError as error:
                message = (
                    f"{files.folder.root / table}: row {number}: {error}; expected {_describe_layout(name, layout)}"
                )
                raise UsageError(message) from error
            counts[question.video] += 1
            numbered = f"{PurePosixPath(table).stem}/{question.video}/{counts[question.video]}"
            subtitle = read_subtitle_name(layout, item)
            yield replace(
                question,
                question_id=question.question_id or numbered,
                video_file=files.videos.find(question.video, table=table),
                subtitle_file=files.subtitles.find(subtitle, table=table) if subtitle else None,
            )


def _describe_layout(name: str, layout: BenchmarkLayout) -> str:
    """What a table has to have; of a published one its name says it."""
    if name != "questions":
        return f"the layout of {name}"
    columns = [" or ".join(names[:MOST_COLUMN_NAMES]) for names in (layout.video, QUESTION_FIELDS, layout.answer)]
    return f"columns {', '.join(columns)}, and options if there are any"


def _complete_series(layout: BenchmarkLayout, questions: list[BenchmarkQuestion]) -> list[BenchmarkQuestion]:
    """Give all questions of a series the groups and the structure that only some of its rows have."""
    if not layout.series:
        return questions
    groups: dict[str, dict[str, tuple[str, ...]]] = {}
    structures: dict[str, str] = {}
    for question in questions:
        groups.setdefault(question.series, {}).update(question.groups)
        structures[question.series] = question.structure or structures.get(question.series, "")
    return [
        replace(question, groups=groups[question.series], structure=structures[question.series])
        for question in questions
    ]


def _check_ids(table: Path, questions: Sequence[BenchmarkQuestion]) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.question_id in seen:
            shown = visible(repr(question.question_id), 80)
            raise UsageError(f"{table}: the question id {shown} is used more than once; ids must be unique")
        seen.add(question.question_id)


def _check_series(table: Path, layout: BenchmarkLayout, questions: Sequence[BenchmarkQuestion]) -> None:
    if layout.series_rule is not SeriesRule.NONLINEAR:
        return
    sizes = Counter(question.series for question in questions)
    for question in questions:
        name, size = visible(repr(question.series), 60), sizes[question.series]
        if size != SERIES_SIZE:
            raise UsageError(f"{table}: the video {name} has {size} questions, expected {SERIES_SIZE} in each group")
        if not question.structure:
            raise UsageError(f"{table}: the group of the video {name} has no group_type, expected relevance or logic")


def _check_flaws(table: Path, layout: BenchmarkLayout, questions: Sequence[BenchmarkQuestion]) -> None:
    flawed = [question for question in questions if question.flaw]
    if len(flawed) > MOST_FLAWED * len(questions):
        first = f"{visible(flawed[0].question_id, 40)}: {flawed[0].flaw}"
        raise UsageError(
            f"{table}: {len(flawed)} of {len(questions)} questions have no right answer ({first}); expected the "
            f"published answers of {layout.title}"
        )
