"""Twelve informed starts, Adam from the most promising ones, and a line search.

Every evaluation is a `Trial` at a storable curve, so what is optimized is what will be written. The
error is a continuous but notched function of c: a single descent ends in the nearest notch,
however long it runs. Hence the iterations are shared, `_DESCENT` to a start, among the best starts
that are at least `_GAP` curves apart.

Adam: Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .._jit import helper
from ..curve import (
    NEAREST_LEVEL,
    Trial,
    aim,
    c_of_curve,
    curve_of_c,
    judge,
    keep_better,
    new_trial,
)
from ..encode import Encoder
from ..layout import GROUP_SIZE, LARGEST_CURVE
from .method import Method, Option, integer_from, positive_number

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]

_FIXED_STARTS: Final = np.array([0.0, 0.3, -0.3, 0.6, -0.6, 0.9, -0.9], np.float32)
_STARTS: Final = 12
_QUARTILES: Final = (25.0, 75.0)

_DESCENT: Final = 3
_GAP: Final = 12
_HALF_DIFFERENCE: Final = 4
_BETA1: Final = np.float32(0.9)
_BETA2: Final = np.float32(0.999)
_EPSILON: Final = np.float32(1e-8)
_RATE_DECAY: Final = np.float32(0.9)
_LINE_EACH_SIDE: Final = 3
_LINE_STEP: Final = 5


def hints(groups: Floats) -> Floats:
    """What SciPy's statistics tell of each group.

    Parameters
    ----------
    groups : float32[n, GROUP_SIZE]

    Returns
    -------
    float32[3, n]
        Kurtosis about zero (NaN for a group of zeros); first and third quartile of the magnitudes.
    """
    moment, percentile = _statistics()
    # Side by side, the groups' moments are sums of whole rows, which take a third of the time.
    second, fourth = moment(np.ascontiguousarray(groups.T), [2, 4], axis=0, center=0.0)
    quartiles = percentile(np.abs(groups), _QUARTILES, axis=1, interpolation_method="lower")
    return np.stack([fourth / (second * second), *quartiles]).astype(np.float32, copy=False)


@functools.cache
def _statistics() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """SciPy's functions, imported when they are needed: that costs more than all the rest.

    The moment's treatment of NaN, which weights do not hold, is left off: it takes a third of a
    millisecond a call.
    """
    from scipy import stats

    return inspect.unwrap(stats.moment), stats.scoreatpercentile


@helper
def search(
    magnitudes: Floats,
    scales: Floats,
    hints: Floats,
    parameters: NDArray[np.float64],
    curves: Integers,
) -> None:
    """Best curve met on the way: starts, descents, line search."""
    iterations, rate = int(parameters[0]), np.float32(parameters[1])
    lanes = curves.size
    trial = new_trial(lanes)
    least = np.full(lanes, np.inf, np.float32)
    start_curves = np.empty((_STARTS, lanes), np.int32)
    start_errors = np.empty((_STARTS, lanes), np.float32)
    set_starts(magnitudes, scales, hints, start_curves)
    for start in range(_STARTS):
        aim(trial, start_curves[start], 0)
        judge(magnitudes, trial)
        keep_better(trial, curves, least)
        for lane in range(lanes):
            start_curves[start, lane] = trial.refined[lane]
            start_errors[start, lane] = trial.refined_errors[lane]
    for done in range(0, iterations, _DESCENT):
        origin = take_best_start(start_curves, start_errors)
        steps = min(_DESCENT, iterations - done)
        descend(magnitudes, trial, origin, steps, rate, curves, least)
    center = curves.copy()
    for place in range(-_LINE_EACH_SIDE, _LINE_EACH_SIDE + 1):
        aim(trial, center, place * _LINE_STEP)
        judge(magnitudes, trial)
        keep_better(trial, curves, least)


@helper
def set_starts(magnitudes: Floats, scales: Floats, hints: Floats, starts: Integers) -> None:
    """The fixed starts, and five that suit the group's distribution.

    Were the magnitudes v spread as the curve spreads x from 0 to 1 evenly, then mean(v) = 1/2 -
    c/6, mean(v^2) = 1/3 - c/6 + O(c^2), kurtosis = 9/5 + O(c), and the quantile at x would be
    x + c (x^2 - x). Each start solves one of these for c. The mean square is that of the weights in
    units of their range.
    """
    fixed, lanes = len(_FIXED_STARTS), magnitudes.shape[1]
    for start in range(fixed):
        curve = curve_of_c(_FIXED_STARTS[start])
        for lane in range(lanes):
            starts[start, lane] = curve
    mean = np.zeros(lanes, np.float32)
    square = np.zeros(lanes, np.float32)
    for i in range(GROUP_SIZE):
        for lane in range(lanes):
            v = magnitudes[i, lane]
            mean[lane] += v
            square[lane] += v * v
    for lane in range(lanes):
        mean_v = mean[lane] / np.float32(GROUP_SIZE)
        mean_square = square[lane] / np.float32(GROUP_SIZE)
        scale = scales[lane]
        starts[fixed, lane] = curve_of_c(hints[0, lane] - np.float32(9 / 5))
        starts[fixed + 1, lane] = curve_of_c(np.float32(3) - np.float32(6) * mean_v)
        starts[fixed + 2, lane] = curve_of_c(np.float32(2) - np.float32(6) * mean_square)
        starts[fixed + 3, lane] = curve_of_c(
            c_of_quantile(hints[1, lane] / scale, np.float32(0.25))
        )
        starts[fixed + 4, lane] = curve_of_c(
            c_of_quantile(hints[2, lane] / scale, np.float32(0.75))
        )


@helper
def c_of_quantile(value: np.float32, x: np.float32) -> np.float32:
    """Value of c of the curve that takes x to a value."""
    return np.float32((value - x) / (x * x - x))


@helper
def take_best_start(start_curves: Integers, start_errors: Floats) -> Integers:
    """Best start of each lane that is left, which strikes out all that lie near it."""
    lanes = start_curves.shape[1]
    best = np.zeros(lanes, np.int32)
    least = np.full(lanes, np.inf, np.float32)
    for start in range(_STARTS):
        for lane in range(lanes):
            better = start_errors[start, lane] < least[lane]
            least[lane] = start_errors[start, lane] if better else least[lane]
            best[lane] = start_curves[start, lane] if better else best[lane]
    for start in range(_STARTS):
        for lane in range(lanes):
            near = abs(start_curves[start, lane] - best[lane]) < _GAP
            start_errors[start, lane] = np.float32(np.inf) if near else start_errors[start, lane]
    return best


@helper
def descend(
    magnitudes: Floats,
    trial: Trial,
    origin: Integers,
    steps: int,
    rate: np.float32,
    curves: Integers,
    least: Floats,
) -> None:
    """Adam on c with central differences, keeping the best curve met."""
    lanes = curves.size
    c = np.empty(lanes, np.float32)
    first = np.zeros(lanes, np.float32)
    second = np.zeros(lanes, np.float32)
    differences = np.empty(lanes, np.float32)
    center = np.empty(lanes, np.int32)
    bias1 = bias2 = np.float32(1)
    for lane in range(lanes):
        c[lane] = c_of_curve(origin[lane])
        center[lane] = inner_curve(c[lane])
    for _ in range(steps):
        bias1 *= _BETA1
        bias2 *= _BETA2
        for lane in range(lanes):
            differences[lane] = np.float32(0)
        for side in (-1, 1):
            aim(trial, center, side * _HALF_DIFFERENCE)
            judge(magnitudes, trial)
            keep_better(trial, curves, least)
            for lane in range(lanes):
                differences[lane] += np.float32(side) * trial.errors[lane]
        for lane in range(lanes):
            slope = differences[lane] / c_of_curve(2 * _HALF_DIFFERENCE)
            first[lane] += (np.float32(1) - _BETA1) * (slope - first[lane])
            second[lane] += (np.float32(1) - _BETA2) * (slope * slope - second[lane])
            mean = first[lane] / (np.float32(1) - bias1)
            size = np.sqrt(second[lane] / (np.float32(1) - bias2)) + _EPSILON
            moved = c[lane] - rate * mean / size
            c[lane] = min(max(moved, np.float32(-1)), np.float32(1))
            center[lane] = inner_curve(c[lane])
        rate *= _RATE_DECAY


@helper
def inner_curve(c: np.float32) -> np.int32:
    """The curve next to c that leaves room for a central difference."""
    limit = np.int32(LARGEST_CURVE - _HALF_DIFFERENCE)
    return min(max(curve_of_c(c), -limit), limit)


GRADIENT = Method(
    name="gradient",
    encode=Encoder(search, nearest=NEAREST_LEVEL, name="gradient"),
    options=(
        Option("gd_iterations", 5, integer_from(1)),
        Option("gd_lr", 0.3, positive_number),
    ),
    hints=hints,
)
