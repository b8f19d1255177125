"""`q43nl`: from an array of numbers to packed bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import methods
from ._arrays import (
    PIECE,
    check_eps_scale,
    check_importance,
    check_num_threads,
    check_out,
    check_whole_groups,
    importance_pieces,
    is_in_place,
    number_array,
    pieces,
)
from ._layout import GROUP_BYTES, GROUP_SIZE, MAX_SCALE
from ._portions import Call, encode
from .kernels.joint import LARGEST_STORABLE
from .methods import Method

METHODS: tuple[str, ...] = tuple(methods.TABLE)
"""Names of the methods that `q43nl` takes."""

_CHECKED_WEIGHTS = 1 << 16


def q43nl(
    tensor: Any,
    method: str = "gradient",
    *,
    grid_size: int = 255,
    gd_iterations: int = 5,
    gd_lr: float = 0.3,
    effort: int = 5,
    codes: str = "full",
    importance: Any = None,
    eps_scale: float | None = None,
    out: NDArray[np.uint8] | None = None,
    num_threads: int | None = None,
) -> NDArray[np.uint8]:
    """Quantize an array of weights to Q43NL.

    Each 32 consecutive weights of the flattened (C-order) array become 19 bytes: 32 four-bit
    codes, a float16 scale, and an int8 curve that bends the code levels to the group's
    distribution (source of the format: PasLLM, ``docs/quant_4bit_formats.md``). The stored bytes
    do not depend on the number of threads, nor on the array's memory layout.

    Parameters
    ----------
    tensor : array_like
        Real numbers of any dtype (float16, float32, float64, integers; bfloat16 with ml_dtypes),
        shape and memory layout, or an object with ``__array__`` or ``__dlpack__``. Its size must
        be a multiple of 32; magnitudes may reach 65504, the largest float16 ("optimal" and "exact"
        with all codes: 85556 on one side of zero in each group). Quantized is its
        value in float32. float32 C-contiguous input is not copied; other input is converted a few
        MiB at a time.
    method : {"gradient", "coarse_fine", "grid", "hybrid", "predictor", "optimal", "exact"}
        How each group's curve is searched: by informed starts and Adam, by two passes of 17
        candidates, among all 255 curves (the reference), by nine candidates and descents from the
        best three, or near a small neural network's three estimates (the fastest). These five take
        the group's largest magnitude for the scale. "optimal" searches scale, curve and codes
        together, "exact" finds the least error that the format allows.
    grid_size : int
        For "grid": evenly spaced values of c from -1 to 1, at least 2; each is tried at the
        storable curve next to it.
    gd_iterations : int
        For "gradient": iterations of Adam, shared among the best starts; 1 to 10,000.
    gd_lr : float
        For "gradient": the learning rate, in units of c; above 0.
    effort : int
        For "optimal": 1 (fast) to 9 (near to "exact").
    codes : {"full", "symmetric"}
        For "optimal" and "exact": whether to use all that readers of the format decode (codes -8 to
        7, negative scales, curve -128), or only what the other methods write.
    importance : array_like, optional
        Weights of the squared errors: finite numbers from 0 on, of the tensor's shape or of its
        last dimension's length. By default, and in groups where all are 0, every error counts the
        same.
    eps_scale : float, optional
        Groups whose largest magnitude, rounded up to float16, does not exceed this are stored as
        zeros. By default 0 for "optimal" and "exact", 1e-6 for the other methods.
    out : uint8 array, optional
        C-contiguous array of the result's size to write to. It is not touched if the call fails.
    num_threads : int, optional
        Most threads to use, of those that Numba has (``NUMBA_NUM_THREADS``). By default Numba's
        current setting. A call uses as many as its work is worth: one for less than 4 ms of it.

    Returns
    -------
    packed : uint8[size / 32 * 19]
        Flat array of the packed groups (`out` itself where it is given).

    Raises
    ------
    TypeError
        The tensor is not an array of real numbers, or an argument has the wrong type.
    ValueError
        The tensor's size is no multiple of 32, it holds NaN, infinity or a magnitude above 65504,
        or an argument is out of its range or belongs to another method.
    MemoryError
        There is not enough memory for the result or for the search.
    RuntimeError
        Another thread changed the tensor during the call, or Numba's threads cannot be started.

    See Also
    --------
    dequantize : The inverse.
    quality : What the quantization cost.

    Examples
    --------
    >>> import numpy as np
    >>> from q43nl_numba import GROUP_DTYPE, dequantize, q43nl
    >>> weights = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    >>> packed = q43nl(weights)
    >>> packed.shape
    (38,)
    >>> packed.view(GROUP_DTYPE)["scale"]
    array([1., 1.], dtype=float16)
    >>> bool(abs(dequantize(packed, weights.shape) - weights).max() < 0.1)
    True
    """
    chosen = methods.find_method(methods.TABLE, method)
    given = {
        "grid_size": grid_size,
        "gd_iterations": gd_iterations,
        "gd_lr": gd_lr,
        "effort": effort,
        "codes": codes,
    }
    parameters = methods.method_parameters(chosen, methods.TABLE, given)
    least_scale = chosen.eps_scale if eps_scale is None else check_eps_scale(eps_scale)
    call = Call(chosen, parameters, least_scale, check_num_threads(num_threads))
    array = number_array(tensor, "tensor")
    groups = check_whole_groups(array, "tensor")
    if out is None:
        packed = np.empty(groups * GROUP_BYTES, np.uint8)
    else:
        packed = check_out(out, np.dtype(np.uint8), groups * GROUP_BYTES, array)
        with np.errstate(over="ignore"):
            check_storable(array, largest_storable(chosen, parameters))
    _encode_pieces(call, array, check_importance(importance, array), packed)
    return packed if out is None else out


def _encode_pieces(
    call: Call,
    array: NDArray[Any],
    importance: NDArray[np.float32] | None,
    packed: NDArray[np.uint8],
) -> None:
    """Encode an array piece by piece; an error if a piece holds what no scale can express."""
    at = 0
    # What needs no memory of its own needs no pieces, at whose ends threads wait for each other.
    whole = importance is None and is_in_place(array)
    size = max(array.size, GROUP_SIZE) if whole else PIECE
    # What overflows float32 becomes infinite, and is then refused.
    with np.errstate(over="ignore"):
        for weights, weighting in zip(
            pieces(array, size=size), importance_pieces(importance, array.shape, size), strict=True
        ):
            part = packed[at : at + weights.size // GROUP_SIZE * GROUP_BYTES]
            if not encode(call, weights, weighting, part):
                check_storable(array, largest_storable(call.method, call.parameters))
                raise RuntimeError(
                    "tensor must not change while it is quantized, found a value that could not "
                    "be stored and is gone"
                )
            at += part.size


def largest_storable_weight(method: str, *, codes: str = "full", **options: Any) -> float:
    """Return the largest magnitude that such a call can store, on one side of zero at least."""
    chosen = methods.find_method(methods.TABLE, method)
    return LARGEST_STORABLE if chosen.joint and codes == "full" else MAX_SCALE


def largest_storable(method: Method, parameters: Any) -> float:
    """Return the largest magnitude that a method can store, on one side of zero at least."""
    return LARGEST_STORABLE if method.joint and parameters.full else MAX_SCALE


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
