"""A conversion's report as one HTML page: no other file, no script, light and dark, any width."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .. import __version__
from .._text import count_text, number, shape_text
from .plots import (
    Axis,
    Point,
    bars,
    breakable,
    numeric_axis,
    safe,
    scatter,
    two_histograms,
)
from .results import ConvertReport, KeptTensor, PackedTensor
from .style import SERIES, STYLE

_WORST_ROWS = 25
_MOST_ROWS = 2000  # of a table that is folded; the JSON report has all
_MOST_POINTS = 4000
_WEIGHT_PLOTS = 6
_CURVES_PER_BAR = 4
_LOWEST_CURVE, _LOWEST_CODE = -128, -8
_MOST_LAYER_TICKS = 12
_SPREAD = 0.6  # of the points of one layer, which would hide each other, in layers
_SHOWN_SHARE = 0.999  # of the weights: a few far from zero would leave no room for the others
_LEAST_BINS = 24


def html_page(report: ConvertReport, source: str, target: str) -> str:
    """Return the report of a conversion as an HTML page.

    Parameters
    ----------
    report : ConvertReport
        What the conversion did.
    source, target : str
        What was read and written, for the heading.
    """
    title = f"{source} in Q43NL"
    worst_first = sorted(report.packed, key=lambda tensor: tensor.snr_db)
    sections = [
        f"<h1>{safe(title)}</h1>",
        f'<p class="muted">Written to {safe(target)} by q43nl_numba {safe(__version__)}'
        f"{_methods(report.packed)}.</p>",
        _tiles(report),
        *(_quality_sections(report, worst_first) if worst_first else ()),
        *_kept_sections(report),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{safe(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def _methods(packed: Sequence[PackedTensor]) -> str:
    """Return which methods packed how many tensors."""
    counts = Counter(tensor.method for tensor in packed if tensor.method)
    if not counts:
        return ""
    parts = [f"{method} ({count_text(n, 'tensor')})" for method, n in counts.most_common()]
    return safe(f" with {', '.join(parts)}")


def _tiles(report: ConvertReport) -> str:
    """Return the figures of the whole model."""
    share = f"{report.bytes_out / report.bytes_in:.1%}" if report.bytes_in else "-"
    packed = sum(tensor.weights for tensor in report.packed)
    tiles = [
        ("snr", "SNR", _decibels(report.snr_db) if report.packed else "-", "all packed weights"),
        ("mse-ratio", "MSE ratio to grid", number(_mse_ratio(report.packed), 4), "on a sample"),
        ("bits", "Bits per weight", number(report.bits_per_weight), "of the whole output"),
        (
            "bytes",
            "Size",
            _megabytes(report.bytes_out),
            f"{share} of {_megabytes(report.bytes_in)}",
        ),
        ("packed", "Packed tensors", f"{len(report.packed):,}", f"{packed:,} weights"),
        ("kept", "Kept tensors", f"{len(report.kept):,}", f"{report.weights - packed:,} elements"),
        ("seconds", "Time", f"{report.seconds:.1f} s", "for the whole run"),
    ]
    return (
        '<dl class="tiles">'
        + "".join(
            f'<div><dt>{safe(name)}</dt><dd id="{key}">{safe(value)}'
            f"{f'<small>{safe(note)}</small>' if note else ''}</dd></div>"
            for key, name, value, note in tiles
        )
        + "</dl>"
    )


def _quality_sections(report: ConvertReport, worst_first: Sequence[PackedTensor]) -> Iterable[str]:
    """Return what packing cost: plots and the table of the packed tensors."""
    yield "<h2>Error by layer</h2>"
    yield _snr_plot(worst_first)
    yield "<h2>Packed tensors, worst first</h2>"
    yield _table("packed-tensors", _PACKED_COLUMNS, worst_first, _WORST_ROWS)
    yield "<h2>What the bytes hold</h2>"
    yield (
        "<p>Counted on a sample of evenly spaced groups of 32 weights; groups of zeros are left "
        "out.</p>"
    )
    yield f'<div class="plots">{_curve_plot(report.packed)}{_code_plot(report.packed)}</div>'
    yield "<h2>Weights before and after</h2>"
    yield (
        '<p>The tensors with the least signal-to-noise ratio.</p><ul class="legend">'
        '<li><span class="key before"></span>before</li>'
        '<li><span class="key after"></span>decoded</li></ul>'
    )
    plots = "".join(_weights_plot(tensor) for tensor in worst_first[:_WEIGHT_PLOTS])
    yield f'<div class="plots">{plots}</div>'


def _kept_sections(report: ConvertReport) -> Iterable[str]:
    """Return the tensors that are not packed, and importance that was not used."""
    if report.kept:
        yield "<h2>Kept tensors</h2>"
        reasons = Counter(tensor.reason for tensor in report.kept).most_common()
        yield _table("reasons", _REASON_COLUMNS, reasons, _WORST_ROWS)
        yield _folded(
            f"All {count_text(len(report.kept), 'kept tensor')}",
            _table("kept-tensors", _KEPT_COLUMNS, report.kept, _MOST_ROWS),
        )
    if report.unused_importance:
        yield "<h2>Importance that was not used</h2>"
        names = ((name,) for name in report.unused_importance[:_MOST_ROWS])
        rows = "".join(f"<li>{safe(name)}</li>" for (name,) in names)
        yield f'<p>The tensors are not packed.</p><ul id="unused-importance">{rows}</ul>'
    if report.missing_importance:
        yield "<h2>Tensors without importance</h2>"
        rows = "".join(f"<li>{safe(name)}</li>" for name in report.missing_importance[:_MOST_ROWS])
        yield f'<p>All their weights count the same.</p><ul id="missing-importance">{rows}</ul>'


# Tables -----------------------------------------------------------------------------------------

#: Class, heading and cell of each column.
Columns = Sequence[tuple[str, str, Callable[..., str]]]

_PACKED_COLUMNS: Columns = (
    ("name", "tensor", lambda tensor: tensor.name),
    ("", "SNR dB", lambda tensor: number(tensor.snr_db)),
    ("", "MSE ratio", lambda tensor: number(tensor.mse_ratio, 4)),
    ("", "largest error", lambda tensor: f"{tensor.max_abs_error:#.3g}"),
    ("", "bits", lambda tensor: number(tensor.bits_per_weight)),
    ("l", "shape", lambda tensor: shape_text(tensor.shape)),
    ("l", "method", lambda tensor: tensor.method or "-"),
)

_KEPT_COLUMNS: Columns = (
    ("name", "tensor", lambda tensor: tensor.name),
    ("l", "shape", lambda tensor: shape_text(tensor.shape)),
    ("l", "type", lambda tensor: _dtypes(tensor)),
    ("l", "reason", lambda tensor: tensor.reason),
)

_REASON_COLUMNS: Columns = (
    ("name", "reason", lambda row: row[0]),
    ("", "tensors", lambda row: f"{row[1]:,}"),
)


def _dtypes(tensor: KeptTensor) -> str:
    """Return the dtype of a kept tensor, or both where it was cast."""
    if tensor.dtype == tensor.stored_dtype:
        return tensor.dtype
    return f"{tensor.dtype} → {tensor.stored_dtype}"


def _table(key: str, columns: Columns, rows: Sequence[object], most: int) -> str:
    """Return a table; rows beyond so many are folded, and beyond `_MOST_ROWS` only counted."""
    first, rest = rows[:most], rows[most:_MOST_ROWS]
    table = _rows(key, columns, first)
    if rest:
        table += _folded(f"{len(rest):,} more", _rows(f"{key}-more", columns, rest))
    left = len(rows) - len(first) - len(rest)
    if left:
        table += f'<p class="muted">And {left:,} more: the JSON report has them all.</p>'
    return table


def _rows(key: str, columns: Columns, rows: Sequence[object]) -> str:
    """Return the table of some rows."""
    heading = "".join(
        f'<th class="{"l" if kind else ""}">{safe(name)}</th>' for kind, name, _ in columns
    )
    body = "".join(
        "<tr>" + "".join(_cell(kind, cell(row)) for kind, _, cell in columns) + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="scroll"><table id="{key}"><thead><tr>{heading}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(kind: str, text: str) -> str:
    """Return a cell; a name may be broken after its dots."""
    return f'<td class="{kind}">{breakable(text) if kind == "name" else safe(text)}</td>'


def _folded(summary: str, content: str) -> str:
    """Return content that is shown when it is asked for."""
    return f"<details><summary>{safe(summary)}</summary>{content}</details>"


# Plots ------------------------------------------------------------------------------------------


def layer_and_kind(name: str) -> tuple[int | None, str]:
    """Return the layer of a tensor, if its name has one, and the rest of its name.

    >>> layer_and_kind("model.layers.12.mlp.experts.3.w1.weight")
    (12, 'mlp.experts.*.w1')
    >>> layer_and_kind("lm_head.weight")
    (None, 'lm_head')
    """
    parts = name.removesuffix(".weight").split(".")
    numbers = [i for i, part in enumerate(parts) if re.fullmatch("[0-9]{1,9}", part)]
    if not numbers or numbers[0] == len(parts) - 1:
        layer = int(parts[-1]) if numbers else None
        return layer, ".".join(parts[:-1] if numbers else parts)
    kind = ["*" if i in numbers else part for i, part in enumerate(parts)]
    return int(parts[numbers[0]]), ".".join(kind[numbers[0] + 1 :])


def _snr_plot(worst_first: Sequence[PackedTensor]) -> str:
    """Return the plot of each tensor's signal-to-noise ratio over its layer."""
    packed = worst_first[:_MOST_POINTS]
    every = len(packed) == len(worst_first)
    which = "each tensor" if every else f"the {len(packed):,} worst tensors"
    found = [layer_and_kind(tensor.name) for tensor in packed]
    common = [kind for kind, _ in Counter(kind for _, kind in found).most_common()]
    shown = common if len(common) <= SERIES + 1 else [*common[:SERIES], "others"]
    series = {kind: min(i, len(shown) - 1) for i, kind in enumerate(common)}
    x, outside = _layer_axis([layer for layer, _ in found])
    points = [
        Point(
            (outside if layer is None else layer) + _SPREAD * (series[kind] / len(shown) - 0.5),
            tensor.snr_db,
            series[kind],
            f"{tensor.name}: {_decibels(tensor.snr_db)}",
        )
        for tensor, (layer, kind) in zip(packed, found, strict=True)
    ]
    y = numeric_axis("signal-to-noise ratio, dB", [tensor.snr_db for tensor in packed])
    return scatter(f"Signal-to-noise ratio of {which}", points, shown, x, y)


def _layer_axis(layers: Sequence[int | None]) -> tuple[Axis, float]:
    """Return the axis of the layers, and the place left of them for tensors without a layer."""
    known = [layer for layer in layers if layer is not None] or [0]
    first, last = min(known), max(known)
    step = max(1, math.ceil((last - first + 1) / _MOST_LAYER_TICKS))
    ticks = [(float(layer), str(layer)) for layer in range(first, last + 1, step)]
    outside = first - max(1.0, 0.1 * (last - first))
    if None not in layers:
        return Axis("layer", first - 0.5, last + 0.5, ticks), outside
    if not any(layer is not None for layer in layers):
        ticks, last = [], int(outside)
    return Axis("layer", outside - 0.5, last + 0.5, [(outside, "none"), *ticks]), outside


def _curve_plot(packed: Sequence[PackedTensor]) -> str:
    """Return the histogram of curves."""
    counts = np.sum([tensor.figures.sample.curves for tensor in packed], axis=0)
    in_bars = counts.reshape(-1, _CURVES_PER_BAR).sum(axis=1).tolist()
    names = [
        f"curves {start} to {start + _CURVES_PER_BAR - 1}"
        for start in range(_LOWEST_CURVE, -_LOWEST_CURVE, _CURVES_PER_BAR)
    ]
    ticks = [(value / _CURVES_PER_BAR, str(value)) for value in (-128, -64, 0, 64, 127)]
    x = Axis("curve", -128 / _CURVES_PER_BAR, 128 / _CURVES_PER_BAR, ticks)
    return bars("Curves", in_bars, names, x, "% of groups", "groups")


def _code_plot(packed: Sequence[PackedTensor]) -> str:
    """Return the histogram of codes."""
    counts = np.sum([tensor.figures.sample.codes for tensor in packed], axis=0).tolist()
    codes = range(_LOWEST_CODE, -_LOWEST_CODE)
    ticks = [(code + 0.5, str(code)) for code in codes if code % 2 == 0]
    x = Axis("code", _LOWEST_CODE, -_LOWEST_CODE, ticks)
    return bars("Codes", counts, [f"code {code}" for code in codes], x, "% of weights", "weights")


def _weights_plot(tensor: PackedTensor) -> str:
    """Return the histograms of a tensor's weights before and after."""
    sample = tensor.figures.sample
    bins = len(sample.before)
    left_out = _outer_bins(sample.before)
    shown = slice(left_out, bins - left_out)
    end = (sample.largest or 1.0) * (1 - 2 * left_out / bins)
    x = Axis("weight", -end, end, [(value, f"{value:.2g}") for value in (-end, 0.0, end)])
    note = f"{_decibels(tensor.snr_db)}, {shape_text(tensor.shape)}"
    if left_out:
        note += f", largest {sample.largest:.2g}"
    return two_histograms(
        tensor.name, f"<p>{safe(note)}</p>", sample.before[shown], sample.after[shown], x
    )


def _outer_bins(counts: Sequence[int]) -> int:
    """Return how many bins at each end hold next to nothing and need not be shown."""
    total, outer = sum(counts), 0
    while len(counts) - 2 * outer > _LEAST_BINS:
        inner = sum(counts[outer + 1 : len(counts) - outer - 1])
        if inner < _SHOWN_SHARE * total:
            break
        outer += 1
    return outer


# Figures ----------------------------------------------------------------------------------------


def _mse_ratio(packed: Sequence[PackedTensor]) -> float:
    """Return the mean squared error of all samples relative to that of grid, by weights.

    A tensor counts by its weights: its sample stands for all of them.
    """
    noise = reference = 0.0
    for tensor in packed:
        sample = tensor.figures.sample
        if sample.groups:
            noise += sample.noise / sample.groups * tensor.weights
            reference += sample.grid_noise / sample.groups * tensor.weights
    return noise / reference if reference else math.nan


def _decibels(value: float) -> str:
    """Return a ratio in decibels, or that nothing was lost."""
    return "exact" if value == math.inf else f"{number(value)} dB"


def _megabytes(count: int) -> str:
    """Return a size in a unit that suits it.

    >>> _megabytes(13_600_000), _megabytes(512)
    ('13.6 MB', '512 bytes')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
