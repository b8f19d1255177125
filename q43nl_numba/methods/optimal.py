"""Scale, curve and codes together: hundreds of starts ranked by tables, the best ones refined.

With the codes fixed, a weight decodes to p x + q b, x = code / 7, b = x |x| - x, p the scale and
q = p c: the best pair (p, q) is a linear least-squares problem of two unknowns, and its solution
needs only five moments of the codes' magnitudes j, with the weights' magnitudes v and importance
h::

    sum h j^2,  sum h j^3,  sum h j^4,  sum h v j,  sum h v j^2

A *round* takes the nearest codes for (p, c), sums the moments up and solves for the next (p, c).
Rounds end in the notch they start in, so what counts is the start. Starts are a grid of scales (in
units of the group's peak) and curves, each with code -8 on either side of zero.

What won is ranking starts without looking at the weights. As the starts' thresholds are the same
for all groups, each group's importance and importance times magnitude are entered into bins once,
and summed up from above. Eight lookups a start then give the five moments (the step from code k - 1
to k adds (k^2 - (k - 1)^2) n to sum h j^2, where n is the importance beyond its threshold, and so
on), and both sides share seven of them. Rounding thresholds to bins costs nothing but rank: every
assignment is a valid one. Bins are even in the square root of the magnitude, so that they are fine
where a curve near c = 1 has its levels. Measured on one core: 4 ns a start and group, lists of the
best included, against 14 ns for a round. With 288 pairs of starts and four refined (effort 5) the
error on normal data is 1.0004 times the optimum, where 76 pairs with one refined leave 1.017.

Most optima have the peak at the outermost codes. A few weights among zeros may fit better with the
peak at code 5 or 6 of a strongly bent curve: a sixteenth more starts look there. With nine in ten
weights zero, that takes the error from 1.011 to 1.0002 times the optimum (effort 5); before, no
effort came nearer.

What did not help: more than two rounds for a poor start (with one refined start, 1.0173 becomes
1.0154 at three rounds, while a second start makes it 1.009); bins even in the magnitude (as good on
normal data, but 8 % above the optimum where one weight is a hundred times the others). More than
about 600 pairs gain less than 0.01 %. Nearly half of the time at effort 1 is spent on the grid
search, whose result is judged with the others: so no group is ever worse than with `grid`.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .._jit import fma, helper, inlined, types
from ..curve import STEPS
from ..encode_free import (
    HALF_SIGN,
    LARGEST_HALF,
    OUTERMOST,
    SMALLEST_CURVE,
    free_encoder,
    judge,
)
from ..layout import GROUP_SIZE, LARGEST_CURVE, MAX_SCALE, float_of_half, half_not_below
from ..tile import LANES, Doubles, Floats, Halves, Integers
from .grid import CURVES, grid_handicaps
from .grid import search as search_grid
from .method import Method, Option, integer_between, one_of

FULL: Final = "full"
CODES: Final = Option("codes", FULL, one_of(FULL, "symmetric"))

# Numbers of scales and of values of c to start from, starts refined, rounds each, finalists judged.
EFFORTS: Final = {
    1: (8, 9, 1, 2, 1),
    2: (8, 9, 2, 3, 1),
    3: (12, 13, 2, 3, 1),
    4: (12, 13, 3, 4, 2),
    5: (16, 17, 4, 4, 2),
    6: (24, 25, 6, 4, 2),
    7: (32, 33, 8, 4, 4),
    8: (40, 41, 16, 5, 4),
    9: (56, 57, 24, 6, 8),
}

BINS: Final = 96
ROWS: Final = BINS + 2
SLICE: Final = 32
_SCALES: Final = (0.7, 1.25)
"""Range of the starts' scales: on normal data 99 % of the optima lie between 0.72 and 1.26."""
_LARGE_SCALES: Final = (1.4, 2.3)
_LARGE_CS: Final = (0.5, 1.0)
"""Ranges of the starts with the peak at code 5 or 6."""

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_TWO: Final = np.float32(2)
_HALF: Final = np.float32(0.5)
_BINS: Final = np.float32(BINS)
_LEAST_C: Final = np.float32(SMALLEST_CURVE / LARGEST_CURVE)
_LEAST_ORDERED_C: Final = np.float32(-7 / 8)
_SMALLEST_MIRRORED: Final = np.float32(2.0**-13)
"""Least peak for which a negative scale is tried: those must not be subnormal."""
_NEVER: Final = np.float32(1e30)
# Moments of the codes' magnitudes j and their squares -> moments of x = j/7 and b = x^2 - x.
_7TH: Final = np.float32(1 / 7)
_49TH: Final = np.float32(1 / 49)
_343RD: Final = np.float32(1 / 343)
_2401ST: Final = np.float32(1 / 2401)


def midpoint(k: int, c: float) -> float:
    """Halfway between the levels k and k + 1, in units of the scale."""
    x0, x1 = k / 7, (k + 1) / 7
    return (x0 + c * (x0 * x0 - x0) + x1 + c * (x1 * x1 - x1)) / 2


def start_table(scale_count: int, c_count: int) -> tuple[Integers, Floats]:
    """Bins from which each code begins, for every pair of scale and c; and the pairs."""
    pairs = grid_of_starts(_SCALES, (-1.0, 1.0), scale_count, c_count)
    pairs += grid_of_starts(
        _LARGE_SCALES, _LARGE_CS, max(scale_count // 4, 2), max(c_count // 4, 2)
    )
    rows = []
    for scale, c in pairs:
        thresholds = [scale * midpoint(k, c) for k in range(OUTERMOST)]
        if c <= -7 / 8:
            thresholds[-1] = np.inf
        rows.append(np.minimum(np.rint(np.sqrt(thresholds) * BINS), ROWS - 1))
    return np.array(rows, np.int32), np.array(pairs, np.float32)


def grid_of_starts(
    scales: tuple[float, float], cs: tuple[float, float], scale_count: int, c_count: int
) -> list[tuple[float, float]]:
    """Evenly spaced pairs of scale and c, the ends of both ranges included."""
    return [
        (scale, c)
        for c in np.linspace(*cs, c_count).tolist()
        for scale in np.linspace(*scales, scale_count).tolist()
    ]


@inlined
def search(
    weights: Floats,
    importance: Floats,
    shapes: Floats,
    peaks: Floats,
    full: bool,
    parameters: Any,
    halves: Halves,
    curves: Integers,
    errors: Doubles,
) -> None:
    """Best of what the grid search stores and of the refined starts."""
    known_halves, known_curves = grid_choice(weights, importance, parameters[-1])
    try_starts(
        weights, importance, shapes, peaks, full, parameters, known_halves, known_curves,
        halves, curves, errors,
    )  # fmt: skip


@inlined
def try_starts(
    weights: Floats,
    importance: Floats,
    shapes: Floats,
    peaks: Floats,
    full: bool,
    parameters: Any,
    known_halves: Halves,
    known_curves: Integers,
    halves: Halves,
    curves: Integers,
    errors: Doubles,
) -> None:
    """Judge what is known already (scale 0: nothing), and the best that the starts lead to."""
    _, bins, starts, refined, rounds, finalists, _ = parameters
    moved = np.empty((GROUP_SIZE, LANES), np.float32)
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            moved[i, lane] = importance[i, lane] * abs(shapes[i, lane])
    limit = np.empty(LANES, np.float32)
    mirrors = np.empty(LANES, np.bool_)
    for lane in range(LANES):
        limit[lane] = np.float32(MAX_SCALE) / peaks[lane]
        mirrors[lane] = full and peaks[lane] > _SMALLEST_MIRRORED
    chosen = np.empty((refined, LANES), np.int32)
    for start in range(0, LANES, SLICE):
        rank_starts(shapes, importance, moved, start, full, limit, mirrors, bins, starts, chosen)
    kept_scores = np.full((1 + finalists, LANES), -1, np.float32)
    kept_halves = np.zeros((1 + finalists, LANES), np.uint32)
    kept_curves = np.zeros((1 + finalists, LANES), np.int32)
    for lane in range(LANES):
        kept_scores[0, lane] = np.inf  # nothing takes this place
        kept_halves[0, lane] = known_halves[lane]
        kept_curves[0, lane] = known_curves[lane]
    scale = np.empty(LANES, np.float32)
    c = np.empty(LANES, np.float32)
    sign = np.empty(LANES, np.float32)
    sums = np.empty((5, LANES), np.float32)
    middles = np.empty((OUTERMOST, LANES), np.float32)
    score = np.empty(LANES, np.float32)
    tried_halves = np.empty(LANES, np.uint32)
    tried_curves = np.empty(LANES, np.int32)
    for place in range(refined):
        for lane in range(LANES):
            number = chosen[place, lane]
            scale[lane] = starts[number >> 1, 0]
            c[lane] = starts[number >> 1, 1]
            sign[lane] = -_ONE if number & 1 else _ONE
        for _ in range(rounds):
            set_middles(scale, c, full, middles)
            add_moments(shapes, importance, moved, sign, middles, sums)
            improve(sums, limit, scale, c)
        snap(sums, peaks, sign, c, full, score, tried_halves, tried_curves)
        keep(score, tried_halves, tried_curves, kept_scores, kept_halves, kept_curves)
    for place in range(1 + finalists):
        judge(
            weights, importance, full, kept_halves[place], kept_curves[place],
            halves, curves, errors,
        )  # fmt: skip


@helper
def grid_choice(
    weights: Floats, importance: Floats, all_curves: Doubles
) -> tuple[Halves, Integers]:
    """Scales and curves that `grid` would store; scale 0 where the peak is too large for it."""
    magnitudes = np.empty((GROUP_SIZE, LANES), np.float32)
    scales = np.zeros(LANES, np.float32)
    halves = np.empty(LANES, np.uint32)
    curves = np.zeros(LANES, np.int32)
    limit = np.float32(MAX_SCALE)
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            scales[lane] = max(scales[lane], abs(weights[i, lane]))
    for lane in range(LANES):
        half = half_not_below(min(scales[lane], limit))
        halves[lane] = half if scales[lane] <= limit else np.uint32(0)
        scales[lane] = float_of_half(halves[lane])
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            scale = scales[lane]
            magnitudes[i, lane] = abs(weights[i, lane]) / scale if scale > 0 else _ZERO
    search_grid(magnitudes, importance, scales, magnitudes, all_curves, curves)
    return halves, curves


@inlined
def rank_starts(
    shapes: Floats,
    importance: Floats,
    moved: Floats,
    first: int,
    full: bool,
    limit: Floats,
    mirrors: NDArray[np.bool_],
    bins: Integers,
    starts: Floats,
    chosen: Integers,
) -> None:
    """The most promising starts of some lanes: start's number times two, plus one if mirrored."""
    table = np.zeros((3, ROWS, 2, SLICE), np.float32)
    fill_table(shapes, importance, moved, first, table)
    kept = chosen.shape[0]
    best = np.full((kept, SLICE), -1, np.float32)
    number = np.zeros((kept, SLICE), np.int32)
    sums = np.empty((7, SLICE), np.float32)
    for start in range(bins.shape[0]):
        add_inner_codes(table, bins[start, 0], bins[start, 1], bins[start, 2], bins[start, 3], sums)
        add_outer_codes(
            table, bins[start, 4], bins[start, 5], bins[start, 6], bins[start, 7], full,
            starts[start, 1], limit, first, sums,
        )  # fmt: skip
        insert(sums, start, mirrors, first, best, number)
    for place in range(kept):
        for lane in range(SLICE):
            chosen[place, first + lane] = number[place, lane]


@helper
def fill_table(
    shapes: Floats, importance: Floats, moved: Floats, first: int, table: Floats
) -> None:
    """Importance of all weights from each bin on, and importance times magnitude.

    Of all weights, of the negative ones and of the positive ones.
    """
    for lane in range(SLICE):
        for i in range(GROUP_SIZE):
            v = shapes[i, first + lane]
            bin_ = np.int32(np.sqrt(min(abs(v), _ONE)) * _BINS)
            side = 1 if v < 0 else 2
            table[side, bin_, 0, lane] += importance[i, first + lane]
            table[side, bin_, 1, lane] += moved[i, first + lane]
    for side in range(1, 3):
        for row in range(BINS - 1, -1, -1):
            for lane in range(SLICE):
                table[side, row, 0, lane] += table[side, row + 1, 0, lane]
                table[side, row, 1, lane] += table[side, row + 1, 1, lane]
    for row in range(ROWS):
        for lane in range(SLICE):
            table[0, row, 0, lane] = table[1, row, 0, lane] + table[2, row, 0, lane]
            table[0, row, 1, lane] = table[1, row, 1, lane] + table[2, row, 1, lane]


@helper
def add_inner_codes(
    table: Floats, t1: np.int32, t2: np.int32, t3: np.int32, t4: np.int32, sums: Floats
) -> None:
    """Moments that the steps to codes 1 to 4 make up."""
    for lane in range(SLICE):
        n1, n2 = table[0, t1, 0, lane], table[0, t2, 0, lane]
        n3, n4 = table[0, t3, 0, lane], table[0, t4, 0, lane]
        m1, m2 = table[0, t1, 1, lane], table[0, t2, 1, lane]
        m3, m4 = table[0, t3, 1, lane], table[0, t4, 1, lane]
        f = np.float32
        sums[0, lane] = fma(f(7), n4, fma(f(5), n3, fma(f(3), n2, n1)))
        sums[1, lane] = fma(f(37), n4, fma(f(19), n3, fma(f(7), n2, n1)))
        sums[2, lane] = fma(f(175), n4, fma(f(65), n3, fma(f(15), n2, n1)))
        sums[3, lane] = (m1 + m2) + (m3 + m4)
        sums[4, lane] = fma(f(7), m4, fma(f(5), m3, fma(f(3), m2, m1)))


@helper
def add_outer_codes(
    table: Floats,
    t5: np.int32,
    t6: np.int32,
    t7: np.int32,
    t8: np.int32,
    full: bool,
    c: np.float32,
    limit: Floats,
    first: int,
    sums: Floats,
) -> None:
    """Complete the moments, with code 8 on either side, and write the explained energies."""
    outermost = _ONE if full else _ZERO
    for lane in range(SLICE):
        n5, n6, n7 = table[0, t5, 0, lane], table[0, t6, 0, lane], table[0, t7, 0, lane]
        m5, m6, m7 = table[0, t5, 1, lane], table[0, t6, 1, lane], table[0, t7, 1, lane]
        f = np.float32
        s2 = sums[0, lane] + fma(f(13), n7, fma(f(11), n6, f(9) * n5))
        s3 = sums[1, lane] + fma(f(127), n7, fma(f(91), n6, f(61) * n5))
        s4 = sums[2, lane] + fma(f(1105), n7, fma(f(671), n6, f(369) * n5))
        a = sums[3, lane] + ((m5 + m6) + m7)
        b = sums[4, lane] + fma(f(13), m7, fma(f(11), m6, f(9) * m5))
        n8, m8 = outermost * table[1, t8, 0, lane], outermost * table[1, t8, 1, lane]
        _, _, score = solve(
            fma(f(15), n8, s2), fma(f(169), n8, s3), fma(f(1695), n8, s4), a + m8,
            fma(f(15), m8, b), c, limit[first + lane],
        )  # fmt: skip
        n8, m8 = outermost * table[2, t8, 0, lane], outermost * table[2, t8, 1, lane]
        _, _, mirrored = solve(
            fma(f(15), n8, s2), fma(f(169), n8, s3), fma(f(1695), n8, s4), a + m8,
            fma(f(15), m8, b), c, limit[first + lane],
        )  # fmt: skip
        sums[5, lane] = score
        sums[6, lane] = mirrored


@helper
def solve(
    s2: np.float32,
    s3: np.float32,
    s4: np.float32,
    a: np.float32,
    b: np.float32,
    c: np.float32,
    limit: np.float32,
) -> Any:
    """Best scale and c of given codes, and the energy that they explain.

    From the moments sum j^2, sum j^3, sum j^4, sum v j, sum v j^2 of the codes' magnitudes j; c is
    what is kept where the codes do not tell it.
    """
    xx = s2 * _49TH
    xb = fma(s3, _343RD, -xx)
    bb = fma(s4, _2401ST, -fma(_TWO, xb, xx))
    vx = a * _7TH
    vb = fma(b, _49TH, -vx)
    below = fma(vx, bb, -(vb * xb))
    free = fma(vb, xx, -(vx * xb)) / below
    c = free if below > 0 else c
    c = min(max(c, _LEAST_C), _ONE)
    square = fma(c, fma(c, bb, xb + xb), xx)
    product = fma(c, vb, vx)
    scale = min(product / square, limit) if square > 0 else _ZERO
    return scale, c, scale * (product + product - scale * square)


@helper
def insert(
    sums: Floats,
    start: int,
    mirrors: NDArray[np.bool_],
    first: int,
    best: Floats,
    number: Integers,
) -> None:
    """Enter a start into each lane's sorted list."""
    for lane in range(SLICE):
        mirrored = sums[6, lane] > sums[5, lane] and mirrors[first + lane]
        score = sums[6, lane] if mirrored else sums[5, lane]
        sums[5, lane] = score
        sums[6, lane] = np.float32(2 * start + 1) if mirrored else np.float32(2 * start)
    for place in range(best.shape[0]):
        for lane in range(SLICE):
            score, name = sums[5, lane], np.int32(sums[6, lane])
            old, old_name = best[place, lane], number[place, lane]
            better = score > old
            best[place, lane] = score if better else old
            number[place, lane] = name if better else old_name
            sums[5, lane] = old if better else score
            sums[6, lane] = np.float32(old_name) if better else np.float32(name)


@helper
def set_middles(scale: Floats, c: Floats, full: bool, middles: Floats) -> None:
    """Midpoints of the levels; the last, below which code -8 begins, mirrored."""
    for k in range(OUTERMOST):
        x0, x1 = k / 7, (k + 1) / 7
        x = np.float32((x0 + x1) / 2)
        b = np.float32((x0 * x0 - x0 + x1 * x1 - x1) / 2)
        for lane in range(LANES):
            middles[k, lane] = scale[lane] * fma(c[lane], b, x)
    for lane in range(LANES):
        usable = full and c[lane] > _LEAST_ORDERED_C
        middles[STEPS, lane] = -middles[STEPS, lane] if usable else -_NEVER


@helper
def add_moments(
    shapes: Floats,
    importance: Floats,
    moved: Floats,
    sign: Floats,
    middles: Floats,
    sums: Floats,
) -> None:
    """Moments of the codes that are nearest: see `solve`."""
    for row in range(5):
        for lane in range(LANES):
            sums[row, lane] = _ZERO
    for i in range(0, GROUP_SIZE, 2):
        for lane in range(LANES):
            s = sign[lane]
            v0, v1 = s * shapes[i, lane], s * shapes[i + 1, lane]
            j0, j1 = code_of(v0, middles, lane), code_of(v1, middles, lane)
            t0, t1 = j0 * j0, j1 * j1
            h0, h1 = importance[i, lane] * t0, importance[i + 1, lane] * t1
            m0, m1 = moved[i, lane], moved[i + 1, lane]
            sums[0, lane] += h0 + h1
            sums[1, lane] = fma(h1, j1, fma(h0, j0, sums[1, lane]))
            sums[2, lane] = fma(h1, t1, fma(h0, t0, sums[2, lane]))
            sums[3, lane] = fma(m1, j1, fma(m0, j0, sums[3, lane]))
            sums[4, lane] = fma(m1, t1, fma(m0, t0, sums[4, lane]))


@helper
def code_of(v: np.float32, middles: Floats, lane: int) -> np.float32:
    """Magnitude of the nearest code."""
    size = abs(v)
    code = _ZERO
    code += _ONE if size > middles[0, lane] else _ZERO
    code += _ONE if size > middles[1, lane] else _ZERO
    code += _ONE if size > middles[2, lane] else _ZERO
    code += _ONE if size > middles[3, lane] else _ZERO
    code += _ONE if size > middles[4, lane] else _ZERO
    code += _ONE if size > middles[5, lane] else _ZERO
    code += _ONE if size > middles[6, lane] else _ZERO
    code += _ONE if v < middles[7, lane] else _ZERO
    return code


@helper
def improve(sums: Floats, limit: Floats, scale: Floats, c: Floats) -> None:
    """Best scale and c for the codes; at the largest scale, the c that is best with it."""
    for lane in range(LANES):
        s2, s3, s4 = sums[0, lane], sums[1, lane], sums[2, lane]
        a, b = sums[3, lane], sums[4, lane]
        new_scale, new_c, _ = solve(s2, s3, s4, a, b, c[lane], limit[lane])
        xb = fma(s3, _343RD, -(s2 * _49TH))
        bb = fma(s4, _2401ST, -fma(_TWO, xb, s2 * _49TH))
        vb = fma(b, _49TH, -(a * _7TH))
        with_limit = (vb - new_scale * xb) / (new_scale * bb)
        limited = new_scale >= limit[lane] and bb > 0
        scale[lane] = new_scale
        c[lane] = min(max(with_limit, _LEAST_C), _ONE) if limited else new_c


@helper
def snap(
    sums: Floats,
    peaks: Floats,
    sign: Floats,
    c: Floats,
    full: bool,
    score: Floats,
    halves: Halves,
    curves: Integers,
) -> None:
    """Best storable pair around a scale and c, for the codes' moments."""
    best = np.full(LANES, np.inf, np.float64)
    least_curve = np.float32(SMALLEST_CURVE if full else -LARGEST_CURVE)
    for step in range(4):
        for lane in range(LANES):
            s2, s3, s4 = sums[0, lane], sums[1, lane], sums[2, lane]
            a, b = np.float64(sums[3, lane]), np.float64(sums[4, lane])
            curve = np.floor(c[lane] * np.float32(LARGEST_CURVE)) + np.float32(step >> 1)
            curve = min(max(curve, least_curve), np.float32(LARGEST_CURVE))
            k = np.float64(curve) / 127.0
            # y = alpha j + beta j^2
            alpha = (1.0 - k) / 7.0
            beta = k / 49.0
            square = alpha * alpha * s2 + 2.0 * alpha * beta * s3 + beta * beta * s4
            product = alpha * a + beta * b
            peak = np.float64(peaks[lane])
            wanted = np.float32(product / square * peak) if square > 0 else _ZERO
            wanted = min(max(wanted, _ZERO), np.float32(MAX_SCALE))
            half = half_not_below(wanted)
            half = half - np.uint32(1) if (step & 1) and half > 0 else half
            p = np.float64(float_of_half(half)) / peak
            change = p * (p * square - 2.0 * product)
            signed = half | HALF_SIGN if sign[lane] < 0 else half
            better = change < best[lane] and half > 0 and half <= LARGEST_HALF
            best[lane] = change if better else best[lane]
            halves[lane] = signed if better else halves[lane]
            curves[lane] = np.int32(curve) if better else curves[lane]
    for lane in range(LANES):
        score[lane] = np.float32(-best[lane])


@helper
def keep(
    score: Floats,
    halves: Halves,
    curves: Integers,
    kept_scores: Floats,
    kept_halves: Halves,
    kept_curves: Integers,
) -> None:
    """Enter candidates into each lane's sorted list."""
    # All is read before anything is written: with the reads in between, LLVM 20 gives other lanes'
    # curves to some candidates where vectors have 16 lanes.
    for place in range(kept_scores.shape[0]):
        for lane in range(LANES):
            new, new_half, new_curve = score[lane], halves[lane], curves[lane]
            old, old_half = kept_scores[place, lane], kept_halves[place, lane]
            old_curve = kept_curves[place, lane]
            better = new > old
            kept_scores[place, lane] = new if better else old
            kept_halves[place, lane] = new_half if better else old_half
            kept_curves[place, lane] = new_curve if better else old_curve
            score[lane] = old if better else new
            halves[lane] = old_half if better else new_half
            curves[lane] = old_curve if better else new_curve


@functools.cache
def parameters(codes: str, effort: int) -> tuple[Any, ...]:
    """What the search is told; `EFFORTS` says how much it does."""
    scales, cs, refined, rounds, finalists = EFFORTS[effort]
    return (
        codes == FULL,
        *start_table(scales, cs),
        refined,
        rounds,
        finalists,
        grid_handicaps(CURVES),
    )


PARAMETERS: Final = types.Tuple(  # type: ignore[no-untyped-call]
    (
        types.boolean,
        types.int32[:, ::1],
        types.float32[:, ::1],
        types.int64,
        types.int64,
        types.int64,
        types.float64[::1],
    )
)
"""What `parameters` returns, as the kernels see it."""

OPTIMAL = Method(
    name="optimal",
    encode=free_encoder(search, name="optimal", parameters=PARAMETERS),
    options=(CODES, Option("effort", 5, integer_between(min(EFFORTS), max(EFFORTS)))),
    parameters=parameters,
    free=True,
    eps_scale=0.0,
)
