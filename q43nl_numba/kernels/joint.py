"""A tile of a method that chooses scale, curve and codes together.

The searches see a tile's weights in units of each group's absmax, the largest magnitude that
counts. What they find is evaluated here, in double precision, on the very numbers that a reader
decodes: the levels of a stored scale and curve are computed in float32 as the decoder does, every
weight takes the nearest of them, and the errors are summed up in the weights' order. A group is
stored as zeros where nothing found has less error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from .._jit import helper, inlined
from .._layout import (
    GROUP_SIZE,
    MAGNITUDE_BITS,
    MAX_SCALE,
    MAX_SCALE_BITS,
    SCALE_MAGNITUDE,
    SCALE_SIGN,
    SMALLEST_NORMAL_SCALE,
    float_bits,
    float_of_bits,
    scale_bits_not_below,
    scale_of_bits,
)
from .curve import STEPS, c_of_curve, level, x_of_code
from .encode import ENCODED, NOT_STORABLE, Encoder
from .tile import (
    LANES,
    Bytes,
    Codes,
    Doubles,
    Floats,
    Integers,
    ScaleBits,
    load_importance,
    load_weights,
    store_groups,
)

OUTERMOST: Final = 8
"""Magnitude of the code that only one side of zero has."""

SMALLEST_CURVE: Final = -128
"""With all codes, the curve's whole byte is searched."""

LARGEST_STORABLE: Final = float(
    np.float32(MAX_SCALE) * (np.float32(8) * np.float32(1 / STEPS)) ** 2
)
"""What code -8 decodes to at the largest scale and curve."""

_ONE: Final = np.float32(1)
_NEVER: Final = 1e300


def joint_encoder(search: Callable[..., None], *, name: str, parameters: Any) -> Encoder:
    """Return the encoder of a search for scales and curves.

    Parameters
    ----------
    search : compiled function
        As `methods.method.JointSearch` says.
    name : str
        The method's name.
    parameters : Numba type
        A named tuple with a field ``full``: whether all codes are allowed.
    """

    def encode_tile(
        weights: Floats,
        importance: Floats | None,
        statistics: None,
        parameters: Any,
        eps_scale: float,
        packed: Bytes,
        status: Bytes,
        tile: int,
    ) -> None:
        encode_joint_tile(search, weights, importance, parameters, eps_scale, packed, status, tile)

    return Encoder(encode_tile, name, parameters)


@inlined
def encode_joint_tile(
    search: Callable[..., None],
    weights: Floats,
    importance: Floats | None,
    parameters: Any,
    eps_scale: float,
    packed: Bytes,
    status: Bytes,
    tile: int,
) -> None:
    """Encode tile number `tile` and write its status; arrays are those of an `Encoder`."""
    first = tile * LANES
    count = min(LANES, weights.size // GROUP_SIZE - first)
    scale_bits = np.zeros(LANES, np.uint32)
    curves = np.zeros(LANES, np.int32)
    errors = np.zeros(LANES, np.float64)
    tile_weights = np.zeros((GROUP_SIZE, LANES), np.float32)
    tile_importance = np.zeros((GROUP_SIZE, LANES), np.float32)
    normalized = np.zeros((GROUP_SIZE, LANES), np.float32)
    absmax = np.zeros(LANES, np.float32)
    codes = np.empty((GROUP_SIZE, LANES), np.int8)
    load_weights(weights, first, count, tile_weights)
    if not are_storable(tile_weights, parameters.full):
        status[tile] = NOT_STORABLE
        return
    load_importance(importance, first, count, tile_importance)
    normalize(tile_weights, tile_importance, eps_scale, normalized, absmax)
    set_errors_of_zeros(tile_weights, tile_importance, absmax, errors)
    search(
        tile_weights, tile_importance, normalized, absmax, parameters, scale_bits, curves, errors
    )  # fmt: skip
    set_nearest_codes(tile_weights, parameters.full, scale_bits, curves, codes)
    store_groups(codes, scale_bits, curves, first, count, packed)
    status[tile] = ENCODED


@helper
def are_storable(tile: Floats, full: bool) -> bool:
    """Return whether each group's weights are finite and within some storable scale's levels.

    Parameters
    ----------
    tile : float32[GROUP_SIZE, LANES]
    full : bool
        Whether code -8 may be used, which reaches farther on one side of zero.
    """
    farthest = np.float32(LARGEST_STORABLE) if full else float_of_bits(MAX_SCALE_BITS)
    limit = float_bits(farthest)
    inner = float_bits(float_of_bits(MAX_SCALE_BITS))
    highest = np.zeros(LANES, np.uint32)
    other = np.zeros(LANES, np.uint32)
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            # As integers, the bits of magnitudes are in order, infinity and NaN above all numbers.
            bits = float_bits(tile[i, lane])
            size = np.uint32(bits & MAGNITUDE_BITS)
            above = size if bits == size else np.uint32(0)
            below = size if bits != size else np.uint32(0)
            highest[lane] = max(highest[lane], above)
            other[lane] = max(other[lane], below)
    storable = True
    for lane in range(LANES):
        far, near = max(highest[lane], other[lane]), min(highest[lane], other[lane])
        storable = storable and far <= limit and near <= inner
    return storable


@helper
def normalize(
    tile: Floats, importance: Floats, eps_scale: float, normalized: Floats, absmax: Floats
) -> None:
    """Write the weights that count in units of the largest; up to `eps_scale` that one is 0.

    Parameters
    ----------
    tile, importance : float32[GROUP_SIZE, LANES]
    eps_scale : float
    normalized : float32[GROUP_SIZE, LANES]
        Overwritten; 0 where the importance is.
    absmax : float32[LANES]
        Zeros, which are overwritten.
    """
    largest = np.zeros(LANES, np.float32)
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            size = abs(tile[i, lane])
            largest[lane] = max(largest[lane], size)
            counts = size if importance[i, lane] > 0 else np.float32(0)
            absmax[lane] = max(absmax[lane], counts)
    for lane in range(LANES):
        # Above the largest binary16 there is no rounding up to it, and nothing is that close to 0.
        size = min(largest[lane], float_of_bits(MAX_SCALE_BITS))
        stored = scale_of_bits(scale_bits_not_below(size)) > eps_scale
        absmax[lane] = absmax[lane] if stored else np.float32(0)
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            counts = absmax[lane] > 0 and importance[i, lane] > 0
            divisor = absmax[lane] if counts else _ONE
            normalized[i, lane] = tile[i, lane] / divisor if counts else np.float32(0)


@helper
def set_errors_of_zeros(tile: Floats, importance: Floats, absmax: Floats, errors: Doubles) -> None:
    """Write the error of storing each group as zeros; 0 where nothing else comes into question.

    Parameters
    ----------
    tile, importance : float32[GROUP_SIZE, LANES]
    absmax : float32[LANES]
    errors : float64[LANES]
        Overwritten.
    """
    for lane in range(LANES):
        errors[lane] = 0.0
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            w = np.float64(tile[i, lane])
            errors[lane] += np.float64(importance[i, lane]) * (w * w)
    for lane in range(LANES):
        errors[lane] = errors[lane] if absmax[lane] > 0 else 0.0


@helper
def take_better(
    tile: Floats,
    importance: Floats,
    full: bool,
    tried_bits: ScaleBits,
    tried_curves: Integers,
    scale_bits: ScaleBits,
    curves: Integers,
    errors: Doubles,
) -> None:
    """Take the tried scales and curves in the lanes where they have less error as decoded.

    Parameters
    ----------
    tile, importance : float32[GROUP_SIZE, LANES]
    full : bool
        Whether all codes are allowed.
    tried_bits : uint32[LANES]
    tried_curves : int32[LANES]
    scale_bits : uint32[LANES]
    curves : int32[LANES]
    errors : float64[LANES]
        Overwritten in the lanes that are better.
    """
    levels = np.empty((OUTERMOST + 1, LANES), np.float64)
    midpoints = np.empty((STEPS, LANES), np.float64)
    found = np.zeros(LANES, np.float64)
    set_decoded_levels(tried_bits, tried_curves, full, levels, midpoints)
    add_decoded_errors(tile, importance, tried_bits, levels, midpoints, found)
    for lane in range(LANES):
        # Readers lose the sign of negative zeros and subnormals: those are not written.
        signed = tried_bits[lane] & SCALE_SIGN != 0
        least = SMALLEST_NORMAL_SCALE if signed else np.uint32(1)
        better = found[lane] < errors[lane] and tried_bits[lane] & SCALE_MAGNITUDE >= least
        errors[lane] = found[lane] if better else errors[lane]
        scale_bits[lane] = tried_bits[lane] if better else scale_bits[lane]
        curves[lane] = tried_curves[lane] if better else curves[lane]


@helper
def decoded_level(code: Any, scale: np.float32, curve: Any) -> np.float32:
    """Return what a code's magnitude decodes to, as the decoder computes it."""
    return np.float32(level(x_of_code(code), c_of_curve(curve)) * scale)


@helper
def set_decoded_levels(
    scale_bits: ScaleBits, curves: Integers, full: bool, levels: Doubles, midpoints: Doubles
) -> None:
    """Write each lane's levels 0 to 8 (the last never near unless allowed) and their midpoints.

    Levels 0 to 7 ascend for every curve; level 8 need not lie above them, and is kept apart.
    """
    for code in range(OUTERMOST + 1):
        for lane in range(LANES):
            scale = scale_of_bits(np.uint32(scale_bits[lane] & SCALE_MAGNITUDE))
            level = np.float64(decoded_level(code, scale, curves[lane]))
            levels[code, lane] = level if full or code < OUTERMOST else _NEVER
    for k in range(STEPS):
        for lane in range(LANES):
            midpoints[k, lane] = 0.5 * (levels[k, lane] + levels[k + 1, lane])


@helper
def add_decoded_errors(
    tile: Floats,
    importance: Floats,
    scale_bits: ScaleBits,
    levels: Doubles,
    midpoints: Doubles,
    errors: Doubles,
) -> None:
    """Add each lane's squared error with the nearest levels to `errors`."""
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            w = np.float64(tile[i, lane])
            size = abs(w)
            level = 0.0
            level = levels[1, lane] if size > midpoints[0, lane] else level
            level = levels[2, lane] if size > midpoints[1, lane] else level
            level = levels[3, lane] if size > midpoints[2, lane] else level
            level = levels[4, lane] if size > midpoints[3, lane] else level
            level = levels[5, lane] if size > midpoints[4, lane] else level
            level = levels[6, lane] if size > midpoints[5, lane] else level
            level = levels[7, lane] if size > midpoints[6, lane] else level
            mirrored = -w if scale_bits[lane] & SCALE_SIGN else w
            e = abs(size - level)
            outer = abs(size - levels[8, lane])
            e = outer if mirrored < 0 and outer < e else e
            errors[lane] += np.float64(importance[i, lane]) * (e * e)


@helper
def set_nearest_codes(
    weights: Floats, full: bool, scale_bits: ScaleBits, curves: Integers, codes: Codes
) -> None:
    """Give every weight the code whose level, of its group's scale and curve, is nearest."""
    levels = np.empty((OUTERMOST + 1, LANES), np.float64)
    midpoints = np.empty((STEPS, LANES), np.float64)
    set_decoded_levels(scale_bits, curves, full, levels, midpoints)
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            w = np.float64(weights[i, lane])
            size = abs(w)
            code = np.int8(0)
            level = 0.0
            for k in range(STEPS):
                above = size > midpoints[k, lane]
                code = np.int8(k + 1) if above else code
                level = levels[k + 1, lane] if above else level
            mirrored = -w if scale_bits[lane] & SCALE_SIGN else w
            outermost = mirrored < 0 and abs(size - levels[8, lane]) < abs(size - level)
            code = np.int8(OUTERMOST) if outermost else code
            codes[i, lane] = -code if mirrored < 0 else code
