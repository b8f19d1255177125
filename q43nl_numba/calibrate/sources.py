"""Where a model's weights come from: any tensor, or some of its rows, as float32.

`WeightSource` is what the forward pass sees. A kind of file is one function of this module that
makes one: a folder or a file of safetensors, whose tensors may be packed by ``convert`` or not.
A tensor is read when it is asked for and kept by nobody here.
"""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from q43nl_numba import GROUP_BYTES, GROUP_SIZE, dequantize
from q43nl_numba.calibrate.config import CONFIG_FILE, ModelConfig, expected_shapes, read_config
from q43nl_numba.calibrate.errors import CalibrationError, ModelFileError
from q43nl_numba.convert.container import Entry, Header
from q43nl_numba.convert.dtypes import FLOATING, numpy_dtype
from q43nl_numba.convert.errors import tensor_error
from q43nl_numba.convert.reading import read_header
from q43nl_numba.convert.record import weights_shape

__all__ = ["WeightSource", "check_tensors", "open_folder", "open_weights"]

Floats = npt.NDArray[np.float32]

INDEX_FILE = "model.safetensors.index.json"
_SINGLE_FILE = "model.safetensors"


class WeightSource(Protocol):
    """Reads the weights of one model under their Hugging Face names."""

    path: str

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor's weights, or None where there is no such tensor."""

    def rows(self, name: str, begin: int, end: int) -> Floats:
        """Return some rows of a tensor; of one with a single dimension, elements."""

    def tensor(self, name: str) -> Floats:
        """Return a whole tensor."""


def open_weights(path: str | os.PathLike[str]) -> WeightSource:
    """Open a model folder or a single model file, converted or not.

    Raises
    ------
    OSError
        If a file cannot be read.
    ModelFileError
        If it is no model folder and no sound safetensors file.
    """
    return open_folder(path) if os.path.isdir(path) else _Safetensors(os.fspath(path), [path])


def open_folder(folder: str | os.PathLike[str]) -> WeightSource:
    """Open the safetensors files of a Hugging Face folder: one, or shards with an index."""
    return _Safetensors(os.fspath(folder), _weight_files(os.fspath(folder)))


def check_tensors(source: WeightSource, config: ModelConfig) -> None:
    """Check that a model has every tensor that its configuration asks for, in the right shape.

    Raises
    ------
    ModelFileError
        If a tensor is missing or has another shape.
    """
    for name, expected in expected_shapes(config).items():
        found = source.shape(name)
        if found != expected:
            problem = "none" if found is None else f"one of shape {list(found)}"
            raise ModelFileError(
                f"{source.path}: must have a tensor {name!r} of shape {list(expected)}, "
                f"found {problem}"
            )


def has_config(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is a folder with a configuration of its own."""
    return os.path.isfile(os.path.join(path, CONFIG_FILE))


def config_of(path: str | os.PathLike[str], otherwise: ModelConfig) -> ModelConfig:
    """Return the configuration of a folder; of a file, which has none, that of its original."""
    return read_config(path) if has_config(path) else otherwise


@dataclass(frozen=True)
class _Stored:
    """One tensor in one file: where it is, and the shape of its weights if it is packed."""

    header: Header
    entry: Entry
    packed_shape: tuple[int, ...] | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape if self.packed_shape is None else self.packed_shape


class _Safetensors:
    """The tensors of one or several safetensors files; packed ones are decoded."""

    def __init__(self, path: str, files: Iterable[str | os.PathLike[str]]) -> None:
        self.path = path
        self._stored: dict[str, _Stored] = {}
        for file in files:
            header = read_header(os.fspath(file))
            for entry in header.entries:
                self._stored[entry.name] = _Stored(header, entry, weights_shape(header, entry))

    def shape(self, name: str) -> tuple[int, ...] | None:
        stored = self._stored.get(name)
        return None if stored is None else stored.shape

    def tensor(self, name: str) -> Floats:
        stored = self._found(name)
        first = stored.shape[0] if stored.shape else 1
        return self.rows(name, 0, first).reshape(stored.shape)

    def rows(self, name: str, begin: int, end: int) -> Floats:
        stored = self._found(name)
        columns = math.prod(stored.shape[1:])
        shape = (end - begin, *stored.shape[1:])
        if stored.packed_shape is not None:
            row_bytes = columns // GROUP_SIZE * GROUP_BYTES
            return dequantize(_read(stored, begin * row_bytes, end * row_bytes), shape)
        if stored.entry.dtype not in FLOATING:
            raise tensor_error(
                stored.header.path, name,
                f"dtype must be one of {', '.join(FLOATING)}, found {stored.entry.dtype}",
            )  # fmt: skip
        dtype = numpy_dtype(stored.entry.dtype)
        row_bytes = columns * dtype.itemsize
        raw = _read(stored, begin * row_bytes, end * row_bytes)
        weights: Floats = raw.view(dtype).astype(np.float32).reshape(shape)
        return weights

    def _found(self, name: str) -> _Stored:
        stored = self._stored.get(name)
        if stored is None:
            raise ModelFileError(f"{self.path}: must have a tensor {name!r}, found none")
        return stored


def _read(stored: _Stored, begin: int, end: int) -> npt.NDArray[np.uint8]:
    """Read bytes of one tensor; not mapped, so that memory holds what is used and no more."""
    path = stored.header.path
    offset = stored.header.data_start + stored.entry.begin + begin
    found = np.fromfile(path, np.uint8, count=end - begin, offset=offset)
    if found.size != end - begin:
        raise tensor_error(path, stored.entry.name, "the file became shorter")
    return found


# ---------------------------------------------------------------------------------------------
# Finding the files of a folder
# ---------------------------------------------------------------------------------------------


def _weight_files(folder: str) -> Sequence[str]:
    """Return the files that hold a folder's tensors.

    A folder may hold the same weights in other layouts as well (``consolidated.safetensors``),
    so the index decides, then the usual name, and a single other file last.
    """
    index = os.path.join(folder, INDEX_FILE)
    if os.path.isfile(index):
        return [os.path.join(folder, name) for name in sorted(_indexed_files(index))]
    single = os.path.join(folder, _SINGLE_FILE)
    if os.path.isfile(single):
        return [single]
    others = glob.glob(os.path.join(glob.escape(folder), "*.safetensors"))
    if len(others) != 1:
        raise ModelFileError(
            f"{folder}: must hold {_SINGLE_FILE}, {INDEX_FILE} or one safetensors file, "
            f"found {len(others)} safetensors files"
        )
    return others


def _indexed_files(index: str) -> set[str]:
    with open(index, encoding="utf-8") as file:
        try:
            content: Any = json.load(file)
            return {_plain_name(name) for name in content["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelFileError(
                f"{index}: must be JSON with a 'weight_map' of file names, found {error!r}"
            ) from error


def _plain_name(name: Any) -> str:
    """Check that a shard lies in the folder itself."""
    if not isinstance(name, str) or os.path.basename(name) != name:
        raise CalibrationError(f"a shard must be a file name without folders, found {name!r}")
    return name
