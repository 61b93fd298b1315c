"""One question of a benchmark, and all of them: what every layout has in common.

Unlike a dataset's records (`longvideo_reason_data.records.record`), these are other people's questions: they have any
number of options, are grouped by whatever their authors chose, and their videos may be missing. Nothing is dropped for
any of that, since a benchmark's score counts every question.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from longvideo_reason_data.benchmarks.layouts import BenchmarkLayout

_PLACES = frozenset({"video_file", "subtitle_file"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkQuestion:
    """A question.

    Attributes:
        question_id: Unique in its benchmark.
        video: Its video, as published: an id or a path.
        video_file: The video's name inside the benchmark's folder; None if it isn't there.
        question: Its text, without options.
        options: In their published order, without letters; empty for an open question.
        answer: The letter of the right option, or the answer to an open question; empty if `flaw` says so.
        flaw: Why it can't be answered rightly: the published answer is none of the options. Empty for nearly all.
        groups: Values by the group's name; one question may have several tags.
        series: What questions have in common that are scored together; empty if it is scored alone.
        structure: How the series is scored, where that differs among series: `relevance`, or the chain of its questions
            such as `[1,[2,3],4]`.
        subtitle_file: The same for its subtitles.
        subtitle_start_seconds: Time in the subtitles at which the video begins.
    """

    question_id: str
    video: str
    video_file: str | None = None
    question: str
    options: tuple[str, ...]
    answer: str
    flaw: str = ""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    series: str = ""
    structure: str = ""
    subtitle_file: str | None = None
    subtitle_start_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A benchmark as it lies in a folder.

    Attributes:
        name: Its name among the layouts.
        layout: Its layout.
        folder: The folder.
        tables: Names of the tables that were read.
        questions: In the order of the tables.
    """

    name: str
    layout: BenchmarkLayout
    folder: Path
    tables: tuple[str, ...]
    questions: tuple[BenchmarkQuestion, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of all questions; equal for equal content, in any file format and wherever the videos are."""
        digest = hashlib.sha256()
        for question in self.questions:
            fields = {name: value for name, value in asdict(question).items() if name not in _PLACES}
            digest.update(json.dumps(fields, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()
