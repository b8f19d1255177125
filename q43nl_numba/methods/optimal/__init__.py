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
about 600 pairs gain less than 0.01 %. Nearly half of the time at effort 1 is spent on the grid
search, whose result is one of the finalists: so no group is ever worse than with `grid`.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

import numpy as np

from ..._jit import helper, inlined, types
from ..._layout import GROUP_SIZE, MAX_SCALE
from ...kernels.curve_search import set_scales
from ...kernels.joint import OUTERMOST, joint_encoder, take_better
from ...kernels.tile import LANES, Doubles, Floats, Integers, ScaleBits, set_magnitudes
from ..grid import CURVES, grid_handicaps, search_grid
from ..method import Method, Option, integer_between, one_of
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
    """Of the grid search: float64[255]; float64[0] to leave it out."""


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
    """Take the best of what the grid search stores and of the refined starts."""
    known_bits = np.zeros(LANES, np.uint32)
    known_curves = np.zeros(LANES, np.int32)
    if parameters.handicaps.size > 0:
        known_bits, known_curves = grid_choice(weights, importance, parameters.handicaps)
    try_starts(
        weights, importance, normalized, absmax, parameters, known_bits, known_curves,
        scale_bits, curves, errors,
    )  # fmt: skip


@inlined
def try_starts(
    weights: Floats,
    importance: Floats,
    normalized: Floats,
    absmax: Floats,
    parameters: Parameters,
    known_bits: ScaleBits,
    known_curves: Integers,
    scale_bits: ScaleBits,
    curves: Integers,
    errors: Doubles,
) -> None:
    """Take the best of what is known already (scale 0: nothing) and of what the starts lead to.

    Parameters are those of a `JointSearch`, with the scales' bits uint32[LANES] and the curves
    int32[LANES] that are known.
    """
    full, starts = parameters.full, parameters.starts
    first_moments = np.empty((GROUP_SIZE, LANES), np.float32)
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            first_moments[i, lane] = importance[i, lane] * abs(normalized[i, lane])
    limit = np.empty(LANES, np.float32)
    mirrors = np.empty(LANES, np.bool_)
    for lane in range(LANES):
        limit[lane] = np.float32(MAX_SCALE) / absmax[lane]
        mirrors[lane] = full and absmax[lane] > _SMALLEST_MIRRORED
    chosen = np.empty((parameters.refined, LANES), np.int32)
    for start in range(0, LANES, SLICE):
        rank_starts(
            normalized, importance, first_moments, start, full, limit, mirrors,
            parameters.bins, starts, chosen,
        )  # fmt: skip
    kept = 1 + parameters.finalists
    kept_scores = np.full((kept, LANES), -1, np.float32)
    kept_bits = np.zeros((kept, LANES), np.uint32)
    kept_curves = np.zeros((kept, LANES), np.int32)
    for lane in range(LANES):
        kept_scores[0, lane] = np.inf  # nothing takes this place
        kept_bits[0, lane] = known_bits[lane]
        kept_curves[0, lane] = known_curves[lane]
    scale = np.empty(LANES, np.float32)
    c = np.empty(LANES, np.float32)
    sign = np.empty(LANES, np.float32)
    sums = np.empty((5, LANES), np.float32)
    midpoints = np.empty((OUTERMOST, LANES), np.float32)
    score = np.empty(LANES, np.float32)
    tried_bits = np.empty(LANES, np.uint32)
    tried_curves = np.empty(LANES, np.int32)
    for place in range(parameters.refined):
        for lane in range(LANES):
            number = chosen[place, lane]
            scale[lane] = starts[number >> 1, 0]
            c[lane] = starts[number >> 1, 1]
            sign[lane] = -_ONE if number & 1 else _ONE
        for _ in range(parameters.rounds):
            set_start_midpoints(scale, c, full, midpoints)
            add_moments(normalized, importance, first_moments, sign, midpoints, sums)
            refit(sums, limit, scale, c)
        round_to_storable(sums, absmax, sign, c, full, score, tried_bits, tried_curves)
        keep_best_pairs(score, tried_bits, tried_curves, kept_scores, kept_bits, kept_curves)
    for place in range(kept):
        take_better(
            weights, importance, full, kept_bits[place], kept_curves[place],
            scale_bits, curves, errors,
        )  # fmt: skip


@helper
def grid_choice(
    weights: Floats, importance: Floats, handicaps: Doubles
) -> tuple[ScaleBits, Integers]:
    """Return the scales and curves that `grid` would store; scale 0 where the absmax has none."""
    magnitudes = np.empty((GROUP_SIZE, LANES), np.float32)
    scales = np.empty(LANES, np.float32)
    scale_bits = np.empty(LANES, np.uint32)
    curves = np.zeros(LANES, np.int32)
    set_scales(weights, 0.0, scale_bits, scales)
    set_magnitudes(weights, scales, magnitudes)
    search_grid(magnitudes, importance, scales, None, handicaps, curves)
    return scale_bits, curves


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

    Without the grid search, which only sees to it that no group is worse, and with no more effort
    than makes a difference.
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
