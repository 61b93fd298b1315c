"""Builds `report.html` and `report.json` from a finished run. The page needs no network and no script."""

import hashlib
from importlib.resources import files
from pathlib import Path
from time import monotonic
from typing import Any

from jinja2 import UndefinedError

from longrl.errors import AppUsageError
from longrl.report import figures
from longrl.report.learning_curve import draw_learning_curve
from longrl.report.rollouts import choose_cards
from longrl.report.run_data import RunData, read_run
from longrl.report.summary import describe_environment, summarise_run
from longrl.report.templates import list_settings, open_templates
from longrl.run_files import read_object
from longrl_files.messages import visible
from longrl_trainer.durable import write_json, write_text
from longvideo_reason_data.inspection.statistics import LEAST_HELD_OUT

REPORT_NAME, SUMMARY_NAME = "report.html", "report.json"
TEMPLATE_NAME = "report.html.jinja"


def build_report(folder: Path) -> dict[str, Any]:
    """Write both files into the run's folder; returns the contents of `report.json`.

    Raises:
        AppUsageError: It isn't a quickstart's folder, or a stage isn't finished.
        TrainerError: The folder can't be written.
    """
    started = monotonic()
    try:
        run = read_run(folder)
        environment = _known_environment(folder) or describe_environment()
        cards = choose_cards(run)
        summary = summarise_run(run, report_seconds=monotonic() - started, environment=environment)
        page = render_page(run, summary, cards)
    except (ArithmeticError, AttributeError, LookupError, TypeError, UndefinedError, ValueError) as error:
        # The files hold JSON of any kind; what the report reads in them is what the quickstart writes.
        raise AppUsageError(
            f"{folder}: its files don't say what a quickstart's do ({type(error).__name__}: {visible(str(error), 100)}"
            "); run the quickstart again"
        ) from error
    write_text(folder / REPORT_NAME, page)
    write_json(folder / SUMMARY_NAME, summary)
    return summary


def render_page(run: RunData, summary: dict[str, Any], cards: list[Any]) -> str:
    """The page."""
    environment = open_templates()
    environment.filters["duration"] = describe_seconds
    environment.filters["size"] = describe_bytes
    return environment.get_template(TEMPLATE_NAME).render(
        run=run,
        summary=summary,
        accuracy=summary["accuracy"],
        cards=cards,
        settings=list_settings(run.config),
        accuracy_bars=figures.accuracy_bars(summary),
        skill_bars=figures.skill_bars(summary),
        senses_bars=figures.senses_bars(summary),
        time_bars=figures.time_bars(summary["seconds"]),
        gain_bars=figures.gain_bars(summary),
        encodes=figures.describe_encodes(run, summary["encodes"]),
        learning=draw_learning_curve(run),
        reward_chart=figures.reward_chart(run),
        loss_chart=figures.loss_chart(run),
        frames_chart=figures.frames_chart(run, summary),
        gap_chart=figures.gap_chart(run),
        least_held_out=LEAST_HELD_OUT,
    )


def source_digest() -> str:
    """Digest of the report's code and template, so that the report is rewritten when they change."""
    digest = hashlib.sha256()
    for path in sorted(files("longrl.report").iterdir(), key=lambda path: path.name):
        if path.name.endswith((".py", ".jinja")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def describe_seconds(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def describe_bytes(size: float) -> str:
    """A size in the largest fitting unit."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _known_environment(folder: Path) -> dict[str, Any] | None:
    """Versions and machine of an earlier report: those of the run, not of rewriting the report."""
    try:
        summary = read_object(folder, SUMMARY_NAME)
        return {name: summary[name] for name in ("versions", "machine")}
    except (AppUsageError, KeyError):
        return None
