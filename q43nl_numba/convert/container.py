"""The safetensors container: eight bytes of length, a JSON header, then the tensors' bytes.

What the safetensors package does not offer is done here: keys it does not know (``qtype``), an
order of the header that is not the data's, and a header written before its tensors are there.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .. import GROUP_BYTES, GROUP_SIZE
from .dtypes import alignment, numpy_dtype
from .errors import ModelFileError

METADATA_KEY = "__metadata__"
QTYPE = "Q43NL"

LENGTH = struct.Struct("<Q")

#: Readers of safetensors refuse a longer header.
MAX_HEADER_BYTES = 100_000_000
_HEADER_ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """One tensor as the header describes it; ``begin`` and ``end`` count from the data's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0
    qtype: str | None = None

    @property
    def is_packed(self) -> bool:
        """Whether the bytes are packed groups."""
        return self.qtype == QTYPE

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes in the file."""
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """The header of one file: its tensors in the header's order, and its metadata."""

    path: str
    entries: tuple[Entry, ...]
    metadata: dict[str, str]
    data_start: int

    file_bytes: int


def packed_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the packed bytes: 19 for every 32 weights of the last dimension.

    >>> packed_shape((4, 64))
    (4, 38)
    """
    return (*shape[:-1], shape[-1] // GROUP_SIZE * GROUP_BYTES)


def unpacked_shape(entry: Entry) -> tuple[int, ...] | None:
    """Return the shape of the weights that a packed entry holds, None if it cannot hold any.

    The bytes of the groups lie in the last dimension, or in the last one of ``[groups, 19]``.

    >>> unpacked_shape(Entry("w", "U8", (4, 38))), unpacked_shape(Entry("w", "U8", (4, 37)))
    ((4, 64), None)
    """
    if entry.dtype != "U8" or not entry.shape or entry.shape[-1] % GROUP_BYTES:
        return None
    return (*entry.shape[:-1], entry.shape[-1] // GROUP_BYTES * GROUP_SIZE)


def packed_entry(name: str, shape: tuple[int, ...]) -> Entry:
    """Return the (not yet placed) entry under which a tensor of this shape is stored packed."""
    stored = packed_shape(shape)
    return Entry(name, "U8", stored, 0, math.prod(stored), QTYPE)


def plain_entry(name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
    """Return the (not yet placed) entry of a floating tensor."""
    return Entry(name, dtype, shape, 0, math.prod(shape) * numpy_dtype(dtype).itemsize)


def place(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Give every entry its bytes in the file, without gaps; the order of the entries stays.

    The header keeps the natural order, but the data lies by descending alignment. A packed tensor
    may have an odd number of bytes and readers reject padding, so in natural order the float32
    tensor after it would start at an odd offset, where torch and mapped views cannot read it.
    """
    natural = tuple(entries)
    begins: dict[str, int] = {}
    position = 0
    for entry in sorted(natural, key=lambda entry: -alignment(entry.dtype)):
        begins[entry.name] = position
        position += entry.nbytes
    return tuple(
        replace(entry, begin=begins[entry.name], end=begins[entry.name] + entry.nbytes)
        for entry in natural
    )


def header_bytes(path: str, entries: Iterable[Entry], metadata: Mapping[str, str]) -> bytes:
    """Return the first bytes of a file, padded so that the data starts at a multiple of eight.

    Raises
    ------
    ModelFileError
        If readers would refuse the header of the file, which is going to be at `path`.
    """
    header: dict[str, Any] = {METADATA_KEY: dict(metadata)} if metadata else {}
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.begin, entry.end],
        }
        if entry.qtype is not None:
            header[entry.name]["qtype"] = entry.qtype
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise ModelFileError(
            f"{path}: its header must have at most {MAX_HEADER_BYTES:,} bytes for readers to "
            f"accept it, found {len(text):,}"
        )
    return LENGTH.pack(len(text)) + text
