"""A Hugging Face model folder: its configuration, and its tensors wherever they lie."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from q43nl_numba.convert.container import Entry, Header
from q43nl_numba.convert.dtypes import numpy_dtype
from q43nl_numba.convert.errors import ModelFileError, tensor_error
from q43nl_numba.convert.reading import PIECE_WEIGHTS, TensorReader, read_header
from q43nl_numba.export.config import JsonFile, read_json

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in one of the folder's files."""

    reader: TensorReader
    entry: Entry

    @property
    def path(self) -> str:
        """The file that the tensor is in."""
        return self.reader.header.path

    def rows_of(
        self, first: int, count: int, together: int = 1
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Yield rows in float32, a bounded number of weights at a time.

        A piece has whole rows, and whole multiples of `together` rows.
        """
        dtype = numpy_dtype(self.entry.dtype)
        columns = int(np.prod(self.entry.shape[1:], dtype=np.int64))
        row_bytes = columns * dtype.itemsize
        begin = self.entry.begin + first * row_bytes
        rows = replace(self.entry, begin=begin, end=begin + count * row_bytes)
        step = max(PIECE_WEIGHTS // (max(columns, 1) * together), 1) * together
        for part in self.reader.bytes_of(rows, step * max(row_bytes, 1)):
            values: npt.NDArray[Any] = part.view(dtype).reshape(-1, *self.entry.shape[1:])
            with np.errstate(over="ignore", invalid="ignore"):
                yield values.astype(np.float32)


@dataclass(frozen=True)
class ModelFolder:
    """A model folder, opened.

    Attributes
    ----------
    path : str
        The folder.
    config : JsonFile
        Its ``config.json``.
    tensors : mapping of str to StoredTensor
        Its tensors by name.
    nbytes : int
        Size of all weight files.
    """

    path: str
    config: JsonFile
    tensors: Mapping[str, StoredTensor]
    nbytes: int


@contextlib.contextmanager
def open_folder(path: str) -> Iterator[ModelFolder]:
    """Open a model folder: one file, or several with an index.

    Raises
    ------
    OSError
        If a file cannot be read.
    ModelFileError
        If it is no model folder, or a file of it is unsound.
    """
    if not os.path.isdir(path):
        raise ModelFileError(f"{path}: must be a model folder, found no folder")
    config_path = os.path.join(path, CONFIG)
    if not os.path.isfile(config_path):
        raise ModelFileError(f"{path}: a model folder must hold {CONFIG}, found none")
    config = read_json(config_path)
    headers = [read_header(os.path.join(path, name)) for name in _weight_files(path)]
    _check_one_place(headers)
    with contextlib.ExitStack() as readers:
        tensors: dict[str, StoredTensor] = {}
        for header in headers:
            reader = readers.enter_context(TensorReader(header))
            tensors |= {entry.name: StoredTensor(reader, entry) for entry in header.entries}
        yield ModelFolder(path, config, tensors, sum(header.file_bytes for header in headers))


def _check_one_place(headers: list[Header]) -> None:
    """Refuse a tensor that two files hold: nothing tells which one counts."""
    places: dict[str, str] = {}
    for header in headers:
        for entry in header.entries:
            other = places.setdefault(entry.name, header.path)
            if other != header.path:
                raise tensor_error(
                    header.path, entry.name, f"must be in one file, found it in {other} too"
                )


def _weight_files(path: str) -> list[str]:
    index_path = os.path.join(path, INDEX)
    if not os.path.exists(index_path):
        if not os.path.exists(os.path.join(path, SINGLE)):
            raise ModelFileError(f"{path}: must hold {SINGLE} or {INDEX}, found neither")
        return [SINGLE]
    index = read_json(index_path)
    weights = index.part("weight_map")
    names = [] if weights is None else [weights.get(key) for key in weights]
    if not names or any(not isinstance(name, str) or os.path.dirname(name) for name in names):
        raise index.error("weight_map", "an object of file names")
    return list(dict.fromkeys(names))
