"""Plots as HTML with inline SVG: scatter, bars, and two histograms over each other.

The drawing area is an SVG element without a view box: positions are percentages, so a plot takes
any width, while text, points and lines keep their size. Axis labels are HTML around it. Colors are
CSS variables of the page, which has a light and a dark set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from .._text import printable

_MOST_TICKS = 5


def safe(text: object) -> str:
    r"""Return text that HTML shows as it is; control characters are escaped.

    >>> safe('<b>"a"\x00')
    '&lt;b&gt;&quot;a&quot;\\x00'
    """
    return escape(printable(str(text)), quote=True)


def breakable(name: str) -> str:
    """Return a name that may be broken after its dots."""
    return safe(name).replace(".", ".<wbr>")


@dataclass(frozen=True)
class Axis:
    """An axis: its label, its range, and its ticks as (value, text)."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    def percent(self, value: float) -> float:
        """Return where a value lies, from 0 at the low end to 100 at the high one."""
        return 100 * (value - self.low) / (self.high - self.low)


def numeric_axis(label: str, values: Iterable[float], *, from_zero: bool = False) -> Axis:
    """Return an axis whose ends and ticks are round numbers around finite values.

    >>> numeric_axis("SNR", [21.2, 22.9]).ticks
    [(21.0, '21'), (21.5, '21.5'), (22.0, '22'), (22.5, '22.5'), (23.0, '23')]
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    low = 0.0 if from_zero else low
    if high <= low:
        low, high = (low, low + 1.0) if from_zero else (low - 0.5, low + 0.5)
    step = _round_step((high - low) / _MOST_TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [(i * step, f"{i * step:.10g}") for i in range(first, last + 1)]
    return Axis(label, first * step, last * step, ticks)


def _round_step(least: float) -> float:
    """Return the least of 1, 2, 5 times a power of ten that is not below a number."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot: its place, its series, and what a tooltip shows."""

    x: float
    y: float
    series: int
    title: str


def scatter(caption: str, points: Sequence[Point], series: Sequence[str], x: Axis, y: Axis) -> str:
    """Return a scatter plot with a legend; points beyond the top are drawn on it, as triangles."""
    marks = "".join(_point(point, x, y) for point in points)
    legend = "".join(
        f'<li><span class="key c{i}"></span>{safe(name)}</li>' for i, name in enumerate(series)
    )
    legend = f'<ul class="legend">{legend}</ul>' if len(series) > 1 else ""
    return _figure(caption, legend, _grid(y) + marks, x, y, kind="scatter")


def _point(point: Point, x: Axis, y: Axis) -> str:
    """Return the mark of one point."""
    title = f"<title>{safe(point.title)}</title>"
    left = x.percent(point.x)
    if math.isfinite(point.y):
        place = f'cx="{left:.2f}%" cy="{100 - y.percent(point.y):.2f}%"'
        return f'<circle class="c{point.series}" {place} r="4">{title}</circle>'
    return f'<text class="beyond c{point.series}" x="{left:.2f}%" y="0">▲{title}</text>'


def bars(
    caption: str, counts: Sequence[int], names: Sequence[str], x: Axis, y_label: str, what: str
) -> str:
    """Return a bar chart of counts, as shares of their sum.

    Parameters
    ----------
    caption, y_label : str
        Title, and label of the vertical axis.
    counts : sequence of int
        Height of each bar; bar i stands from `x.low` + i on.
    names : sequence of str
        What each bar stands for, in its tooltip.
    x : Axis
        The horizontal axis, as long as there are bars.
    what : str
        What is counted, in the plural.
    """
    total = sum(counts) or 1
    y = numeric_axis(y_label, [100 * count / total for count in counts], from_zero=True)
    width = 100 / max(len(counts), 1)
    marks = "".join(
        f'<rect class="c0" data-count="{count}" x="{i * width + width * 0.1:.2f}%" '
        f'y="{100 - y.percent(100 * count / total):.2f}%" width="{width * 0.8:.2f}%" '
        f'height="{y.percent(100 * count / total):.2f}%">'
        f"<title>{safe(name)}: {100 * count / total:.2f} % ({count:,} {safe(what)})</title></rect>"
        for i, (count, name) in enumerate(zip(counts, names, strict=True))
        if count
    )
    return _figure(caption, "", _grid(y) + marks, x, y, kind="bars")


def two_histograms(
    caption: str, note: str, before: Sequence[int], after: Sequence[int], x: Axis
) -> str:
    """Return two histograms of equal bins over each other: filled, and as a line."""
    totals = sum(before) or 1, sum(after) or 1
    shares = [
        [100 * count / total for count in counts]
        for counts, total in zip((before, after), totals, strict=True)
    ]
    y = numeric_axis("% of weights", [*shares[0], *shares[1]], from_zero=True)
    width = 100 / len(before)
    filled = "".join(
        f'<rect class="before" data-count="{count}" x="{i * width:.2f}%" '
        f'y="{100 - y.percent(share):.2f}%" width="{width:.2f}%" height="{y.percent(share):.2f}%"/>'
        for i, (count, share) in enumerate(zip(before, shares[0], strict=True))
        if count
    )
    line = _steps([y.percent(share) for share in shares[1]])
    return _figure(caption, note, _grid(y) + filled + line, x, y, kind="small")


def _steps(heights: Sequence[float]) -> str:
    """Return the outline of a histogram: a level for each bin, and the jumps between them."""
    width = 100 / len(heights)
    lines = []
    previous = 0.0
    for i, height in enumerate([*heights, 0.0]):
        at = f"{i * width:.2f}%"
        if height != previous:
            lines.append(_line(at, f"{100 - previous:.2f}%", at, f"{100 - height:.2f}%"))
        if height and i < len(heights):
            level = f"{100 - height:.2f}%"
            lines.append(_line(at, level, f"{(i + 1) * width:.2f}%", level))
        previous = height
    return f'<g class="after">{"".join(lines)}</g>'


def _line(x1: str, y1: str, x2: str, y2: str) -> str:
    """Return a line."""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _grid(y: Axis) -> str:
    """Return horizontal lines at the ticks."""
    lines = (
        _line("0", f"{100 - y.percent(value):.2f}%", "100%", f"{100 - y.percent(value):.2f}%")
        for value, _ in y.ticks
    )
    return f'<g class="grid">{"".join(lines)}</g>'


def _figure(caption: str, above: str, marks: str, x: Axis, y: Axis, kind: str) -> str:
    """Return a plot: caption, legend or note, drawing area, and the axes around it."""
    y_ticks = "".join(
        f'<span style="bottom:{y.percent(value):.2f}%">{safe(text)}</span>'
        for value, text in y.ticks
    )
    x_ticks = "".join(
        f'<span style="left:{x.percent(value):.2f}%">{safe(text)}</span>' for value, text in x.ticks
    )
    return (
        f'<figure class="{kind}"><figcaption>{breakable(caption)}</figcaption>{above}'
        f'<div class="frame"><div class="y-label">{safe(y.label)}</div>'
        f'<div class="y-ticks">{y_ticks}</div>'
        f'<svg role="img" aria-label="{safe(caption)}">{marks}</svg>'
        f'<div class="x-ticks">{x_ticks}</div><div class="x-label">{safe(x.label)}</div>'
        f"</div></figure>\n"
    )
