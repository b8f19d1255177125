"""Arguments of the public calls: checked, and as the kernels take them, in pieces."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ._layout import GROUP_SIZE, MAX_SCALE

PIECE: Final = 1 << 20
"""Weights converted at a time: the memory that a call needs beyond its input and output."""

_CHECKED_WEIGHTS: Final = 1 << 16
"""Weights checked at a time."""

Array = NDArray[Any]


def number_array(values: Any, name: str) -> Array:
    """Return an array of real numbers, a view where possible."""
    array = any_array(values, name)
    if array.dtype.kind in "fiu" or _is_extension_float(array.dtype):
        return array
    raise TypeError(
        f"{name} must hold real numbers (floating or integer), found dtype {array.dtype}"
    )


def any_array(values: Any, name: str) -> Array:
    """Return an array of whatever dtype, a view where possible."""
    try:
        is_masked = np.ma.is_masked(values)
        if not is_masked and hasattr(values, "__dlpack__") and not hasattr(values, "__array__"):
            return np.from_dlpack(values)
        if not is_masked:
            return np.asarray(values)
    except MemoryError:
        raise
    except Exception as error:  # what a foreign __array__ or __dlpack__ raises may be anything
        raise TypeError(f"{name} must be readable as an array, found {error!r}") from error
    raise ValueError(f"{name} must not be masked, found a masked array; fill it first")


def _is_extension_float(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype from outside NumPy (bfloat16, say) widens to float32."""
    return dtype.kind == "V" and dtype.type is not np.void and np.can_cast(dtype, np.float32)


def pieces(array: Array, dtype: DTypeLike = np.float32, size: int = PIECE) -> Iterator[Array]:
    """Yield an array in C order, as flat contiguous pieces of a dtype.

    Pieces are views where the array allows it and else a buffer that the next piece reuses. All
    but the last have `size` elements, a multiple of the group size.
    """
    dtype = np.dtype(dtype)
    if not array.flags.c_contiguous:
        yield from _gathered(array, dtype, size)
        return
    flat = array.reshape(-1)
    in_place = is_in_place(array, dtype)
    for start in range(0, flat.size, size):
        part = flat[start : start + size]
        yield part if in_place else part.astype(dtype)


def is_in_place(array: Array, dtype: DTypeLike = np.float32) -> bool:
    """Return whether a flat view of the array is what a kernel takes."""
    return array.flags.c_contiguous and array.flags.aligned and array.dtype == np.dtype(dtype)


def _gathered(array: Array, dtype: np.dtype[Any], size: int) -> Iterator[Array]:
    """Yield pieces of an array that is scattered in memory.

    NumPy's buffered iterator ends its chunks at ends of rows, so they are put together here.
    """
    piece = np.empty(min(size, array.size), dtype)
    filled = 0
    walk: Any = np.nditer  # its stub does not know every combination of arguments
    for chunk in walk(
        array,
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_flags=[["readonly"]],
        op_dtypes=[dtype],
        casting="same_kind",
        order="C",
        buffersize=size // 16,
    ):
        taken = 0
        while taken < chunk.size:
            count = min(chunk.size - taken, piece.size - filled)
            piece[filled : filled + count] = chunk[taken : taken + count]
            taken += count
            filled += count
            if filled == piece.size:
                yield piece
                filled = 0
    if filled:
        yield piece[:filled]


def read_only(array: Array) -> Array:
    """Return a read-only view: one type for the kernels, whatever the caller's array is."""
    view = array.view()
    view.flags.writeable = False
    return view


def check_whole_groups(array: Array, name: str) -> int:
    """Return the number of groups in an array, which must hold whole ones."""
    groups, rest = divmod(array.size, GROUP_SIZE)
    if rest:
        raise ValueError(
            f"{name} must have a multiple of {GROUP_SIZE} elements, "
            f"found {array.size} (shape {array.shape})"
        )
    return groups


def check_out(out: Any, dtype: np.dtype[Any], size: int, source: Array) -> Array:
    """Return a flat view of an `out` argument that a result of a dtype and size can be written to.

    It is a view of NumPy's own class: a subclass may index, slice and reshape in its own ways.
    """
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out must be a NumPy array without a mask, found {type(out).__name__}")
    if out.dtype != dtype:
        raise TypeError(f"out must have dtype {dtype}, found {out.dtype}")
    if out.size != size:
        raise ValueError(f"out must have {size} elements, found {out.size} (shape {out.shape})")
    if not out.flags.c_contiguous:
        raise ValueError(f"out must be C-contiguous, found strides {out.strides}")
    if not out.flags.writeable:
        raise ValueError("out must be writable, found a read-only array")
    if np.may_share_memory(out, source):
        raise ValueError("out must not overlap the input, found shared memory")
    flat: Array = np.ndarray.reshape(np.ndarray.view(out, np.ndarray), -1)
    return flat


def check_num_threads(num_threads: Any) -> int | None:
    """Return a `num_threads` argument: None, or an integer from 1 on."""
    if num_threads is None:
        return None
    return checked_integer("num_threads", num_threads, 1)


def checked_integer(name: str, value: Any, least: int) -> int:
    """Return an argument that must be an integer of at least `least`."""
    wanted = f"{name} must be an integer of at least {least}, found {value!r}"
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(wanted) from None
    if isinstance(value, bool):
        raise TypeError(wanted)
    if number < least:
        raise ValueError(wanted)
    return number


def check_eps_scale(eps_scale: Any) -> float:
    """Return an `eps_scale` argument: a finite number, at least 0."""
    try:
        value = float(eps_scale)
    except (TypeError, ValueError):
        raise TypeError(f"eps_scale must be a number, found {eps_scale!r}") from None
    except OverflowError:
        value = math.inf
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"eps_scale must be finite and at least 0, found {eps_scale!r}")
    return value


def check_importance(importance: Any, tensor: Array) -> Array | None:
    """Return an `importance` argument as float32, of the tensor's shape or its last dimension's."""
    if importance is None:
        return None
    array = number_array(importance, "importance")
    shapes = [tensor.shape, tensor.shape[-1:]]
    if array.shape not in shapes:
        raise ValueError(
            f"importance must have the tensor's shape {tensor.shape} or its last dimension's "
            f"length, found shape {array.shape}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        weighting = np.require(array.astype(np.float32, copy=False), requirements=["C", "A"])
    wrong = ~(np.isfinite(weighting) & (weighting >= 0))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"importance must be finite and at least 0, found "
            f"{array[np.unravel_index(first, array.shape)]} at flat index {first}"
        )
    return weighting


def importance_pieces(
    importance: Array | None, shape: tuple[int, ...], size: int = PIECE
) -> Iterator[Array | None]:
    """Yield the importance of each of the `pieces` of a tensor of a shape; None without any."""
    weights = math.prod(shape)
    for start in range(0, weights, size):
        count = min(size, weights - start)
        if importance is None:
            yield None
        elif importance.shape == shape:
            yield importance.reshape(-1)[start : start + count]
        else:
            yield np.resize(np.roll(importance, -(start % importance.size)), count)


def check_storable(array: NDArray[Any], largest: float = MAX_SCALE) -> None:
    """Raise an error that says where an array holds what no scale can express, if it does.

    `largest` is the largest magnitude; of each group, one side of zero must keep to `MAX_SCALE`.
    """
    wide = np.result_type(array.dtype, np.float32) if array.dtype.kind == "f" else np.float32
    not_finite = 0
    first_not_finite = first_too_large = -1
    at = 0
    for piece in pieces(array, wide, _CHECKED_WEIGHTS):
        finite = np.isfinite(piece)
        bad = piece.size - int(np.count_nonzero(finite))
        if bad and not not_finite:
            first_not_finite = at + int(np.argmin(finite))
        not_finite += bad
        too_large = is_too_large(piece.astype(np.float32, copy=False), largest)  # as quantized
        if first_too_large < 0 and too_large.any():
            first_too_large = at + int(np.argmax(too_large))
        at += piece.size
    if not_finite:
        raise ValueError(
            f"tensor must be finite, found {not_finite} NaN or infinite values, "
            f"the first ({_value(array, first_not_finite)}) at flat index {first_not_finite}"
        )
    if first_too_large >= 0:
        further = f" ({largest:g} on one side of zero)" if largest > MAX_SCALE else ""
        raise ValueError(
            f"tensor must not exceed {MAX_SCALE:g} in magnitude, the largest float16 scale"
            f"{further}, found {_value(array, first_too_large)} at flat index {first_too_large}"
        )


def is_too_large(weights: NDArray[np.float32], largest: float) -> NDArray[np.bool_]:
    """Return which weights no scale can express, on both sides of zero at once or at all."""
    groups = weights.reshape(-1, GROUP_SIZE)
    above, below = groups > MAX_SCALE, groups < -MAX_SCALE
    both = np.any(above, axis=1, keepdims=True) & np.any(below, axis=1, keepdims=True)
    too_large: NDArray[np.bool_] = (np.abs(groups) > largest) | ((above | below) & both)
    return too_large.reshape(-1)


def _value(array: NDArray[Any], flat_index: int) -> str:
    return str(array[np.unravel_index(flat_index, array.shape)])
