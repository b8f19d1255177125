"""Importance of a model's weights, from a safetensors file of its own or one of llama.cpp's.

The safetensors file holds, under the names of the model's tensors, non-negative numbers: of the
tensor's shape, or one for each input column (the last dimension), as importance matrices have them,
or ``[experts, cols]`` for a tensor ``[experts, rows, cols]``. Tensors that it does not name count
all their weights the same; entries of tensors that are not packed are not used.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .blocks import Blocks
from .dtypes import FLOATING
from .errors import ModelFileError
from .imatrix import is_imatrix, read_imatrix
from .reading import read_tensors
from .tensors import SourceFile, Tensor

Floats = npt.NDArray[np.float32]

_HESSIAN_SUFFIX: Final = ".hessian"


@dataclass(frozen=True)
class Importance:
    """The importance of one tensor's weights, which are of a shape."""

    values: Tensor
    shape: tuple[int, ...]

    def piece(self, start: int, stop: int) -> Floats:
        """Return the importance of flattened weights.

        Raises
        ------
        ModelFileError
            If a value is negative or not finite.
        """
        if self.values.shape == self.shape:
            return _checked(self.values, self.values.values(start, stop))
        return _spread(self).piece(start, stop)


class ImportanceFile:
    """The tensors of an importance file, by the names of the model's tensors.

    Parameters
    ----------
    path : str
        A safetensors file, or what ``llama-imatrix`` wrote. Hessians that ``calibrate`` keeps
        beside importance (``NAME.hessian``) are passed over.
    shapes : mapping of str to tuple of int
        The shapes of the model's tensors that importance is wanted for, by their names.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        If it is no sound file of these kinds, or an entry of ``llama-imatrix`` does not fit.
    """

    def __init__(self, path: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.path = path
        self._tensors: Mapping[str, Tensor]
        self._unused: tuple[str, ...] = ()  # in llama.cpp's names
        if os.path.isfile(path) and is_imatrix(path):
            found = read_imatrix(path, shapes)
            file = SourceFile.at(path)
            self._tensors = {
                name: _Columns(name, "F32", values.shape, file, values)
                for name, values in found.importance.items()
            }
            self._unused = found.unused
        else:
            tensors = read_tensors(path)
            self._tensors = {
                name: tensor
                for name, tensor in tensors.items()
                if name.removesuffix(_HESSIAN_SUFFIX) == name
                or name.removesuffix(_HESSIAN_SUFFIX) not in tensors
            }

    def of(self, tensor: Tensor) -> Importance | None:
        """Return the importance of a tensor's weights, or None where the file has none.

        Raises
        ------
        ModelFileError
            If the entry does not fit the tensor.
        """
        values = self._tensors.get(tensor.name)
        if values is None:
            return None
        _check(values, tensor)
        return Importance(values, tensor.shape)

    def unused(self, packed: Collection[str]) -> tuple[str, ...]:
        """Return the names of the entries whose tensors are not packed.

        Raises
        ------
        ModelFileError
            If that is all of them.
        """
        if self._unused and packed and not self._tensors:
            raise ModelFileError(
                f"{self.path}: must have an entry for a tensor that is quantized, found none"
            )
        unused = tuple(name for name in self._tensors if name not in packed)
        if unused and packed and len(unused) == len(self._tensors):
            problem = "the model has no such tensor that is quantized"
            raise self._tensors[unused[0]].error(problem)
        return unused + self._unused

    def missing(self, packed: Collection[str]) -> tuple[str, ...]:
        """Return the packed tensors that the file has no entry for."""
        return tuple(name for name in packed if name not in self._tensors)


@dataclass(frozen=True, eq=False)
class _Columns(Tensor):
    """Importance that was computed from a file: an array in memory."""

    file: SourceFile
    array: Floats

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The file that it was computed from."""
        return (self.file,)

    @property
    def nbytes(self) -> int:
        """Number of bytes in memory."""
        return self.array.nbytes

    def values(self, start: int, stop: int) -> Floats:
        """Return elements."""
        return self.array.reshape(-1)[start:stop]


def _check(values: Tensor, tensor: Tensor) -> None:
    """Check that an entry fits the tensor of its name."""
    if values.dtype not in FLOATING:
        raise values.error(f"importance of dtype {values.dtype}, expected floats")
    accepted = [tensor.shape, tensor.shape[-1:]]
    if len(tensor.shape) > 2:
        accepted.append((tensor.shape[0], tensor.shape[-1]))
    if values.shape not in accepted:
        shapes = " or ".join(str(list(shape)) for shape in accepted)
        raise values.error(f"importance of shape {list(values.shape)}, expected {shapes}")


def _checked(tensor: Tensor, values: npt.NDArray[Any]) -> Floats:
    """Return values as float32 after checking that they can be importance."""
    with np.errstate(over="ignore", invalid="ignore"):
        importance: Floats = values.astype(np.float32, copy=False)
        wrong = ~(np.isfinite(importance) & (importance >= 0))
    if wrong.any():
        raise tensor.error(f"importance {values[wrong][0]}, expected finite numbers from 0 on")
    return importance


@functools.lru_cache(maxsize=8)
def _spread(importance: Importance) -> Blocks:
    """Return importance of which a value stands for several weights."""
    values, shape = importance.values, importance.shape
    rows = (1,) * (len(shape) - len(values.shape))
    counts = (*values.shape[:-1], *rows, values.shape[-1])
    block = tuple(-(-size // count) for size, count in zip(shape, counts, strict=True))
    checked = _checked(values, values.values(0, values.size))
    return Blocks(checked, shape, block)
