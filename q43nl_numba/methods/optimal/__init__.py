"""Scale, curve and codes together: hundreds of starts ranked by tables, the best ones refined.

A *round* takes the nearest codes for (p, c), sums the moments up and solves for the next (p, c).
Rounds end in the notch they start in, so what counts is the start. Starts are a grid of scales (in
units of the group's absmax) and curves, each with code -8 on either side of zero.

What won is ranking starts without looking at the weights. As the starts' thresholds are the same
for all groups, each group's importance and importance times magnitude are entered into bins once,
and summed up from above. Eight lookups a start then give the five moments (the step from code k - 1
to k adds (k^2 - (k - 1)^2) n to sum h j^2, where n is the importance beyond its threshold, and so
on), and both sides share seven of them. Rounding thresholds to bins costs nothing but rank: every
assignment is a valid one. Bins are even in the square root of the magnitude, so that they are fine
where a curve near c = 1 has its levels. Measured on one core: 4 ns a start and group, lists of the
best included, against 14 ns for a round. With 288 pairs of starts and four refined (effort 5) the
error on normal data is 1.0004 times the optimum, where 76 pairs with one refined leave 1.017.

Most optima have the absmax at the outermost codes. A few weights among zeros may fit better with
the absmax at code 5 or 6 of a strongly bent curve: a sixteenth of the starts are for those. With
nine in ten weights zero, they take the error from 1.011 to 1.0002 times the optimum (effort 5).

What did not help: more than two rounds for a poor start (with one refined start, 1.0173 becomes
1.0154 at three rounds, while a second start makes it 1.009); bins even in the magnitude (as good on
normal data, but 8 % above the optimum where one weight is a hundred times the others). More than
about 600 pairs gain less than 0.01 %.

What holds for every group, and not only on average:

- It is never worse than with `grid`, whose result is one of the finalists. The grid search takes
  nearly half of the time at effort 1.
- With all codes it is never worse than with symmetric ones: the same search without code -8, its
  own starts and finalists, goes along. It shares the tables and most of the scores, as most starts
  have no weight that is large enough for code -8, and takes a tenth of the time at effort 5.
- Negated, it gets the same codes and curve, and a scale of the other sign: whatever tells the sides
  of zero apart begins with the side of the group's first weight. (Scales below 2^-14 must be
  positive: there it does not hold.)
- What was decoded is stored without loss (`lossless`).
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

import numpy as np

from ..._jit import helper, inlined, types
from ..._layout import GROUP_SIZE, MAX_SCALE, SCALE_SIGN
from ...kernels.curve_search import set_scales
from ...kernels.joint import OUTERMOST, joint_encoder, take_better
from ...kernels.tile import LANES, Doubles, Floats, Integers, ScaleBits, set_magnitudes
from ..grid import CURVES, grid_handicaps, search_grid
from ..method import Method, Option, integer_between, one_of
from .lossless import restore_decoded
from .refinement import (
    add_moments,
    keep_best_pairs,
    refit,
    round_to_storable,
    set_start_midpoints,
)
from .starts import SLICE, rank_starts, start_table

FULL: Final = "full"
CODES: Final = Option(
    "codes", FULL, one_of(FULL, "symmetric"), "full, or symmetric: -7 to 7 and positive scales"
)


class Effort(NamedTuple):
    """How much the search does."""

    scales: int
    cs: int
    """Numbers of scales and of values of c to start from."""
    refined: int
    """Starts that are refined."""
    rounds: int
    """Rounds for each of them."""
    finalists: int
    """Pairs of scale and curve of which the errors as decoded are computed."""


EFFORTS: Final = {
    1: Effort(8, 9, 1, 2, 1),
    2: Effort(8, 9, 2, 3, 1),
    3: Effort(12, 13, 2, 3, 1),
    4: Effort(12, 13, 3, 4, 2),
    5: Effort(16, 17, 4, 4, 2),
    6: Effort(24, 25, 6, 4, 2),
    7: Effort(32, 33, 8, 4, 4),
    8: Effort(40, 41, 16, 5, 4),
    9: Effort(56, 57, 24, 6, 8),
}


FEEDBACK_EFFORT: Final = 2
"""Most effort for a group that error feedback refines afterwards: more lowers the objective by less
than 1 %."""


class Parameters(NamedTuple):
    """What the kernels see of a call's options."""

    full: bool
    """Whether all codes are allowed."""
    bins: Integers
    """Bins from which each code begins: int32[starts, 8]."""
    starts: Floats
    """Scale, in units of the absmax, and c: float32[starts, 2]."""
    refined: int
    rounds: int
    finalists: int
    handicaps: Doubles
    """Of the grid search: float64[255]; float64[0] to leave out all that only guards groups: the
    grid search, the one without code -8 and the look for groups that were decoded."""


PARAMETERS: Final = types.NamedTuple(  # type: ignore[no-untyped-call]
    (
        types.boolean,
        types.int32[:, ::1],
        types.float32[:, ::1],
        types.int64,
        types.int64,
        types.int64,
        types.float64[::1],
    ),
    Parameters,
)
"""Numba's type of `Parameters`."""

_ONE: Final = np.float32(1)
_SMALLEST_MIRRORED: Final = np.float32(2.0**-13)
"""Least absmax for which a negative scale is tried: those must not be subnormal."""


@inlined
def search_optimal(
    weights: Floats,
    importance: Floats,
    normalized: Floats,
    absmax: Floats,
    parameters: Parameters,
    scale_bits: ScaleBits,
    curves: Integers,
    errors: Doubles,
) -> None:
    """Take the best of all pairs of scale and curve that the searches end with.

    They are what the grid search stores, what the best starts lead to and, if code -8 is allowed,
    what the best ones without it lead to: so no group is worse than with `grid` or with symmetric
    codes. In the end, groups that were decoded are given what they were decoded from.
    """
    guarded = parameters.handicaps.size > 0
    searches = 2 if guarded and parameters.full else 1
    finalists = parameters.finalists
    first_moments = np.empty((GROUP_SIZE, LANES), np.float32)
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            first_moments[i, lane] = importance[i, lane] * abs(normalized[i, lane])
    limit = np.empty(LANES, np.float32)
    sides = np.empty(LANES, np.int32)
    for lane in range(LANES):
        limit[lane] = np.float32(MAX_SCALE) / absmax[lane]
    set_sides(normalized, absmax, parameters.full, sides)
    # Place 0 is the grid's, then come the finalists of each search; scale 0 where there is none.
    tried_bits = np.zeros((1 + searches * finalists, LANES), np.uint32)
    tried_curves = np.zeros((1 + searches * finalists, LANES), np.int32)
    if guarded:
        set_grid_choice(
            weights, importance, parameters.handicaps, sides, tried_bits[0], tried_curves[0]
        )
    chosen = np.empty((searches, parameters.refined, LANES), np.int32)
    for start in range(0, LANES, SLICE):
        rank_starts(
            normalized, importance, first_moments, start, parameters.full, limit, sides,
            parameters.bins, parameters.starts, chosen,
        )  # fmt: skip
    for search in range(searches):
        first = 1 + search * finalists
        refine(
            normalized, importance, first_moments, absmax, limit, parameters.full and search == 0,
            parameters.starts, parameters.rounds, chosen[search],
            tried_bits[first : first + finalists], tried_curves[first : first + finalists],
        )  # fmt: skip
    for place in range(0 if guarded else 1, 1 + searches * finalists):
        take_better(
            weights, importance, parameters.full, tried_bits[place], tried_curves[place],
            scale_bits, curves, errors,
        )  # fmt: skip
    if guarded:
        restore_decoded(
            weights, importance, normalized, sides, parameters.full, scale_bits, curves, errors
        )


@helper
def set_sides(normalized: Floats, absmax: Floats, full: bool, sides: Integers) -> None:
    """Write the sign of each lane's first weight that is not 0; 0 where scales must be positive.

    It is the sign that scales are tried with first: so a group and its negation get the same codes
    and curve, and scales of opposite sign.
    """
    for lane in range(LANES):
        sides[lane] = 0
    for i in range(GROUP_SIZE - 1, -1, -1):
        for lane in range(LANES):
            v = normalized[i, lane]
            sides[lane] = 1 if v > 0 else -1 if v < 0 else sides[lane]
    for lane in range(LANES):
        mirrors = full and absmax[lane] > _SMALLEST_MIRRORED
        sides[lane] = sides[lane] if mirrors else 0


@inlined
def refine(
    normalized: Floats,
    importance: Floats,
    first_moments: Floats,
    absmax: Floats,
    limit: Floats,
    full: bool,
    starts: Floats,
    rounds: int,
    chosen: Integers,
    tried_bits: ScaleBits,
    tried_curves: Integers,
) -> None:
    """Do the rounds of the chosen starts, and write the best storable pairs that they end near.

    Parameters
    ----------
    normalized, importance, first_moments : float32[GROUP_SIZE, LANES]
    absmax, limit : float32[LANES]
    full : bool
        Whether all codes are allowed.
    starts : float32[starts, 2]
    rounds : int
    chosen : int32[refined, LANES]
        As `rank_starts` writes them.
    tried_bits : uint32[finalists, LANES]
    tried_curves : int32[finalists, LANES]
        Zeros, which are overwritten, the best pair first.
    """
    scores = np.full(tried_bits.shape, -1, np.float32)
    scale = np.empty(LANES, np.float32)
    c = np.empty(LANES, np.float32)
    sign = np.empty(LANES, np.float32)
    sums = np.empty((5, LANES), np.float32)
    midpoints = np.empty((OUTERMOST, LANES), np.float32)
    score = np.empty(LANES, np.float32)
    new_bits = np.empty(LANES, np.uint32)
    new_curves = np.empty(LANES, np.int32)
    for place in range(chosen.shape[0]):
        for lane in range(LANES):
            number = chosen[place, lane]
            scale[lane] = starts[number >> 1, 0]
            c[lane] = starts[number >> 1, 1]
            sign[lane] = -_ONE if number & 1 else _ONE
        for _ in range(rounds):
            set_start_midpoints(scale, c, full, midpoints)
            add_moments(normalized, importance, first_moments, sign, midpoints, sums)
            refit(sums, limit, scale, c)
        round_to_storable(sums, absmax, sign, c, full, score, new_bits, new_curves)
        keep_best_pairs(score, new_bits, new_curves, scores, tried_bits, tried_curves)


@helper
def set_grid_choice(
    weights: Floats,
    importance: Floats,
    handicaps: Doubles,
    sides: Integers,
    scale_bits: ScaleBits,
    curves: Integers,
) -> None:
    """Write the scales and curves that `grid` would store; scale 0 where the absmax has none.

    The scales get the sign of each lane's side: as code -8 is not used, either sign will do.
    """
    magnitudes = np.empty((GROUP_SIZE, LANES), np.float32)
    scales = np.empty(LANES, np.float32)
    set_scales(weights, 0.0, scale_bits, scales)
    set_magnitudes(weights, scales, magnitudes)
    search_grid(magnitudes, importance, scales, None, handicaps, curves)
    for lane in range(LANES):
        scale_bits[lane] |= SCALE_SIGN if sides[lane] < 0 else np.uint32(0)


@functools.cache
def optimal_parameters(codes: str, effort: int) -> Parameters:
    """Return what the kernels see of the options."""
    wanted = EFFORTS[effort]
    return Parameters(
        codes == FULL,
        *start_table(wanted.scales, wanted.cs),
        wanted.refined,
        wanted.rounds,
        wanted.finalists,
        grid_handicaps(CURVES),
    )


def for_feedback(parameters: Parameters) -> Parameters:
    """Return parameters for groups that error feedback refines afterwards.

    Without the searches that only see to it that no group is worse, and with no more effort than
    makes a difference.
    """
    enough = optimal_parameters(FULL if parameters.full else "symmetric", FEEDBACK_EFFORT)
    if len(parameters.starts) > len(enough.starts):
        parameters = enough
    return parameters._replace(handicaps=np.empty(0, np.float64))


def cost(parameters: Parameters) -> float:
    """Return the nanoseconds a weight takes: of the grid search, ranking and the rounds."""
    return 16.0 + 0.06 * len(parameters.starts) + 1.5 * parameters.refined * parameters.rounds


OPTIMAL = Method(
    name="optimal",
    encoder=joint_encoder(search_optimal, name="optimal", parameters=PARAMETERS),
    cost=cost,
    options=(
        CODES,
        Option(
            "effort",
            5,
            integer_between(min(EFFORTS), max(EFFORTS)),
            f"{min(EFFORTS)} (fast) to {max(EFFORTS)} (near to exact)",
        ),
    ),
    parameters=optimal_parameters,
    feedback_parameters=for_feedback,
    joint=True,
    eps_scale=0.0,
)
