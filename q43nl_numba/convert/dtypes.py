"""The dtype names of safetensors and what NumPy calls them."""

from __future__ import annotations

from typing import Any

import numpy as np

from q43nl_numba.convert.errors import optional_package

#: The floating dtypes that can be quantized, cast and restored. The 8-bit floats and smaller are
#: already quantized: they are copied as they are.
FLOATING = ("F64", "F32", "F16", "BF16")

_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64,
    "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "U8": 8, "I8": 8, "BOOL": 8,
}  # fmt: skip

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def item_bits(dtype: str) -> int | None:
    """Return the bits of one element, or None for a dtype of which only the bytes are needed."""
    return _BITS.get(dtype)


def alignment(dtype: str) -> int:
    """Return the alignment in bytes that readers expect of a tensor's first byte."""
    return _BITS.get(dtype, 8) // 8


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a floating safetensors dtype."""
    known: np.dtype[Any] = np.dtype(
        optional_package("ml_dtypes").bfloat16 if dtype == "BF16" else _NUMPY[dtype]
    )
    return known
