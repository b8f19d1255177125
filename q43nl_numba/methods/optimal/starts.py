"""Starts of the `optimal` search, and their ranking by tables.

All groups have the same starts, so each group's importance and importance times magnitude are
entered into bins once, and summed up from above. Eight lookups a start then give the five moments
that `refinement.solve` needs: the step from code k - 1 to k adds (k^2 - (k - 1)^2) n to sum h j^2,
where n is the importance beyond its threshold, and so on. All searches share seven of them; in most
starts no weight is beyond the eighth.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ..._jit import fma, helper, inlined
from ..._layout import GROUP_SIZE
from ...kernels.joint import OUTERMOST
from ...kernels.tile import Floats, Integers
from .refinement import solve

BINS: Final = 96
ROWS: Final = BINS + 2
SLICE: Final = 32
"""Lanes ranked at once: their tables stay in the L2 cache."""
_ROW: Final = 2 * SLICE
_PART: Final = ROWS * _ROW
"""Elements of a row and of a third of the tables: see `fill_table`."""
BATCH: Final = 32
"""Starts whose scores are computed before they enter the lists, which takes a third of the time of
entering one by one."""

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
    sides: Integers,
    bins: Integers,
    starts: Floats,
    chosen: Integers,
) -> None:
    """Write the best starts of the lanes from `first` on.

    Parameters
    ----------
    normalized, importance, first_moments : float32[GROUP_SIZE, LANES]
        `first_moments` are importance times magnitude.
    first : int
    full : bool
    limit : float32[LANES]
        Largest scale, in units of the absmax.
    sides : int32[LANES]
        Sign that scales are tried with first, 0 where they must be positive.
    bins : int32[starts, OUTERMOST]
    starts : float32[starts, 2]
    chosen : int32[searches, refined, LANES]
        Overwritten from `first` on with number times two, plus one if the scale is negative. The
        first search may use all codes if `full`, the second may not.
    """
    flat = np.zeros(3 * _PART, np.float32)
    fill_table(normalized, importance, first_moments, sides, first, flat)
    table = flat.reshape(3, ROWS, 2, SLICE)
    searches, kept = chosen.shape[0], chosen.shape[1]
    best = np.full((searches, kept, SLICE), -1, np.float32)
    number = np.zeros((searches, kept, SLICE), np.int32)
    own_limit = limit[first : first + SLICE].copy()
    own_sides = sides[first : first + SLICE].copy()
    scores = np.empty((2, BATCH, SLICE), np.float32)
    turns = np.zeros((2, BATCH, SLICE), np.int32)
    names = np.empty((BATCH, SLICE), np.int32)
    for batch in range(0, bins.shape[0], BATCH):
        count = min(BATCH, bins.shape[0] - batch)
        for place in range(count):
            start = batch + place
            c = starts[start, 1]
            if full and bins[start, OUTERMOST - 1] <= BINS:
                set_scores(
                    table, bins[start], c, own_limit, own_sides, scores[0, place],
                    scores[1, place], turns[0, place],
                )  # fmt: skip
            else:  # no weight is that large
                set_inner_scores(table, bins[start], c, own_limit, scores[1, place])
                scores[0, place, :] = scores[1, place]
                turns[0, place, :] = 0
        for search in range(searches):
            keep_best_starts(
                scores[search, :count], turns[search], batch, names, best[search], number[search]
            )
    for search in range(searches):
        for place in range(kept):
            for lane in range(SLICE):
                # The side of the first weight has the even number.
                turned = np.int32(own_sides[lane] < 0)
                chosen[search, place, first + lane] = number[search, place, lane] ^ turned


@helper
def fill_table(
    normalized: Floats,
    importance: Floats,
    first_moments: Floats,
    sides: Integers,
    first: int,
    flat: Floats,
) -> None:
    """Write the importance from each bin on, and importance times magnitude.

    `flat` is float32[3, ROWS, 2, SLICE], flattened, which takes half the time: sums over all
    weights, over those that have code -8 if the scale is of the lane's side, and over the others.
    """
    place = np.empty(GROUP_SIZE * SLICE, np.int32)
    for i in range(GROUP_SIZE):
        for lane in range(SLICE):
            v = normalized[i, first + lane]
            bin_ = np.int32(np.sqrt(min(abs(v), _ONE)) * _BINS)
            has_8 = (v < 0) == (sides[first + lane] >= 0)
            part = np.int32(_PART if has_8 else 2 * _PART)
            place[i * SLICE + lane] = part + bin_ * np.int32(_ROW) + np.int32(lane)
    for i in range(GROUP_SIZE):
        for lane in range(SLICE):
            at = place[i * SLICE + lane]
            flat[at] += importance[i, first + lane]
            flat[at + SLICE] += first_moments[i, first + lane]
    for row in range(_PART + (BINS - 1) * _ROW, _PART - 1, -_ROW):
        for k in range(_ROW):
            own = flat[row + k] + flat[row + k + _ROW]
            other = flat[row + k + _PART] + flat[row + k + _PART + _ROW]
            flat[row + k] = own
            flat[row + k + _PART] = other
    for k in range(_PART):
        flat[k] = flat[k + _PART] + flat[k + 2 * _PART]


@helper
def first_seven(row: Integers) -> Any:
    """Return the bins from which codes 1 to 7 begin; read in the loop, they would slow it down."""
    return row[0], row[1], row[2], row[3], row[4], row[5], row[6]


@helper
def inner_moments(table: Floats, bins: Any, lane: int) -> Any:
    """Return the five moments that the steps to codes 1 to 7 make up."""
    n1, m1 = table[0, bins[0], 0, lane], table[0, bins[0], 1, lane]
    n2, m2 = table[0, bins[1], 0, lane], table[0, bins[1], 1, lane]
    n3, m3 = table[0, bins[2], 0, lane], table[0, bins[2], 1, lane]
    n4, m4 = table[0, bins[3], 0, lane], table[0, bins[3], 1, lane]
    n5, m5 = table[0, bins[4], 0, lane], table[0, bins[4], 1, lane]
    n6, m6 = table[0, bins[5], 0, lane], table[0, bins[5], 1, lane]
    n7, m7 = table[0, bins[6], 0, lane], table[0, bins[6], 1, lane]
    f = np.float32
    s2 = fma(f(7), n4, fma(f(5), n3, fma(f(3), n2, n1)))
    s2 = fma(f(13), n7, fma(f(11), n6, fma(f(9), n5, s2)))
    s3 = fma(f(37), n4, fma(f(19), n3, fma(f(7), n2, n1)))
    s3 = fma(f(127), n7, fma(f(91), n6, fma(f(61), n5, s3)))
    s4 = fma(f(175), n4, fma(f(65), n3, fma(f(15), n2, n1)))
    s4 = fma(f(1105), n7, fma(f(671), n6, fma(f(369), n5, s4)))
    a = ((m1 + m2) + (m3 + m4)) + ((m5 + m6) + m7)
    b = fma(f(7), m4, fma(f(5), m3, fma(f(3), m2, m1)))
    b = fma(f(13), m7, fma(f(11), m6, fma(f(9), m5, b)))
    return s2, s3, s4, a, b


@helper
def set_inner_scores(
    table: Floats, row: Integers, c: np.float32, limit: Floats, scores: Floats
) -> None:
    """Write the energy that a start explains without code -8."""
    bins = first_seven(row)
    for lane in range(SLICE):
        s2, s3, s4, a, b = inner_moments(table, bins, lane)
        _, _, score = solve(s2, s3, s4, a, b, c, limit[lane])
        scores[lane] = score


@helper
def set_scores(
    table: Floats,
    row: Integers,
    c: np.float32,
    limit: Floats,
    sides: Integers,
    scores: Floats,
    inner_scores: Floats,
    turns: Integers,
) -> None:
    """Write the energies that a start explains with all codes and without code -8.

    Parameters
    ----------
    table : float32[3, ROWS, 2, SLICE]
    row : int32[OUTERMOST]
        Bins from which the codes begin.
    c : float32
    limit : float32[SLICE]
    sides : int32[SLICE]
    scores, inner_scores : float32[SLICE]
        Overwritten.
    turns : int32[SLICE]
        Overwritten: 1 where the scale should not be of the lane's side.
    """
    last = row[OUTERMOST - 1]
    bins = first_seven(row)
    for lane in range(SLICE):
        s2, s3, s4, a, b = inner_moments(table, bins, lane)
        _, _, inner = solve(s2, s3, s4, a, b, c, limit[lane])
        n8, m8 = table[1, last, 0, lane], table[1, last, 1, lane]
        f = np.float32
        _, _, own = solve(
            fma(f(15), n8, s2), fma(f(169), n8, s3), fma(f(1695), n8, s4), a + m8,
            fma(f(15), m8, b), c, limit[lane],
        )  # fmt: skip
        n8, m8 = table[2, last, 0, lane], table[2, last, 1, lane]
        _, _, other = solve(
            fma(f(15), n8, s2), fma(f(169), n8, s3), fma(f(1695), n8, s4), a + m8,
            fma(f(15), m8, b), c, limit[lane],
        )  # fmt: skip
        turn = other > own and sides[lane] != 0
        scores[lane] = other if turn else own
        inner_scores[lane] = inner
        turns[lane] = np.int32(turn)


@helper
def keep_best_starts(
    scores: Floats, turns: Integers, first: int, names: Integers, best: Floats, number: Integers
) -> None:
    """Enter starts, one after another, into each lane's sorted list.

    What a place of the list does not keep, be it the start or what it kept before, goes on to the
    next place.

    Parameters
    ----------
    scores : float32[count, SLICE]
        Of the starts from `first` on. They are overwritten.
    turns : int32[count, SLICE]
    first : int
    names : int32[count, SLICE]
        Overwritten.
    best : float32[kept, SLICE]
    number : int32[kept, SLICE]
        The list.
    """
    last = best.shape[0] - 1
    count = 0
    for k in range(scores.shape[0]):
        entries = np.int32(0)
        for lane in range(SLICE):
            entries += np.int32(scores[k, lane] > best[last, lane])
        if entries > 0:
            for lane in range(SLICE):
                scores[count, lane] = scores[k, lane]
                names[count, lane] = np.int32(2 * (first + k)) + turns[k, lane]
            count += 1
    for place in range(best.shape[0]):
        for k in range(count):
            for lane in range(SLICE):
                new, new_name = scores[k, lane], names[k, lane]
                old, old_name = best[place, lane], number[place, lane]
                better = new > old
                best[place, lane] = new if better else old
                number[place, lane] = new_name if better else old_name
                scores[k, lane] = old if better else new
                names[k, lane] = old_name if better else new_name
