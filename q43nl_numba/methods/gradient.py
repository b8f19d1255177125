"""Twelve informed starts, Adam from the most promising ones, and a line search (`descent`)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from .._jit import helper, inlined
from .._layout import GROUP_SIZE
from ..kernels.curve import NEAREST_LEVEL, curve_of_c
from ..kernels.curve_search import curve_encoder
from ..kernels.tile import Doubles, Floats, Integers
from .descent import explore
from .method import Method, Option, integer_between, positive_number
from .statistics import group_statistics

_FIXED_STARTS: Final = np.array([0.0, 0.3, -0.3, 0.6, -0.6, 0.9, -0.9], np.float32)
_STARTS: Final = 12
_DESCENT: Final = 3
_LINE_TRIES: Final = 7
_MOST_ITERATIONS: Final = 10_000


@inlined
def search_gradient(
    magnitudes: Floats,
    importance: Any,
    scales: Floats,
    statistics: Floats,
    parameters: Doubles,
    curves: Integers,
) -> None:
    """Take the best curve of all that are tried: starts, descents, line search."""
    iterations, rate = int(parameters[0]), np.float32(parameters[1])
    starts = np.empty((_STARTS, curves.size), np.int32)
    set_starts(magnitudes, scales, statistics, starts)
    explore(magnitudes, importance, starts, iterations, _DESCENT, rate, _LINE_TRIES, curves)


@helper
def set_starts(magnitudes: Floats, scales: Floats, statistics: Floats, starts: Integers) -> None:
    """Write the fixed starts, and five that suit the group's distribution.

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
        starts[fixed, lane] = curve_of_c(statistics[0, lane] - np.float32(9 / 5))
        starts[fixed + 1, lane] = curve_of_c(np.float32(3) - np.float32(6) * mean_v)
        starts[fixed + 2, lane] = curve_of_c(np.float32(2) - np.float32(6) * mean_square)
        starts[fixed + 3, lane] = curve_of_c(
            c_of_quantile(statistics[1, lane] / scale, np.float32(0.25))
        )
        starts[fixed + 4, lane] = curve_of_c(
            c_of_quantile(statistics[2, lane] / scale, np.float32(0.75))
        )


@helper
def c_of_quantile(value: np.float32, x: np.float32) -> np.float32:
    """Return c of the curve that takes x to a value."""
    return np.float32((value - x) / (x * x - x))


GRADIENT = Method(
    name="gradient",
    encoder=curve_encoder(
        search_gradient, nearest=NEAREST_LEVEL, name="gradient", has_statistics=True
    ),
    cost=lambda parameters: 10.0 + 0.6 * parameters[0],
    options=(
        Option("gd_iterations", 5, integer_between(1, _MOST_ITERATIONS), "iterations of Adam"),
        Option("gd_lr", 0.3, positive_number, "learning rate of Adam"),
    ),
    statistics=group_statistics,
)
