"""Quickstarts of several seeds side by side: what each has shown, the mean, and how much a seed matters.

One run is one draw: its standard errors are about its questions, not about another world, model and order of training.
The spread over seeds is what another run may show.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from markupsafe import Markup

from longrl.errors import AppUsageError
from longrl.report.build import SUMMARY_NAME
from longrl.report.charts import Axis, Series, line_chart, linear_axis
from longrl.report.templates import list_settings, open_templates
from longrl.run_files import read_object
from longrl_files.messages import visible
from longrl_trainer.durable import write_json, write_text

TEMPLATE_NAME = "seeds.html.jinja"
PLACES = {
    "untrained": ("accuracy", "untrained"),
    "sft": ("accuracy", "sft"),
    "grpo": ("accuracy", "grpo"),
    "blind": ("accuracy", "blind"),
    "constant": ("accuracy", "constant"),
    "rl_questions_sft": ("accuracy_on_rl_questions", "sft", "accuracy"),
    "rl_questions_grpo": ("accuracy_on_rl_questions", "grpo", "accuracy"),
}
"""Where each number is in `report.json`; those on RL questions may be missing."""
TITLES = {
    "untrained": "untrained",
    "sft": "CoT-SFT",
    "grpo": "GRPO",
    "gain": "gain of GRPO",
    "blind": "video hidden",
    "constant": "best letter",
    "rl_questions_sft": "RL questions, before",
    "rl_questions_grpo": "RL questions, after",
}
REQUIRED = frozenset({"untrained", "sft", "grpo", "blind", "constant"})
STAGES_IN_CHART = ("untrained", "sft", "grpo")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedRow:
    """One quickstart.

    Attributes:
        seed: Its seed.
        shares: Its numbers by the names of `TITLES`, as shares of 1.
        minutes: How long it took.
    """

    seed: int
    shares: dict[str, float]
    minutes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedTable:
    """Several quickstarts of one recipe, ascending by seed.

    Attributes:
        seeds: The quickstarts.
        mean: The mean of each number.
        standard_deviation: Its standard deviation over seeds, with divisor n - 1.
    """

    seeds: list[SeedRow]
    mean: dict[str, float]
    standard_deviation: dict[str, float]


def compare_seeds(folders: Sequence[Path]) -> SeedTable:
    """Read finished quickstarts of one recipe.

    Raises:
        AppUsageError: One isn't finished, or two have the same seed or other settings.
    """
    rows: dict[int, SeedRow] = {}
    places: dict[int, Path] = {}
    expected: dict[str, str] = {}
    for folder in folders:
        row = _read_row(folder)
        if row.seed in rows:
            raise AppUsageError(f"{folder}: has seed {row.seed}, as {places[row.seed]}; expected each seed once")
        settings = _shared_settings(folder)
        expected = expected or settings
        for name in {**expected, **settings}:
            if settings.get(name) != expected.get(name):
                found, other = (visible(str(values.get(name)), 60) for values in (settings, expected))
                raise AppUsageError(
                    f"{folder}: {visible(name, 60)} is {found}, but {other} in {folders[0]}; expected quickstarts "
                    "of one recipe"
                )
        rows[row.seed], places[row.seed] = row, folder
    seeds = [rows[seed] for seed in sorted(rows)]
    names = [name for name in TITLES if all(name in row.shares for row in seeds)]
    columns = {name: [row.shares[name] for row in seeds] for name in names}
    return SeedTable(
        seeds=seeds,
        mean={name: fmean(values) for name, values in columns.items()},
        standard_deviation={name: stdev(values) for name, values in columns.items()},
    )


def write_seeds(table: SeedTable, page: Path) -> Path:
    """Write the page, and the numbers as JSON beside it; returns the path of the numbers."""
    numbers = page.with_suffix(".json")
    template = open_templates().get_template(TEMPLATE_NAME)
    write_text(page, template.render(table=table, titles=_titles(table), chart=_draw(table)))
    write_json(numbers, asdict(table))
    return numbers


def describe_seeds(table: SeedTable) -> list[str]:
    """The table as lines of text, in per cent."""
    titles = _titles(table)
    lines = ["  ".join(["seed", *titles.values()])]
    parts = [(str(row.seed), row.shares) for row in table.seeds]
    for title, shares in [*parts, ("mean", table.mean), ("±", table.standard_deviation)]:
        cells = [f"{100 * shares[name]:.1f}".rjust(len(heading)) for name, heading in titles.items()]
        lines.append("  ".join([title.ljust(4), *cells]))
    return lines


def _titles(table: SeedTable) -> dict[str, str]:
    return {name: TITLES[name] for name in table.mean}


def _draw(table: SeedTable) -> Markup:
    """Accuracy on held-out videos after every stage: a line for each seed, and their mean."""

    def points(shares: dict[str, float]) -> list[tuple[float, float]]:
        return [(float(place), shares[name]) for place, name in enumerate(STAGES_IN_CHART)]

    series = [Series(label=f"seed {row.seed}", points=points(row.shares), style="faint") for row in table.seeds]
    series.append(
        Series(
            label="mean",
            points=points(table.mean),
            errors=[table.standard_deviation[name] for name in STAGES_IN_CHART],
            has_dots=True,
        )
    )
    ticks = tuple((float(place), TITLES[name]) for place, name in enumerate(STAGES_IN_CHART))
    shown = [value for line in series for _, value in line.points]
    return line_chart(
        "Accuracy on held-out videos after every stage, by seed",
        series,
        Axis(label="", low=0.0, high=len(ticks) - 1.0, ticks=ticks),
        linear_axis("accuracy on held-out videos", 0.0, max(shown), is_share=True),
    )


def _read_row(folder: Path) -> SeedRow:
    summary = read_object(folder, SUMMARY_NAME)
    try:
        found = {name: _look_up(summary, keys) for name, keys in PLACES.items()}
        shares = {name: float(value) for name, value in found.items() if value is not None}
        shares["gain"] = shares["grpo"] - shares["sft"]
        seed, seconds = int(summary["seed"]), float(summary["seconds"]["total"])
        if not math.isfinite(math.fsum([*shares.values(), seconds])) or not set(shares) >= REQUIRED:
            raise ValueError("numbers are missing")
        return SeedRow(seed=seed, shares=shares, minutes=seconds / 60)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise AppUsageError(
            f"{folder / SUMMARY_NAME}: doesn't say what a quickstart's does; expected the --output of `longrl "
            "quickstart`"
        ) from error


def _look_up(summary: dict[str, Any], keys: Sequence[str]) -> Any:
    value: Any = summary
    for key in keys:
        value = value.get(key, {})
    return None if value == {} else value


def _shared_settings(folder: Path) -> dict[str, str]:
    """What has to be the same; list_settings leaves out paths."""
    settings = dict(list_settings(read_object(folder, "config.json")))
    return {name: value for name, value in settings.items() if name.split(".")[-1] != "seed"}
