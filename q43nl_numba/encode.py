"""From weights to packed groups, a tile at a time: the loop that all methods share.

What is done with a tile depends on what a method searches: `encode_curve` is for those that take
the largest magnitude for the scale and search the curve, `encode_free` for those that search the
scale, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ._arrays import read_only
from ._jit import Kernel, KernelBody, prange, types
from .layout import GROUP_SIZE
from .tile import LANES, Bytes, Floats, tile_count

FLAT_DOUBLES = types.float64[::1]


class Encoder:
    """What a method does with a tile, made into a kernel from weights to packed bytes.

    Parameters
    ----------
    encode_tile : function
        ``encode_tile(weights, importance, hints, parameters, eps_scale, packed, tile)`` encodes
        tile number `tile` and returns 1, or 0 where it holds a weight that cannot be stored.
        Arguments are those of the call below; without importance it is compiled for None.
    parameters : Numba type
        Type of the method's parameters.
    """

    def __init__(self, encode_tile: Callable[..., int], parameters: Any = FLAT_DOUBLES) -> None:
        self._plain = KernelBody(encode_tile, _tile_signature(types.none, parameters))
        self._weighted = KernelBody(encode_tile, _tile_signature(_READ_ONLY, parameters))

    def __call__(
        self,
        weights: Floats,
        importance: Floats | None,
        hints: Floats,
        parameters: Any,
        eps_scale: float,
        packed: Bytes,
        *,
        num_threads: int,
    ) -> bool:
        """Encode float32[32 G] weights to uint8[19 G] packed.

        With importance float32[32 G], hints float32[n, G] (what the method was told of each group
        from outside) and the method's parameters. False if there are weights that cannot be stored;
        their tiles are left out.
        """
        done = _encode(
            self.body(importance).compiled,
            read_only(weights),
            None if importance is None else read_only(importance),
            hints,
            parameters,
            eps_scale,
            packed,
            num_threads=num_threads,
        )
        return bool(done == tile_count(weights.size // GROUP_SIZE))

    def body(self, importance: Floats | None) -> KernelBody:
        """What is compiled for calls with or without importance."""
        return self._plain if importance is None else self._weighted


_READ_ONLY = types.Array(types.float32, 1, "C", readonly=True)


def _tile_signature(importance: Any, parameters: Any) -> Any:
    return types.int64(
        _READ_ONLY,
        importance,
        types.float32[:, ::1],
        parameters,
        types.float64,
        types.uint8[::1],
        types.int64,
    )


def _encode_tiles(
    encode_tile: Callable[..., int],
    weights: Floats,
    importance: Floats | None,
    hints: Floats,
    parameters: Any,
    eps_scale: float,
    packed: Bytes,
) -> int:
    """Encode all tiles; how many of them could be."""
    groups = weights.size // GROUP_SIZE
    done = 0
    for tile in prange(-(-groups // LANES)):
        done += encode_tile(
            weights, importance, hints, parameters, eps_scale, packed, np.int64(tile)
        )
    return done


_encode = Kernel(_encode_tiles)
