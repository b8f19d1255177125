"""Importance beside the engine's rows: cut and permuted as they are, columns as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat

import numpy as np

from q43nl_numba.convert.dtypes import FLOATING
from q43nl_numba.convert.errors import tensor_error
from q43nl_numba.convert.reading import TensorReader, read_header
from q43nl_numba.export.folder import StoredTensor
from q43nl_numba.export.plan import OutputTensor
from q43nl_numba.export.tensors import EngineTensor, Floats


class Importance:
    """A safetensors file of weights of the squared errors, under the folder's tensor names.

    They have the shape of the folder's tensor, or a number for each of its columns. What `affine`
    does to the weights leaves them alone: it multiplies all errors of a tensor by the same number.
    `notes` say which of them nothing uses.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        If it is no sound safetensors file, names no matrix of the model, or holds for one what
        does not fit.
    """

    def __init__(self, path: str, tensors: Sequence[OutputTensor]) -> None:
        header = read_header(path)
        shapes = {t.tensor.source: t.tensor.source_shape for t in tensors if t.tensor.is_matrix}
        unused = [entry.name for entry in header.entries if entry.name not in shapes]
        if unused and len(unused) == len(header.entries):
            raise tensor_error(
                path, unused[0], "is no matrix of the model, and neither are the others"
            )
        self.notes = _unused_notes(path, unused)
        used = [entry for entry in header.entries if entry.name in shapes]
        for entry in used:
            shape = shapes[entry.name]
            if entry.dtype not in FLOATING or entry.shape not in (shape, shape[-1:]):
                raise tensor_error(
                    path, entry.name,
                    f"importance must be floating of shape {list(shape)} or {list(shape[-1:])}, "
                    f"found {entry.dtype} {list(entry.shape)}",
                )  # fmt: skip
        self._reader = TensorReader(header)
        self._stored = {entry.name: StoredTensor(self._reader, entry) for entry in used}

    def __enter__(self) -> Importance:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.__exit__(*error)

    def pieces_of(self, tensor: EngineTensor) -> Iterator[Floats | None]:
        """Return the importance of each piece of a matrix; None where all weights count the same.

        The pieces are those of `OutputTensor.pieces`; of importance by column, a row.
        """
        stored = self._stored.get(tensor.source)
        if stored is None:
            return repeat(None)
        if len(stored.entry.shape) == 1:
            columns = np.concatenate(list(stored.rows_of(0, stored.entry.shape[0])))
            return repeat(columns)
        return self._rows(stored, tensor)

    def _rows(self, stored: StoredTensor, tensor: EngineTensor) -> Iterator[Floats]:
        for piece in stored.rows_of(tensor.first_row, tensor.shape[0], tensor.rows_together):
            yield piece if tensor.rotary is None else tensor.rotary.to_engine(piece)


def _unused_notes(path: str, names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (f"importance of {path} is not used, they are no matrices: {names[0]!r}{more}",)
