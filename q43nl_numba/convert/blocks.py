"""Small tensors whose values each stand for a block of a larger one: scales, importance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

_USUAL_BLOCK = 128


class Blocks:
    """Values that are spread over a larger shape, read piece by piece.

    In each dimension a value stands for a block of elements; the last block may be shorter.

    Parameters
    ----------
    values : array
        One value a block.
    shape : tuple of int
        The shape that they are spread over.
    block : tuple of int
        Elements of a block in each dimension, as `block_shape` returns it.

    Examples
    --------
    >>> spread = Blocks(np.array([[1.0, 2.0]]), (3, 4), (3, 2))
    >>> spread.piece(2, 7)
    array([2., 2., 1., 1., 2.])
    """

    def __init__(
        self, values: npt.NDArray[Any], shape: tuple[int, ...], block: tuple[int, ...]
    ) -> None:
        self._leading = shape[:-1]
        self._columns = shape[-1]
        self._block = block
        counts = tuple(-(-size // step) for size, step in zip(shape, block, strict=True))
        self._block_counts = counts[:-1]
        self._rows = values.reshape(math.prod(counts[:-1]), counts[-1])

    def piece(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return the values of the flattened shape's elements from `start` to before `stop`."""
        first, last = start // self._columns, -(-stop // self._columns)
        rows = self._rows[self._row_indices(first, last)]
        spread = np.repeat(rows, self._block[-1], axis=1)[:, : self._columns]
        return spread.reshape(-1)[start - first * self._columns : stop - first * self._columns]

    def _row_indices(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Return which row of values belongs to each row of the shape."""
        rows = np.arange(first, last)
        if not self._leading:
            return np.zeros_like(rows)
        places = np.unravel_index(rows, self._leading)
        indices: npt.NDArray[np.int64] = np.zeros_like(rows)
        for place, step, count in zip(places, self._block[:-1], self._block_counts, strict=True):
            indices = indices * count + place // step
        return indices


def block_shape(values: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the block of each dimension for which one value stands, or None if none fits.

    `values` is a scalar's shape, or has a number for each row (or each matrix), or as many
    dimensions as `shape`. Blocks of 128 are tried before other sizes.

    >>> block_shape((2, 3), (256, 300)), block_shape((256,), (256, 300)), block_shape((), (4, 8))
    ((128, 128), (1, 300), (4, 8))
    >>> block_shape((3, 3), (256, 300)) is None
    True
    """
    if math.prod(values) == 1:
        return shape
    if len(values) > len(shape):
        return None
    full = values + (1,) * (len(shape) - len(values))
    block = tuple(_block_size(*sizes) for sizes in zip(full, shape, strict=True))
    return None if 0 in block else block


def _block_size(count: int, size: int) -> int:
    """Return the elements in each of a number of blocks of a dimension, or 0 if they do not fit."""
    if count == 1:
        return size
    if count == size:
        return 1
    if count == -(-size // _USUAL_BLOCK):
        return _USUAL_BLOCK
    return size // count if count and size % count == 0 else 0
