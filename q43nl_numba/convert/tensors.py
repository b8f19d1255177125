"""Tensors of model files as values that are read when they are needed, piece by piece.

A `Tensor` knows its name, dtype and shape, and reads any range of its flattened elements. Objects
are small and can be pickled, so that another process can read them too. Other kinds (scaled,
permuted, dequantized) are made of stored ones.
"""

from __future__ import annotations

import functools
import math
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import GROUP_SIZE
from . import buffers
from .blocks import Blocks, block_shape
from .container import Entry, Header
from .dtypes import numpy_dtype, to_float32
from .errors import ModelFileError, tensor_error

#: Elements handled at a time: few enough that memory stays flat and an interrupt is answered soon,
#: enough that starting the threads costs nothing. A multiple of the group size.
PIECE_WEIGHTS = 1 << 20

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when the work was planned; reading it fails once it has changed."""

    path: str
    nbytes: int
    modified_ns: int

    @classmethod
    def at(cls, path: str) -> SourceFile:
        """Return the file at a path as it is now."""
        status = os.stat(path)
        return cls(path, status.st_size, status.st_mtime_ns)

    def read(self, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """Return bytes of the file.

        Raises
        ------
        OSError
            If the file cannot be read.
        ModelFileError
            If the file is not the one that the work was planned for.
        """
        buffer = buffers.empty(nbytes)
        with open(self.path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != (self.nbytes, self.modified_ns):
                raise ModelFileError(f"{self.path}: the file changed while it was read")
            try:
                file.seek(offset)
                self._fill(file, buffer)
            except OSError as error:
                raise OSError(error.errno, error.strerror, self.path) from error
        return buffer

    def _fill(self, file: Any, buffer: npt.NDArray[np.uint8]) -> None:
        """Read until a buffer is full."""
        unread = buffer.data
        while unread:
            count = file.readinto(unread)
            if not count:
                raise ModelFileError(f"{self.path}: the file became shorter while it was read")
            unread = unread[count:]


@dataclass(frozen=True)
class Tensor(ABC):
    """A tensor that can be read: `dtype` is safetensors' name of what its values count as."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    @abstractmethod
    def files(self) -> tuple[SourceFile, ...]:
        """The files that it is read from; errors about values name the first."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Number of bytes that are read for it."""

    @abstractmethod
    def values(self, start: int, stop: int) -> Array:
        """Return the flattened elements from `start` to before `stop`, as floats of some dtype."""

    def floats(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return elements as float32."""
        return to_float32(self.values(start, stop))

    def whole(self) -> Array:
        """Return all elements, in the tensor's shape."""
        return self.values(0, self.size).reshape(self.shape)

    def error(self, problem: str) -> ModelFileError:
        """Return the error about this tensor, which names its file."""
        return tensor_error(self.files[0].path, self.name, problem)


@dataclass(frozen=True)
class StoredTensor(Tensor):
    """A tensor as a file holds it, `offset` bytes after the file's begin."""

    file: SourceFile
    offset: int
    nbytes_stored: int
    qtype: str | None = None

    @classmethod
    def of(cls, file: SourceFile, header: Header, entry: Entry) -> StoredTensor:
        """Return the tensor of an entry in a safetensors file's header."""
        offset = header.data_start + entry.begin
        return cls(entry.name, entry.dtype, entry.shape, file, offset, entry.nbytes, entry.qtype)

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The file that it is read from."""
        return (self.file,)

    @property
    def nbytes(self) -> int:
        """Number of its bytes in the file."""
        return self.nbytes_stored

    @property
    def entry(self) -> Entry:
        """The entry, not placed yet, of a file that holds the same bytes."""
        return Entry(self.name, self.dtype, self.shape, 0, self.nbytes, self.qtype)

    def stored_bytes(self, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """Return its bytes from `begin` to before `end`."""
        return self.file.read(self.offset + begin, end - begin)

    def values(self, start: int, stop: int) -> Array:
        """Return elements of a floating tensor, or bytes of one of bytes."""
        dtype = numpy_dtype(self.dtype)
        data = self.stored_bytes(start * dtype.itemsize, stop * dtype.itemsize)
        return data.view(dtype)


@dataclass(frozen=True)
class ScaledTensor(Tensor):
    """8-bit floats times their scales; they count as bfloat16, which they were made from."""

    codes: StoredTensor
    scale: StoredTensor

    @classmethod
    def of(cls, codes: StoredTensor, scale: StoredTensor) -> ScaledTensor:
        """Return the products of a tensor and its scale."""
        return cls(codes.name, "BF16", codes.shape, codes, scale)

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The files of the codes and of the scale."""
        return (*self.codes.files, *self.scale.files)

    @property
    def nbytes(self) -> int:
        """Number of bytes of the codes."""
        return self.codes.nbytes

    def values(self, start: int, stop: int) -> Array:
        """Return products as float32."""
        products: Array = self.codes.floats(start, stop)
        products *= _spread(self.scale, self.shape).piece(start, stop)
        return products


@dataclass(frozen=True)
class RowPermutation(Tensor):
    """A tensor whose rows (all but its last dimension) are in another order.

    Row ``i`` is row ``order[i]`` of the base. A range of rows is read at once, from the first to
    the last that a piece needs, so the order should be a local one.
    """

    base: Tensor
    order: tuple[int, ...]

    @classmethod
    def of(cls, base: Tensor, order: tuple[int, ...]) -> RowPermutation:
        """Return the base with its rows in an order."""
        return cls(base.name, base.dtype, base.shape, base, order)

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The files of the base."""
        return self.base.files

    @property
    def nbytes(self) -> int:
        """Number of bytes of the base."""
        return self.base.nbytes

    def values(self, start: int, stop: int) -> Array:
        """Return elements in the new order."""
        columns = self.size // len(self.order)
        first, last = start // columns, -(-stop // columns)
        rows = np.asarray(self.order[first:last])
        low, high = int(rows.min()), int(rows.max()) + 1
        block = self.base.values(low * columns, high * columns).reshape(high - low, columns)
        flat: Array = block[rows - low].reshape(-1)
        return flat[start - first * columns : stop - first * columns]


@functools.lru_cache(maxsize=8)
def _spread(scale: Tensor, shape: tuple[int, ...]) -> Blocks:
    """Return a small tensor's values, each for a block of a larger shape."""
    block = block_shape(scale.shape, shape)
    if block is None:
        raise scale.error(f"shape {list(scale.shape)} must fit blocks of {list(shape)}")
    return Blocks(to_float32(scale.whole()), shape, block)


def piece_bounds(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return where the pieces of a tensor begin and end, in flattened elements.

    A piece has about `PIECE_WEIGHTS` elements: whole rows, or, of longer rows, whole groups.
    """
    columns = shape[-1] if shape else 1
    unit = columns if 0 < columns <= PIECE_WEIGHTS else GROUP_SIZE
    size = math.prod(shape)
    return [
        (start * unit, min(stop * unit, size)) for start, stop in ranges(-(-size // unit), unit)
    ]


def ranges(count: int, weights: int) -> list[tuple[int, int]]:
    """Return where pieces of things begin and end, each of which stands for some weights."""
    step = max(PIECE_WEIGHTS // weights, 1)
    return [(start, min(start + step, count)) for start in range(0, count, step)]
