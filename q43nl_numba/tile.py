"""A tile: some groups side by side, one a lane, on their way from the weights to the bytes.

Arrays of a tile have shape ``[GROUP_SIZE, lanes]`` (or ``[rows, lanes]``); lane l is group l.
Loops over lanes compile to full-width vector code, and each lane's sums run over its weights in
their order, so a group's result does not depend on the vector width or its neighbors.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ._jit import helper
from .layout import CURVE_AT, GROUP_BYTES, GROUP_SIZE, NIBBLE_OF_ZERO, SCALE_AT

LANES: Final = 128
"""Most groups in a tile: they pay for the loops around them, and still fit the L1 cache."""

LANES_STEP: Final = 16
"""Tiles are a multiple of this wide, whatever they hold: the widest vectors are filled."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int32]
Codes = NDArray[np.int8]
Bytes = NDArray[np.uint8]
Halves = NDArray[np.uint32]
"""Bits of binary16 numbers, wide enough to compute with."""

_ONE: Final = np.float32(1)
_HALF_MAGNITUDE: Final = np.uint32(0x7FFF)


def tile_count(groups: int) -> int:
    """Tiles that hold a number of groups; the last one may be partly empty."""
    return -(-groups // LANES)


@helper
def load_weights(weights: Floats, first: int, count: int, tile: Floats) -> None:
    """Lay weights out lane by lane, from group `first` on; other lanes are left alone."""
    for lane in range(count):
        at = (first + lane) * GROUP_SIZE
        for i in range(GROUP_SIZE):
            tile[i, lane] = weights[at + i]


@helper
def load_importance(importance: Any, first: int, count: int, tile: Floats) -> None:
    """Importance in units of each group's largest; ones where there is none or all is zero."""
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
def weighted(value: Any, importance: Any, i: int, lane: int) -> Any:
    """A value times the importance of its weight: as it is where importance is None.

    Which of the two is decided where the kernel is compiled.
    """
    if importance is None:
        return value
    return importance[i, lane] * value


@helper
def store_groups(
    codes: Codes, halves: Halves, curves: Integers, first: int, count: int, packed: Bytes
) -> None:
    """Write the bytes of the groups from `first` on; of scale zero, only zeros."""
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
