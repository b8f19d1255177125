"""Starts, descents from the best of them, and a line search: what informed searches share.

Every evaluation is a `Trial` at a storable curve, so what is optimized is what will be written. The
error is a continuous but notched function of c: a single descent ends in the nearest notch,
however long it runs. Hence the iterations are shared among the best starts that are at least
`_GAP` curves apart.

Adam: Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from .._jit import helper
from .._layout import LARGEST_CURVE
from ..kernels.curve import c_of_curve, curve_of_c, evaluate, keep_better, new_trial, set_trial
from ..kernels.tile import Floats, Integers

_GAP: Final = 12
_HALF_DIFFERENCE: Final = 4
_BETA1: Final = np.float32(0.9)
_BETA2: Final = np.float32(0.999)
_EPSILON: Final = np.float32(1e-8)
_RATE_DECAY: Final = np.float32(0.9)
_LINE_STEP: Final = 5


@helper
def explore(
    magnitudes: Floats,
    importance: Any,
    starts: Integers,
    iterations: int,
    per_descent: int,
    rate: np.float32,
    line_tries: int,
    curves: Integers,
) -> None:
    """Write the best curve of all starts, the descents and the line search.

    Parameters
    ----------
    magnitudes, importance
        As for `evaluate`.
    starts : int32[n, lanes]
        Overwritten.
    iterations, per_descent : int
        Iterations of Adam over all descents, and of each descent (the last may be shorter).
    rate : float32
        Adam's learning rate, in units of c.
    line_tries : int
        Curves tried around the best one in the end, an odd number, `_LINE_STEP` apart.
    curves : int32[lanes]
        Overwritten with the result.
    """
    lanes, tried = curves.size, starts.shape[0]
    trial, adam = new_trial(lanes), new_adam(lanes)
    least = np.full(lanes, np.inf, np.float32)
    errors = np.empty((tried, lanes), np.float32)
    center = np.zeros(lanes, np.int32)
    descended = tried + 2 * iterations
    # One loop takes all steps: each further call of `evaluate` would be compiled again.
    for step in range(descended + line_tries):
        done, second = (step - tried) // 2, (step - tried) % 2 == 1
        if step < tried:
            set_trial(trial, starts[step], 0)
        elif step < descended:
            if done % per_descent == 0 and not second:
                take_best_start(starts, errors, center)
                restart(adam, center)
            set_trial(trial, adam.center, _HALF_DIFFERENCE if second else -_HALF_DIFFERENCE)
        else:
            if step == descended:
                copy(curves, center)
            set_trial(trial, center, (step - descended - line_tries // 2) * _LINE_STEP)
        evaluate(magnitudes, importance, trial)
        keep_better(trial, curves, least)
        if step < tried:
            copy(trial.refined, starts[step])
            copy(trial.refined_errors, errors[step])
        elif step < descended:
            if second:
                move(adam, trial.errors, done % per_descent, rate)
            else:
                copy(trial.errors, adam.near)


@helper
def copy(source: Any, target: Any) -> None:
    """Copy a value of each lane.

    NumPy's assignment of arrays takes seconds to compile.
    """
    for lane in range(target.size):
        target[lane] = source[lane]


@helper
def take_best_start(starts: Integers, errors: Floats, best: Integers) -> None:
    """Write the best start left of each lane, and give starts near it an infinite error."""
    lanes = best.size
    least = np.full(lanes, np.inf, np.float32)
    for start in range(starts.shape[0]):
        for lane in range(lanes):
            better = errors[start, lane] < least[lane]
            least[lane] = errors[start, lane] if better else least[lane]
            best[lane] = starts[start, lane] if better else best[lane]
    for start in range(starts.shape[0]):
        for lane in range(lanes):
            near = abs(starts[start, lane] - best[lane]) < _GAP
            errors[start, lane] = np.float32(np.inf) if near else errors[start, lane]


class Adam(NamedTuple):
    """State of a descent in each lane."""

    c: Floats
    center: Integers
    """The curve next to c at which a central difference can be taken."""
    first: Floats
    second: Floats
    """Means of the slope and of its square."""
    near: Floats
    """Error at the lesser of the two curves whose difference gives the slope."""


@helper
def new_adam(lanes: int) -> Adam:
    """Return uninitialized arrays for a descent."""
    return Adam(
        np.empty(lanes, np.float32),
        np.empty(lanes, np.int32),
        np.empty(lanes, np.float32),
        np.empty(lanes, np.float32),
        np.empty(lanes, np.float32),
    )


@helper
def restart(adam: Adam, origin: Integers) -> None:
    """Start a descent at a curve."""
    for lane in range(origin.size):
        adam.c[lane] = c_of_curve(origin[lane])
        adam.center[lane] = inner_curve(adam.c[lane])
        adam.first[lane] = np.float32(0)
        adam.second[lane] = np.float32(0)


@helper
def move(adam: Adam, far: Floats, done: int, rate: np.float32) -> None:
    """Do one iteration after `done` others, given the errors at the greater of the two curves."""
    bias1, bias2 = _BETA1, _BETA2
    for _ in range(done):
        bias1 *= _BETA1
        bias2 *= _BETA2
        rate *= _RATE_DECAY
    for lane in range(far.size):
        slope = (far[lane] - adam.near[lane]) / c_of_curve(2 * _HALF_DIFFERENCE)
        first = adam.first[lane] + (np.float32(1) - _BETA1) * (slope - adam.first[lane])
        square = slope * slope - adam.second[lane]
        second = adam.second[lane] + (np.float32(1) - _BETA2) * square
        mean = first / (np.float32(1) - bias1)
        size = np.sqrt(second / (np.float32(1) - bias2)) + _EPSILON
        moved = adam.c[lane] - rate * mean / size
        adam.first[lane] = first
        adam.second[lane] = second
        adam.c[lane] = min(max(moved, np.float32(-1)), np.float32(1))
        adam.center[lane] = inner_curve(adam.c[lane])


@helper
def inner_curve(c: np.float32) -> np.int32:
    """Return the curve next to c at which a central difference can be taken."""
    limit = np.int32(LARGEST_CURVE - _HALF_DIFFERENCE)
    return min(max(curve_of_c(c), -limit), limit)
