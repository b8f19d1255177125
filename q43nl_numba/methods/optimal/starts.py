"""Starts of the `optimal` search, and their ranking by tables.

All groups have the same starts, so each group's importance and importance times magnitude are
entered into bins once, and summed up from above. Eight lookups a start then give the five moments
that `refinement.solve` needs: the step from code k - 1 to k adds (k^2 - (k - 1)^2) n to sum h j^2,
where n is the importance beyond its threshold, and so on; both sides share seven of them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..._jit import fma, helper, inlined
from ..._layout import GROUP_SIZE
from ...kernels.joint import OUTERMOST
from ...kernels.tile import Floats, Integers
from .refinement import solve

BINS: Final = 96
ROWS: Final = BINS + 2
SLICE: Final = 32
"""Lanes ranked at once: their tables stay in the L1 cache."""

_SCALES: Final = (0.7, 1.25)
"""Range of the starts' scales: on normal data 99 % of the optima lie between 0.72 and 1.26."""
_LARGE_SCALES: Final = (1.4, 2.3)
_LARGE_CS: Final = (0.5, 1.0)
"""Ranges of the starts with the absmax at code 5 or 6."""

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_BINS: Final = np.float32(BINS)


def midpoint(k: int, c: float) -> float:
    """Return the midpoint of the levels k and k + 1, in units of the scale."""
    x0, x1 = k / 7, (k + 1) / 7
    return (x0 + c * (x0 * x0 - x0) + x1 + c * (x1 * x1 - x1)) / 2


def start_table(scale_count: int, c_count: int) -> tuple[Integers, Floats]:
    """Return the bins from which each code begins, for every pair of scale and c; and the pairs."""
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
    """Return evenly spaced pairs of scale and c, the ends of both ranges included."""
    return [
        (scale, c)
        for c in np.linspace(*cs, c_count).tolist()
        for scale in np.linspace(*scales, scale_count).tolist()
    ]


@inlined
def rank_starts(
    normalized: Floats,
    importance: Floats,
    first_moments: Floats,
    first: int,
    full: bool,
    limit: Floats,
    mirrors: NDArray[np.bool_],
    bins: Integers,
    starts: Floats,
    chosen: Integers,
) -> None:
    """Write the best starts of the lanes from `first` on: number times two, plus one if mirrored.

    Parameters
    ----------
    normalized, importance, first_moments : float32[GROUP_SIZE, LANES]
        `first_moments` are importance times magnitude.
    first : int
    full : bool
    limit : float32[LANES]
        Largest scale, in units of the absmax.
    mirrors : bool[LANES]
        Whether a negative scale may be stored.
    bins : int32[starts, OUTERMOST]
    starts : float32[starts, 2]
    chosen : int32[refined, LANES]
        Overwritten from `first` on.
    """
    table = np.zeros((3, ROWS, 2, SLICE), np.float32)
    fill_table(normalized, importance, first_moments, first, table)
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
        keep_best_starts(sums, start, mirrors, first, best, number)
    for place in range(kept):
        for lane in range(SLICE):
            chosen[place, first + lane] = number[place, lane]


@helper
def fill_table(
    normalized: Floats, importance: Floats, first_moments: Floats, first: int, table: Floats
) -> None:
    """Write the importance from each bin on, and importance times magnitude.

    `table` is float32[3, ROWS, 2, SLICE]: of all weights, the negative and the positive ones.
    """
    for lane in range(SLICE):
        for i in range(GROUP_SIZE):
            v = normalized[i, first + lane]
            bin_ = np.int32(np.sqrt(min(abs(v), _ONE)) * _BINS)
            side = 1 if v < 0 else 2
            table[side, bin_, 0, lane] += importance[i, first + lane]
            table[side, bin_, 1, lane] += first_moments[i, first + lane]
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
    """Write the moments that the steps to codes 1 to 4 make up."""
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
def keep_best_starts(
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
