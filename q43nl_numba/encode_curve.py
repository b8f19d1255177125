"""A tile of a method that searches each group's curve only: its scale is the largest magnitude.

The tile's way: its weights are laid out lane by lane, each lane gets its scale, the method's search
chooses each lane's curve, the codes are rounded and packed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ._jit import bits_of_float, float_of_bits, helper, specialize
from .curve import STEPS, set_codes, set_midpoints
from .encode import Encoder
from .layout import (
    GROUP_SIZE,
    MAGNITUDE_BITS,
    MAX_SCALE_BITS,
    float_of_half,
    half_not_below,
)
from .tile import (
    LANES,
    LANES_STEP,
    Bytes,
    Doubles,
    Floats,
    Halves,
    load_importance,
    load_weights,
    store_groups,
)


def curve_encoder(search: Callable[..., None], *, nearest: bool, name: str) -> Encoder:
    """The encoder of a search for curves.

    Parameters
    ----------
    search : helper
        ``search(magnitudes, importance, scales, hints, parameters, curves)`` writes the curve of
        every lane: magnitudes float32[GROUP_SIZE, lanes] in units of the scale, importance of the
        same shape and at most 1, or None, scales float32[lanes] (0: the group is stored as zeros),
        hints float32[n, lanes], parameters float64[m], curves int32[lanes].
    nearest : bool
        How the final codes are rounded, see `set_midpoints`.
    name : str
        The method's name.
    """
    return Encoder(specialize(_encode_tile, name, search=search, nearest=nearest))


# Stand-ins for what `curve_encoder` binds.
search: Any = None
nearest = True


def _encode_tile(
    weights: Floats,
    importance: Floats | None,
    hints: Floats,
    parameters: Doubles,
    eps_scale: float,
    packed: Bytes,
    tile: int,
) -> int:
    """Encode a tile; 1, or 0 where it holds a weight that no scale can express."""
    first = tile * LANES
    count = min(LANES, weights.size // GROUP_SIZE - first)
    lanes = -(-count // LANES_STEP) * LANES_STEP
    tile_weights = np.zeros((GROUP_SIZE, lanes), np.float32)
    magnitudes = np.empty((GROUP_SIZE, lanes), np.float32)
    halves = np.empty(lanes, np.uint32)
    scales = np.empty(lanes, np.float32)
    curves = np.zeros(lanes, np.int32)
    load_weights(weights, first, count, tile_weights)
    if not set_scales(tile_weights, eps_scale, magnitudes, halves, scales):
        return 0
    told = load_hints(hints, first, count, lanes)
    if importance is None:
        search(magnitudes, None, scales, told, parameters, curves)
    else:
        tile_importance = np.zeros((GROUP_SIZE, lanes), np.float32)
        load_importance(importance, first, count, tile_importance)
        search(magnitudes, tile_importance, scales, told, parameters, curves)
    midpoints = np.empty((STEPS, lanes), np.float32)
    codes = np.empty((GROUP_SIZE, lanes), np.int8)
    set_midpoints(curves, nearest, midpoints)
    set_codes(tile_weights, magnitudes, midpoints, codes)
    store_groups(codes, halves, curves, first, count, packed)
    return 1


@helper
def set_scales(
    weights: Floats, eps_scale: float, magnitudes: Floats, halves: Halves, scales: Floats
) -> bool:
    """Each group's scale, and magnitudes in units of it; False where a group has no scale.

    A group that is stored as zeros gets scale 0 and magnitudes 0.
    """
    # As integers, the bits of magnitudes are in the magnitudes' order, with infinity and then NaN
    # above all numbers: one maximum serves the scale and the check.
    lanes = scales.size
    peaks = np.zeros(lanes, np.uint32)
    for i in range(GROUP_SIZE):
        for lane in range(lanes):
            bits = bits_of_float(weights[i, lane]) & MAGNITUDE_BITS
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
            size = abs(weights[i, lane])
            magnitudes[i, lane] = size / scale if scale > 0 else np.float32(0)
    return True


@helper
def load_hints(hints: Floats, first: int, count: int, lanes: int) -> Floats:
    """The tile's part of the hints, a full tile wide."""
    tile = np.zeros((hints.shape[0], lanes), np.float32)
    for row in range(hints.shape[0]):
        for lane in range(count):
            tile[row, lane] = hints[row, first + lane]
    return tile
