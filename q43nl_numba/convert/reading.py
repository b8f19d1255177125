"""Reading model files: a header that was checked, and tensors a piece at a time.

The safetensors package judges whether a file is sound. Where it is not, the words are found here,
because those of the package name neither the file nor, in most cases, the tensor.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from q43nl_numba import GROUP_BYTES, GROUP_SIZE
from q43nl_numba.convert.container import LENGTH, METADATA_KEY, Entry, Header
from q43nl_numba.convert.dtypes import item_bits, numpy_dtype
from q43nl_numba.convert.errors import ModelFileError, optional_package, tensor_error

#: Weights handled at a time: small enough that memory stays flat and Ctrl-C is answered soon,
#: large enough that starting the threads costs nothing. A multiple of the group size.
PIECE_WEIGHTS = 1 << 19


#: What parsing raises on a header that is none.
_NOT_A_HEADER = (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error)


def read_header(path: str) -> Header:
    """Read and check the header of a safetensors file.

    Raises
    ------
    OSError
        If there is no such file, or it cannot be read.
    ModelFileError
        If the file is not a sound safetensors file.
    """
    if os.path.isdir(path):
        raise ModelFileError(f"{path}: is a folder, expected a safetensors file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ModelFileError(f"{path}: is not a regular file, expected a safetensors file")
    with open(path, "rb") as file:
        problem = _stock_complaint(path)
        try:
            header = _parse(path, file)
            if problem:
                _find_fault(header, os.fstat(file.fileno()).st_size)
        except ModelFileError:
            raise
        except _NOT_A_HEADER as error:
            problem = problem or f"its header cannot be read ({error})"
    if problem:
        raise ModelFileError(f"{path}: is not a sound safetensors file: {problem}")
    return header


def _stock_complaint(path: str) -> str:
    """Return what the safetensors package finds wrong with a file, or nothing."""
    safetensors = optional_package("safetensors")
    try:
        with safetensors.safe_open(path, framework="np"):
            return ""
    except safetensors.SafetensorError as error:
        return str(error).removeprefix("Error while deserializing header: ")


def _parse(path: str, file: BinaryIO) -> Header:
    """Parse a header, keeping its order and the keys that the stock reader ignores."""
    available = os.fstat(file.fileno()).st_size - LENGTH.size
    if available < 0:
        raise ModelFileError(
            f"{path}: is too short for a safetensors file: {available + LENGTH.size} bytes"
        )
    (length,) = LENGTH.unpack(file.read(LENGTH.size))
    if length > available:
        raise ModelFileError(
            f"{path}: is truncated, or no safetensors file: the header should have {length} bytes, "
            f"{available} are there"
        )
    names = _NoDuplicates(path)
    header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=names.check)
    metadata = header.pop(METADATA_KEY, None) or {}
    entries = tuple(_entry(path, name, info) for name, info in header.items())
    return Header(path, entries, metadata, LENGTH.size + length)


class _NoDuplicates:
    """Refuses a JSON object that has a key twice: readers disagree about which one counts."""

    def __init__(self, path: str) -> None:
        self.path = path

    def check(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ModelFileError(f"{self.path}: the header has the key {twice!r} more than once")
        return keys


def _entry(path: str, name: str, info: dict[str, Any]) -> Entry:
    begin, end = info["data_offsets"]
    entry = Entry(name, info["dtype"], tuple(info["shape"]), begin, end, info.get("qtype"))
    if entry.qtype is not None and not isinstance(entry.qtype, str):
        raise tensor_error(path, name, f"qtype is {entry.qtype!r}, expected a string")
    return entry


def _find_fault(header: Header, file_bytes: int) -> None:
    """Raise an error about the first thing in an unsound header that can be put into words."""
    for entry in header.entries:
        _check_size(header.path, entry)
    position = 0
    for entry in sorted(header.entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position:
            raise tensor_error(
                header.path,
                entry.name,
                f"data_offsets [{entry.begin}, {entry.end}] "
                f"{'overlap others' if entry.begin < position else 'leave a gap'}, "
                f"expected to begin at {position}",
            )
        position = entry.end
    expected = header.data_start + position
    if expected != file_bytes:
        raise ModelFileError(
            f"{header.path}: {'is truncated' if file_bytes < expected else 'is too long'}: "
            f"its header describes {expected} bytes, the file has {file_bytes}"
        )


def _check_size(path: str, entry: Entry) -> None:
    bits = item_bits(entry.dtype)
    if bits is not None and entry.nbytes != entry.size * bits // 8:
        raise tensor_error(
            path,
            entry.name,
            f"shape {list(entry.shape)} of {entry.dtype} needs {entry.size * bits // 8} bytes, "
            f"data_offsets [{entry.begin}, {entry.end}] hold {entry.nbytes}",
        )


class TensorReader:
    """Reads the tensors of one file piece by piece, so that memory does not grow with them."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self._file = open(header.path, "rb", buffering=0)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def bytes_of(self, entry: Entry, piece: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the tensor's bytes, ``piece`` at a time; each array is overwritten by the next."""
        buffer = np.empty(min(piece, entry.nbytes), np.uint8)
        for begin in range(entry.begin, entry.end, piece):
            part = buffer[: min(piece, entry.end - begin)]
            self._fill(entry, part, self.header.data_start + begin)
            yield part

    def weights_of(self, entry: Entry) -> Iterator[npt.NDArray[Any]]:
        """Yield the weights of a floating tensor, flat, a multiple of 32 at a time but the last."""
        dtype = numpy_dtype(entry.dtype)
        for part in self.bytes_of(entry, PIECE_WEIGHTS * dtype.itemsize):
            yield part.view(dtype)

    def groups_of(self, entry: Entry) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the bytes of a packed tensor, whole groups at a time."""
        return self.bytes_of(entry, PIECE_WEIGHTS // GROUP_SIZE * GROUP_BYTES)

    def _fill(self, entry: Entry, part: npt.NDArray[np.uint8], offset: int) -> None:
        unread = part.data
        while unread:
            try:
                self._file.seek(offset + part.nbytes - unread.nbytes)
                count = self._file.readinto(unread)
            except OSError as error:
                raise OSError(error.errno, error.strerror, self.header.path) from error
            if not count:
                raise tensor_error(self.header.path, entry.name, "the file became shorter")
            unread = unread[count:]
