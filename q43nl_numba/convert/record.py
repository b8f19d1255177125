"""What the metadata of a converted file keeps, so that restoring it needs nothing else.

Two metadata keys are ours: ``dtype`` (``Q43NL``, by which the engine knows the format) and
``q43nl_numba``, a JSON object with the shape and dtype each tensor had, and the value of the
metadata key that ``dtype`` displaced.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from q43nl_numba.convert.container import QTYPE, Entry, Header, packed_shape
from q43nl_numba.convert.dtypes import FLOATING
from q43nl_numba.convert.errors import ModelFileError, tensor_error

FORMAT_KEY = "dtype"
RECORD_KEY = "q43nl_numba"
_VERSION = 1


@dataclass(frozen=True)
class Original:
    """What a tensor was before the conversion; ``packed`` says whether it is stored packed."""

    dtype: str
    shape: tuple[int, ...]
    packed: bool


def metadata_with_record(
    metadata: Mapping[str, str],
    originals: Mapping[str, Original],
    made_by: Mapping[str, Any],
) -> dict[str, str]:
    """Return the metadata of the converted file."""
    tensors: dict[str, dict[str, Any]] = {}
    for name, original in originals.items():
        tensors[name] = {"dtype": original.dtype, "shape": list(original.shape)}
        if original.packed:
            tensors[name]["qtype"] = QTYPE
    record: dict[str, Any] = {"version": _VERSION, "made_by": dict(made_by), "tensors": tensors}
    if FORMAT_KEY in metadata:
        record["displaced"] = {FORMAT_KEY: metadata[FORMAT_KEY]}
    return {
        **metadata,
        FORMAT_KEY: QTYPE,
        RECORD_KEY: json.dumps(record, separators=(",", ":")),
    }


def metadata_without_record(header: Header) -> dict[str, str]:
    """Return the metadata that the file had before the conversion."""
    record = _load(header)
    kept = {
        key: value for key, value in header.metadata.items() if key not in (FORMAT_KEY, RECORD_KEY)
    }
    displaced = record.get("displaced", {})
    if not isinstance(displaced, dict) or not _all_strings(displaced.values()):
        raise _invalid(header.path, "'displaced' is not an object of strings")
    return {**kept, **displaced}


def is_converted(header: Header) -> bool:
    """Tell whether a file is quantized already, by `convert` or by the engine's own converter."""
    return (
        RECORD_KEY in header.metadata
        or header.metadata.get(FORMAT_KEY) == QTYPE
        or any(entry.qtype is not None for entry in header.entries)
    )


def read_originals(header: Header) -> dict[str, Original]:
    """Return what each tensor of a converted file was, checked against what the file holds.

    The tensors come in their original order: a program that rewrote the file may have sorted it.
    """
    if RECORD_KEY not in header.metadata:
        raise ModelFileError(
            f"{header.path}: its metadata has no {RECORD_KEY!r} entry, "
            "so it was not made by convert and cannot be restored"
        )
    tensors = _load(header).get("tensors")
    if not isinstance(tensors, dict):
        raise _invalid(header.path, "'tensors' is not an object")
    entries = {entry.name: entry for entry in header.entries}
    for name in entries.keys() - tensors.keys():
        raise tensor_error(header.path, name, f"is not in the {RECORD_KEY!r} metadata")
    for name in tensors.keys() - entries.keys():
        raise tensor_error(header.path, name, "is in the metadata but not in the file")
    return {name: _original(header.path, entries[name], info) for name, info in tensors.items()}


def weights_shape(header: Header, entry: Entry) -> tuple[int, ...] | None:
    """Return the shape of the weights of a packed tensor, or None for a tensor that is not packed.

    The header's ``qtype`` decides; the metadata does where a program rewrote the file without it.
    """
    if entry.qtype is None:
        if RECORD_KEY not in header.metadata:
            return None
        tensors = _load(header).get("tensors")
        info = tensors.get(entry.name) if isinstance(tensors, dict) else None
        if not isinstance(info, dict) or info.get("qtype") != QTYPE:
            return None
        return _original(header.path, entry, info).shape
    if entry.qtype != QTYPE:
        return None
    return unpacked_shape(header.path, entry)


def unpacked_shape(path: str, entry: Entry) -> tuple[int, ...]:
    """Return the shape of the weights that a packed entry holds, from its own shape."""
    *rows, last = entry.shape or (0,)
    if entry.dtype != "U8" or not entry.shape or last % 19:
        raise tensor_error(
            path, entry.name,
            f"is marked {QTYPE} but is {entry.dtype} {list(entry.shape)}, "
            "expected U8 with a last dimension that is a multiple of 19",
        )  # fmt: skip
    return (*rows, last // 19 * 32)


def _load(header: Header) -> dict[str, Any]:
    try:
        record = json.loads(header.metadata[RECORD_KEY])
    except (json.JSONDecodeError, RecursionError) as error:
        raise _invalid(header.path, f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise _invalid(header.path, "not an object")
    if record.get("version") != _VERSION:
        raise _invalid(
            header.path, f"version {record.get('version')!r}, this library reads {_VERSION}"
        )
    return record


def _original(path: str, entry: Entry, info: Any) -> Original:
    """Check one tensor's record against the entry that the file has for it."""
    original = _parsed_original(path, entry.name, info)
    if original.packed:
        fits = (
            original.dtype in FLOATING
            and entry.dtype == "U8"
            and math.prod(original.shape) % 32 == 0
            and len(original.shape) > 0
            and entry.shape == packed_shape(original.shape)
        )
    else:
        cast = original.dtype in FLOATING and entry.dtype in FLOATING
        fits = entry.shape == original.shape and (cast or entry.dtype == original.dtype)
    if not fits:
        was = f"{original.dtype} {list(original.shape)}"
        raise tensor_error(
            path, entry.name,
            f"is stored as {entry.dtype} {list(entry.shape)}, which does not fit the "
            f"{'packed ' if original.packed else ''}{was} of the {RECORD_KEY!r} metadata",
        )  # fmt: skip
    return original


def _parsed_original(path: str, name: str, info: Any) -> Original:
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


def _invalid(path: str, problem: str) -> ModelFileError:
    return ModelFileError(f"{path}: its {RECORD_KEY!r} metadata is invalid: {problem}")


def _all_strings(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)
