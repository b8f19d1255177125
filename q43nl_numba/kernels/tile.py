"""A tile: some groups side by side, one a lane, on their way from the weights to the bytes.

Arrays of a tile have shape ``[GROUP_SIZE, lanes]`` (or ``[rows, lanes]``); lane l is group l.
Loops over lanes compile to full-width vector code, and each lane's sums run over its weights in
their order, so a group's result does not depend on the vector width or its neighbors.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .._jit import IS_COMPILED, helper
from .._layout import (
    CURVE_AT,
    GROUP_BYTES,
    GROUP_SIZE,
    MAGNITUDE_BITS,
    NIBBLE_OF_ZERO,
    SCALE_AT,
    SCALE_MAGNITUDE,
    float_bits,
)

LANES: Final = 128 if IS_COMPILED else 32
"""Most groups in a tile: they pay for the loops around them, and still fit the L1 cache.

In plain Python, where empty lanes cost as much as others, as few as the searches can do with.
"""

LANES_STEP: Final = 16
"""Tiles are a multiple of this wide, whatever they hold: the widest vectors are filled."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int32]
Codes = NDArray[np.int8]
Bytes = NDArray[np.uint8]
ScaleBits = NDArray[np.uint32]
"""Bits of binary16 numbers, wide enough to compute with."""

_ONE: Final = np.float32(1)


def tile_count(groups: int) -> int:
    """Return how many tiles hold a number of groups; the last one may be partly empty."""
    return -(-groups // LANES)


@helper
def load_weights(weights: Floats, first: int, count: int, tile: Floats) -> None:
    """Lay weights out lane by lane, from group `first` on; other lanes are left alone.

    Parameters
    ----------
    weights : float32[32 groups]
    first, count : int
        Number of the first group, and how many there are.
    tile : float32[GROUP_SIZE, lanes]
        Its first `count` lanes are overwritten.
    """
    for lane in range(count):
        at = (first + lane) * GROUP_SIZE
        for i in range(GROUP_SIZE):
            tile[i, lane] = weights[at + i]


@helper
def load_importance(importance: Any, first: int, count: int, tile: Floats) -> None:
    """Lay importance out in units of each group's largest; ones where there is none or all is 0.

    Parameters are those of `load_weights`; importance may be None.
    """
    for lane in range(count):
        at = (first + lane) * GROUP_SIZE
        largest = np.float32(0)
        if importance is not None:
            for i in range(GROUP_SIZE):
                largest = max(largest, importance[at + i])
        for i in range(GROUP_SIZE):
            if importance is None:
                tile[i, lane] = _ONE
            else:
                tile[i, lane] = importance[at + i] / largest if largest > 0 else _ONE


@helper
def set_absmax_bits(weights: Floats, absmax_bits: ScaleBits) -> None:
    """Write the bits of each lane's largest magnitude.

    As integers, the bits of magnitudes are in the magnitudes' order, with infinity and then NaN
    above all numbers: one maximum serves the scale and the check.

    Parameters
    ----------
    weights : float32[GROUP_SIZE, lanes]
    absmax_bits : uint32[lanes]
        Overwritten.
    """
    for lane in range(absmax_bits.size):
        absmax_bits[lane] = 0
    for i in range(GROUP_SIZE):
        for lane in range(absmax_bits.size):
            bits = float_bits(weights[i, lane]) & MAGNITUDE_BITS
            absmax_bits[lane] = max(absmax_bits[lane], bits)


@helper
def set_magnitudes(weights: Floats, scales: Floats, magnitudes: Floats) -> None:
    """Write the magnitudes in units of each lane's scale; 0 where the scale is 0.

    Parameters
    ----------
    weights : float32[GROUP_SIZE, lanes]
    scales : float32[lanes]
    magnitudes : float32[GROUP_SIZE, lanes]
        Overwritten.
    """
    for i in range(GROUP_SIZE):
        for lane in range(scales.size):
            scale = scales[lane]
            size = abs(weights[i, lane])
            magnitudes[i, lane] = size / scale if scale > 0 else np.float32(0)


@helper
def weighted(value: Any, importance: Any, i: int, lane: int) -> Any:
    """Return a value times the importance of its weight: as it is where importance is None.

    Which of the two is decided where the kernel is compiled.
    """
    if importance is None:
        return value
    return importance[i, lane] * value


@helper
def store_groups(
    codes: Codes, scale_bits: ScaleBits, curves: Integers, first: int, count: int, packed: Bytes
) -> None:
    """Write the bytes of the groups from `first` on; of scale zero, only zeros.

    Parameters
    ----------
    codes : int8[GROUP_SIZE, lanes]
    scale_bits : uint32[lanes]
    curves : int32[lanes]
    first, count : int
        Number of the first group, and how many there are.
    packed : uint8[19 groups]
    """
    for lane in range(count):
        start = (first + lane) * GROUP_BYTES
        if scale_bits[lane] & SCALE_MAGNITUDE == 0:
            for byte in range(GROUP_BYTES):
                packed[start + byte] = 0
            continue
        for byte in range(GROUP_SIZE // 2):
            low = np.int32(codes[2 * byte, lane]) + NIBBLE_OF_ZERO
            high = np.int32(codes[2 * byte + 1, lane]) + NIBBLE_OF_ZERO
            packed[start + byte] = low | (high << 4)
        packed[start + SCALE_AT] = scale_bits[lane] & np.uint32(0xFF)
        packed[start + SCALE_AT + 1] = scale_bits[lane] >> np.uint32(8)
        packed[start + CURVE_AT] = curves[lane] & np.int32(0xFF)
