"""A tile of a method that chooses scale, curve and codes together.

The searches see a tile's weights in units of each group's peak, the largest magnitude that counts.
What they find is judged here, in double precision, on the very numbers that a reader decodes: the
levels of a stored scale and curve are computed in float32 as the decoder does, every weight takes
the nearest of them, and the errors are summed up in the weights' order. A group is stored as zeros
where nothing found has less error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from ._jit import bits_of_float, float_of_bits, fma, helper, specialize
from .curve import STEPS
from .encode import Encoder
from .layout import (
    GROUP_SIZE,
    LARGEST_CURVE,
    MAGNITUDE_BITS,
    MAX_SCALE,
    MAX_SCALE_BITS,
    float_of_half,
    half_not_below,
)
from .tile import (
    LANES,
    Bytes,
    Codes,
    Doubles,
    Floats,
    Halves,
    Integers,
    load_importance,
    load_weights,
    store_groups,
)

OUTERMOST: Final = 8
"""Magnitude of the code that only one side of zero has."""

SMALLEST_CURVE: Final = -128
"""With all codes, the curve's whole byte is searched."""

HALF_SIGN: Final = np.uint32(0x8000)
LARGEST_HALF: Final = np.uint32(0x7BFF)
_HALF_MAGNITUDE: Final = np.uint32(0x7FFF)
HALF_NORMAL: Final = np.uint32(0x0400)

FARTHEST: Final = float(np.float32(MAX_SCALE) * (np.float32(8) * np.float32(1 / STEPS)) ** 2)
"""What code -8 decodes to at the largest scale and curve."""

_SEVENTH: Final = np.float32(1 / STEPS)
_PER_CURVE: Final = np.float32(1 / LARGEST_CURVE)
_ONE: Final = np.float32(1)
_NEVER: Final = 1e300


def free_encoder(search: Callable[..., None], *, name: str, parameters: Any) -> Encoder:
    """The encoder of a search for scales and curves.

    Parameters
    ----------
    search : helper
        ``search(weights, importance, shapes, peaks, full, parameters, halves, curves, errors)``
        lowers each lane's error: weights float32[GROUP_SIZE, LANES]; importance of the same shape,
        at most 1; shapes = weights / peak, 0 where the importance is; peaks float32[LANES] (0: a
        group of zeros); full: whether code -8 and negative scales are allowed; halves
        uint32[LANES], the scales' bits; curves int32[LANES]; errors float64[LANES]. The last three
        hold the group of zeros and its error at first; `judge` is what replaces them.
    name : str
        The method's name.
    parameters : Numba type
        A tuple that begins with a boolean: whether all codes are allowed.
    """
    return Encoder(specialize(_encode_tile, name, search=search), parameters)


# Stand-in for what `free_encoder` binds.
search: Any = None


def _encode_tile(
    weights: Floats,
    importance: Floats | None,
    hints: Floats,
    parameters: Any,
    eps_scale: float,
    packed: Bytes,
    tile: int,
) -> int:
    """Encode a tile; 1, or 0 where it holds a weight that no level reaches."""
    first = tile * LANES
    count = min(LANES, weights.size // GROUP_SIZE - first)
    halves, curves, errors = new_choice()
    tile_weights, tile_importance, shapes, peaks = new_tile()
    full = parameters[0]
    load_weights(weights, first, count, tile_weights)
    if not all_reached(tile_weights, full):
        return 0
    load_importance(importance, first, count, tile_importance)
    set_shapes(tile_weights, tile_importance, eps_scale, shapes, peaks)
    judge_zeros(tile_weights, tile_importance, peaks, errors)
    search(
        tile_weights, tile_importance, shapes, peaks, full, parameters, halves, curves, errors
    )  # fmt: skip
    codes = np.empty((GROUP_SIZE, LANES), np.int8)
    set_free_codes(tile_weights, full, halves, curves, codes)
    store_groups(codes, halves, curves, first, count, packed)
    return 1


@helper
def new_tile() -> tuple[Floats, Floats, Floats, Floats]:
    """Room for a tile's weights, importance, shapes and peaks, all zero."""
    return (
        np.zeros((GROUP_SIZE, LANES), np.float32),
        np.zeros((GROUP_SIZE, LANES), np.float32),
        np.zeros((GROUP_SIZE, LANES), np.float32),
        np.zeros(LANES, np.float32),
    )


@helper
def new_choice() -> tuple[Halves, Integers, Doubles]:
    """Scales, curves and errors of groups that are stored as zeros."""
    return (
        np.zeros(LANES, np.uint32),
        np.zeros(LANES, np.int32),
        np.zeros(LANES, np.float64),
    )


@helper
def all_reached(tile: Floats, full: bool) -> bool:
    """Whether each group's weights are finite and within some storable scale's levels."""
    farthest = np.float32(FARTHEST) if full else float_of_bits(MAX_SCALE_BITS)
    limit = bits_of_float(farthest)
    inner = bits_of_float(float_of_bits(MAX_SCALE_BITS))
    highest = np.zeros(LANES, np.uint32)
    other = np.zeros(LANES, np.uint32)
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            # As integers, the bits of magnitudes are in order, infinity and NaN above all numbers.
            bits = bits_of_float(tile[i, lane])
            size = np.uint32(bits & MAGNITUDE_BITS)
            above = size if bits == size else np.uint32(0)
            below = size if bits != size else np.uint32(0)
            highest[lane] = max(highest[lane], above)
            other[lane] = max(other[lane], below)
    reached = True
    for lane in range(LANES):
        far, near = max(highest[lane], other[lane]), min(highest[lane], other[lane])
        reached = reached and far <= limit and near <= inner
    return reached


@helper
def set_shapes(
    tile: Floats, importance: Floats, eps_scale: float, shapes: Floats, peaks: Floats
) -> None:
    """The weights that count, in units of the largest; a group under `eps_scale` gets peak 0."""
    largest = np.zeros(LANES, np.float32)
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            size = abs(tile[i, lane])
            largest[lane] = max(largest[lane], size)
            counts = size if importance[i, lane] > 0 else np.float32(0)
            peaks[lane] = max(peaks[lane], counts)
    for lane in range(LANES):
        # Above the largest binary16 there is no rounding up to it, and nothing is that close to 0.
        size = min(largest[lane], float_of_bits(MAX_SCALE_BITS))
        stored = float_of_half(half_not_below(size)) > eps_scale
        peaks[lane] = peaks[lane] if stored else np.float32(0)
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            counts = peaks[lane] > 0 and importance[i, lane] > 0
            divisor = peaks[lane] if counts else _ONE
            shapes[i, lane] = tile[i, lane] / divisor if counts else np.float32(0)


@helper
def judge_zeros(tile: Floats, importance: Floats, peaks: Floats, errors: Doubles) -> None:
    """Error of storing each group as zeros; 0 where nothing else comes into question."""
    for lane in range(LANES):
        errors[lane] = 0.0
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            w = np.float64(tile[i, lane])
            errors[lane] += np.float64(importance[i, lane]) * (w * w)
    for lane in range(LANES):
        errors[lane] = errors[lane] if peaks[lane] > 0 else 0.0


@helper
def judge(
    tile: Floats,
    importance: Floats,
    full: bool,
    tried_halves: Halves,
    tried_curves: Integers,
    halves: Halves,
    curves: Integers,
    errors: Doubles,
) -> None:
    """Take the tried scales and curves in the lanes where they have less error as decoded."""
    levels = np.empty((OUTERMOST + 1, LANES), np.float64)
    middles = np.empty((STEPS, LANES), np.float64)
    found = np.zeros(LANES, np.float64)
    set_decoded_levels(tried_halves, tried_curves, full, levels, middles)
    add_decoded_errors(tile, importance, tried_halves, levels, middles, found)
    for lane in range(LANES):
        # Readers lose the sign of negative zeros and subnormals: those are not written.
        signed = tried_halves[lane] & HALF_SIGN != 0
        least = HALF_NORMAL if signed else np.uint32(1)
        better = found[lane] < errors[lane] and tried_halves[lane] & _HALF_MAGNITUDE >= least
        errors[lane] = found[lane] if better else errors[lane]
        halves[lane] = tried_halves[lane] if better else halves[lane]
        curves[lane] = tried_curves[lane] if better else curves[lane]


@helper
def decoded_level(code: np.float32, scale: np.float32, curve: np.int32) -> np.float32:
    """What a code's magnitude decodes to, rounded in every step as the decoder does."""
    c = np.float32(np.float32(curve) * _PER_CURVE)
    x = np.float32(code * _SEVENTH)
    bent = np.float32(np.float32(x * c) * x)
    return np.float32(fma(np.float32(_ONE - c), x, bent) * scale)


@helper
def set_decoded_levels(
    halves: Halves, curves: Integers, full: bool, levels: Doubles, middles: Doubles
) -> None:
    """Each lane's levels 1 to 8 (the last out of reach unless allowed) and the midpoints of 0 to 7.

    Levels 0 to 7 ascend for every curve; level 8 need not lie above them, and is kept apart.
    """
    for code in range(OUTERMOST + 1):
        for lane in range(LANES):
            scale = float_of_half(np.uint32(halves[lane] & _HALF_MAGNITUDE))
            level = np.float64(decoded_level(np.float32(code), scale, curves[lane]))
            levels[code, lane] = level if full or code < OUTERMOST else _NEVER
    for k in range(STEPS):
        for lane in range(LANES):
            middles[k, lane] = 0.5 * (levels[k, lane] + levels[k + 1, lane])


@helper
def add_decoded_errors(
    tile: Floats,
    importance: Floats,
    halves: Halves,
    levels: Doubles,
    middles: Doubles,
    errors: Doubles,
) -> None:
    """Sum up each lane's squared error with the nearest levels."""
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            w = np.float64(tile[i, lane])
            size = abs(w)
            level = 0.0
            level = levels[1, lane] if size > middles[0, lane] else level
            level = levels[2, lane] if size > middles[1, lane] else level
            level = levels[3, lane] if size > middles[2, lane] else level
            level = levels[4, lane] if size > middles[3, lane] else level
            level = levels[5, lane] if size > middles[4, lane] else level
            level = levels[6, lane] if size > middles[5, lane] else level
            level = levels[7, lane] if size > middles[6, lane] else level
            mirrored = -w if halves[lane] & HALF_SIGN else w
            e = abs(size - level)
            outer = abs(size - levels[8, lane])
            e = outer if mirrored < 0 and outer < e else e
            errors[lane] += np.float64(importance[i, lane]) * (e * e)


@helper
def set_free_codes(
    weights: Floats, full: bool, halves: Halves, curves: Integers, codes: Codes
) -> None:
    """Give every weight the code whose level, of its group's scale and curve, is nearest."""
    levels = np.empty((OUTERMOST + 1, LANES), np.float64)
    middles = np.empty((STEPS, LANES), np.float64)
    set_decoded_levels(halves, curves, full, levels, middles)
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            w = np.float64(weights[i, lane])
            size = abs(w)
            code = np.int8(0)
            level = 0.0
            for k in range(STEPS):
                above = size > middles[k, lane]
                code = np.int8(k + 1) if above else code
                level = levels[k + 1, lane] if above else level
            mirrored = -w if halves[lane] & HALF_SIGN else w
            outermost = mirrored < 0 and abs(size - levels[8, lane]) < abs(size - level)
            code = np.int8(OUTERMOST) if outermost else code
            codes[i, lane] = -code if mirrored < 0 else code
