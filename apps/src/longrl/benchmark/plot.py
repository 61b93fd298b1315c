"""A benchmark's figures as a self-contained drawing."""

from collections.abc import Callable, Sequence
from typing import Any

from longrl.report.charts import HEIGHT, WIDTH, Series, choice_axis, line_chart, log_axis

GAP, MARGIN = 40, 16
STYLES = {"shared": "accent", "published": "plain", "cached": "faint", "plain": "plain"}
STYLE_SHEET = """
svg { font: 12.5px system-ui, sans-serif; background: #fbfaf8; }
text { fill: #63676c; font-variant-numeric: tabular-nums; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.grid { stroke: #e3e0da; } .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line.accent { stroke: #0d6b63; } .line.plain { stroke: #63676c; stroke-width: 1.5; }
.line.faint { stroke: #c9c5bd; stroke-width: 1.5; }
.dot.accent { fill: #0d6b63; } .dot.plain { fill: #63676c; } .dot.faint { fill: #c9c5bd; }
.label.accent { fill: #0d6b63; font-weight: 600; }
"""


def draw_steps(rows: Sequence[dict[str, Any]]) -> str:
    """Seconds of the whole step and of its update by frames, one line per mode, as a complete SVG file."""
    charts = [
        _chart("seconds per step", rows, lambda row: row["seconds"]),
        _chart("seconds per update", rows, lambda row: row["seconds_by_stage"]["update"]),
    ]
    width = 2 * MARGIN + len(charts) * WIDTH + (len(charts) - 1) * GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 2 * MARGIN}">',
        f"<style>{STYLE_SHEET}</style>",
    ]
    for number, chart in enumerate(charts):
        place = f'x="{MARGIN + number * (WIDTH + GAP)}" y="{MARGIN}" width="{WIDTH}" height="{HEIGHT}"'
        parts.append(chart.replace("<svg ", f"<svg {place} ", 1))
    return "".join(parts) + "</svg>\n"


def _chart(label: str, rows: Sequence[dict[str, Any]], figure: Callable[[dict[str, Any]], float]) -> str:
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    series = [
        Series(
            label=mode,
            points=[(row["frames"], figure(row)) for row in rows if row["mode"] == mode],
            style=STYLES[mode],
            has_dots=True,
        )
        for mode in modes
    ]
    values = [figure(row) for row in rows]
    frames = sorted({row["frames"] for row in rows})
    x, y = choice_axis("frames", frames), log_axis(label, min(values), max(values))
    return str(line_chart(f"{label} by frames, for each mode", series, x, y))
