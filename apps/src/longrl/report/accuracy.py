"""The page of an evaluation on a benchmark: one table of all protocols, and accuracy against frames.

The plot is that of the LongVILA-R1 paper (arXiv 2507.07966): how much more frames help, with thinking and without. The
page needs no network and no script; the same numbers are in `result.json`.
"""

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from longrl.report.charts import Rule, Series, choice_axis, line_chart, linear_axis
from longrl.report.templates import list_settings, open_templates
from longrl_trainer.durable import write_text
from longrl_trainer.evaluation.results import BenchmarkResult
from longrl_trainer.evaluation.scoring.scores import GroupScore, ProtocolScores

PAGE_NAME = "report.html"
TEMPLATE_NAME = "accuracy.html.jinja"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """Accuracy on one value of a group, under every protocol."""

    name: str
    count: int
    scores: tuple[GroupScore, ...]


def write_accuracy_page(folder: Path, result: BenchmarkResult) -> Path:
    """Write the page into a run's folder, and return its path."""
    path = folder / PAGE_NAME
    write_text(path, render_accuracy(result))
    return path


def render_accuracy(result: BenchmarkResult) -> str:
    """The page."""
    return (
        open_templates()
        .get_template(TEMPLATE_NAME)
        .render(
            result=result,
            record=result.record,
            baselines=result.baselines,
            chart=accuracy_chart(result),
            best=max(result.scores, key=lambda scores: scores.accuracy),
            groups=list_groups(result),
            settings=list_settings(result.record.settings),
            has_rotations=any(scores.accuracy_under_all_rotations is not None for scores in result.scores),
            has_published=any(scores.published is not None for scores in result.scores),
        )
    )


def accuracy_chart(result: BenchmarkResult) -> Markup | None:
    """Accuracy against frames, a line for each way of asking; None if nothing was shown."""
    lines: dict[str, list[ProtocolScores]] = {}
    for scores in result.scores:
        if scores.num_frames:
            name = scores.mode + (", subtitles" if scores.subtitles else "")
            lines.setdefault(name, []).append(scores)
    if not lines:
        return None
    series = [
        Series(
            label=name,
            points=[(float(scores.num_frames), scores.accuracy) for scores in _by_frames(of_line)],
            errors=[scores.standard_error for scores in _by_frames(of_line)],
            style="accent" if of_line[0].mode == "thinking" else "plain",
            has_dots=True,
        )
        for name, of_line in lines.items()
    ]
    rules = [Rule(label="blind", value=scores.accuracy) for scores in result.scores if not scores.num_frames]
    rules.append(Rule(label="constant", value=result.baselines.constant))
    shown = [
        value
        for line in series
        for (_, middle), error in zip(line.points, line.errors, strict=True)
        for value in (middle - error, middle + error)
    ]
    values = [*shown, *(rule.value for rule in rules)]
    return line_chart(
        f"Accuracy on {result.record.title} against the number of frames",
        series,
        choice_axis("frames per video", sorted({int(at) for line in series for at, _ in line.points})),
        linear_axis("accuracy on all questions", max(0.0, min(values) - 0.02), min(1.0, max(values)), is_share=True),
        rules,
    )


def list_groups(result: BenchmarkResult) -> list[tuple[str, list[GroupRow]]]:
    """The groups of the benchmark, with a row for each value and a column for each protocol."""
    return [
        (
            group,
            [
                GroupRow(
                    name=tag, count=score.count, scores=tuple(scores.groups[group][tag] for scores in result.scores)
                )
                for tag, score in tags.items()
            ],
        )
        for group, tags in result.scores[0].groups.items()
    ]


def _by_frames(scores: list[ProtocolScores]) -> list[ProtocolScores]:
    return sorted(scores, key=lambda item: item.num_frames)
