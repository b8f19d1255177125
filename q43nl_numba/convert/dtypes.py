"""The dtype names of safetensors and what NumPy calls them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from . import buffers
from .errors import optional_package

#: The floating dtypes that can be quantized, cast and restored.
FLOATING: Final = ("F64", "F32", "F16", "BF16")

#: 8-bit floats. They are weights only together with a scale; without one they are copied.
FLOAT8: Final = ("F8_E4M3", "F8_E5M2")

_BITS: Final = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64,
    "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "U8": 8, "I8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip

_NUMPY: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "U8": "u1"}
_ML_DTYPES: Final = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}


def item_bits(dtype: str) -> int | None:
    """Return the bits of one element, or None for a dtype of which only the bytes are needed."""
    return _BITS.get(dtype)


def alignment(dtype: str) -> int:
    """Return the alignment in bytes that readers expect of a tensor's first byte."""
    return max(_BITS.get(dtype, 8) // 8, 1)


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a floating safetensors dtype, or of bytes."""
    if dtype in _NUMPY:
        return np.dtype(_NUMPY[dtype])
    found: np.dtype[Any] = np.dtype(getattr(optional_package("ml_dtypes"), _ML_DTYPES[dtype]))
    return found


def to_float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return floats as float32; what is beyond its range becomes infinite."""
    if values.dtype == np.float32:
        return values
    floats = buffers.empty(values.size * 4).view(np.float32).reshape(values.shape)
    with np.errstate(over="ignore"):
        np.copyto(floats, values, casting="same_kind")
    return floats
