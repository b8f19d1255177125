"""Tensors of one world made of those of the other, read when they are needed, rows at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .. import GROUP_BYTES, GROUP_SIZE, dequantize
from ..convert.container import packed_shape
from ..convert.dtypes import to_float32
from ..convert.job import Cast, Made, Piece
from ..convert.tensors import SourceFile, StoredTensor, Tensor
from .tensors import Array, EngineTensor, Floats


@dataclass(frozen=True)
class EngineRows(Tensor):
    """Rows of a tensor of the folder, cut and ordered as the engine wants them; any dtype.

    Its name is that of the folder's tensor, so that errors speak of that one.
    """

    source: Tensor
    tensor: EngineTensor

    @classmethod
    def packed(cls, groups: Tensor, tensor: EngineTensor) -> EngineRows:
        """Return the packed bytes of one of the engine's matrices, out of those of its source.

        A group lies within a row, so packed rows can be cut and ordered like rows of weights.

        Parameters
        ----------
        groups : Tensor
            The packed source, bytes ``[rows, columns / 32 * 19]``.
        tensor : EngineTensor
            The engine's matrix.
        """
        shape = packed_shape(tensor.shape)
        return cls(groups.name, groups.dtype, shape, groups, replace(tensor, shape=shape))

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The files of the folder's tensor."""
        return self.source.files

    @property
    def nbytes(self) -> int:
        """Number of bytes of its rows in the folder."""
        return self.source.nbytes * self.size // max(self.source.size, 1)

    def values(self, start: int, stop: int) -> Array:
        """Return elements; whole heads are read, as RoPE orders the rows in each."""
        columns = self.size // self.shape[0]
        first, last = _row_range(start, stop, columns, self.tensor.rows_together)
        offset = self.tensor.first_row * columns
        flat = self.source.values(offset + first * columns, offset + last * columns)
        rows = flat.reshape(last - first, columns)
        if self.tensor.rotary is not None:
            rows = self.tensor.rotary.to_engine(rows)
        return rows.reshape(-1)[start - first * columns : stop - first * columns]


@dataclass(frozen=True)
class EngineValues(EngineRows):
    """What the engine computes with, out of a tensor of the folder."""

    @classmethod
    def of(cls, source: Tensor, tensor: EngineTensor) -> EngineValues:
        """Return the values of one of the engine's tensors."""
        return cls(source.name, "F32", tensor.shape, source, tensor)

    def values(self, start: int, stop: int) -> Floats:
        """Return float32 values."""
        return self.tensor.affine.to_engine(to_float32(super().values(start, stop)))


@dataclass(frozen=True)
class FolderValues(Tensor):
    """A tensor of the folder, out of those of the engine that hold its rows."""

    parts: tuple[tuple[EngineTensor, StoredTensor], ...]
    num_threads: int | None = None

    @classmethod
    def of(
        cls, parts: list[tuple[EngineTensor, StoredTensor]], num_threads: int | None
    ) -> FolderValues:
        """Return the tensor that the parts were cut out of."""
        in_order = tuple(sorted(parts, key=lambda part: part[0].first_row))
        first = in_order[0][0]
        return cls(first.source, "F32", first.source_shape, in_order, num_threads)

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The engine's file."""
        return self.parts[0][1].files

    @property
    def nbytes(self) -> int:
        """Number of bytes of the parts."""
        return sum(stored.nbytes for _, stored in self.parts)

    def values(self, start: int, stop: int) -> Floats:
        """Return float32 values."""
        columns = self.size // self.shape[0]
        found = []
        for tensor, stored in self.parts:
            offset = tensor.first_row * columns
            begin, end = max(start - offset, 0), min(stop - offset, tensor.size)
            if begin < end:
                found.append(self._part(tensor, stored, begin, end))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _part(self, tensor: EngineTensor, stored: StoredTensor, start: int, stop: int) -> Floats:
        """Return values of one part; whole heads are read."""
        columns = tensor.size // tensor.shape[0]
        first, last = _row_range(start, stop, columns, tensor.rows_together)
        flat = self._decoded(stored, first * columns, last * columns)
        rows = flat.reshape(last - first, columns)
        if tensor.rotary is not None:
            rows = tensor.rotary.from_engine(rows)
        values = tensor.affine.from_engine(rows).reshape(-1)
        return values[start - first * columns : stop - first * columns]

    def _decoded(self, stored: StoredTensor, start: int, stop: int) -> Floats:
        """Return values as the engine computes with them; packed ones begin at whole groups."""
        if stored.dtype != "U8":
            return stored.floats(start, stop)
        groups = stored.stored_bytes(
            start // GROUP_SIZE * GROUP_BYTES, stop // GROUP_SIZE * GROUP_BYTES
        )
        decoded: Floats = dequantize(groups, num_threads=self.num_threads)
        return decoded


@dataclass(frozen=True)
class FiniteCast(Cast):
    """Values in another floating dtype; NaN and infinity are refused, as the quantizer does."""

    def load(self, piece: Piece) -> Made:
        """Read values and cast them.

        Raises
        ------
        ModelFileError
            If a value is not finite, or becomes so.
        """
        cast = super().load(piece)
        bad = ~np.isfinite(cast)
        if bad.any():
            raise self.tensor.error(f"its values must be finite, found {cast[bad][0]}")
        return cast


def _row_range(start: int, stop: int, columns: int, together: int) -> tuple[int, int]:
    """Return the rows that hold some elements: first and last of whole blocks of rows."""
    block = columns * together
    return start // block * together, -(-stop // block) * together
