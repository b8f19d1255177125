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
from ..kernels.tile import LANES_STEP, Doubles, Floats, Integers, weighted
from .method import Method, Option, integer_from

CURVES: Final = 2 * LARGEST_CURVE + 1
_MOST_CHANGES: Final = 3
_CODES: Final = 8
_MOMENTS: Final = 3

SLICE: Final = LANES_STEP
"""Lanes worked on at once: their sums over all curves stay in the L2 cache."""


def _change_tables() -> tuple[Doubles, Doubles]:
    """Return the changes of A, B and C at the step from code k to k + 1: constant + slope * v.

    A row a moment; the last column stands for "no change".
    """
    x = np.append(np.arange(_CODES) / 7.0, 1.0)
    b = x * x - x
    constant = np.stack([np.diff(x * x), -np.diff(x * b), np.diff(b * b)])
    slope = np.stack([-2.0 * np.diff(x), np.diff(b), np.zeros(_CODES)])
    return constant, slope


_CONSTANT, _SLOPE = _change_tables()


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
    """Enter the codes at c = -1, and each later change at the first curve beyond it."""
    rows = np.empty((_MOST_CHANGES, SLICE), np.int32)
    codes = np.empty(SLICE, np.int32)
    for i in range(GROUP_SIZE):
        for lane in range(SLICE):
            v = np.float64(magnitudes[i, start + lane])
            code = np.int32(0)
            for k in range(7):
                m = (k + 0.5) / 7.0
                code += np.int32(v > 2.0 * m - m * m)
            codes[lane] = code
            for change in range(_MOST_CHANGES):
                m = (code + change + 0.5) / 7.0
                row = np.ceil(LARGEST_CURVE * ((m - v) / (m - m * m))) + LARGEST_CURVE
                beyond = (code + change >= 7) or (row >= CURVES)
                rows[change, lane] = CURVES if beyond else np.int32(max(row, 0.0))
        for lane in range(SLICE):
            v = np.float64(magnitudes[i, start + lane])
            code = codes[lane]
            x = code / 7.0
            b = x * x - x
            at = start + lane
            moments[0, 0, lane] += weighted((v - x) * (v - x), importance, i, at)
            moments[0, 1, lane] += weighted((v - x) * b, importance, i, at)
            moments[0, 2, lane] += weighted(b * b, importance, i, at)
            for change in range(_MOST_CHANGES):
                row = rows[change, lane]
                k = min(code + change, 7)
                a_step = _CONSTANT[0, k] + _SLOPE[0, k] * v
                b_step = _CONSTANT[1, k] + _SLOPE[1, k] * v
                moments[row, 0, lane] += weighted(a_step, importance, i, at)
                moments[row, 1, lane] += weighted(b_step, importance, i, at)
                moments[row, 2, lane] += weighted(_CONSTANT[2, k], importance, i, at)


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
