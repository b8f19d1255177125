"""A tile of a method that searches each group's curve only: its scale is the absmax.

The tile's way: its weights are laid out lane by lane, each lane gets its scale, the method's search
chooses each lane's curve, the codes are rounded and packed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._jit import helper, inlined
from .._layout import (
    GROUP_SIZE,
    MAX_SCALE_BITS,
    float_of_bits,
    scale_bits_not_below,
    scale_of_bits,
)
from .curve import STEPS, set_codes, set_midpoints
from .encode import ENCODED, NOT_STORABLE, Encoder
from .tile import (
    LANES,
    LANES_STEP,
    Bytes,
    Doubles,
    Floats,
    ScaleBits,
    load_importance,
    load_weights,
    set_absmax_bits,
    set_magnitudes,
    store_groups,
)


def curve_encoder(
    search: Callable[..., None], *, nearest: bool, name: str, has_statistics: bool = False
) -> Encoder:
    """Return the encoder of a search for curves.

    Parameters
    ----------
    search : compiled function
        As `methods.method.CurveSearch` says.
    nearest : bool
        How the final codes are rounded, see `set_midpoints`.
    name : str
        The method's name.
    has_statistics : bool
        Whether the search takes statistics of the groups.
    """

    def encode_tile(
        weights: Floats,
        importance: Floats | None,
        statistics: Floats | None,
        parameters: Doubles,
        eps_scale: float,
        packed: Bytes,
        status: Bytes,
        tile: int,
    ) -> None:
        encode_curve_tile(
            search, nearest, weights, importance, statistics, parameters, eps_scale,
            packed, status, tile,
        )  # fmt: skip

    return Encoder(encode_tile, name, has_statistics=has_statistics)


@inlined
def encode_curve_tile(
    search: Callable[..., None],
    nearest: bool,
    weights: Floats,
    importance: Floats | None,
    statistics: Floats | None,
    parameters: Doubles,
    eps_scale: float,
    packed: Bytes,
    status: Bytes,
    tile: int,
) -> None:
    """Encode tile number `tile` and write its status; arrays are those of an `Encoder`."""
    first = tile * LANES
    count = min(LANES, weights.size // GROUP_SIZE - first)
    lanes = -(-count // LANES_STEP) * LANES_STEP
    tile_weights = np.zeros((GROUP_SIZE, lanes), np.float32)
    magnitudes = np.empty((GROUP_SIZE, lanes), np.float32)
    scale_bits = np.empty(lanes, np.uint32)
    scales = np.empty(lanes, np.float32)
    curves = np.zeros(lanes, np.int32)
    midpoints = np.empty((STEPS, lanes), np.float32)
    codes = np.empty((GROUP_SIZE, lanes), np.int8)
    load_weights(weights, first, count, tile_weights)
    if not set_scales(tile_weights, eps_scale, scale_bits, scales):
        status[tile] = NOT_STORABLE
        return
    set_magnitudes(tile_weights, scales, magnitudes)
    tile_statistics = load_statistics(statistics, first, count, lanes)
    if importance is None:
        search(magnitudes, None, scales, tile_statistics, parameters, curves)
    else:
        tile_importance = np.zeros((GROUP_SIZE, lanes), np.float32)
        load_importance(importance, first, count, tile_importance)
        search(magnitudes, tile_importance, scales, tile_statistics, parameters, curves)
    set_midpoints(curves, nearest, midpoints)
    set_codes(tile_weights, magnitudes, midpoints, codes)
    store_groups(codes, scale_bits, curves, first, count, packed)
    status[tile] = ENCODED


@helper
def set_scales(weights: Floats, eps_scale: float, scale_bits: ScaleBits, scales: Floats) -> bool:
    """Write each lane's scale, 0 up to `eps_scale` or if it has none; return whether all have one.

    Parameters
    ----------
    weights : float32[GROUP_SIZE, lanes]
    eps_scale : float
    scale_bits : uint32[lanes]
        Overwritten.
    scales : float32[lanes]
        Overwritten.
    """
    set_absmax_bits(weights, scale_bits)
    highest = np.uint32(0)
    for lane in range(scales.size):
        highest = max(highest, scale_bits[lane])
    for lane in range(scales.size):
        has_one = scale_bits[lane] <= MAX_SCALE_BITS
        absmax = float_of_bits(min(scale_bits[lane], MAX_SCALE_BITS))
        bits = scale_bits_not_below(absmax)
        scale = scale_of_bits(bits)
        stored = has_one and scale > eps_scale
        scale_bits[lane] = bits if stored else np.uint32(0)
        scales[lane] = scale if stored else np.float32(0)
    return bool(highest <= MAX_SCALE_BITS)


@helper
def load_statistics(statistics: Any, first: int, count: int, lanes: int) -> Any:
    """Return the tile's part of the statistics, a full tile wide; None where there are none."""
    if statistics is None:
        return None
    tile = np.zeros((statistics.shape[0], lanes), np.float32)
    for row in range(statistics.shape[0]):
        for lane in range(count):
            tile[row, lane] = statistics[row, first + lane]
    return tile
