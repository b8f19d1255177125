"""Rounds of the `optimal` search: nearest codes, then the best scale and curve for them.

With the codes fixed, a weight decodes to p x + q b, x = code / 7, b = x |x| - x, p the scale and
q = p c: the best pair (p, q) is a linear least-squares problem of two unknowns, and its solution
needs only five moments of the codes' magnitudes j, with the weights' magnitudes v and importance
h::

    sum h j^2,  sum h j^3,  sum h j^4,  sum h v j,  sum h v j^2
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ..._jit import fma, helper
from ..._layout import (
    GROUP_SIZE,
    LARGEST_CURVE,
    LARGEST_SCALE,
    MAX_SCALE,
    SCALE_SIGN,
    SMALLEST_NORMAL_SCALE,
    scale_bits_not_below,
    scale_of_bits,
)
from ...kernels.curve import SEVENTH, STEPS
from ...kernels.joint import OUTERMOST, SMALLEST_CURVE
from ...kernels.tile import LANES, Floats, Integers, ScaleBits

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_TWO: Final = np.float32(2)
_LEAST_C: Final = np.float32(SMALLEST_CURVE / LARGEST_CURVE)
_LEAST_ORDERED_C: Final = np.float32(-7 / 8)
_NEVER: Final = np.float32(1e30)
# Moments of the codes' magnitudes j and their squares -> moments of x = j/7 and b = x^2 - x.
_49TH: Final = np.float32(1 / 49)
_343RD: Final = np.float32(1 / 343)
_2401ST: Final = np.float32(1 / 2401)


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
    """Return the best scale and c of given codes, and the energy that they explain.

    From the moments sum j^2, sum j^3, sum j^4, sum v j, sum v j^2 of the codes' magnitudes j; c is
    what is kept where the codes do not tell it.
    """
    xx = s2 * _49TH
    xb = fma(s3, _343RD, -xx)
    bb = fma(s4, _2401ST, -fma(_TWO, xb, xx))
    vx = a * SEVENTH
    vb = fma(b, _49TH, -vx)
    below = fma(vx, bb, -(vb * xb))
    unconstrained = fma(vb, xx, -(vx * xb)) / below
    c = unconstrained if below > 0 else c
    c = min(max(c, _LEAST_C), _ONE)
    square = fma(c, fma(c, bb, xb + xb), xx)
    product = fma(c, vb, vx)
    scale = min(product / square, limit) if square > 0 else _ZERO
    return scale, c, scale * (product + product - scale * square)


@helper
def set_start_midpoints(scale: Floats, c: Floats, full: bool, midpoints: Floats) -> None:
    """Write the midpoints of the levels; the last, below which code -8 begins, mirrored.

    Parameters
    ----------
    scale, c : float32[LANES]
    full : bool
    midpoints : float32[OUTERMOST, LANES]
        Overwritten.
    """
    for k in range(OUTERMOST):
        x0, x1 = k / 7, (k + 1) / 7
        x = np.float32((x0 + x1) / 2)
        b = np.float32((x0 * x0 - x0 + x1 * x1 - x1) / 2)
        for lane in range(LANES):
            midpoints[k, lane] = scale[lane] * fma(c[lane], b, x)
    for lane in range(LANES):
        usable = full and c[lane] > _LEAST_ORDERED_C
        midpoints[STEPS, lane] = -midpoints[STEPS, lane] if usable else -_NEVER


@helper
def add_moments(
    normalized: Floats,
    importance: Floats,
    first_moments: Floats,
    sign: Floats,
    midpoints: Floats,
    sums: Floats,
) -> None:
    """Write the five moments of the nearest codes: sums, float32[5, LANES], see `solve`."""
    for row in range(5):
        for lane in range(LANES):
            sums[row, lane] = _ZERO
    for i in range(0, GROUP_SIZE, 2):
        for lane in range(LANES):
            s = sign[lane]
            v0, v1 = s * normalized[i, lane], s * normalized[i + 1, lane]
            j0, j1 = code_of(v0, midpoints, lane), code_of(v1, midpoints, lane)
            t0, t1 = j0 * j0, j1 * j1
            h0, h1 = importance[i, lane] * t0, importance[i + 1, lane] * t1
            m0, m1 = first_moments[i, lane], first_moments[i + 1, lane]
            sums[0, lane] += h0 + h1
            sums[1, lane] = fma(h1, j1, fma(h0, j0, sums[1, lane]))
            sums[2, lane] = fma(h1, t1, fma(h0, t0, sums[2, lane]))
            sums[3, lane] = fma(m1, j1, fma(m0, j0, sums[3, lane]))
            sums[4, lane] = fma(m1, t1, fma(m0, t0, sums[4, lane]))


@helper
def code_of(v: np.float32, midpoints: Floats, lane: int) -> np.float32:
    """Return the magnitude of the nearest code."""
    size = abs(v)
    code = _ZERO
    code += _ONE if size > midpoints[0, lane] else _ZERO
    code += _ONE if size > midpoints[1, lane] else _ZERO
    code += _ONE if size > midpoints[2, lane] else _ZERO
    code += _ONE if size > midpoints[3, lane] else _ZERO
    code += _ONE if size > midpoints[4, lane] else _ZERO
    code += _ONE if size > midpoints[5, lane] else _ZERO
    code += _ONE if size > midpoints[6, lane] else _ZERO
    code += _ONE if v < midpoints[7, lane] else _ZERO
    return code


@helper
def refit(sums: Floats, limit: Floats, scale: Floats, c: Floats) -> None:
    """Write the best scale and c for the codes; at the largest scale, the best c with that."""
    for lane in range(LANES):
        s2, s3, s4 = sums[0, lane], sums[1, lane], sums[2, lane]
        a, b = sums[3, lane], sums[4, lane]
        new_scale, new_c, _ = solve(s2, s3, s4, a, b, c[lane], limit[lane])
        xb = fma(s3, _343RD, -(s2 * _49TH))
        bb = fma(s4, _2401ST, -fma(_TWO, xb, s2 * _49TH))
        vb = fma(b, _49TH, -(a * SEVENTH))
        with_limit = (vb - new_scale * xb) / (new_scale * bb)
        limited = new_scale >= limit[lane] and bb > 0
        scale[lane] = new_scale
        c[lane] = min(max(with_limit, _LEAST_C), _ONE) if limited else new_c


@helper
def round_to_storable(
    sums: Floats,
    absmax: Floats,
    sign: Floats,
    c: Floats,
    full: bool,
    score: Floats,
    scale_bits: ScaleBits,
    curves: Integers,
) -> None:
    """Write the best storable pair around a scale and c, for the codes' moments, and its score."""
    best = np.full(LANES, np.inf, np.float64)
    least_curve = np.float32(SMALLEST_CURVE if full else -LARGEST_CURVE)
    for step in range(2):
        for lane in range(LANES):
            s2, s3, s4 = sums[0, lane], sums[1, lane], sums[2, lane]
            a, b = np.float64(sums[3, lane]), np.float64(sums[4, lane])
            curve = np.floor(c[lane] * np.float32(LARGEST_CURVE)) + np.float32(step)
            curve = min(max(curve, least_curve), np.float32(LARGEST_CURVE))
            k = np.float64(curve) / 127.0
            # y = alpha j + beta j^2
            alpha = (1.0 - k) / 7.0
            beta = k / 49.0
            square = alpha * alpha * s2 + 2.0 * alpha * beta * s3 + beta * beta * s4
            product = alpha * a + beta * b
            unit = np.float64(absmax[lane])
            wanted = np.float32(product / square * unit) if square > 0 else _ZERO
            wanted = min(max(wanted, _ZERO), np.float32(MAX_SCALE))
            above = scale_bits_not_below(wanted)
            below = above - np.uint32(1) if above > 0 else above
            p_above = np.float64(scale_of_bits(above)) / unit
            p_below = np.float64(scale_of_bits(below)) / unit
            change_above = p_above * (p_above * square - 2.0 * product)
            change_below = p_below * (p_below * square - 2.0 * product)
            lower = change_below < change_above and below > 0
            bits = below if lower else above
            change = change_below if lower else change_above
            # Readers lose the sign of subnormals.
            negative = sign[lane] < 0 and bits >= SMALLEST_NORMAL_SCALE
            signed = bits | SCALE_SIGN if negative else bits
            better = change < best[lane] and bits > 0 and bits <= LARGEST_SCALE
            best[lane] = change if better else best[lane]
            scale_bits[lane] = signed if better else scale_bits[lane]
            curves[lane] = np.int32(curve) if better else curves[lane]
    for lane in range(LANES):
        score[lane] = np.float32(-best[lane])


@helper
def keep_best_pairs(
    score: Floats,
    scale_bits: ScaleBits,
    curves: Integers,
    kept_scores: Floats,
    kept_bits: ScaleBits,
    kept_curves: Integers,
) -> None:
    """Enter pairs of scale and curve into each lane's sorted list."""
    # All is read before anything is written: with the reads in between, LLVM 20 gives other lanes'
    # curves to some candidates where vectors have 16 lanes.
    for place in range(kept_scores.shape[0]):
        for lane in range(LANES):
            new, new_bits, new_curve = score[lane], scale_bits[lane], curves[lane]
            old, old_bits = kept_scores[place, lane], kept_bits[place, lane]
            old_curve = kept_curves[place, lane]
            better = new > old
            kept_scores[place, lane] = new if better else old
            kept_bits[place, lane] = new_bits if better else old_bits
            kept_curves[place, lane] = new_curve if better else old_curve
            score[lane] = old if better else new
            scale_bits[lane] = old_bits if better else new_bits
            curves[lane] = old_curve if better else new_curve
