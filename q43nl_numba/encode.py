"""From weights to packed groups, a tile at a time: the loop that all methods share.

A tile's way: its weights' magnitudes are laid out lane by lane, each lane gets its scale, the
method's search chooses each lane's curve, codes and signs are packed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._arrays import read_only
from ._jit import (
    Kernel,
    KernelBody,
    bits_of_float,
    float_of_bits,
    helper,
    prange,
    specialize,
    types,
)
from .curve import LANES, LANES_STEP, STEPS, set_codes, set_midpoints
from .layout import (
    CURVE_AT,
    GROUP_BYTES,
    GROUP_SIZE,
    MAGNITUDE_BITS,
    MAX_SCALE_BITS,
    NIBBLE_OF_ZERO,
    SCALE_AT,
    float_of_half,
    half_not_below,
)

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Halves = NDArray[np.uint32]


def tile_count(groups: int) -> int:
    """Tiles that hold a number of groups; the last one may be partly empty."""
    return -(-groups // LANES)


class Encoder:
    """A method's search, made into a kernel from weights to packed bytes.

    Parameters
    ----------
    search : helper
        ``search(magnitudes, scales, hints, parameters, curves)`` writes the curve of every lane:
        magnitudes float32[GROUP_SIZE, lanes] in units of the scale, scales float32[lanes] (0: the
        group is stored as zeros), hints float32[n, lanes] (what the method was told of each group
        from outside), parameters float64[m], curves int32[lanes].
    nearest : bool
        How the final codes are rounded, see `set_midpoints`.
    name : str
        The method's name.
    """

    def __init__(self, search: Callable[..., None], *, nearest: bool, name: str) -> None:
        body = specialize(_encode_tile, name, search=search, nearest=nearest)
        self._encode_tile = KernelBody(body, _TILE_SIGNATURE)

    def __call__(
        self,
        weights: Floats,
        hints: Floats,
        parameters: NDArray[np.float64],
        eps_scale: float,
        packed: Bytes,
        *,
        num_threads: int,
    ) -> bool:
        """Encode float32[32 G] weights to uint8[19 G] packed.

        False if there are weights that no scale can express; their tiles are left out.
        """
        tiles = tile_count(weights.size // GROUP_SIZE)
        done = _encode(
            self._encode_tile.compiled,
            read_only(weights),
            hints,
            parameters,
            eps_scale,
            packed,
            num_threads=num_threads,
        )
        return bool(done == tiles)


_TILE_SIGNATURE = types.int64(
    types.Array(types.float32, 1, "C", readonly=True),
    types.float32[:, ::1],
    types.float64[::1],
    types.float64,
    types.uint8[::1],
    types.int64,
)


def _encode_tiles(
    encode_tile: Callable[..., int],
    weights: Floats,
    hints: Floats,
    parameters: NDArray[np.float64],
    eps_scale: float,
    packed: Bytes,
) -> int:
    """Encode all tiles; how many of them could be."""
    groups = weights.size // GROUP_SIZE
    done = 0
    for tile in prange(-(-groups // LANES)):
        done += encode_tile(weights, hints, parameters, eps_scale, packed, np.int64(tile))
    return done


_encode = Kernel(_encode_tiles)

# Stand-ins for what an `Encoder` binds.
search: Any = None
nearest = True


def _encode_tile(
    weights: Floats,
    hints: Floats,
    parameters: NDArray[np.float64],
    eps_scale: float,
    packed: Bytes,
    tile: int,
) -> int:
    """Encode a tile; 1, or 0 where it holds a weight that no scale can express."""
    first = tile * LANES
    count = min(LANES, weights.size // GROUP_SIZE - first)
    lanes = -(-count // LANES_STEP) * LANES_STEP
    magnitudes = np.zeros((GROUP_SIZE, lanes), np.float32)
    halves = np.zeros(lanes, np.uint32)
    scales = np.zeros(lanes, np.float32)
    curves = np.zeros(lanes, np.int32)
    if not load_tile(weights, first, count, eps_scale, magnitudes, halves, scales):
        return 0
    search(magnitudes, scales, load_hints(hints, first, count, lanes), parameters, curves)
    store_tile(weights, first, count, magnitudes, halves, curves, nearest, packed)
    return 1


@helper
def load_tile(
    weights: Floats,
    first: int,
    count: int,
    eps_scale: float,
    magnitudes: Floats,
    halves: Halves,
    scales: Floats,
) -> bool:
    """Magnitudes in units of each group's scale, and the scales; False where one has no scale.

    A group that is stored as zeros gets scale 0 and magnitudes 0.
    """
    for lane in range(count):
        at = (first + lane) * GROUP_SIZE
        for i in range(GROUP_SIZE):
            magnitudes[i, lane] = abs(weights[at + i])
    # As integers, the bits of magnitudes are in the magnitudes' order, with infinity and then NaN
    # above all numbers: one maximum serves the scale and the check.
    lanes = scales.size
    peaks = np.zeros(lanes, np.uint32)
    for i in range(GROUP_SIZE):
        for lane in range(lanes):
            bits = bits_of_float(magnitudes[i, lane]) & MAGNITUDE_BITS
            peaks[lane] = max(peaks[lane], bits)
    highest = np.uint32(0)
    for lane in range(lanes):
        highest = max(highest, peaks[lane])
    if highest > MAX_SCALE_BITS:
        return False
    for lane in range(lanes):
        half = half_not_below(float_of_bits(peaks[lane]))
        scale = float_of_half(half)
        stored = scale > eps_scale
        halves[lane] = half if stored else np.uint32(0)
        scales[lane] = scale if stored else np.float32(0)
    for i in range(GROUP_SIZE):
        for lane in range(lanes):
            scale = scales[lane]
            magnitudes[i, lane] = magnitudes[i, lane] / scale if scale > 0 else np.float32(0)
    return True


@helper
def load_hints(hints: Floats, first: int, count: int, lanes: int) -> Floats:
    """The tile's part of the hints, a full tile wide."""
    tile = np.zeros((hints.shape[0], lanes), np.float32)
    for row in range(hints.shape[0]):
        for lane in range(count):
            tile[row, lane] = hints[row, first + lane]
    return tile


@helper
def store_tile(
    weights: Floats,
    first: int,
    count: int,
    magnitudes: Floats,
    halves: Halves,
    curves: NDArray[np.int32],
    nearest: bool,
    packed: Bytes,
) -> None:
    """Round the weights to the levels of the chosen curves and write the groups' bytes."""
    midpoints = np.empty((STEPS, curves.size), np.float32)
    codes = np.empty((GROUP_SIZE, curves.size), np.uint8)
    set_midpoints(curves, nearest, midpoints)
    set_codes(magnitudes, midpoints, codes)
    for lane in range(count):
        start = (first + lane) * GROUP_BYTES
        if halves[lane] == 0:
            for byte in range(GROUP_BYTES):
                packed[start + byte] = 0
            continue
        at = (first + lane) * GROUP_SIZE
        for byte in range(GROUP_SIZE // 2):
            low = nibble(weights[at + 2 * byte], codes[2 * byte, lane])
            high = nibble(weights[at + 2 * byte + 1], codes[2 * byte + 1, lane])
            packed[start + byte] = low | (high << 4)
        packed[start + SCALE_AT] = halves[lane] & 0xFF
        packed[start + SCALE_AT + 1] = halves[lane] >> 8
        packed[start + CURVE_AT] = curves[lane] & 0xFF


@helper
def nibble(weight: np.float32, code: np.uint8) -> np.int32:
    """Nibble of a weight, given its code's magnitude."""
    signed = -np.int32(code) if weight < 0 else np.int32(code)
    return np.int32(signed + NIBBLE_OF_ZERO)
