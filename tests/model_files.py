"""Write and read safetensors files by hand, so that nothing under test vouches for itself."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
BF16 = DTYPES["BF16"]

Tensors = dict[str, np.ndarray]


def info(dtype: str, shape: Sequence[int], begin: int, nbytes: int, **more: Any) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": list(shape),
        "data_offsets": [begin, begin + nbytes],
        **more,
    }


def write_raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def write_model(
    path: Path, tensors: Tensors, metadata: dict[str, str] | None = None, gap: int = 0
) -> Path:
    """Write tensors in their order; `gap` aligns each, as the format's own tools do."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, array in tensors.items():
        data += bytes(-len(data) % gap if gap else 0)
        header[name] = info(NAMES[array.dtype], array.shape, len(data), array.nbytes)
        data += array.tobytes()
    return write_raw(path, header, data)


def read_raw(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def stored(path: Path, name: str) -> np.ndarray:
    header, data = read_raw(path)
    begin, end = header[name]["data_offsets"]
    array = np.frombuffer(data[begin:end], DTYPES[header[name]["dtype"]])
    return array.reshape(header[name]["shape"])


def gauss(shape: tuple[int, ...], dtype: np.dtype[Any] = DTYPES["F32"], seed: int = 1) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.05).astype(dtype)
