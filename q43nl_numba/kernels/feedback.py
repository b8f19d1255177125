"""Error feedback: codes that make up for the rounding errors of the other weights of their row.

Let e = w - q be the errors of a row, and H the second moments of the inputs that it is multiplied
with. The row's *loss*, the error of its output, is e H e^T. With H + damping = (I + U) D (I + U)^T,
U strictly upper triangular and D diagonal, it is, damping included::

    sum over columns k of D_k (e_k + sum over i < k of e_i U_ik)^2

So columns are taken in order, and each is rounded from its *target* w_k + sum e_i U_ik instead of
its weight: it makes up for the errors of the columns before it as far as the inputs' correlation
allows, and what its own rounding leaves counts D_k. (This is LDLQ: Chee et al., "QuIP: 2-bit
quantization of large language models with guarantees", 2023, arXiv:2307.13304; they show that it is
the same as GPTQ: Frantar et al., 2023, arXiv:2210.17323, where D_k is 1 / diag(Cholesky factor of
the inverse)^2. That weights make up for the error of another one is from Hassibi and Stork, "Second
order derivatives for network pruning: optimal brain surgeon", 1993.)

The method chooses a group's scale and curve for the group's *centers*, which are its targets if
its own columns left no errors, with D for the importance. With these, the group's columns are
rounded one after another. Then two kinds of steps lower the loss, which within a group is a
quadratic function of the errors, given by a *metric* (32 x 32) and a gradient:

- a code is moved to the level next to the loss' minimum along its weight;
- scale and curve are refitted to the codes: with q = p x + t b, x = code / 7, b = x |x| - x, scale
  p and t = p c, the loss is quadratic in (p, t), and the best of four storable pairs around its
  minimum is taken.

In the first pass, a group is refined as if all later columns could still make up for it: its metric
is its part of (I + U) D (I + U)^T. *Sweeps* refine group after group with all other columns as they
are: the metric is a part of H. A step that does not lower the loss is not taken. Most of a sweep's
time goes into the gradients' part that columns far away make up, so each section of `SECTION`
columns is visited twice for one sum over the columns outside.

Measured on 256 rows of 512 correlated columns, in units of the loss with importance alone: rounding
only 0.225 (with groups in order of their inputs' moments 0.220), with the group refined once 0.205,
twice 0.203; after one sweep of single visits 0.174, with two visits to sections of 128 columns
0.172, of 256 columns 0.170, of 512 columns 0.169; after two sweeps with those 0.167. What made no
difference of more than 0.001: rounding groups anew with feedback in the sweeps, sweeps from the
last group to the first, another order of columns within groups, damping of 0.0001, effort 9 of
`optimal` instead of 2. With the scales and curves that the weights had before feedback, refitted,
it is 0.188 instead of 0.174.

Arrays of rows have shape ``[blocks, columns, LANES]``: a block is `LANES` rows, one a lane. Rows do
not depend on each other, so threads share the blocks. Numbers are float32; the loss of each row is
tracked as the sum of what the steps change, with a relative error of about 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._jit import TileFunction, fma, helper, overload, prange, types
from .._kernel import Kernel
from .._layout import (
    CURVE_AT,
    GROUP_BYTES,
    GROUP_SIZE,
    LARGEST_CURVE,
    LARGEST_SCALE,
    MAX_SCALE,
    NIBBLE_OF_ZERO,
    SCALE_AT,
    SCALE_MAGNITUDE,
    SCALE_SIGN,
    SMALLEST_NORMAL_SCALE,
    scale_bits_not_below,
    scale_of_bits,
)
from .curve import STEPS, c_of_curve, level, x_of_code
from .encode import ENCODED
from .factor import TERMS, add_product
from .joint import OUTERMOST, SMALLEST_CURVE
from .quadratic import Quadratic
from .tile import LANES, Bytes, Codes, Doubles, Floats, Integers, ScaleBits

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_HALF: Final = np.float32(0.5)
_NEVER: Final = np.float32(1e30)
_TURNS: Final = 2
"""How often a group is refitted and its codes are moved."""

SECTION: Final = 16 * GROUP_SIZE
"""Columns that a sweep visits twice for one sum over the others."""
VISITS: Final = 2

_COLLINEAR: Final = 1e-5
"""Share of the determinant below which x and b of a group's codes are one direction."""

DOUBT: Final = 2e-5
_ROUNDING: Final = 2.0**-20
"""Largest error of a tracked loss, relative to it and to the products of weights and errors."""


class Levels(NamedTuple):
    """What a group's scale and curve say about its levels, in each lane."""

    scales: Floats
    """Magnitudes of the scales, float32[LANES]."""
    signs: Floats
    """Their signs, float32[LANES] of 1 and -1."""
    cs: Floats
    """The curves' c, float32[LANES]."""
    midpoints: Floats
    """Between the magnitudes of the levels 0 to 7, float32[STEPS, LANES]; infinite at scale 0."""
    outermost: Floats
    """Magnitude of level -8, out of reach unless it is allowed."""


class Group(NamedTuple):
    """A group of each lane's row, while its codes are chosen."""

    bits: ScaleBits
    """Of the scales, uint32[LANES]."""
    curves: Integers
    codes: Floats
    """float32[GROUP_SIZE, LANES]."""
    decoded: Floats
    """What the codes decode to."""
    gradient: Floats
    """Half the derivative of the loss by the errors of the group's weights."""
    change: Floats
    """What the steps so far changed the loss by, float32[LANES]."""


@helper
def new_levels() -> Levels:
    """Return uninitialized memory for levels."""
    return Levels(
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty((STEPS, LANES), np.float32),
        np.empty(LANES, np.float32),
    )


@helper
def new_group(bits: ScaleBits, curves: Integers) -> Group:
    """Return memory for a group; its scale bits and curves are written to the arrays given."""
    return Group(
        bits,
        curves,
        np.empty((GROUP_SIZE, LANES), np.float32),
        np.empty((GROUP_SIZE, LANES), np.float32),
        np.zeros((GROUP_SIZE, LANES), np.float32),
        np.zeros(LANES, np.float32),
    )


@helper
def set_levels(bits: ScaleBits, curves: Integers, full: bool, levels: Levels) -> None:
    """Write the levels of scales and curves; of code -8, too, where all codes are allowed."""
    for lane in range(LANES):
        scale = scale_of_bits(np.uint32(bits[lane] & SCALE_MAGNITUDE))
        levels.scales[lane] = scale
        levels.signs[lane] = -_ONE if bits[lane] & SCALE_SIGN else _ONE
        levels.cs[lane] = c_of_curve(curves[lane])
        outermost = level_of(np.float32(OUTERMOST), scale, levels.cs[lane])
        levels.outermost[lane] = outermost if full and scale > 0 else _NEVER
    for k in range(STEPS):
        for lane in range(LANES):
            scale, c = levels.scales[lane], levels.cs[lane]
            lower = level_of(np.float32(k), scale, c)
            upper = level_of(np.float32(k + 1), scale, c)
            midpoint = np.float32(_HALF * np.float32(lower + upper))
            levels.midpoints[k, lane] = midpoint if scale > 0 else np.float32(np.inf)


@helper
def level_of(code: np.float32, scale: np.float32, c: np.float32) -> np.float32:
    """Return what a code decodes to, bit for bit: code and scale with their signs."""
    return np.float32(level(x_of_code(code), c) * scale)


@helper
def nearest(value: np.float32, levels: Levels, lane: int) -> tuple[np.float32, np.float32]:
    """Return the code whose level is nearest to a value, and the level."""
    mirrored = value * levels.signs[lane]
    size = abs(value)
    code = _ZERO
    for k in range(STEPS):
        code += _ONE if size > levels.midpoints[k, lane] else _ZERO
    level = level_of(code, levels.scales[lane], levels.cs[lane])
    outermost = levels.outermost[lane]
    outer = mirrored < 0 and abs(size - outermost) < abs(size - level)
    code = np.float32(OUTERMOST) if outer else code
    level = outermost if outer else level
    return (-code if mirrored < 0 else code), (-level if value < 0 else level)


# --- steps that lower the loss ---------------------------------------------------------------


@helper
def refine(metric: Floats, full: bool, levels: Levels, group: Group) -> None:
    """Refit scales and curves and move the codes, by turns. The gradient is lost."""
    for turn in range(_TURNS):
        refit(metric, full, levels, group)
        move_codes(metric, levels, group, turn + 1 < _TURNS)


@helper
def move_codes(metric: Floats, levels: Levels, group: Group, go_on: bool) -> None:
    """Move each code to the level next to the loss' minimum; `go_on`: keep the gradient valid."""
    step = np.empty(LANES, np.float32)
    for j in range(GROUP_SIZE):
        curvature = metric[j, j]
        if not curvature > 0:
            continue
        inverse = _ONE / curvature
        for lane in range(LANES):
            slope = group.gradient[j, lane]
            old = group.decoded[j, lane]
            code, new = nearest(fma(slope, inverse, old), levels, lane)
            moved = old - new
            change = moved * (slope + slope + curvature * moved)
            lower = change < 0
            step[lane] = moved if lower else _ZERO
            group.change[lane] += change if lower else _ZERO
            group.decoded[j, lane] = new if lower else old
            group.codes[j, lane] = code if lower else group.codes[j, lane]
        for i in range(0 if go_on else j + 1, GROUP_SIZE):
            coupling = metric[j, i]
            for lane in range(LANES):
                group.gradient[i, lane] = fma(coupling, step[lane], group.gradient[i, lane])


@helper
def refit(metric: Floats, full: bool, levels: Levels, group: Group) -> None:
    """Take the best storable scale and curve for the codes, where they lower the loss."""
    # The errors change by -(dp x + dt b), the loss by its slopes and bends along x and b.
    x = np.empty((GROUP_SIZE, LANES), np.float32)
    b = np.empty((GROUP_SIZE, LANES), np.float32)
    metric_x = np.zeros((GROUP_SIZE, LANES), np.float32)
    metric_b = np.zeros((GROUP_SIZE, LANES), np.float32)
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            value = x_of_code(group.codes[i, lane])
            x[i, lane] = value
            b[i, lane] = value * abs(value) - value
    add_product(metric, x, metric_x)
    add_product(metric, b, metric_b)
    sums = np.zeros((5, LANES), np.float32)
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            slope = group.gradient[i, lane]
            sums[0, lane] += x[i, lane] * metric_x[i, lane]
            sums[1, lane] += b[i, lane] * metric_x[i, lane]
            sums[2, lane] += b[i, lane] * metric_b[i, lane]
            sums[3, lane] += x[i, lane] * slope
            sums[4, lane] += b[i, lane] * slope
    bits = np.empty(LANES, np.uint32)
    curves = np.empty(LANES, np.int32)
    choose_storable(sums, full, levels, group, bits, curves)
    take_where_lower(metric_x, metric_b, bits, curves, levels, group)
    set_levels(group.bits, group.curves, full, levels)


@helper
def choose_storable(
    sums: Floats, full: bool, levels: Levels, group: Group, bits: ScaleBits, curves: Integers
) -> None:
    """Write the best of the storable pairs around the loss' minimum, given its bends and slopes.

    That is, of the two curves next to the best one the two scales next to the best for that curve.
    Where none is better, the present pair. Scales keep their sign.
    """
    least_curve = float(SMALLEST_CURVE if full else -LARGEST_CURVE)
    for lane in range(LANES):
        xx, xb = np.float64(sums[0, lane]), np.float64(sums[1, lane])
        bb = np.float64(sums[2, lane])
        slope_x, slope_b = np.float64(sums[3, lane]), np.float64(sums[4, lane])
        sign, c = np.float64(levels.signs[lane]), np.float64(levels.cs[lane])
        p = sign * np.float64(levels.scales[lane])
        t = p * c
        # Slopes at p = t = 0, from where the best pair is the solution of a linear system.
        from_x = slope_x + p * xx + t * xb
        from_b = slope_b + p * xb + t * bb
        determinant = xx * bb - xb * xb
        best_p = from_x * bb - from_b * xb
        best_t = from_b * xx - from_x * xb
        solved = determinant > _COLLINEAR * xx * bb and best_p * sign > 0
        best_c = best_t / best_p if solved else c
        below = np.floor(min(max(LARGEST_CURVE * best_c, least_curve), float(LARGEST_CURVE)))
        best = 0.0
        bits[lane] = group.bits[lane]
        curves[lane] = group.curves[lane]
        for trial in range(4):
            curve = min(below + (trial >> 1), float(LARGEST_CURVE))
            c = curve / LARGEST_CURVE
            bend = xx + c * (2.0 * xb + c * bb)
            wanted = sign * (from_x + c * from_b) / bend if bend > 0 else 0.0
            tried = scale_bits_not_below(np.float32(min(max(wanted, 0.0), MAX_SCALE)))
            tried = np.uint32(tried - np.uint32(1)) if (trial & 1) and tried > 0 else tried
            new_p = sign * np.float64(scale_of_bits(tried))
            dp, dt = new_p - p, new_p * c - t
            change = dp * (dp * xx + 2.0 * (dt * xb - slope_x)) + dt * (dt * bb - 2.0 * slope_b)
            least = SMALLEST_NORMAL_SCALE if sign < 0 else np.uint32(1)
            better = change < best and least <= tried and tried <= LARGEST_SCALE and p != 0
            best = change if better else best
            signed = np.uint32(tried | SCALE_SIGN) if sign < 0 else tried
            bits[lane] = signed if better else bits[lane]
            curves[lane] = np.int32(curve) if better else curves[lane]


@helper
def take_where_lower(
    metric_x: Floats,
    metric_b: Floats,
    bits: ScaleBits,
    curves: Integers,
    levels: Levels,
    group: Group,
) -> None:
    """Take new scales and curves in the lanes where the decoded weights have less loss."""
    decoded = np.empty((GROUP_SIZE, LANES), np.float32)
    turned = np.empty((GROUP_SIZE, LANES), np.float32)
    change = np.zeros(LANES, np.float32)
    scales = np.empty(LANES, np.float32)
    cs = np.empty(LANES, np.float32)
    dp = np.empty(LANES, np.float32)
    dt = np.empty(LANES, np.float32)
    for lane in range(LANES):
        scales[lane] = scale_of_bits(np.uint32(bits[lane] & SCALE_MAGNITUDE)) * levels.signs[lane]
        cs[lane] = c_of_curve(curves[lane])
        old = levels.scales[lane] * levels.signs[lane]
        dp[lane] = scales[lane] - old
        dt[lane] = scales[lane] * cs[lane] - old * levels.cs[lane]
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            decoded[i, lane] = level_of(group.codes[i, lane], scales[lane], cs[lane])
            turned[i, lane] = -(dp[lane] * metric_x[i, lane] + dt[lane] * metric_b[i, lane])
            slope = group.gradient[i, lane]
            moved = group.decoded[i, lane] - decoded[i, lane]
            change[lane] += moved * (slope + slope + turned[i, lane])
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            lower = change[lane] < 0
            group.gradient[i, lane] += turned[i, lane] if lower else _ZERO
            group.decoded[i, lane] = decoded[i, lane] if lower else group.decoded[i, lane]
    for lane in range(LANES):
        lower = change[lane] < 0
        group.change[lane] += change[lane] if lower else _ZERO
        group.bits[lane] = bits[lane] if lower else group.bits[lane]
        group.curves[lane] = curves[lane] if lower else group.curves[lane]


@helper
def finish(
    first: int, weights: Floats, group: Group, errors: Floats, codes: Codes, loss: Doubles
) -> None:
    """Enter a group's codes and errors into a block, and the change of the loss."""
    for j in range(GROUP_SIZE):
        for lane in range(LANES):
            codes[first + j, lane] = np.int8(group.codes[j, lane])
            errors[first + j, lane] = weights[first + j, lane] - group.decoded[j, lane]
    for lane in range(LANES):
        loss[lane] += np.float64(group.change[lane])


# --- the first pass --------------------------------------------------------------------------


class Rows(NamedTuple):
    """Some rows of a tensor, and their codes so far."""

    weights: Floats
    """float32[blocks, columns, LANES]."""
    errors: Floats
    """Weight minus decoded weight, of the same shape."""
    codes: Codes
    """int8, of the same shape."""
    bits: ScaleBits
    """uint32[blocks, groups, LANES]."""
    curves: Integers
    """int32[blocks, groups, LANES]."""
    loss: Doubles
    """Of each row, undamped, float64[blocks, LANES]."""
    steps: Integers
    """How many steps of `steps_of` were taken with each block, int32[blocks].

    Neither kernels nor tile functions can raise: where memory runs out in them, they end without a
    count.
    """


def steps_of(groups: int, sweeps: int) -> int:
    """Return the steps that a block takes: visits to groups, and the comparison at the end."""
    return groups * (1 + VISITS * sweeps) + 1


def _improve_rows(
    multiply: Callable[..., None],
    visit: Callable[..., None],
    encode_tile: Callable[..., None],
    statistics: Any,
    parameters: Any,
    eps_scale: float,
    quadratic: Quadratic,
    full: bool,
    sweeps: int,
    steps: int,
    weights: Floats,
    rows: Rows,
    packed: Bytes,
) -> None:
    """Overwrite the packed rows that error feedback makes better.

    Parameters
    ----------
    multiply, visit : compiled functions
        `add_terms` and `visit_group`.
    encode_tile : compiled function
        What a method's `Encoder` does with one tile, with importance.
    statistics : float32[n, rows groups] or None
        Those of the weights, for a method that takes them. (They say where to start a search. For
        that, the weights as they were will do.)
    parameters, eps_scale
        As for `encode_tile`.
    quadratic : Quadratic
    full : bool
        Whether all codes are allowed.
    sweeps : int
    steps : int
        As `steps_of` has it. A block that took fewer is left as it was.
    weights : float32[rows, columns]
    rows : Rows
        Zeros in `loss` and `steps`; the rest is overwritten.
    packed : uint8[rows * groups * GROUP_BYTES]
        The rows by another way.
    """
    for number in prange(rows.loss.shape[0]):
        block: Any = np.int64(number)  # the loop's own is unsigned
        load_block(weights, quadratic.order, block, rows.weights[block])
        feed_back_block(
            multiply, visit, encode_tile, statistics, parameters, eps_scale, quadratic, full, block,
            rows,
        )  # fmt: skip
        for _ in range(sweeps):
            sweep_block(multiply, visit, quadratic, full, block, rows)
        store_better_rows(multiply, quadratic, block, weights.shape[0], steps, rows, packed)


@helper
def load_block(weights: Floats, order: Integers, block: int, tiles: Floats) -> None:
    """Lay a block of rows out, float32[columns, LANES]: zeros for rows that there are not."""
    count = min(LANES, weights.shape[0] - block * LANES)
    for k in range(tiles.shape[0]):
        for lane in range(count, LANES):
            tiles[k, lane] = _ZERO
    for g in range(order.size):
        column = order[g] * GROUP_SIZE
        for lane in range(count):
            for i in range(GROUP_SIZE):
                weight = weights[block * LANES + lane, column + i]
                tiles[g * GROUP_SIZE + i, lane] = weight


def add_terms(left: Floats, right: Floats, result: Floats) -> None:
    """Add a product of any number of terms to a result; see `add_product`."""
    for k in range(0, right.shape[0], TERMS):
        add_product(left[:, k : k + TERMS], right[k : k + TERMS], result)


@helper
def feed_back_block(
    multiply: Callable[..., None],
    visit: Callable[..., None],
    encode_tile: Callable[..., None],
    statistics: Any,
    parameters: Any,
    eps_scale: float,
    quadratic: Quadratic,
    full: bool,
    block: int,
    rows: Rows,
) -> None:
    """Choose the codes of a block of rows, group by group; parameters as for `_improve_rows`."""
    targets = np.empty((GROUP_SIZE, LANES), np.float32)
    center = np.empty((GROUP_SIZE, LANES), np.float32)
    centers = np.empty(LANES * GROUP_SIZE, np.float32)
    importance = np.empty(LANES * GROUP_SIZE, np.float32)
    packed = np.zeros(LANES * GROUP_BYTES, np.uint8)
    status = np.zeros(1, np.uint8)
    weights, errors = rows.weights[block], rows.errors[block]
    for g in range(quadratic.order.size):
        first, stop = g * GROUP_SIZE, (g + 1) * GROUP_SIZE
        targets[:] = weights[first:stop]
        multiply(quadratic.feedback[first:stop, :first], errors[:first], targets)
        set_centers(g, quadratic.feedback, weights, targets, center, centers)
        for lane in range(LANES):
            for i in range(GROUP_SIZE):
                importance[lane * GROUP_SIZE + i] = quadratic.importance[first + i]
        own = statistics_of(statistics, block, g, quadratic.order)
        status[0] = 0  # not that of the group before: where memory runs out, none is written
        encode_tile(centers, importance, own, parameters, eps_scale, packed, status, np.int64(0))
        if status[0] != ENCODED:
            return
        visit(g, block, first, first, targets, packed, quadratic, full, rows)


def statistics_of(statistics: Any, block: int, g: int, order: Integers) -> Any:
    """Return the statistics of a group of each lane's row, float32[n, LANES]; of None, None."""
    return None if statistics is None else _array_statistics(statistics, block, g, order)


def _array_statistics(statistics: Any, block: int, g: int, order: Integers) -> Any:
    own = np.zeros((statistics.shape[0], LANES), np.float32)
    first = block * LANES * order.size + order[g]
    for row in range(statistics.shape[0]):
        for lane in range(LANES):
            at = first + lane * order.size
            if at < statistics.shape[1]:
                own[row, lane] = statistics[row, at]
    return own


def _no_statistics(statistics: Any, block: int, g: int, order: Integers) -> Any:
    return None


@overload(statistics_of)
def _compiled_statistics_of(statistics: Any, block: int, g: int, order: Integers) -> Any:
    """Decide by type: else, what is compiled for an array returns an array or None."""
    return _no_statistics if isinstance(statistics, types.NoneType) else _array_statistics


@helper
def set_centers(
    g: int, feedback: Floats, weights: Floats, targets: Floats, center: Floats, centers: Floats
) -> None:
    """Write a group's centers as they are computed, and row by row: float32[LANES * GROUP_SIZE]."""
    first = g * GROUP_SIZE
    center[:] = targets
    for j in range(GROUP_SIZE):
        for i in range(j + 1, GROUP_SIZE):
            share = feedback[first + i, first + j]
            for lane in range(LANES):
                moved = weights[first + j, lane] - center[j, lane]
                center[i, lane] = fma(share, moved, center[i, lane])
    limit = np.float32(MAX_SCALE)
    for lane in range(LANES):
        for i in range(GROUP_SIZE):
            # Within what can be stored, as the weight itself is.
            weight = weights[first + i, lane]
            nearest_storable = min(max(center[i, lane], min(weight, -limit)), max(weight, limit))
            centers[lane * GROUP_SIZE + i] = nearest_storable


def visit_group(
    g: int,
    block: int,
    start: int,
    stop: int,
    given: Floats,
    packed: Bytes,
    quadratic: Quadratic,
    full: bool,
    rows: Rows,
) -> None:
    """Choose a group's codes for the first time, or refine them with all others as they are.

    Parameters
    ----------
    g, block : int
    start, stop : int
        The columns whose part of the gradient is missing in `given`; none for the first time.
    given : float32[GROUP_SIZE, LANES]
        For the first time the group's targets, which are overwritten. Later, its gradient as far as
        the columns outside decide.
    packed : uint8[LANES * GROUP_BYTES]
        Scales and curves for the first time.
    quadratic : Quadratic
    full : bool
        Whether all codes are allowed.
    rows : Rows
    """
    first = g * GROUP_SIZE
    weights, errors, codes = rows.weights[block], rows.errors[block], rows.codes[block]
    group = new_group(rows.bits[block, g], rows.curves[block, g])
    levels = new_levels()
    metric = np.empty((GROUP_SIZE, GROUP_SIZE), np.float32)
    if start == stop:
        metric[:] = quadratic.metrics[g]
        read_scales(packed, group)
        set_levels(group.bits, group.curves, full, levels)
        round_group(first, quadratic, levels, given, weights, group)
    else:
        metric[:] = quadratic.hessian[first : first + GROUP_SIZE, first : first + GROUP_SIZE]
        set_levels(group.bits, group.curves, full, levels)
        group.gradient[:] = given
        for k in range(start, stop, TERMS):
            left = quadratic.hessian[first : first + GROUP_SIZE, k : k + TERMS]
            add_product(left, errors[k : k + TERMS], group.gradient)
        decode_group(codes[first : first + GROUP_SIZE], levels, group)
    refine(metric, full, levels, group)
    finish(first, weights, group, errors, codes, rows.loss[block])
    if start == stop:
        subtract_damping(first, quadratic.damping, errors, rows.loss[block])
    rows.steps[block] += 1


@helper
def read_scales(packed: Bytes, group: Group) -> None:
    """Take scales and curves from packed bytes, a group a lane."""
    for lane in range(LANES):
        at = lane * GROUP_BYTES
        high = np.uint32(packed[at + SCALE_AT + 1]) << np.uint32(8)
        group.bits[lane] = np.uint32(packed[at + SCALE_AT]) | high
        group.curves[lane] = np.int32(np.int8(packed[at + CURVE_AT]))


@helper
def round_group(
    first: int,
    quadratic: Quadratic,
    levels: Levels,
    targets: Floats,
    weights: Floats,
    group: Group,
) -> None:
    """Round a group's columns one after another, each with the errors of those before it."""
    feedback = quadratic.feedback
    step = np.empty(LANES, np.float32)
    for j in range(GROUP_SIZE):
        importance = quadratic.importance[first + j]
        for lane in range(LANES):
            code, level = nearest(targets[j, lane], levels, lane)
            group.codes[j, lane] = code
            group.decoded[j, lane] = level
            left = targets[j, lane] - level
            group.gradient[j, lane] = importance * left
            group.change[lane] = fma(group.gradient[j, lane], left, group.change[lane])
            step[lane] = weights[first + j, lane] - level
        for i in range(j + 1, GROUP_SIZE):
            share = feedback[first + i, first + j]
            for lane in range(LANES):
                targets[i, lane] = fma(share, step[lane], targets[i, lane])
    # From D times what is left of each target to the gradient: times (I + U)^T.
    for i in range(GROUP_SIZE):
        for k in range(i + 1, GROUP_SIZE):
            share = feedback[first + k, first + i]
            for lane in range(LANES):
                group.gradient[i, lane] = fma(
                    share, group.gradient[k, lane], group.gradient[i, lane]
                )


@helper
def decode_group(codes: Codes, levels: Levels, group: Group) -> None:
    """Take codes, int8[GROUP_SIZE, LANES], and what they decode to."""
    for j in range(GROUP_SIZE):
        for lane in range(LANES):
            code = np.float32(codes[j, lane])
            scale = levels.scales[lane] * levels.signs[lane]
            group.codes[j, lane] = code
            group.decoded[j, lane] = level_of(code, scale, levels.cs[lane])


@helper
def subtract_damping(first: int, damping: Floats, errors: Floats, loss: Doubles) -> None:
    """Subtract from the loss what the damping added for a group's columns."""
    for j in range(first, first + GROUP_SIZE):
        share = np.float64(damping[j])
        for lane in range(LANES):
            error = np.float64(errors[j, lane])
            loss[lane] -= share * (error * error)


# --- sweeps ----------------------------------------------------------------------------------


@helper
def sweep_block(
    multiply: Callable[..., None],
    visit: Callable[..., None],
    quadratic: Quadratic,
    full: bool,
    block: int,
    rows: Rows,
) -> None:
    """Lower the loss of a block of rows section by section; parameters as for `_improve_rows`."""
    hessian, errors = quadratic.hessian, rows.errors[block]
    outside = np.empty((SECTION // GROUP_SIZE, GROUP_SIZE, LANES), np.float32)
    packed = np.empty(0, np.uint8)
    for start in range(0, errors.shape[0], SECTION):
        stop = min(start + SECTION, errors.shape[0])
        groups = (stop - start) // GROUP_SIZE
        outside[:] = _ZERO
        for place in range(groups):
            first = start + place * GROUP_SIZE
            left = hessian[first : first + GROUP_SIZE]
            multiply(left[:, :start], errors[:start], outside[place])
            multiply(left[:, stop:], errors[stop:], outside[place])
        for _ in range(VISITS):
            for place in range(groups):
                g = start // GROUP_SIZE + place
                visit(g, block, start, stop, outside[place], packed, quadratic, full, rows)


# --- the better of two ways ------------------------------------------------------------------


@helper
def store_better_rows(
    multiply: Callable[..., None],
    quadratic: Quadratic,
    block: int,
    count: int,
    steps: int,
    rows: Rows,
    packed: Bytes,
) -> None:
    """Overwrite the rows of a block that have less loss than in some packed bytes.

    Their errors are overwritten as well. Parameters are those of `_improve_rows`; `count` is the
    number of all rows.
    """
    row_bytes = quadratic.order.size * GROUP_BYTES
    first = block * LANES
    lanes = min(LANES, count - first)
    better = np.zeros(lanes, np.bool_)
    own = packed[first * row_bytes : (first + lanes) * row_bytes]
    compare_block(multiply, own, block, quadratic, rows, better)
    if rows.steps[block] != steps:
        return
    for lane in range(lanes):
        if better[lane]:
            place = slice(lane * row_bytes, (lane + 1) * row_bytes)
            store_row(quadratic.order, rows, block, lane, own[place])


@helper
def compare_block(
    multiply: Callable[..., None],
    packed: Bytes,
    block: int,
    quadratic: Quadratic,
    rows: Rows,
    better: NDArray[np.bool_],
) -> None:
    """Write which rows of a block are better than in some packed bytes, bool[rows].

    The other loss is summed up until it is larger in all of them.
    """
    weights, errors, loss = rows.weights[block], rows.errors[block], rows.loss[block]
    needed = np.zeros(LANES, np.float64)
    doubt = np.zeros(LANES, np.float64)
    set_errors(packed, quadratic, weights, errors)
    for k in range(errors.shape[0]):
        damping = np.float64(quadratic.damping[k])
        bend = damping + np.float64(quadratic.hessian[k, k])
        for lane in range(LANES):
            error = abs(np.float64(errors[k, lane]))
            needed[lane] += damping * (error * error)
            doubt[lane] += bend * (error * (error + abs(np.float64(weights[k, lane]))))
    for lane in range(LANES):
        # Damped, as the sum is; and what is better must be so beyond doubt.
        needed[lane] += loss[lane] + DOUBT * abs(loss[lane]) + _ROUNDING * doubt[lane]
    found = np.zeros(LANES, np.float64)
    left = np.empty((GROUP_SIZE, LANES), np.float32)
    lanes = better.size
    undecided = True
    # The last columns have most of the loss: a few of them decide.
    for stop in range(errors.shape[0], 0, -GROUP_SIZE):
        if not undecided:
            break
        first = stop - GROUP_SIZE
        for i in range(GROUP_SIZE):
            for lane in range(LANES):
                left[i, lane] = errors[first + i, lane]
        multiply(quadratic.feedback[first:stop, :stop], errors[:stop], left)
        for i in range(GROUP_SIZE):
            importance = np.float64(quadratic.importance[first + i])
            for lane in range(LANES):
                value = np.float64(left[i, lane])
                found[lane] += importance * (value * value)
        undecided = False
        for lane in range(lanes):
            undecided = undecided or not found[lane] > needed[lane]
    for lane in range(lanes):
        better[lane] = found[lane] > needed[lane]
    rows.steps[block] += 1


@helper
def set_errors(packed: Bytes, quadratic: Quadratic, weights: Floats, errors: Floats) -> None:
    """Write the errors of a block of packed rows."""
    groups = quadratic.order.size
    scales = np.zeros(LANES, np.float32)
    cs = np.zeros(LANES, np.float32)
    codes = np.zeros((GROUP_SIZE, LANES), np.float32)
    for g in range(groups):
        for lane in range(packed.size // (groups * GROUP_BYTES)):
            at = (lane * groups + quadratic.order[g]) * GROUP_BYTES
            high = np.uint32(packed[at + SCALE_AT + 1]) << np.uint32(8)
            scales[lane] = scale_of_bits(np.uint32(packed[at + SCALE_AT]) | high)
            cs[lane] = c_of_curve(np.int8(packed[at + CURVE_AT]))
            for byte in range(GROUP_SIZE // 2):
                pair = np.int32(packed[at + byte])
                codes[2 * byte, lane] = np.float32((pair & 15) - NIBBLE_OF_ZERO)
                codes[2 * byte + 1, lane] = np.float32((pair >> 4) - NIBBLE_OF_ZERO)
        for i in range(GROUP_SIZE):
            k = g * GROUP_SIZE + i
            for lane in range(LANES):
                level = level_of(codes[i, lane], scales[lane], cs[lane])
                errors[k, lane] = weights[k, lane] - level


@helper
def store_row(order: Integers, rows: Rows, block: int, lane: int, packed: Bytes) -> None:
    """Write the bytes of a row; of scale zero, only zeros."""
    for g in range(order.size):
        start = order[g] * GROUP_BYTES
        bits = rows.bits[block, g, lane]
        if bits & SCALE_MAGNITUDE == 0:
            packed[start : start + GROUP_BYTES] = 0
            continue
        for byte in range(GROUP_SIZE // 2):
            k = g * GROUP_SIZE + 2 * byte
            low = np.int32(rows.codes[block, k, lane]) + NIBBLE_OF_ZERO
            high = np.int32(rows.codes[block, k + 1, lane]) + NIBBLE_OF_ZERO
            packed[start + byte] = low | (high << 4)
        packed[start + SCALE_AT] = bits & 0xFF
        packed[start + SCALE_AT + 1] = bits >> 8
        packed[start + CURVE_AT] = rows.curves[block, g, lane] & 0xFF


QUADRATIC: Final = types.NamedTuple(  # type: ignore[no-untyped-call]
    (
        types.int32[::1],
        types.float32[:, ::1],
        types.float32[:, ::1],
        types.float32[::1],
        types.float32[::1],
        types.float32[:, :, ::1],
    ),
    Quadratic,
)
ROWS: Final = types.NamedTuple(  # type: ignore[no-untyped-call]
    (
        types.float32[:, :, ::1],
        types.float32[:, :, ::1],
        types.int8[:, :, ::1],
        types.uint32[:, :, ::1],
        types.int32[:, :, ::1],
        types.float64[:, ::1],
        types.int32[::1],
    ),
    Rows,
)
"""Numba's types of the tuples."""

_TILE: Final = types.float32[:, ::1]

MULTIPLY: Final = TileFunction(
    add_terms, "feedback-multiply", types.void(types.float32[:, :], _TILE, _TILE)
)
VISIT: Final = TileFunction(
    visit_group,
    "feedback-visit",
    types.void(
        types.int64, types.int64, types.int64, types.int64, _TILE, types.uint8[::1], QUADRATIC,
        types.boolean, ROWS,
    ),
)  # fmt: skip
"""Large parts of the kernel, compiled once for both of its builds and for all methods."""

improve_rows: Final = Kernel(_improve_rows)
