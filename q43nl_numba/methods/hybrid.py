"""Nine coarse curves, descents from the best three, the best of all met.

The nine are evenly spaced, about 32 curves apart; the descents' starts are what the coarse trials
lead to (`Trial.refined`), at least `GAP` curves from each other.

An iteration of a descent tries one more curve on the way out from the start, on either side in
turn, and takes the Newton step from there: slope over bend of that curve's own parabola, which ends
at the bottom of the notch. Fixed ways out reach every notch near a start, where a descent that
follows the slope stays in the first. Measured on normal weights: Adam with central differences, as
`gradient` has it, has more error after 18 iterations (36 trials) and a line search of nine than 30
Newton steps and four more tries around the best, which take 0.75 of its time. Adam on the trials'
own slopes, one trial an iteration, ends above `gradient` on most data.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from .._jit import helper, inlined
from .._layout import LARGEST_CURVE
from ..kernels.curve import NEAREST_LEVEL, evaluate, keep_better, new_trial, set_trial
from ..kernels.curve_search import curve_encoder
from ..kernels.tile import Doubles, Floats, Integers
from .descent import copy, take_best_start
from .method import Method

_COARSE: Final = 9
_DESCENTS: Final = 3
_ITERATIONS: Final = 10
"""Of each descent."""
_STRIDE: Final = 4
_LAST: Final = 4
_LAST_STRIDE: Final = 2


@inlined
def search_hybrid(
    magnitudes: Floats,
    importance: Any,
    scales: Floats,
    statistics: None,
    parameters: Doubles,
    curves: Integers,
) -> None:
    """Take the best curve of all that are tried."""
    lanes = curves.size
    trial = new_trial(lanes)
    least = np.full(lanes, np.inf, np.float32)
    starts = np.empty((_COARSE, lanes), np.int32)
    errors = np.empty((_COARSE, lanes), np.float32)
    center = np.zeros(lanes, np.int32)
    descended = _COARSE + _DESCENTS * _ITERATIONS
    # One loop takes all steps: each further call of `evaluate` would be compiled again.
    for step in range(descended + _LAST):
        if step < _COARSE:
            spacing = 2 * LARGEST_CURVE / (_COARSE - 1)
            set_trial(trial, center, int(np.rint(step * spacing)) - LARGEST_CURVE)
        elif step < descended:
            done = (step - _COARSE) % _ITERATIONS
            if done == 0:
                take_best_start(starts, errors, center)
            set_trial(trial, center, offset_of(done) * _STRIDE)
        else:
            done = step - descended
            if done == 0:
                copy(curves, center)
            set_trial(trial, center, offset_of(done) * _LAST_STRIDE)
        evaluate(magnitudes, importance, trial)
        keep_better(trial, curves, least)
        if step < _COARSE:
            copy(trial.refined, starts[step])
            copy(trial.refined_errors, errors[step])


@helper
def offset_of(done: int) -> int:
    """1, -1, 2, -2, ... for 0, 1, 2, 3, ..."""
    distance = done // 2 + 1
    return -distance if done % 2 else distance


HYBRID = Method(
    name="hybrid",
    encoder=curve_encoder(search_hybrid, nearest=NEAREST_LEVEL, name="hybrid"),
    cost=lambda parameters: 12.0,
)
