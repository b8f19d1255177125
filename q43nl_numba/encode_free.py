"""From weights to packed groups for the methods that choose scale, curve and codes together.

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
from numpy.typing import NDArray

from ._arrays import read_only
from ._jit import Kernel, bits_of_float, float_of_bits, fma, helper, prange, specialize
from .curve import LANES, STEPS
from .layout import (
    CURVE_AT,
    GROUP_BYTES,
    GROUP_SIZE,
    LARGEST_CURVE,
    MAGNITUDE_BITS,
    MAX_SCALE,
    MAX_SCALE_BITS,
    NIBBLE_OF_ZERO,
    SCALE_AT,
    float_of_half,
    half_not_below,
)

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int32]
Halves = NDArray[np.uint32]
Bytes = NDArray[np.uint8]

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


class FreeEncoder:
    """A search for scale and curve, made into a kernel from weights to packed bytes.

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
    """

    def __init__(self, search: Callable[..., None], *, name: str) -> None:
        self._encode = Kernel(specialize(_encode_free, name, search=search))

    def __call__(
        self,
        weights: Floats,
        importance: Floats,
        parameters: tuple[Any, ...],
        eps_scale: float,
        packed: Bytes,
        *,
        num_threads: int,
    ) -> bool:
        """Encode float32[32 G] weights to uint8[19 G] packed.

        With importance float32[32 G] (empty: all count the same), and parameters that begin with
        whether all codes are allowed. False if there are weights that no level reaches; their
        tiles are left out.
        """
        call = (read_only(weights), read_only(importance), parameters, eps_scale, packed)
        return bool(self._encode(*call, num_threads=num_threads) == 0)


# Stand-in for what a `FreeEncoder` binds.
search: Any = None


def _encode_free(
    weights: Floats, importance: Floats, parameters: Any, eps_scale: float, packed: Bytes
) -> int:
    groups = weights.size // GROUP_SIZE
    rejected = 0
    for tile in prange(-(-groups // LANES)):
        first = tile * LANES
        count = min(LANES, groups - first)
        halves, curves, errors = new_choice()
        tile_weights, tile_importance, shapes, peaks = new_tile()
        full = parameters[0]
        load_weights(weights, first, count, tile_weights)
        if all_reached(tile_weights, full):
            load_importance(importance, first, count, tile_importance)
            set_shapes(tile_weights, tile_importance, eps_scale, shapes, peaks)
            judge_zeros(tile_weights, tile_importance, peaks, errors)
            search(
                tile_weights, tile_importance, shapes, peaks, full, parameters,
                halves, curves, errors,
            )  # fmt: skip
            store_free(tile_weights, first, count, full, halves, curves, packed)
        else:
            rejected += 1
    return rejected


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
def load_weights(weights: Floats, first: int, count: int, tile: Floats) -> None:
    """Lay a tile's weights out lane by lane."""
    for lane in range(count):
        at = (first + lane) * GROUP_SIZE
        for i in range(GROUP_SIZE):
            tile[i, lane] = weights[at + i]


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
def load_importance(importance: Floats, first: int, count: int, tile: Floats) -> None:
    """Importance in units of each group's largest; ones where there is none or all is zero."""
    for lane in range(count):
        at = (first + lane) * GROUP_SIZE
        largest = np.float32(0)
        if importance.size > 0:
            for i in range(GROUP_SIZE):
                largest = max(largest, importance[at + i])
        for i in range(GROUP_SIZE):
            tile[i, lane] = importance[at + i] / largest if largest > 0 else _ONE


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
def store_free(
    tile: Floats,
    first: int,
    count: int,
    full: bool,
    halves: Halves,
    curves: Integers,
    packed: Bytes,
) -> None:
    """Give every weight the nearest level of its group's scale and curve, and write the bytes."""
    levels = np.empty((OUTERMOST + 1, LANES), np.float64)
    middles = np.empty((STEPS, LANES), np.float64)
    codes = np.empty((GROUP_SIZE, LANES), np.int8)
    set_decoded_levels(halves, curves, full, levels, middles)
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            w = np.float64(tile[i, lane])
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
    for lane in range(count):
        start = (first + lane) * GROUP_BYTES
        if halves[lane] & _HALF_MAGNITUDE == 0:
            for byte in range(GROUP_BYTES):
                packed[start + byte] = 0
            continue
        for byte in range(GROUP_SIZE // 2):
            low = np.int32(codes[2 * byte, lane]) + NIBBLE_OF_ZERO
            high = np.int32(codes[2 * byte + 1, lane]) + NIBBLE_OF_ZERO
            packed[start + byte] = low | (high << 4)
        packed[start + SCALE_AT] = halves[lane] & 0xFF
        packed[start + SCALE_AT + 1] = halves[lane] >> 8
        packed[start + CURVE_AT] = curves[lane] & 0xFF
