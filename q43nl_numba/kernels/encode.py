"""The loop that all methods share: from weights to packed groups, a tile at a time.

What is done with a tile depends on what a method searches: `curve_search` is for those that take
the largest magnitude for the scale and search the curve, `joint` for those that search scale, curve
and codes together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from .._arrays import read_only
from .._jit import TileFunction, prange, types
from .._kernel import Kernel
from .._layout import GROUP_SIZE
from .tile import Bytes, Floats, tile_count

ENCODED: Final = 1
NOT_STORABLE: Final = 2
"""Status of a tile that was encoded, and of one with a weight that cannot be stored; 0 is neither.

A tile function cannot raise: where memory runs out in it, it ends without a status.
"""

FLAT_DOUBLES: Final = types.float64[::1]


class Encoder:
    """A kernel from weights to packed bytes, made of a function for one tile.

    Parameters
    ----------
    encode_tile : callable
        ``encode_tile(weights, importance, statistics, parameters, eps_scale, packed, status,
        tile)`` encodes tile number `tile` and then writes ``status[tile]``. Arguments are those of
        the call below. It is compiled once for importance and once for None in its place.
    name : str
        The method's name.
    parameters : Numba type
        Type of the method's parameters.
    has_statistics : bool
        Whether the method takes statistics of the groups; they are None where not.
    """

    def __init__(
        self,
        encode_tile: Callable[..., None],
        name: str,
        parameters: Any = FLAT_DOUBLES,
        *,
        has_statistics: bool = False,
    ) -> None:
        statistics = types.float32[:, ::1] if has_statistics else types.none

        def compiled_for(importance: Any, suffix: str) -> TileFunction:
            signature = types.void(
                _READ_ONLY, importance, statistics, parameters,
                types.float64, types.uint8[::1], types.uint8[::1], types.int64,
            )  # fmt: skip
            return TileFunction(encode_tile, f"{name}-{suffix}", signature)

        self._plain = compiled_for(types.none, "plain")
        self._weighted = compiled_for(_READ_ONLY, "weighted")

    def __call__(
        self,
        weights: Floats,
        importance: Floats | None,
        statistics: Floats | None,
        parameters: Any,
        eps_scale: float,
        packed: Bytes,
        *,
        num_threads: int,
    ) -> bool:
        """Encode groups; False if there are weights that cannot be stored.

        Parameters
        ----------
        weights : float32[32 groups]
        importance : float32[32 groups] or None
        statistics : float32[n, groups] or None
        parameters : of the type that was declared
        eps_scale : float
            Groups whose scale does not exceed this are stored as zeros.
        packed : uint8[19 groups]
            Overwritten, but for tiles with a weight that cannot be stored.
        num_threads : int

        Raises
        ------
        MemoryError
            Memory ran out in a tile.
        """
        status = np.zeros(tile_count(weights.size // GROUP_SIZE), np.uint8)
        _encode(
            self.tile_function(importance).compiled,
            read_only(weights),
            None if importance is None else read_only(importance),
            statistics,
            parameters,
            eps_scale,
            packed,
            status,
            num_threads=num_threads,
        )
        # As bytes: for a few tiles that takes a tenth of the time of NumPy's comparisons.
        found = status.tobytes()
        missing = found.count(0)
        if missing:
            raise MemoryError(f"{missing} of {status.size} tiles of groups could not be encoded")
        return NOT_STORABLE not in found

    def tile_function(self, importance: Floats | None) -> TileFunction:
        """Return what is compiled for calls with or without importance."""
        return self._plain if importance is None else self._weighted


_READ_ONLY: Final = types.Array(types.float32, 1, "C", readonly=True)


def _encode_tiles(
    encode_tile: Callable[..., None],
    weights: Floats,
    importance: Floats | None,
    statistics: Floats | None,
    parameters: Any,
    eps_scale: float,
    packed: Bytes,
    status: Bytes,
) -> None:
    for tile in prange(status.size):
        encode_tile(
            weights, importance, statistics, parameters, eps_scale, packed, status, np.int64(tile)
        )


_encode = Kernel(_encode_tiles)
