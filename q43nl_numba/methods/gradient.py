"""Twelve informed starts, Adam from the most promising ones, and a line search (`descent`)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from .._arrays import read_only
from .._jit import Kernel, helper, inlined
from ..curve import NEAREST_LEVEL, curve_of_c
from ..encode_curve import curve_encoder
from ..layout import GROUP_SIZE
from ..tile import Doubles, Floats, Integers
from .descent import explore
from .method import Method, Option, integer_from, positive_number

_FIXED_STARTS: Final = np.array([0.0, 0.3, -0.3, 0.6, -0.6, 0.9, -0.9], np.float32)
_STARTS: Final = 12
_QUARTILES: Final = (25.0, 75.0)
_HINTS: Final = 1 + len(_QUARTILES)

FEW: Final = 64
"""Up to so many groups SciPy's calls would take more time than its statistics."""

_DESCENT: Final = 3
_LINE_TRIES: Final = 7


def hints(groups: Floats) -> Floats:
    """What statistics tell of each group.

    Parameters
    ----------
    groups : float32[n, GROUP_SIZE]

    Returns
    -------
    float32[3, n]
        Kurtosis about zero (NaN for a group of zeros); first and third quartile of the magnitudes.
    """
    return _scipy_hints(groups) if len(groups) > FEW else _few_hints(groups)


def _scipy_hints(groups: Floats) -> Floats:
    moment, percentile = _statistics()
    # Side by side, the groups' moments are sums of whole rows: a third of the time.
    squares = groups.T.copy()
    np.square(squares, out=squares)
    second = squares.mean(axis=0)
    fourth = moment(squares, 2, axis=0, center=0.0)
    quartiles = percentile(np.abs(groups), _QUARTILES, axis=1, interpolation_method="lower")
    return np.stack([fourth / (second * second), *quartiles]).astype(np.float32, copy=False)


def _few_hints(groups: Floats) -> Floats:
    result = np.empty((_HINTS, len(groups)), np.float32)
    _set_few(read_only(groups), result, num_threads=1)
    return result


def _set_hints(groups: Floats, hints: Floats) -> None:
    """The same numbers, bit for bit: SciPy's functions take 40 microseconds for a single group."""
    for group in range(groups.shape[0]):
        second = fourth = np.float32(0)
        for i in range(GROUP_SIZE):
            square = groups[group, i] * groups[group, i]
            second += square
            fourth += square * square
        second /= np.float32(GROUP_SIZE)
        fourth /= np.float32(GROUP_SIZE)
        hints[0, group] = fourth / (second * second)
        for i in range(GROUP_SIZE):
            size, rank = abs(groups[group, i]), 0
            for j in range(GROUP_SIZE):
                other = abs(groups[group, j])
                rank += other < size or (other == size and j < i)
            for row, quartile in enumerate(_QUARTILES):
                if rank == int(quartile / 100 * (GROUP_SIZE - 1)):
                    hints[1 + row, group] = size


_set_few = Kernel(_set_hints)


def _keep_freed_memory() -> None:
    """Have the C library reuse freed memory instead of handing it back to the system.

    New pages for every temporary would take longer than the statistics. glibc keeps blocks up to
    the size of the largest one that was ever freed (32 MiB at most; see mallopt(3),
    M_MMAP_THRESHOLD): so one is asked for, never touched, and freed.
    """
    np.empty(1 << 24, np.uint8)


@functools.cache
def _statistics() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """SciPy's functions, imported when they are needed: that costs more than all the rest.

    The moment's treatment of NaN, which weights do not hold, is left off: it takes a third of a
    millisecond a call.
    """
    from scipy import stats

    _keep_freed_memory()

    return inspect.unwrap(stats.moment), stats.scoreatpercentile


@inlined
def search(
    magnitudes: Floats,
    importance: Any,
    scales: Floats,
    hints: Floats,
    parameters: Doubles,
    curves: Integers,
) -> None:
    """Best curve met on the way: starts, descents, line search."""
    iterations, rate = int(parameters[0]), np.float32(parameters[1])
    starts = np.empty((_STARTS, curves.size), np.int32)
    set_starts(magnitudes, scales, hints, starts)
    explore(magnitudes, importance, starts, iterations, _DESCENT, rate, _LINE_TRIES, curves)


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


GRADIENT = Method(
    name="gradient",
    encode=curve_encoder(search, nearest=NEAREST_LEVEL, name="gradient"),
    options=(
        Option("gd_iterations", 5, integer_from(1)),
        Option("gd_lr", 0.3, positive_number),
    ),
    hints=hints,
)
