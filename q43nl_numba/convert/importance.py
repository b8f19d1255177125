"""Importance of a model's weights, from a safetensors file of its own.

It holds, under the names of the model's tensors, non-negative numbers: of the tensor's shape, or
one for each input column (the last dimension), as importance matrices have them, or ``[experts,
cols]`` for a tensor ``[experts, rows, cols]``. Tensors that it does not name count all their
weights the same; entries of tensors that are not packed are not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from q43nl_numba.convert.blocks import Blocks
from q43nl_numba.convert.container import Entry
from q43nl_numba.convert.dtypes import FLOATING
from q43nl_numba.convert.errors import tensor_error
from q43nl_numba.convert.plan import Step
from q43nl_numba.convert.reading import PIECE_WEIGHTS, TensorReader, read_header

Floats = npt.NDArray[np.float32]


class ImportanceReader:
    """Reads a file's importance beside the weights, piece by piece.

    `unused` names the entries whose tensors are not packed.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        If it is no sound safetensors file, names no tensor that is packed, or holds for one what
        does not fit or is no importance.
    """

    def __init__(self, path: str, steps: Sequence[Step]) -> None:
        header = read_header(path)
        packed = {step.source.name: step.source for step in steps if step.target.is_packed}
        used = [entry for entry in header.entries if entry.name in packed]
        for entry in used:
            _check(path, entry, packed[entry.name])
        if header.entries and packed and not used:
            raise tensor_error(
                path, header.entries[0].name, "the model has no such tensor that is quantized"
            )
        self.unused = tuple(entry.name for entry in header.entries if entry.name not in packed)
        self._path = path
        self._entries = {entry.name: entry for entry in used}
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
            return repeat(None)
        if entry.shape == tensor.shape:
            return (self._checked(entry, part) for part in self._reader.weights_of(entry))
        return self._spread(entry, tensor)

    def _spread(self, entry: Entry, tensor: Entry) -> Iterator[Floats]:
        """Yield the importance of each piece where one value stands for several weights."""
        rows = (1,) * (len(tensor.shape) - len(entry.shape))
        values = self._checked(entry, self._reader.whole(entry))
        shape = (*entry.shape[:-1], *rows, entry.shape[-1])
        block = tuple(-(-size // count) for size, count in zip(tensor.shape, shape, strict=True))
        spread = Blocks(values, tensor.shape, block)
        for start in range(0, tensor.size, PIECE_WEIGHTS):
            yield spread.piece(start, min(start + PIECE_WEIGHTS, tensor.size))

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


def _check(path: str, entry: Entry, tensor: Entry) -> None:
    """Check that an entry fits the tensor of its name."""
    if entry.dtype not in FLOATING:
        raise tensor_error(path, entry.name, f"importance of dtype {entry.dtype}, expected floats")
    accepted = [tensor.shape, tensor.shape[-1:]]
    if len(tensor.shape) > 2:
        accepted.append((tensor.shape[0], tensor.shape[-1]))
    if entry.shape not in accepted:
        raise tensor_error(
            path, entry.name,
            f"importance of shape {list(entry.shape)}, expected "
            + " or ".join(str(list(shape)) for shape in accepted),
        )  # fmt: skip
