"""The curve that bends the code levels, and a tile's error under given curves.

With x = code / 7 a weight decodes to ``scale * y`` where::

    y(x, c) = (1 - c) x + c x |x| = x + c (x |x| - x)

(source: PasLLM, ``docs/quant_4bit_formats.md``). Everything here works on magnitudes, of which the
curve is the same function, in units of the scale.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from .._jit import fma, helper
from .._layout import GROUP_SIZE, LARGEST_CURVE
from .tile import Codes, Floats, Integers, weighted

STEPS: Final = 7
"""Codes run from -7 to 7, so seven level midpoints part the magnitudes."""

SEVENTH: Final = np.float32(1 / STEPS)
_CURVE_UNIT: Final = np.float32(1 / LARGEST_CURVE)
_TINY: Final = np.float32(1e-30)
_NEAREST_SHIFT: Final = np.float32(1 / (4 * STEPS**2))

NEAREST_LEVEL: Final = True
ROUND_ROOT: Final = False


@helper
def c_of_curve(curve: Any) -> np.float32:
    """Return c of a stored curve."""
    return np.float32(np.float32(curve) * _CURVE_UNIT)


@helper
def x_of_code(code: Any) -> np.float32:
    """Return x of a code, as the decoder computes it."""
    return np.float32(np.float32(code) * SEVENTH)


@helper
def level(x: np.float32, c: np.float32) -> np.float32:
    """Return the level y(x, c) in units of the scale, rounded in every step as the decoder does.

    Source: PasLLM's AVX2 code, whose order of operations this is.
    """
    bent = np.float32(np.float32(x * c) * abs(x))
    return np.float32(fma(np.float32(np.float32(1) - c), x, bent))


@helper
def clip_curve(curve: int) -> np.int32:
    """Return the curve, or the next one that can be stored."""
    return np.int32(min(max(curve, -LARGEST_CURVE), LARGEST_CURVE))


@helper
def curve_of_c(c: np.float32) -> np.int32:
    """Return the storable curve next to c, whatever c is; NaN gives 0."""
    inside = min(max(c, np.float32(-1)), np.float32(1)) if c == c else np.float32(0)
    return np.int32(np.rint(np.float32(inside * np.float32(LARGEST_CURVE))))


@helper
def set_midpoints(curves: Integers, nearest: bool, midpoints: Floats) -> None:
    """Write where the magnitudes of codes 0 to 6 end in each lane, in units of the scale.

    Parameters
    ----------
    curves : int32[lanes]
    nearest : bool
        `NEAREST_LEVEL`: midpoints lie halfway between the levels; a magnitude belongs to the level
        next to it. `ROUND_ROOT`: midpoints are the curve's values at x = (k + 1/2) / 7, that is,
        codes are the rounded roots 7 x, as the format's author has it. The halfway points lie c /
        196 above those, since y((k + 1/2)/7, c) + c/196 = (y(k/7, c) + y((k + 1)/7, c)) / 2.
    midpoints : float32[STEPS, lanes]
        Overwritten.
    """
    for k in range(STEPS):
        m = np.float32((np.float32(k) + np.float32(0.5)) * SEVENTH)
        slope = np.float32(m * m - m)
        if nearest:
            slope += _NEAREST_SHIFT
        for lane in range(curves.size):
            midpoints[k, lane] = m + c_of_curve(curves[lane]) * slope


class Trial(NamedTuple):
    """One curve tried in each lane of a tile, and its errors.

    With the codes fixed, the error is a parabola in c, and its least point is known. So a trial
    yields two errors: that of the curve tried, and that of the best storable curve nearby for the
    codes which the tried one implies. (The latter is a bound: choosing the codes anew, as the
    encoder does at the end, can only lower it.)
    """

    curves: Integers
    """The curves to try, int32[lanes]."""
    errors: Floats
    """Their squared errors, weighted by importance, in units of the squared scale."""
    refined: Integers
    """The curves that suit their codes best."""
    refined_errors: Floats
    """Squared errors of those, with the same codes."""
    slopes: Floats
    bends: Floats
    midpoints: Floats


MAX_REFINEMENT: Final = 16
"""How far a refined curve may lie from the one tried."""


@helper
def new_trial(lanes: int) -> Trial:
    """Return uninitialized arrays for trials on a tile."""
    return Trial(
        np.empty(lanes, np.int32),
        np.empty(lanes, np.float32),
        np.empty(lanes, np.int32),
        np.empty(lanes, np.float32),
        np.empty(lanes, np.float32),
        np.empty(lanes, np.float32),
        np.empty((STEPS, lanes), np.float32),
    )


@helper
def set_trial(trial: Trial, center: Integers, offset: int) -> None:
    """Set a trial's curves to those of a center, all moved by an offset."""
    for lane in range(center.size):
        trial.curves[lane] = center[lane] + np.int32(offset)


@helper
def evaluate(magnitudes: Floats, importance: Any, trial: Trial) -> None:
    """Write a trial's errors and refined curves; its curves are clipped to the storable ones.

    Parameters
    ----------
    magnitudes : float32[GROUP_SIZE, lanes]
        |w| / scale.
    importance : float32[GROUP_SIZE, lanes] or None
    trial : Trial
        With its curves set.
    """
    for lane in range(trial.curves.size):
        trial.curves[lane] = clip_curve(trial.curves[lane])
    set_midpoints(trial.curves, NEAREST_LEVEL, trial.midpoints)
    add_errors(
        magnitudes, importance, trial.curves, trial.midpoints,
        trial.errors, trial.slopes, trial.bends,
    )  # fmt: skip
    for lane in range(trial.curves.size):
        # error(c + d) = error(c) - 2 d slope + d^2 bend
        slope, bend = trial.slopes[lane], trial.bends[lane]
        step = np.float32(LARGEST_CURVE) * slope / (bend + _TINY)
        step = np.rint(min(max(step, np.float32(-MAX_REFINEMENT)), np.float32(MAX_REFINEMENT)))
        refined = clip_curve(trial.curves[lane] + np.int32(step))
        d = c_of_curve(refined - trial.curves[lane])
        trial.refined[lane] = refined
        trial.refined_errors[lane] = trial.errors[lane] - d * (slope + slope - d * bend)


@helper
def keep_better(trial: Trial, curves: Integers, least: Floats) -> None:
    """Take a trial's refined curves in the lanes where they have less error."""
    for lane in range(curves.size):
        better = trial.refined_errors[lane] < least[lane]
        least[lane] = trial.refined_errors[lane] if better else least[lane]
        curves[lane] = trial.refined[lane] if better else curves[lane]


@helper
def add_errors(
    magnitudes: Floats,
    importance: Any,
    curves: Integers,
    midpoints: Floats,
    errors: Floats,
    slopes: Floats,
    bends: Floats,
) -> None:
    """Sum up each lane's squared error, and how it depends on c: slopes and bends.

    With y = x + c b, b = x^2 - x, e = v - y and importance h: errors = sum h e^2, slopes =
    sum h e b, bends = sum h b^2. (Arrays, not a `Trial`: only for those does the compiler see that
    they are apart.)
    """
    for lane in range(curves.size):
        errors[lane] = np.float32(0)
        slopes[lane] = np.float32(0)
        bends[lane] = np.float32(0)
    # Some weights a pass share one load of the lane's midpoints.
    for i in range(0, GROUP_SIZE, 4):
        for lane in range(curves.size):
            c = c_of_curve(curves[lane])
            ends = (
                midpoints[0, lane],
                midpoints[1, lane],
                midpoints[2, lane],
                midpoints[3, lane],
                midpoints[4, lane],
                midpoints[5, lane],
                midpoints[6, lane],
            )
            e0, b0 = error_and_bend(magnitudes[i, lane], ends, c)
            e1, b1 = error_and_bend(magnitudes[i + 1, lane], ends, c)
            e2, b2 = error_and_bend(magnitudes[i + 2, lane], ends, c)
            e3, b3 = error_and_bend(magnitudes[i + 3, lane], ends, c)
            f0, d0 = weighted(e0, importance, i, lane), weighted(b0, importance, i, lane)
            f1, d1 = weighted(e1, importance, i + 1, lane), weighted(b1, importance, i + 1, lane)
            f2, d2 = weighted(e2, importance, i + 2, lane), weighted(b2, importance, i + 2, lane)
            f3, d3 = weighted(e3, importance, i + 3, lane), weighted(b3, importance, i + 3, lane)
            errors[lane] += (f0 * e0 + f1 * e1) + (f2 * e2 + f3 * e3)
            slopes[lane] += (f0 * b0 + f1 * b1) + (f2 * b2 + f3 * b3)
            bends[lane] += (d0 * b0 + d1 * b1) + (d2 * b2 + d3 * b3)


@helper
def error_and_bend(v: np.float32, midpoints: Any, c: np.float32) -> tuple[np.float32, np.float32]:
    """Return a magnitude minus its level, and b; its x takes seven selects, no branch."""
    x = np.float32(0)
    x = np.float32(1 / 7) if v > midpoints[0] else x
    x = np.float32(2 / 7) if v > midpoints[1] else x
    x = np.float32(3 / 7) if v > midpoints[2] else x
    x = np.float32(4 / 7) if v > midpoints[3] else x
    x = np.float32(5 / 7) if v > midpoints[4] else x
    x = np.float32(6 / 7) if v > midpoints[5] else x
    x = np.float32(1) if v > midpoints[6] else x
    b = x * x - x
    return np.float32(v - (x + c * b)), b


@helper
def set_codes(weights: Floats, magnitudes: Floats, midpoints: Floats, codes: Codes) -> None:
    """Write the codes: how many midpoints lie below each magnitude, with the weight's sign."""
    for i in range(GROUP_SIZE):
        for lane in range(codes.shape[1]):
            code = np.int8(0)
            for k in range(STEPS):
                code += np.int8(magnitudes[i, lane] > midpoints[k, lane])
            codes[i, lane] = -code if weights[i, lane] < 0 else code
