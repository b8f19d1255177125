"""Every candidate curve, exactly: the reference that other methods are measured against.

With the scale fixed, the code of a magnitude v passes from k to k + 1 where c grows past
``(v - m) / (m^2 - m)``, m = (k + 1/2) / 7. Between such changes the squared error of a group is a
parabola in c: with x = code / 7 and b = x^2 - x it is::

    sum (v - x - c b)^2 = A - 2 c B + c^2 C,
    A = sum (v - x)^2,  B = sum (v - x) b,  C = sum b^2

(each term times the weight's importance, where there is one).

So each change is entered, as what it does to A, B and C, at the first candidate beyond it, and one
running sum over the candidates yields all their errors. A magnitude changes its code at most three
times between c = -1 and c = 1, since 7 (sqrt(v) - 1 + sqrt(1 - v)) <= 2.9. Sums are in double
precision, so that they rank the candidates as evaluating each would.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np

from .._jit import helper, inlined
from .._layout import GROUP_SIZE, LARGEST_CURVE
from ..kernels.curve import ROUND_ROOT
from ..kernels.curve_search import curve_encoder
from ..kernels.tile import LANES_STEP, Doubles, Floats, Integers
from .method import Method, Option, integer_from

CURVES: Final = 2 * LARGEST_CURVE + 1
_MOST_CHANGES: Final = 3
_MOMENTS: Final = 3

SLICE: Final = LANES_STEP
"""Lanes worked on at once: their sums over all curves stay in the L2 cache."""

_WEIGHTS: Final = 4
_BATCH: Final = _WEIGHTS * SLICE
"""Weights of a group, and of all lanes, whose changes are computed together."""

_SEVENTH: Final = float.fromhex("0x1.2492492492p-3")
_REST_OF_SEVENTH: Final = float.fromhex("0x1.2492492492492p-45")
"""1 / 7 in two parts, the first one with so few bits that small multiples are exact."""


@functools.lru_cache(maxsize=8)
def grid_handicaps(grid_size: int) -> Doubles:
    """Return what is added to each curve's error: 0 for candidates, infinity for the others.

    Candidates are the storable curves next to `grid_size` evenly spaced values of c.
    """
    # From `CURVES` values on, every curve is next to one of them.
    spaced = np.linspace(-LARGEST_CURVE, LARGEST_CURVE, min(grid_size, CURVES))
    result = np.full(CURVES, np.inf)
    result[np.rint(spaced).astype(np.int64) + LARGEST_CURVE] = 0.0
    return result


@inlined
def search_grid(
    magnitudes: Floats,
    importance: Any,
    scales: Floats,
    statistics: None,
    handicaps: Doubles,
    curves: Integers,
) -> None:
    """Take the curve of the least squared error; of equals, the first."""
    for start in range(0, curves.size, SLICE):
        # One more row than curves takes the changes that lie beyond c = 1.
        moments = np.zeros((CURVES + 1, _MOMENTS, SLICE), np.float64)
        enter_changes(magnitudes, importance, start, moments)
        choose(moments, handicaps, curves[start : start + SLICE])


@helper
def enter_changes(magnitudes: Floats, importance: Any, start: int, moments: Doubles) -> None:
    """Enter the codes at c = -1, and each later change at the first curve beyond it.

    Some weights of all lanes at a time: their changes are computed in full vectors, and then
    entered one by one.
    """
    v = np.empty(_BATCH, np.float64)
    h = np.ones(_BATCH, np.float64)
    codes = np.empty(_BATCH, np.float64)
    rows = np.empty((_MOST_CHANGES, _BATCH), np.int32)
    steps = np.empty((_MOST_CHANGES, _MOMENTS, _BATCH), np.float64)
    for first in range(0, GROUP_SIZE, _WEIGHTS):
        for i in range(_WEIGHTS):
            for lane in range(SLICE):
                v[i * SLICE + lane] = np.float64(magnitudes[first + i, start + lane])
                if importance is not None:
                    h[i * SLICE + lane] = np.float64(importance[first + i, start + lane])
        set_first_codes(v, codes)
        for change in range(_MOST_CHANGES):
            set_rows(v, codes, change, rows[change])
            set_steps(v, h, codes, change, steps[change])
        for i in range(_WEIGHTS):
            for lane in range(SLICE):
                at = i * SLICE + lane
                x = seventh(codes[at])
                b = x * x - x
                moments[0, 0, lane] += h[at] * ((v[at] - x) * (v[at] - x))
                moments[0, 1, lane] += h[at] * ((v[at] - x) * b)
                moments[0, 2, lane] += h[at] * (b * b)
            for change in range(_MOST_CHANGES):
                for lane in range(SLICE):
                    at = i * SLICE + lane
                    row = rows[change, at]
                    moments[row, 0, lane] += steps[change, 0, at]
                    moments[row, 1, lane] += steps[change, 1, at]
                    moments[row, 2, lane] += steps[change, 2, at]


@helper
def seventh(a: Any) -> Any:
    """Return a / 7 for multiples of 1/2 up to 10, to the last bit, in less time."""
    return a * _SEVENTH + a * _REST_OF_SEVENTH


@helper
def set_first_codes(v: Doubles, codes: Doubles) -> None:
    """Write the codes at c = -1."""
    for at in range(_BATCH):
        code = 0.0
        for k in range(7):
            m = (k + 0.5) / 7.0
            code += 1.0 if v[at] > 2.0 * m - m * m else 0.0
        codes[at] = code


@helper
def set_rows(v: Doubles, codes: Doubles, change: int, rows: Integers) -> None:
    """Write the first curve beyond a change, `CURVES` if there is none up to c = 1."""
    for at in range(_BATCH):
        code = codes[at] + change
        m = seventh(code + 0.5)
        row = np.ceil(LARGEST_CURVE * ((m - v[at]) / (m - m * m))) + LARGEST_CURVE
        row = min(max(row, 0.0), float(CURVES))
        rows[at] = np.int32(row if code < 7.0 else float(CURVES))


@helper
def set_steps(v: Doubles, h: Doubles, codes: Doubles, change: int, steps: Doubles) -> None:
    """Write what a change does to A, B and C; 0 if there is none."""
    for at in range(_BATCH):
        x0, x1 = seventh(codes[at] + change), seventh(min(codes[at] + (change + 1.0), 7.0))
        b0, b1 = x0 * x0 - x0, x1 * x1 - x1
        steps[0, at] = h[at] * ((x1 * x1 - x0 * x0) - 2.0 * (x1 - x0) * v[at])
        steps[1, at] = h[at] * ((b1 - b0) * v[at] - (x1 * b1 - x0 * b0))
        steps[2, at] = h[at] * (b1 * b1 - b0 * b0)


@helper
def choose(moments: Doubles, handicaps: Doubles, curves: Integers) -> None:
    """Sum up over the curves, keeping the first with the least error."""
    a = np.zeros(SLICE, np.float64)
    b = np.zeros(SLICE, np.float64)
    bend = np.zeros(SLICE, np.float64)
    least = np.full(SLICE, np.inf)
    # As doubles, the rows take as many lanes as the errors they are selected with.
    best_row = np.zeros(SLICE, np.float64)
    for row in range(CURVES):
        c = (row - LARGEST_CURVE) / LARGEST_CURVE
        handicap = handicaps[row]
        for lane in range(SLICE):
            a[lane] += moments[row, 0, lane]
            b[lane] += moments[row, 1, lane]
            bend[lane] += moments[row, 2, lane]
            error = a[lane] - c * (b[lane] + b[lane] - c * bend[lane]) + handicap
            better = error < least[lane]
            least[lane] = error if better else least[lane]
            best_row[lane] = np.float64(row) if better else best_row[lane]
    for lane in range(SLICE):
        curves[lane] = np.int32(best_row[lane]) - LARGEST_CURVE


GRID = Method(
    name="grid",
    encoder=curve_encoder(search_grid, nearest=ROUND_ROOT, name="grid"),
    cost=lambda parameters: 14.0,
    options=(Option("grid_size", CURVES, integer_from(2), "candidates to try"),),
    parameters=grid_handicaps,
)
