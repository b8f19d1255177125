"""Importance of a model's weights, from a safetensors file of its own.

It holds, under the names of the model's tensors, non-negative numbers of the tensor's shape or one
for each input column (the last dimension), as importance matrices have them. Tensors that it does
not name count all their weights the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from q43nl_numba._arrays import importance_pieces
from q43nl_numba.convert.container import Entry
from q43nl_numba.convert.dtypes import FLOATING
from q43nl_numba.convert.errors import tensor_error
from q43nl_numba.convert.plan import Step
from q43nl_numba.convert.reading import PIECE_WEIGHTS, TensorReader, read_header

Floats = npt.NDArray[np.float32]


class ImportanceReader:
    """Reads a file's importance beside the weights, piece by piece.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        If it is no sound safetensors file, names a tensor that is not packed, or holds for one what
        does not fit or is no importance.
    """

    def __init__(self, path: str, steps: Sequence[Step]) -> None:
        header = read_header(path)
        packed = {step.source.name: step.source for step in steps if step.target.qtype}
        for entry in header.entries:
            _check(path, entry, packed.get(entry.name))
        self._path = path
        self._entries = {entry.name: entry for entry in header.entries}
        self._reader = TensorReader(header)

    def __enter__(self) -> ImportanceReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.__exit__(*error)

    def pieces_of(self, tensor: Entry) -> Iterator[Floats | None]:
        """Return the importance of each piece of a tensor's weights; None where all count the same.

        The pieces are those of `TensorReader.weights_of`.
        """
        entry = self._entries.get(tensor.name)
        if entry is None:
            return importance_pieces(None, tensor.shape, PIECE_WEIGHTS)
        parts = (self._checked(entry, part) for part in self._reader.weights_of(entry))
        if entry.shape == tensor.shape:
            return parts
        return importance_pieces(np.concatenate(list(parts)), tensor.shape, PIECE_WEIGHTS)

    def _checked(self, entry: Entry, part: npt.NDArray[Any]) -> Floats:
        with np.errstate(over="ignore", invalid="ignore"):
            importance = part.astype(np.float32)
            wrong = ~(np.isfinite(importance) & (importance >= 0))
        if wrong.any():
            raise tensor_error(
                self._path, entry.name,
                f"importance {part[wrong][0]}, expected finite numbers from 0 on",
            )  # fmt: skip
        return importance


def _check(path: str, entry: Entry, tensor: Entry | None) -> None:
    if tensor is None:
        raise tensor_error(path, entry.name, "the model has no such tensor that is quantized")
    if entry.dtype not in FLOATING:
        raise tensor_error(path, entry.name, f"importance of dtype {entry.dtype}, expected floats")
    if entry.shape not in (tensor.shape, tensor.shape[-1:]):
        raise tensor_error(
            path, entry.name,
            f"importance of shape {list(entry.shape)}, expected {list(tensor.shape)} or "
            f"{list(tensor.shape[-1:])}",
        )  # fmt: skip
