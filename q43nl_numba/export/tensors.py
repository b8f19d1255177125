"""How one tensor of the engine comes out of one of the folder, and back.

What an architecture says of a tensor is data, not code, so that exporting and restoring read the
same table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Rotary:
    """The order of rows within a head that the engine's RoPE expects.

    The engine rotates neighbours (2i, 2i + 1), transformers rotates (i, i + r / 2) with r =
    `rotary_dim`. So of the first r rows of each head, row i goes to 2i and row r / 2 + i to
    2i + 1; the other rows stay.
    """

    head_dim: int
    rotary_dim: int

    def order(self) -> npt.NDArray[np.intp]:
        """Return the transformers row that each of the engine's rows of a head is.

        >>> Rotary(6, 4).order().tolist()
        [0, 2, 1, 3, 4, 5]
        """
        rotated = np.arange(self.rotary_dim).reshape(2, -1).T.reshape(-1)
        return np.concatenate([rotated, np.arange(self.rotary_dim, self.head_dim)])

    def to_engine(self, rows: Array) -> Array:
        """Permute the rows of whole heads into the engine's order."""
        return self._reordered(rows, self.order())

    def from_engine(self, rows: Array) -> Array:
        """Undo `to_engine`."""
        return self._reordered(rows, np.argsort(self.order()))

    def _reordered(self, rows: Array, order: npt.NDArray[np.intp]) -> Array:
        heads = rows.reshape(-1, self.head_dim, *rows.shape[1:])
        return heads[:, order].reshape(rows.shape)


@dataclass(frozen=True)
class Affine:
    """The float32 values (w + add) * multiply, each step rounded to float32."""

    add: float = 0.0
    multiply: float = 1.0

    def to_engine(self, weights: Floats) -> Floats:
        """Return the engine's values of the folder's weights."""
        if self.add:
            weights = weights + np.float32(self.add)
        if self.multiply != 1.0:
            weights = weights * np.float32(self.multiply)
        return weights

    def from_engine(self, values: Floats) -> Floats:
        """Return float32 weights that `to_engine` makes these values of, as nearly as there are.

        A product skips some float32 numbers, so a value that `to_engine` did not make may have no
        such weight. The weight of the next value towards zero is returned then: the scale of a
        group is its largest magnitude rounded up, which stays the same so.
        """
        weights = values if self.multiply == 1.0 else self._dividend(values)
        if not self.add:
            return weights
        weights = weights - np.float32(self.add)
        for direction in (-np.inf, np.inf):  # the difference may have been rounded
            beside = np.nextafter(weights, np.float32(direction))
            is_better = (self.to_engine(weights) != values) & (self.to_engine(beside) == values)
            weights = np.where(is_better, beside, weights)
        return weights

    def _dividend(self, products: Floats) -> Floats:
        """Return the float32 numbers whose product with `multiply` is nearest, but not beyond."""
        factor = np.float32(self.multiply)
        quotient = products / factor
        smaller = np.nextafter(quotient, np.float32(0))
        larger = np.nextafter(quotient, np.copysign(np.float32(np.inf), products))
        weights = np.where(np.abs(quotient * factor) > np.abs(products), smaller, quotient)
        is_better = (weights * factor != products) & (np.abs(larger * factor) <= np.abs(products))
        return np.where(is_better, larger, weights)


IDENTITY = Affine()


@dataclass(frozen=True)
class EngineTensor:
    """One tensor of the engine's file, and where it comes from.

    Parameters
    ----------
    name, shape
        The engine's name, and the logical shape. Matrices are stored in the file's format,
        vectors in float32.
    source : str
        The folder's tensor.
    first_row, source_rows : int
        Where the tensor's rows begin in a fused source, and how many rows that has in all; by
        default the source is not fused.
    rotary : Rotary, optional
        The order of rows within a head.
    affine : Affine
        What becomes of the values.
    optional : bool
        Whether a folder may lack the source; the engine's file lacks the tensor then.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    first_row: int = 0
    source_rows: int | None = None
    rotary: Rotary | None = None
    affine: Affine = IDENTITY
    optional: bool = False

    @property
    def is_matrix(self) -> bool:
        """Whether the tensor is stored in the file's format; vectors are float32 always."""
        return len(self.shape) > 1

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def source_shape(self) -> tuple[int, ...]:
        """The shape that the folder's tensor must have."""
        rows = self.shape[0] if self.source_rows is None else self.source_rows
        return (rows, *self.shape[1:])

    @property
    def rows_together(self) -> int:
        """The number of rows that must be handled together: those of a head, or one."""
        return self.rotary.head_dim if self.rotary is not None else 1
