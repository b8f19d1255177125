"""`dequantize`: from packed bytes to weights, as the engine decodes them."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ._arrays import PIECE, any_array, check_num_threads, check_out, read_only
from ._jit import helper, prange
from ._kernel import Kernel
from ._layout import (
    CURVE_AT,
    GROUP_BYTES,
    GROUP_DTYPE,
    GROUP_SIZE,
    NIBBLE_OF_ZERO,
    SCALE_AT,
    scale_of_bits,
)
from ._threads import thread_count
from .kernels.curve import c_of_curve, level, x_of_code

_BLOCK: Final = 1 << 10
"""Groups that a thread decodes at a time."""

_COST: Final = 0.14
"""Nanoseconds that a weight takes on one core."""


def dequantize(
    packed: Any,
    shape: int | Sequence[int] | None = None,
    *,
    dtype: DTypeLike = np.float32,
    out: NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> NDArray[Any]:
    """Decode packed groups to weights.

    Computes, in float32 and bit for bit as PasLLM's AVX2 code does, with ``x = code * f32(1/7)``
    and ``c = curve * f32(1/127)``: ``weight = fma(1 - c, x, (x * c) * |x|) * scale``. Every
    possible group is decoded, also those that `q43nl` never writes: code -8, curve -128, and
    negative, infinite and NaN scales.

    Parameters
    ----------
    packed : array of uint8 or `GROUP_DTYPE`, or a bytes-like object
        Packed groups, 19 bytes each, of any shape.
    shape : int or sequence of int, optional
        Shape of the result; one entry may be -1. By default flat, or that of `out`.
    dtype : dtype
        float32, float16, float64 or, with ml_dtypes, bfloat16: what the float32 weights are
        rounded to. Magnitudes beyond the dtype's range become infinite.
    out : array, optional
        C-contiguous array of the result's dtype and size to write to.
    num_threads : int, optional
        Threads to use, at most those that Numba has. By default Numba's current setting.

    Returns
    -------
    weights : array of `dtype`
        Of the given shape: `out` itself where it is given, or a view of it.

    Raises
    ------
    TypeError
        `packed` does not hold bytes, or `dtype` is not a floating one.
    ValueError
        The number of bytes is no multiple of 19, or `shape` or `out` does not fit it.

    Examples
    --------
    >>> import numpy as np
    >>> from q43nl_numba import dequantize, q43nl
    >>> packed = q43nl(np.arange(32))
    >>> dequantize(packed)[-1]
    np.float32(31.0)
    >>> dequantize(packed.tobytes(), (4, 8), dtype=np.float16).shape
    (4, 8)
    """
    data = packed_bytes(packed, "packed")
    size = data.size // GROUP_BYTES * GROUP_SIZE
    wanted = _check_float_dtype(dtype)
    num_threads = check_num_threads(num_threads)
    if out is None:
        weights = np.empty(_check_shape(shape, size), wanted)
    else:
        weights = check_out(out, wanted, size, data)
        wanted_shape = out.shape if shape is None else _check_shape(shape, size)
    if wanted == np.float32:
        decode(data, weights.reshape(-1), num_threads)
    else:
        _decode_rounded(data, weights.reshape(-1), num_threads)
    if out is None:
        return weights
    return out if wanted_shape == out.shape else weights.reshape(wanted_shape)


def packed_bytes(packed: Any, name: str) -> NDArray[np.uint8]:
    """Return the flat contiguous bytes of whole groups."""
    is_text = isinstance(packed, (bytes, bytearray))
    array: NDArray[Any] = np.frombuffer(packed, np.uint8) if is_text else any_array(packed, name)
    if array.dtype not in (np.dtype(np.uint8), GROUP_DTYPE):
        raise TypeError(f"{name} must hold uint8 or GROUP_DTYPE, found dtype {array.dtype}")
    data = read_only(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    if data.size % GROUP_BYTES:
        raise ValueError(
            f"{name} must have a multiple of {GROUP_BYTES} bytes, "
            f"found {data.size} (shape {array.shape})"
        )
    return data


def decode(data: NDArray[np.uint8], weights: NDArray[np.float32], num_threads: int | None) -> None:
    """Decode flat packed bytes into flat weights."""
    _decode(data, weights, num_threads=thread_count(num_threads, _COST * weights.size))


def _decode_rounded(data: NDArray[np.uint8], weights: NDArray[Any], threads: int | None) -> None:
    buffer = np.empty(min(PIECE, weights.size), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, weights.size, PIECE):
            part = weights[start : start + PIECE]
            at = start // GROUP_SIZE * GROUP_BYTES
            stop = at + part.size // GROUP_SIZE * GROUP_BYTES
            decode(data[at:stop], buffer[: part.size], threads)
            part[:] = buffer[: part.size]


def _check_float_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        wanted = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype must be a floating dtype, found {dtype!r}") from None
    if wanted.name not in ("float16", "float32", "float64", "bfloat16"):
        raise TypeError(f"dtype must be float16, float32, float64 or bfloat16, found {wanted}")
    return wanted


def _check_shape(shape: int | Sequence[int] | None, size: int) -> tuple[int, ...]:
    """Return a shape of the given size, with an entry of -1 filled in."""
    if shape is None:
        return (size,)
    try:
        sides = [operator.index(side) for side in np.atleast_1d(np.asarray(shape, object))]
    except TypeError:
        raise TypeError(f"shape must hold integers, found {shape!r}") from None
    known = math.prod(side for side in sides if side != -1)
    if sides.count(-1) == 1 and known > 0:
        sides[sides.index(-1)] = size // known
    if min(sides, default=0) < 0 or math.prod(sides) != size:
        raise ValueError(f"shape must have {size} elements, found {shape!r}")
    try:
        np.broadcast_to(np.float64(0), sides)  # takes no memory
    except (ValueError, OverflowError) as error:
        raise ValueError(f"shape must be one of NumPy's, found {shape!r}: {error}") from None
    return tuple(sides)


def _decode_groups(data: NDArray[np.uint8], weights: NDArray[np.float32]) -> None:
    groups = data.size // GROUP_BYTES
    for block in prange(-(-groups // _BLOCK)):
        for group in range(block * _BLOCK, min(groups, (block + 1) * _BLOCK)):
            start, at = group * GROUP_BYTES, group * GROUP_SIZE
            decode_group(data[start : start + GROUP_BYTES], weights[at : at + GROUP_SIZE])


@helper
def decode_group(group: NDArray[np.uint8], weights: NDArray[np.float32]) -> None:
    """Decode the bytes of one group, uint8[19], to float32[32]."""
    bits = np.uint32(group[SCALE_AT]) | (np.uint32(group[SCALE_AT + 1]) << np.uint32(8))
    scale = scale_of_bits(bits)
    c = c_of_curve(np.int8(group[CURVE_AT]))
    for byte in range(GROUP_SIZE // 2):
        pair = np.int32(group[byte])
        low, high = np.int32(pair & 15), np.int32(pair >> 4)
        weights[2 * byte] = level(x_of_code(np.int32(low - NIBBLE_OF_ZERO)), c) * scale
        weights[2 * byte + 1] = level(x_of_code(np.int32(high - NIBBLE_OF_ZERO)), c) * scale


_decode = Kernel(_decode_groups)
