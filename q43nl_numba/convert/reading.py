"""Read the headers of safetensors files, and check them.

The safetensors package judges whether a file is sound, after our own checks, whose messages name
the file and the tensor. Only gaps between tensors, which the format's own tools leave, are accepted
although the package refuses them.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any, BinaryIO, TypeGuard

from .container import LENGTH, MAX_HEADER_BYTES, METADATA_KEY, Entry, Header
from .dtypes import item_bits
from .errors import ModelFileError, optional_package, tensor_error
from .formats import format_name
from .tensors import SourceFile, StoredTensor

_NOT_JSON = (ValueError, RecursionError)
_MAX_SIZE = 1 << 63
_MAX_DIMENSIONS = 64  # as NumPy has it; it bounds the work of multiplying sizes, too


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
        try:
            return _checked_header(path, file)
        except ModelFileError:
            found = format_name(path)
            if found:
                raise ModelFileError(f"{path}: is {found}, expected a safetensors file") from None
            raise


def _checked_header(path: str, file: BinaryIO) -> Header:
    """Return the header of a file that passed all checks."""
    header = _parse(path, file)
    has_gaps = _check_layout(header)
    complaint = "" if has_gaps else _stock_complaint(path)
    if complaint:
        raise _unsound(path, complaint)
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
    file_bytes = os.fstat(file.fileno()).st_size
    available = file_bytes - LENGTH.size
    if available < 0:
        raise ModelFileError(f"{path}: is too short for a safetensors file: {file_bytes} bytes")
    (length,) = LENGTH.unpack(file.read(LENGTH.size))
    if length > available:
        raise ModelFileError(
            f"{path}: is truncated, or no safetensors file: the header should have {length} bytes, "
            f"{available} are there"
        )
    if length > MAX_HEADER_BYTES:
        raise _unsound(path, f"the header must have at most {MAX_HEADER_BYTES:,} bytes, "
                             f"found {length:,}")  # fmt: skip
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_Unique(path))
    except _NOT_JSON as error:
        if isinstance(error, ModelFileError):
            raise
        raise _unsound(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _unsound(path, "its header is not a JSON object")
    metadata = _checked_metadata(path, header.pop(METADATA_KEY, None))
    entries = tuple(_entry(path, name, info) for name, info in header.items())
    return Header(path, entries, metadata, LENGTH.size + length, file_bytes)


class _Unique:
    """Makes a dict of a JSON object; refuses a key that is there twice.

    Readers disagree about which one counts.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    raise ModelFileError(
                        f"{self._path}: the header has the key {name!r} more than once"
                    )
                seen.add(name)
        return keys


def _checked_metadata(path: str, metadata: Any) -> dict[str, str]:
    """Return the metadata of a header, which maps strings to strings."""
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise _unsound(path, f"{METADATA_KEY} is not a JSON object")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise _unsound(path, f"{METADATA_KEY} {key!r} must be a string, found {value!r:.80}")
        if not (is_text(key) and is_text(value)):
            raise _unsound(path, f"{METADATA_KEY} {key!r:.80} must be text, found half a character")
    return metadata


def is_text(text: str) -> bool:
    """Tell whether a text can be encoded: JSON may name halves of surrogate pairs alone."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _entry(path: str, name: str, info: Any) -> Entry:
    """Return the entry of one tensor, each field of the type that it must have."""
    if not isinstance(info, dict):
        raise tensor_error(path, name, f"its entry must be a JSON object, found {info!r:.80}")
    if not is_text(name):
        raise tensor_error(path, name, "its name must be Unicode text, found a lone surrogate")
    dtype, shape, offsets = (info.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or item_bits(dtype) is None:
        raise tensor_error(path, name, f"dtype must be one of safetensors', found {dtype!r:.80}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise tensor_error(path, name, f"shape {shape!r:.80} must be a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise tensor_error(
            path, name, f"data_offsets must be where it begins and ends, found {offsets!r:.80}"
        )
    qtype = info.get("qtype")
    if qtype is not None and not isinstance(qtype, str):
        raise tensor_error(path, name, f"qtype must be a string, found {qtype!r:.80}")
    return Entry(name, dtype, tuple(shape), offsets[0], offsets[1], qtype)


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    """Tell whether a JSON value is a list of sizes."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < _MAX_SIZE for v in values)


def _check_layout(header: Header) -> bool:
    """Check that the entries fit their shapes and the file; return whether there are gaps."""
    for entry in header.entries:
        _check_size(header.path, entry)
    position, has_gaps = 0, False
    for entry in sorted(header.entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin < position:
            raise tensor_error(
                header.path, entry.name,
                f"data_offsets [{entry.begin}, {entry.end}] overlap others, "
                f"expected to begin at {position}",
            )  # fmt: skip
        has_gaps = has_gaps or entry.begin > position
        position = entry.end
    expected = header.data_start + position
    if expected != header.file_bytes:
        raise ModelFileError(
            f"{header.path}: {'is truncated' if header.file_bytes < expected else 'is too long'}: "
            f"its header describes {expected} bytes, the file has {header.file_bytes}"
        )
    return has_gaps


def _check_size(path: str, entry: Entry) -> None:
    """Check that an entry has as many bytes as its shape needs."""
    bits = math.prod(entry.shape) * (item_bits(entry.dtype) or 0)
    if bits != entry.nbytes * 8:
        raise tensor_error(
            path, entry.name,
            f"shape {list(entry.shape)} of {entry.dtype} needs {-(-bits // 8)} bytes, "
            f"data_offsets [{entry.begin}, {entry.end}] hold {entry.nbytes}",
        )  # fmt: skip


def _unsound(path: str, problem: str) -> ModelFileError:
    """Return the error about a file as a whole."""
    return ModelFileError(f"{path}: is not a sound safetensors file: {problem}")


def read_tensors(path: str) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file, by name, in the header's order."""
    file = SourceFile.at(path)
    header = read_header(path)
    return {entry.name: StoredTensor.of(file, header, entry) for entry in header.entries}
