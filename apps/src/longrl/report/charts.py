"""Line charts as inline SVG: few marks, labelled in place, coloured by the page's own variables.

A chart contains only numbers and words. Colours, fonts and the dark scheme come from the page's style sheet through
class names, so the same chart works on any page that defines them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 264
LEFT, RIGHT, TOP, BOTTOM = 52, 84, 32, 42  # margins; those at the sides grow with their texts
LEAST_LABEL_DISTANCE = 15.0
GAP = 7  # between the plot and a text beside it
CHARACTER_WIDTH = 9.5  # a wide one, at the largest size in the style sheet

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line.

    Attributes:
        label: Text at the end of the line.
        points: Points in order of x.
        style: `accent`, `plain` or `faint`.
        has_dots: Mark every point.
        errors: Half the length of the error bar of every point; none if empty.
        band: Half the width of a band around the line at every point; none if empty.
        is_joined: Draw the line; otherwise only points.
    """

    label: str
    points: Sequence[Point]
    style: str = "accent"
    has_dots: bool = False
    errors: Sequence[float] = ()
    band: Sequence[float] = ()
    is_joined: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A horizontal reference line."""

    label: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis.

    Attributes:
        label: Quantity and unit.
        low: Lower end.
        high: Upper end.
        ticks: Labelled values, with their texts.
        is_log: Logarithmic scale.
    """

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Position of a value, from 0 to 1; values outside are moved to the border."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, 1e-300))
        return min(1.0, max(0.0, (value - low) / (high - low)))


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis, rules: Sequence[Rule] = ()) -> Markup:
    """Draw a chart; `title` is the text for screen readers."""
    names = [*(line.label for line in series), *(rule.label for rule in rules)]
    plot = _Plot(x=x, y=y, left=_margin([text for _, text in y.ticks], LEFT), right=WIDTH - _margin(names, RIGHT))
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        *plot.draw_axes(),
    ]
    parts += [plot.draw_across("rule", rule.value) for rule in rules]
    labels: list[tuple[float, str, str]] = [(plot.place_y(rule.value), rule.label, "plain") for rule in rules]
    for line in series:
        points = [plot.place(point) for point in line.points if math.isfinite(point[1])]
        if not points:
            continue
        for (at, value), error in zip(line.points, line.errors, strict=False):
            (across, low), (_, high) = plot.place((at, value - error)), plot.place((at, value + error))
            parts.append(
                f'<line class="error {line.style}" x1="{across:.1f}" x2="{across:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
            )
        if line.band:
            parts.append(f'<path class="band {line.style}" d="{plot.outline_band(line)}Z"/>')
        if line.is_joined:
            parts.append(f'<path class="line {line.style}" d="{_path(points)}"/>')
        if line.has_dots or len(points) == 1:
            radius = 3.2 if line.is_joined else 2.2
            parts += [
                f'<circle class="dot {line.style}" cx="{px:.1f}" cy="{py:.1f}" r="{radius}"/>' for px, py in points
            ]
        if line.label:
            labels.append((points[-1][1], line.label, line.style))
    parts += [
        f'<text class="label {style}" x="{plot.right + GAP:.1f}" y="{place + 4:.1f}">{escape(text)}</text>'
        for place, text, style in keep_apart(labels)
    ]
    return Markup("".join(parts) + "</svg>")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plot:
    """Where the axes are in the drawing; texts are beside them."""

    x: Axis
    y: Axis
    left: float
    right: float

    def place(self, point: Point) -> Point:
        return self.left + self.x.place(point[0]) * (self.right - self.left), self.place_y(point[1])

    def place_y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self.y.place(value) * (HEIGHT - TOP - BOTTOM)

    def draw_axes(self) -> list[str]:
        parts = [f'<text class="axis" x="0" y="16">{escape(self.y.label)}</text>']
        for value, text in self.y.ticks:
            parts.append(self.draw_across("grid", value))
            beside = f'x="{self.left - GAP:.1f}" y="{self.place_y(value) + 4:.1f}"'
            parts.append(f'<text class="tick end" {beside}>{escape(text)}</text>')
        for value, text in self.x.ticks:
            across = self.place((value, self.y.low))[0]
            parts.append(f'<text class="tick middle" x="{across:.1f}" y="{HEIGHT - BOTTOM + 17}">{escape(text)}</text>')
        parts.append(f'<text class="axis end" x="{self.right:.1f}" y="{HEIGHT - 5}">{escape(self.x.label)}</text>')
        return parts

    def draw_across(self, style: str, value: float) -> str:
        place = f'y1="{self.place_y(value):.1f}" y2="{self.place_y(value):.1f}"'
        return f'<line class="{style}" x1="{self.left:.1f}" x2="{self.right:.1f}" {place}/>'

    def outline_band(self, line: Series) -> str:
        """Its upper edge, and back along the lower one."""
        upper, lower = (
            [self.place((at, value + sign * width)) for (at, value), width in zip(line.points, line.band, strict=True)]
            for sign in (1, -1)
        )
        return _path([*upper, *reversed(lower)])


def _margin(texts: Sequence[str], least: float) -> float:
    """Room for the longest of the texts beside the plot, at the size that they have on a narrow screen."""
    return max(least, GAP + CHARACTER_WIDTH * max((len(text) for text in texts), default=0))


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{'M' if index == 0 else 'L'}{px:.1f} {py:.1f}" for index, (px, py) in enumerate(points))


def linear_axis(label: str, low: float, high: float, *, is_share: bool = False, num_ticks: int = 4) -> Axis:
    """An axis that begins and ends at round numbers."""
    if high - low <= 1e-9 * max(1.0, abs(low)):
        high = low + max(1.0, abs(low))
    step = nice_step((high - low) / num_ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    values = [index * step for index in range(first, last + 1)]
    text = _percent if is_share else _number
    return Axis(
        label=label, low=values[0], high=values[-1], ticks=tuple((value, text(value, step)) for value in values)
    )


def step_axis(num_steps: int, label: str = "step") -> Axis:
    """An axis over training steps, from the first to the last."""
    last = max(2, num_steps)
    step = max(1, round(nice_step(last / 4)))
    values = [1, *(value for value in range(step, last + 1, step) if value > 1)]
    return Axis(label=label, low=1, high=last, ticks=tuple((value, str(value)) for value in values))


def log_axis(label: str, low: float, high: float) -> Axis:
    """An axis over whole decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    return Axis(
        label=label,
        low=10.0**first,
        high=10.0**last,
        ticks=tuple((10.0**power, f"10{_superscript(power)}") for power in range(first, last + 1)),
        is_log=True,
    )


def choice_axis(label: str, values: Sequence[int]) -> Axis:
    """A logarithmic axis on which each of a few values is labelled."""
    low, high = values[0], values[-1] if values[-1] > values[0] else values[0] * 2
    return Axis(label=label, low=low, high=high, ticks=tuple((value, str(value)) for value in values), is_log=True)


def smooth(points: Sequence[Point], half_width: int) -> list[Point]:
    """The mean over a window around every point; the window is cut at both ends."""
    smoothed: list[Point] = []
    for index, (at, _) in enumerate(points):
        window = points[max(0, index - half_width) : index + half_width + 1]
        smoothed.append((at, sum(value for _, value in window) / len(window)))
    return smoothed


def nice_step(rough: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that isn't smaller."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9))


def keep_apart(labels: Sequence[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """Move labels down, then up, until none covers another."""
    ordered = sorted(labels)
    places: list[float] = []
    for place, _, _ in ordered:
        places.append(max(place, places[-1] + LEAST_LABEL_DISTANCE) if places else place)
    limit = float(HEIGHT - BOTTOM)
    for index in reversed(range(len(places))):
        places[index] = min(places[index], limit)
        limit = places[index] - LEAST_LABEL_DISTANCE
    return [(place, text, style) for place, (_, text, style) in zip(places, ordered, strict=True)]


def _percent(value: float, step: float) -> str:
    return f"{100 * value:.{0 if step >= 0.01 else 1}f}%"


def _number(value: float, step: float) -> str:
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) + (0 if _is_round(step) else 1)
    return f"{value:.{decimals}f}"


def _is_round(step: float) -> bool:
    leading = step / 10.0 ** math.floor(math.log10(step) + 1e-9)
    return abs(leading - round(leading)) < 1e-6


def _superscript(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
