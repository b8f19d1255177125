"""What the metadata of a converted file keeps, so that restoring it needs nothing else.

Two metadata keys are ours: ``dtype`` (``Q43NL``, by which the engine knows the format) and
``q43nl_numba``, a JSON object:

- ``version``: of the record, 2;
- ``made_by``: the version of this library and the arguments that decide about the bytes;
- ``packed_dtype``: the dtype that most packed tensors had;
- ``dtypes``: the dtype that each other tensor had, where it is not the one it is stored in;
- ``unpacked``: the names of ``U8`` tensors that look packed and are not;
- ``displaced``: the value of the metadata key that ``dtype`` took the place of.

So the record stays small however many tensors there are: a packed tensor's shape follows from that
of its bytes. Records of version 1, which named every tensor, are read too.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .. import GROUP_SIZE
from .container import QTYPE, Entry, Header, packed_shape, unpacked_shape
from .dtypes import FLOATING
from .errors import ModelFileError, tensor_error

FORMAT_KEY: Final = "dtype"
RECORD_KEY: Final = "q43nl_numba"
_VERSION: Final = 2
_NAMES_ALL_TENSORS: Final = 1

#: Values of ``qtype`` that the format's own tools give to tensors that are not quantized.
_PLAIN_QTYPES: Final = (None, "F32", "FP32", "F16", "FP16", "BF16")

#: What a packed tensor of a file without record is restored to.
_DEFAULT_DTYPE: Final = "F32"


@dataclass(frozen=True)
class Original:
    """What a tensor was before the conversion; `packed` says whether it is stored packed."""

    dtype: str
    shape: tuple[int, ...]
    packed: bool


def metadata_with_record(
    metadata: Mapping[str, str],
    tensors: Sequence[tuple[Entry, Original]],
    made_by: Mapping[str, Any],
) -> dict[str, str]:
    """Return the metadata of a converted file from its entries and what they were.

    Of a model in several files, one without packed tensors is not marked; where nothing was cast
    either, it needs no record.
    """
    packed_dtypes = Counter(original.dtype for _, original in tensors if original.packed)
    has_cast = any(original.dtype != entry.dtype for entry, original in tensors)
    if not has_cast:
        return dict(metadata)
    packed_dtype = packed_dtypes.most_common(1)[0][0] if packed_dtypes else _DEFAULT_DTYPE
    record: dict[str, Any] = {
        "version": _VERSION,
        "made_by": dict(made_by),
        "packed_dtype": packed_dtype,
        "dtypes": {
            entry.name: original.dtype
            for entry, original in tensors
            if original.dtype != (packed_dtype if original.packed else entry.dtype)
        },
        "unpacked": [
            entry.name
            for entry, original in tensors
            if not original.packed and _looks_packed(entry)
        ],
    }
    mark = {FORMAT_KEY: QTYPE} if packed_dtypes else {}
    if mark and FORMAT_KEY in metadata:
        record["displaced"] = {FORMAT_KEY: metadata[FORMAT_KEY]}
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    return {**metadata, **mark, RECORD_KEY: text}


def is_converted(header: Header) -> bool:
    """Tell whether a file is quantized already, by `convert` or by the format's own tools."""
    return (
        RECORD_KEY in header.metadata
        or header.metadata.get(FORMAT_KEY) == QTYPE
        or any(entry.qtype not in _PLAIN_QTYPES for entry in header.entries)
    )


class Record:
    """The record of one file, parsed once: what each of its tensors was.

    Raises
    ------
    ModelFileError
        If the file has a record that is invalid.
    """

    def __init__(self, header: Header) -> None:
        self._header = header
        self.exists = RECORD_KEY in header.metadata
        self._fields = _Fields() if not self.exists else _parsed(header)

    def original(self, entry: Entry) -> Original:
        """Return what a tensor was, checked against what the file holds.

        The header's ``qtype`` tells what is packed; the record does where a program rewrote the
        file without it.
        """
        if self._fields.tensors is not None:
            return _original(self._header.path, entry, self._fields.tensors.get(entry.name))
        dtype = self._fields.dtypes.get(entry.name)
        if not self._is_packed(entry):
            return self._plain(entry, dtype)
        shape = unpacked_shape(entry)
        if shape is None or math.prod(shape) % GROUP_SIZE:
            raise tensor_error(
                self._header.path, entry.name,
                f"is marked {QTYPE} but is {entry.dtype} {list(entry.shape)}, "
                "expected U8 with a last dimension that is a multiple of 19",
            )  # fmt: skip
        dtype = dtype or self._fields.packed_dtype
        if dtype not in FLOATING:
            raise _misfit(self._header.path, entry, f"packed {dtype}")
        return Original(dtype, shape, packed=True)

    def check_names(self) -> None:
        """Refuse a record that names a tensor that the file does not have."""
        names = {entry.name for entry in self._header.entries}
        for name in self._fields.names():
            if name not in names:
                raise tensor_error(
                    self._header.path, name, "is in the metadata but not in the file"
                )

    @property
    def method(self) -> str:
        """The method that the run packed with, where no rule said otherwise; "" if unknown."""
        method = self._fields.made_by.get("method", "")
        return "" if "rules" in self._fields.made_by else str(method)

    def metadata_before(self) -> dict[str, str]:
        """Return the metadata that the file had before the conversion."""
        kept = {key: value for key, value in self._header.metadata.items() if key != RECORD_KEY}
        if kept.get(FORMAT_KEY) == QTYPE:
            del kept[FORMAT_KEY]
        return {**kept, **self._fields.displaced}

    def _is_packed(self, entry: Entry) -> bool:
        """Tell whether a tensor is stored packed."""
        if entry.qtype is not None or not self.exists:
            return entry.qtype == QTYPE
        return _looks_packed(entry) and entry.name not in self._fields.unpacked

    def _plain(self, entry: Entry, dtype: str | None) -> Original:
        """Return what a tensor that is not packed was: it may have been cast."""
        if dtype is not None and not (dtype in FLOATING and entry.dtype in FLOATING):
            raise _misfit(self._header.path, entry, dtype)
        return Original(dtype or entry.dtype, entry.shape, packed=False)


@dataclass(frozen=True)
class _Fields:
    """The content of a record; `tensors` is None but in those of version 1."""

    packed_dtype: str = _DEFAULT_DTYPE
    dtypes: Mapping[str, str] = field(default_factory=dict)
    unpacked: frozenset[str] = frozenset()
    displaced: Mapping[str, str] = field(default_factory=dict)
    made_by: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Any] | None = None

    def names(self) -> Iterable[str]:
        """Return all names of tensors in the record."""
        return [*(self.tensors or ()), *self.dtypes, *self.unpacked]


def _looks_packed(entry: Entry) -> bool:
    """Tell whether a tensor could be packed, by its shape."""
    return entry.dtype == "U8" and len(entry.shape) > 1 and bool(unpacked_shape(entry))


def _parsed(header: Header) -> _Fields:
    """Return the fields of a file's record, each of the type that it must have."""
    try:
        record = json.loads(header.metadata[RECORD_KEY])
    except (ValueError, RecursionError) as error:
        raise _invalid(header.path, f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise _invalid(header.path, "not an object")
    version = record.get("version")
    if version not in (_NAMES_ALL_TENSORS, _VERSION):
        raise _invalid(header.path, f"version {version!r}, this library reads 1 and {_VERSION}")
    displaced = _strings(header.path, record, "displaced")
    if version == _NAMES_ALL_TENSORS:
        tensors = record.get("tensors")
        if not isinstance(tensors, dict):
            raise _invalid(header.path, "'tensors' is not an object")
        return _Fields(displaced=displaced, tensors=tensors)
    packed_dtype, unpacked = record.get("packed_dtype"), record.get("unpacked", [])
    if packed_dtype not in FLOATING:
        raise _invalid(header.path, f"'packed_dtype' is {packed_dtype!r:.80}")
    if not isinstance(unpacked, list) or not _all_strings(unpacked):
        raise _invalid(header.path, "'unpacked' is not a list of strings")
    dtypes = _strings(header.path, record, "dtypes")
    made_by = record.get("made_by")
    made_by = made_by if isinstance(made_by, dict) else {}
    return _Fields(packed_dtype, dtypes, frozenset(unpacked), displaced, made_by)


def _strings(path: str, record: Mapping[str, Any], key: str) -> dict[str, str]:
    """Return a field that maps names to strings."""
    found = record.get(key, {})
    if not isinstance(found, dict) or not _all_strings(found.values()):
        raise _invalid(path, f"{key!r} is not an object of strings")
    return found


def _original(path: str, entry: Entry, info: Any) -> Original:
    """Check one tensor's record of version 1 against the entry that the file has for it."""
    if info is None:
        raise tensor_error(path, entry.name, f"is not in the {RECORD_KEY!r} metadata")
    original = _parsed_original(path, entry.name, info)
    if original.packed:
        fits = (
            original.dtype in FLOATING
            and entry.dtype == "U8"
            and math.prod(original.shape) % GROUP_SIZE == 0
            and len(original.shape) > 0
            and entry.shape == packed_shape(original.shape)
        )
    else:
        cast = original.dtype in FLOATING and entry.dtype in FLOATING
        fits = entry.shape == original.shape and (cast or entry.dtype == original.dtype)
    if not fits:
        packed = "packed " if original.packed else ""
        raise _misfit(path, entry, f"{packed}{original.dtype} {list(original.shape)}")
    return original


def _parsed_original(path: str, name: str, info: Any) -> Original:
    """Return one tensor's record of version 1."""
    known = info if isinstance(info, dict) else {}
    dtype, shape, qtype = known.get("dtype"), known.get("shape"), known.get("qtype")
    if (
        isinstance(dtype, str)
        and isinstance(shape, list)
        and all(type(length) is int and length >= 0 for length in shape)
        and qtype in (None, QTYPE)
    ):
        return Original(dtype, tuple(shape), qtype == QTYPE)
    raise tensor_error(path, name, f"its {RECORD_KEY!r} metadata is invalid: {info!r:.80}")


def _misfit(path: str, entry: Entry, was: str) -> ModelFileError:
    """Return the error about a tensor that is not what the record says."""
    return tensor_error(
        path, entry.name,
        f"is stored as {entry.dtype} {list(entry.shape)}, which does not fit the {was} of the "
        f"{RECORD_KEY!r} metadata",
    )  # fmt: skip


def _invalid(path: str, problem: str) -> ModelFileError:
    return ModelFileError(f"{path}: its {RECORD_KEY!r} metadata is invalid: {problem}")


def _all_strings(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)
