"""Seventeen evenly spaced curves, then seventeen around the best of them.

Each candidate stands for the best curve its codes allow (`Trial`), so the coarse pass sees the
bottom of every notch it lands in. On normal data that is what takes the error from 0.1 % above the
reference to below it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from .._jit import inlined
from .._layout import LARGEST_CURVE
from ..kernels.curve import NEAREST_LEVEL, evaluate, keep_better, new_trial, set_trial
from ..kernels.curve_search import curve_encoder
from ..kernels.tile import Doubles, Floats, Integers
from .method import Method

_EACH_SIDE: Final = 8
_COARSE_STEP: Final = LARGEST_CURVE / _EACH_SIDE
_FINE_STEP: Final = 2.0


@inlined
def search_coarse_fine(
    magnitudes: Floats,
    importance: Any,
    scales: Floats,
    statistics: None,
    parameters: Doubles,
    curves: Integers,
) -> None:
    """Take the best of the coarse candidates, then the best of the fine ones around it."""
    lanes = curves.size
    trial = new_trial(lanes)
    least = np.full(lanes, np.inf, np.float32)
    center = np.zeros(lanes, np.int32)
    for pass_step in (_COARSE_STEP, _FINE_STEP):
        for place in range(-_EACH_SIDE, _EACH_SIDE + 1):
            set_trial(trial, center, int(np.rint(place * pass_step)))
            evaluate(magnitudes, importance, trial)
            keep_better(trial, curves, least)
        for lane in range(lanes):
            center[lane] = curves[lane]


COARSE_FINE = Method(
    name="coarse_fine",
    encoder=curve_encoder(search_coarse_fine, nearest=NEAREST_LEVEL, name="coarse_fine"),
    cost=lambda parameters: 10.0,
)
