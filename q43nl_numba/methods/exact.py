"""The least error that 19 bytes allow, by branch and bound over everything they can store.

Scales and curves are a lattice: two signs, the 31,743 positive binary16 numbers, 256 curves. Once
both are chosen, each weight's best code is the one whose level is nearest, so a group's error is a
function of the lattice point, and its minimum over all points is the optimum. No real-valued scale
is ever rounded: subnormal and largest scales are points like any other.

A *box* is a sign, a range of scales [p0, p1] and a range of curves [c0, c1]. What follows is its
lower bound. Let p and c be the box's center, dp and dc half its width. A level p y, y = x + c b,
b = x^2 - x, moves within the box by at most::

    r = dp |y| + p1 dc |b|,    since p' y(c') - p y(c) = (p' - p) y(c) + p' (c' - c) b

and midpoints of two levels by the mean of their r. So a weight whose magnitude is farther than that
from the midpoints around it has one code all over the box: it is *settled*. Then:

- A weight that is not settled, but has the choice of two neighboring levels, is at least
  ``min(|a - level| - r)`` of the two away from the nearest; if there may be more, at least 0.
- The error of the settled weights is, in s = p' - p and t = p' (c' - c), a sum of squares of
  linear functions, hence convex, and not below its tangent plane at the center, where all e = a -
  level are known: ``sum e^2 - 2 |s| |sum e y| - 2 |t| |sum e b|``, where s is at most dp and t at
  most p1 dc in size.
- Code -8, on the side of zero that has it, need not lie beyond the others (below c = -7/8 it does
  not). So no order is assumed: with its distance e8 and reach r8, a weight takes it for certain if
  e8 + r8 is below the bound of all other codes, and may take it if e8 - r8 is below what they
  reach; then it is not settled.

A box whose bound is not below the least error known is dropped, another one is halved, the most
promising first, and a single point is decoded as a reader does. The bounds are computed in float32:
every r is enlarged, and every bound lowered (`_margin`), by more than rounding can amount to. As
the tangent plane misses only squares of the widths, boxes are dropped early: from a near-optimal
start it takes about 1,600 of them for a group of normal weights, instead of 10^7 points.

Scales beyond 98 times the largest magnitude need no box: the least positive level is 1/49 of the
scale, so that every weight is nearest to 0 there.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from .._jit import helper, inlined
from .._layout import (
    GROUP_SIZE,
    LARGEST_CURVE,
    MAX_SCALE,
    SCALE_MAGNITUDE,
    SCALE_SIGN,
    SMALLEST_NORMAL_SCALE,
    scale_bits_not_below,
    scale_of_bits,
)
from ..kernels.curve import SEVENTH, STEPS
from ..kernels.joint import OUTERMOST, SMALLEST_CURVE, decoded_level, joint_encoder
from ..kernels.tile import LANES, Doubles, Floats, Integers, ScaleBits
from .method import Method
from .optimal import CODES, PARAMETERS, Parameters, optimal_parameters, search_optimal

FIRST_EFFORT: Final = 6
"""Effort of the `optimal` method whose starts give the first known error."""

BOXES: Final = 64
"""Boxes bounded at once, side by side as lanes are elsewhere."""

MOST_BOXES: Final = 1 << 16
"""Boxes after which a group's search ends with the best that it has.

That takes 8 ms on one core, some 40 times as long as a group of normal weights with its 1,600
boxes. Without importance, it is the end for some groups with few weights besides 0, or with one
weight a hundred times the others; up to 95,000 boxes would prove what is found before (the total
error is the same to 10^-11). With importance that differs by factors of 10^10 and more within a
group no number is enough: the bounds are computed in float32.
"""

_DEEPEST: Final = 32
STACK: Final = 2 * BOXES * _DEEPEST
"""Room for boxes: a batch is taken from the top, so at most two batches lie at each depth, and no
box is halved more than 15 + 8 times."""

# Rows of the boxes: sign, first and last scale (its bits) and curve.
SIGN, SCALE_0, SCALE_1, CURVE_0, CURVE_1 = range(5)
BOX_ROWS: Final = 5

# Rows of what is computed of each box. Levels and reaches are j (row + j next row).
LEVEL, LEVEL_BEND, REACH, REACH_BEND, LEVEL_8, REACH_8, SPAN, TURN = range(8)
ERROR, ALONG_SCALE, ALONG_CURVE = 8, 9, 10
ROWS: Final = 11

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_HALF: Final = np.float32(0.5)
_49TH: Final = np.float32(1 / 49)
_127: Final = np.float32(127)
_8_X: Final = np.float32(8 / 7)
_8_B: Final = np.float32(64 / 49 - 8 / 7)
_ROUNDING: Final = np.float32(4e-6)
_TWO_NEIGHBORS: Final = np.float32(1.5)
_FARTHEST_SCALE: Final = np.float32(99)
# Root mean squares of y and b: how much a step in the scale or the curve moves the levels.
_MEAN_Y: Final = np.float32(0.6)
_MEAN_B: Final = np.float32(0.17)


@inlined
def search_exact(
    weights: Floats,
    importance: Floats,
    normalized: Floats,
    absmax: Floats,
    parameters: Parameters,
    scale_bits: ScaleBits,
    curves: Integers,
    errors: Doubles,
) -> None:
    """Improve on what `optimal` finds, until nothing can be better."""
    search_optimal(weights, importance, normalized, absmax, parameters, scale_bits, curves, errors)
    stack = np.empty((BOX_ROWS, STACK), np.int32)
    group = np.empty((3, GROUP_SIZE), np.float32)
    for lane in range(LANES):
        if absmax[lane] > 0:
            for i in range(GROUP_SIZE):
                group[0, i] = weights[i, lane]
                group[1, i] = importance[i, lane]
                group[2, i] = normalized[i, lane]
            scale_bits[lane], curves[lane], errors[lane], _ = branch_and_bound(
                group[0], group[1], group[2], absmax[lane], parameters.full,
                scale_bits[lane], curves[lane], errors[lane], stack,
            )  # fmt: skip


@inlined
def branch_and_bound(
    weights: Floats,
    importance: Floats,
    normalized: Floats,
    absmax: np.float32,
    full: bool,
    scale_bits: np.uint32,
    curve: np.int32,
    error: float,
    stack: Integers,
) -> Any:
    """Return scale bits, curve and error of a group's optimum, and how many boxes were bounded.

    Parameters
    ----------
    weights, importance, normalized : float32[GROUP_SIZE]
    absmax : float32
    full : bool
    scale_bits, curve, error
        What is known already.
    stack : int32[BOX_ROWS, STACK]
        Overwritten.
    """
    bounds = np.empty(BOXES, np.float32)
    order = np.empty(BOXES, np.int32)
    unit = np.float64(absmax) * np.float64(absmax)
    energy = energy_of(normalized, importance)
    count = set_roots(absmax, full, side_of(normalized), stack)
    bounded = 0
    while count > 0 and error > 0 and bounded < MOST_BOXES:
        taken = min(count, BOXES)
        count -= taken
        bounded += taken
        batch = stack[:, count : count + taken].copy()
        bound(batch, normalized, importance, absmax, full, bounds)
        limit = error / unit
        promising = set_order(bounds, taken, limit + _margin(limit, energy), order)
        for place in range(promising):
            box = order[place]
            limit = error / unit
            if bounds[box] >= limit + _margin(limit, energy):
                continue
            if (
                batch[SCALE_0, box] < batch[SCALE_1, box]
                or batch[CURVE_0, box] < batch[CURVE_1, box]
            ):
                count = push_halves(batch, box, stack, count)
                continue
            tried = np.uint32(batch[SCALE_0, box])
            tried = tried | SCALE_SIGN if batch[SIGN, box] < 0 else tried
            found = decoded_error(weights, importance, full, tried, batch[CURVE_0, box])
            if found < error:
                scale_bits, curve, error = tried, batch[CURVE_0, box], found
    return scale_bits, curve, error, bounded


@helper
def set_order(bounds: Floats, count: int, limit: float, order: Integers) -> int:
    """Write the numbers of the boxes whose bounds are below a limit; return how many there are.

    Bounds descend. What comes last is halved first: so the optimum of a hard group is found early.
    """
    below = 0
    for box in range(count):
        if bounds[box] < limit:
            place = below
            while place > 0 and bounds[order[place - 1]] < bounds[box]:
                order[place] = order[place - 1]
                place -= 1
            order[place] = box
            below += 1
    return below


@helper
def energy_of(normalized: Floats, importance: Floats) -> float:
    """Return the error of a group of zeros, in units of the squared absmax."""
    energy = 0.0
    for i in range(GROUP_SIZE):
        v = np.float64(normalized[i])
        energy += np.float64(importance[i]) * (v * v)
    return energy


@helper
def _margin(error: float, energy: float) -> float:
    """Return more than rounding can lift a bound above an error as decoded.

    A level computed here, or decoded, is within 2 10^-6 of its true value: a few roundings to
    2^-24 of it, in c enlarged at most sevenfold (code 1 at c = 1). A settled weight's level is at
    most twice its magnitude, so the vector of the e is off by at most 4 10^-6 times that of the
    weights, and the error by twice that times sqrt(error energy), and its square. The sums of 32
    terms add less than 10^-5 of the error. Unsettled weights are covered by the enlarged reaches.
    """
    return float(1e-5 * error + 8e-6 * np.sqrt(error * energy) + 16e-12 * energy)


@helper
def set_roots(absmax: np.float32, full: bool, side: int, stack: Integers) -> int:
    """Put the boxes that hold all pairs on the stack; return their number.

    Subnormal scales, of which readers lose the sign, are in a box of their own. The other two are
    in the order that `side` says, so that a negated group is searched in the mirrored order.
    """
    last = np.int32(scale_bits_not_below(min(_FARTHEST_SCALE * absmax, np.float32(MAX_SCALE))))
    normal = np.int32(SMALLEST_NORMAL_SCALE)
    count = push_root(1, 1, min(last, normal - np.int32(1)), full, stack, 0)
    for sign in (-side, side):
        if full or sign > 0:
            count = push_root(sign, normal, last, full, stack, count)
    return count


@helper
def push_root(sign: int, first: Any, last: Any, full: bool, stack: Integers, count: int) -> int:
    """Put the box of all curves and a range of scales, which may be empty, on the stack."""
    if last < first:
        return count
    stack[SIGN, count] = sign
    stack[SCALE_0, count] = first
    stack[SCALE_1, count] = last
    stack[CURVE_0, count] = SMALLEST_CURVE if full else -LARGEST_CURVE
    stack[CURVE_1, count] = LARGEST_CURVE
    return count + 1


@helper
def side_of(normalized: Floats) -> int:
    """Return the sign of the first weight that is not 0, 1 if there is none."""
    for i in range(GROUP_SIZE):
        if normalized[i] != 0:
            return 1 if normalized[i] > 0 else -1
    return 1


@helper
def push_halves(batch: Integers, box: int, stack: Integers, count: int) -> int:
    """Put the scale_bits of a box on the stack, split where its levels move more; the new count."""
    p0 = scale_of_bits(np.uint32(batch[SCALE_0, box]))
    p1 = scale_of_bits(np.uint32(batch[SCALE_1, box]))
    curves = batch[CURVE_1, box] - batch[CURVE_0, box]
    turn = p1 * np.float32(curves) / _127
    bend = (curves > 0 and _MEAN_B * turn > _MEAN_Y * (p1 - p0)) or p0 == p1
    low, high = (CURVE_0, CURVE_1) if bend else (SCALE_0, SCALE_1)
    middle = (batch[low, box] + batch[high, box]) >> 1
    for row in range(BOX_ROWS):
        stack[row, count] = batch[row, box]
        stack[row, count + 1] = batch[row, box]
    stack[high, count] = middle
    stack[low, count + 1] = middle + 1
    return count + 2


@helper
def bound(
    batch: Integers,
    normalized: Floats,
    importance: Floats,
    absmax: np.float32,
    full: bool,
    bounds: Floats,
) -> None:
    """Write lower bounds of the boxes' errors, in units of the squared absmax: see the module.

    Parameters
    ----------
    batch : int32[BOX_ROWS, boxes]
    normalized, importance : float32[GROUP_SIZE]
    absmax : float32
    full : bool
    bounds : float32[BOXES]
        Overwritten; those beyond the batch mean nothing.
    """
    # The compiler knows the strides of arrays that are made here: loops over boxes become vectors.
    values = np.empty((ROWS, BOXES), np.float32)
    sign = np.empty(BOXES, np.float32)
    low = np.empty((STEPS, BOXES), np.float32)
    high = np.empty((STEPS, BOXES), np.float32)
    for box in range(BOXES):
        at = min(box, batch.shape[1] - 1)
        sign[box] = np.float32(batch[SIGN, at])
        p0 = scale_of_bits(np.uint32(batch[SCALE_0, at])) / absmax
        p1 = scale_of_bits(np.uint32(batch[SCALE_1, at])) / absmax
        c0, c1 = np.float32(batch[CURVE_0, at]) / _127, np.float32(batch[CURVE_1, at]) / _127
        p, dp = _HALF * (p0 + p1), _HALF * (p1 - p0)
        c, dc = _HALF * (c0 + c1), _HALF * (c1 - c0)
        turn = p1 * dc
        values[LEVEL, box] = p * (_ONE - c) * SEVENTH
        values[LEVEL_BEND, box] = p * c * _49TH
        values[LEVEL_8, box] = p * (_8_X + c * _8_B)
        values[SPAN, box] = dp / p
        values[TURN, box] = turn
        dp = dp + _ROUNDING * p1
        turn = turn + _ROUNDING * turn
        values[REACH, box] = (dp * (_ONE - c) + turn) * SEVENTH
        values[REACH_BEND, box] = (dp * c - turn) * _49TH
        values[REACH_8, box] = dp * (_8_X + c * _8_B) + turn * _8_B
    for k in range(STEPS):
        j0, j1 = np.float32(k), np.float32(k + 1)
        for box in range(BOXES):
            level, bend = values[LEVEL, box], values[LEVEL_BEND, box]
            reach, reach_bend = values[REACH, box], values[REACH_BEND, box]
            center = _HALF * (j0 * (level + j0 * bend) + j1 * (level + j1 * bend))
            moves = _HALF * (j0 * (reach + j0 * reach_bend) + j1 * (reach + j1 * reach_bend))
            low[k, box] = center - moves
            high[k, box] = center + moves
    for row in (ERROR, ALONG_SCALE, ALONG_CURVE):
        for box in range(BOXES):
            values[row, box] = _ZERO
    for i in range(GROUP_SIZE):
        a = abs(normalized[i])
        signed = normalized[i] if full else _ZERO
        h = importance[i]
        for box in range(BOXES):
            # The least and the greatest code that the weight may have in the box, but for code 8.
            j0 = codes_passed(a, high, box)
            j1 = codes_passed(a, low, box)
            level, bend = values[LEVEL, box], values[LEVEL_BEND, box]
            reach, reach_bend = values[REACH, box], values[REACH_BEND, box]
            level0 = j0 * (level + j0 * bend)
            reach0 = j0 * (reach + j0 * reach_bend)
            reach1 = j1 * (reach + j1 * reach_bend)
            e0, e8 = a - level0, a - values[LEVEL_8, box]
            far0, far1 = abs(e0), abs(a - j1 * (level + j1 * bend))
            far8, reach8 = abs(e8), values[REACH_8, box]
            least = max(min(far0 - reach0, far1 - reach1), _ZERO)
            least = _ZERO if j1 - j0 > _TWO_NEIGHBORS else least
            one = j0 == j1
            has8 = signed * sign[box] < 0
            is8 = has8 and far8 + reach8 < least
            may8 = has8 and (far8 - reach8 < far0 + reach0 or not one)
            least = max(min(least, far8 - reach8), _ZERO) if may8 else least
            settled = is8 or (one and not may8)
            e = e8 if is8 else e0
            j = np.float32(OUTERMOST) if is8 else j0
            values[ERROR, box] += h * (e * e if settled else least * least)
            slope = h * e if settled else _ZERO
            values[ALONG_SCALE, box] += slope * (values[LEVEL_8, box] if is8 else level0)
            values[ALONG_CURVE, box] += slope * (j * (j * _49TH - SEVENTH))
    for box in range(batch.shape[1]):
        along_scale = abs(values[ALONG_SCALE, box]) * values[SPAN, box]  # y is level / p
        along_curve = abs(values[ALONG_CURVE, box]) * values[TURN, box]
        bounds[box] = values[ERROR, box] - np.float32(2) * (along_scale + along_curve)


@helper
def codes_passed(magnitude: np.float32, midpoints: Floats, box: int) -> np.float32:
    """Return how many midpoints lie below a magnitude."""
    code = _ZERO
    code += _ONE if magnitude > midpoints[0, box] else _ZERO
    code += _ONE if magnitude > midpoints[1, box] else _ZERO
    code += _ONE if magnitude > midpoints[2, box] else _ZERO
    code += _ONE if magnitude > midpoints[3, box] else _ZERO
    code += _ONE if magnitude > midpoints[4, box] else _ZERO
    code += _ONE if magnitude > midpoints[5, box] else _ZERO
    code += _ONE if magnitude > midpoints[6, box] else _ZERO
    return code


@helper
def decoded_error(
    weights: Floats, importance: Floats, full: bool, scale_bits: np.uint32, curve: np.int32
) -> float:
    """Return the error of a group as decoded, in the arithmetic of `joint.take_better`."""
    scale = scale_of_bits(np.uint32(scale_bits & SCALE_MAGNITUDE))
    levels = np.empty(OUTERMOST + 1, np.float64)
    for code in range(OUTERMOST + 1):
        levels[code] = np.float64(decoded_level(code, scale, curve))
    error = 0.0
    for i in range(GROUP_SIZE):
        w = np.float64(weights[i])
        size = abs(w)
        e = size
        for code in range(1, OUTERMOST):
            e = min(e, abs(size - levels[code]))
        mirrored = -w if scale_bits & SCALE_SIGN else w
        if full and mirrored < 0:
            e = min(e, abs(size - levels[OUTERMOST]))
        error += np.float64(importance[i]) * (e * e)
    return error


EXACT = Method(
    name="exact",
    encoder=joint_encoder(search_exact, name="exact", parameters=PARAMETERS),
    cost=lambda parameters: 2500.0,
    options=(CODES,),
    parameters=lambda codes: optimal_parameters(codes, FIRST_EFFORT),
    joint=True,
    eps_scale=0.0,
)
