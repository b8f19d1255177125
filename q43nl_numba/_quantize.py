"""`q43nl`: from an array of numbers to packed bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _feedback, methods
from ._arrays import (
    PIECE,
    check_eps_scale,
    check_importance,
    check_num_threads,
    check_out,
    check_storable,
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
    hessian: Any = None,
    damping: float = _feedback.DAMPING,
    sweeps: int = _feedback.SWEEPS,
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
    hessian : float32 or float64 array, optional
        Second moments H = X^T X of the inputs X, [tokens, columns], that the matrix is multiplied
        with, or their mean: [columns, columns], symmetric, positive semidefinite. The tensor is a
        matrix of rows by columns, where leading dimensions are rows, and columns a multiple of 32.
        Minimized is the error of the layer's output then, trace((W - Q) H (W - Q)^T): each rounding
        error is made up for by the columns that are yet to be rounded (GPTQ [1]_, as LDLQ [2]_ has
        it), and sweeps over all codes follow. Row by row, the result is never worse than with
        ``importance=np.diag(H)``, and the same where H is diagonal. Best with "optimal", for which
        an `effort` of 2 will do; without correlation among the inputs, there is nothing to gain.
    damping : float
        With a hessian: what is added to its diagonal while errors are made up for, as a share of
        the mean of the diagonal's numbers above 0; 0 to 1e6. Columns with 0 on the diagonal do not
        count.
    sweeps : int
        With a hessian: how often all codes, scales and curves are moved to where the error is
        less; at least 0. Each sweep takes about as long as two thirds of the rest.
    eps_scale : float, optional
        Groups whose largest magnitude, rounded up to float16, does not exceed this are stored as
        zeros. By default 0 for "optimal" and "exact", 1e-6 for the other methods.
    out : uint8 array, optional
        C-contiguous array of the result's size to write to. It is not touched if the call fails.
    num_threads : int, optional
        Most threads to use, of those that Numba has (``NUMBA_NUM_THREADS``). By default Numba's
        current setting. A call uses as many as its work is worth: one for less than 4 ms of it.
        Under Numba's "workqueue" layer, which serves one launch at a time, a call from inside a
        parallel kernel of your own (in ``objmode``) takes one thread, too; and while such a kernel
        runs on another thread, ask for 1 here, because Numba ends the process where two meet.

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
        the hessian is not symmetric or, with the damping, not positive definite, or an argument is
        out of its range or belongs to another method.
    MemoryError
        There is not enough memory for the result or for the search.
    RuntimeError
        Another thread changed the tensor during the call, or Numba's threads cannot be started.

    See Also
    --------
    dequantize : The inverse.
    quality : What the quantization cost.

    Notes
    -----
    What holds for each group, and not only on average:

    - No method has more (weighted) error than zeros would have.
    - "optimal" and "exact" have no more error than "grid", nor "optimal" with all codes more than
      with symmetric ones. The other methods are near to "grid" on average, but worse in some
      groups. Of normal weights:

      ===========  ===============  =============  ============
      method       groups worse     median excess  1 in 100 of
                   than with grid   of the error   those: above
      ===========  ===============  =============  ============
      predictor    29 %             1.6 %          17 %
      gradient     2.9 %            1.6 %          15 %
      coarse_fine  1.7 %            1.0 %          5 %
      hybrid       0.06 %           0.8 %          8 %
      ===========  ===============  =============  ============

      Where the error of "grid" is next to 0, as in groups of a few weights besides 0, "predictor"
      and "gradient" may have a multiple of it.
    - What "grid", "optimal" or "exact" stored and `dequantize` decoded, the same call stores again
      without loss ("grid": to 10^-12 of the energy); "optimal" and "exact" with all codes do so
      whatever method stored it.
    - A negated tensor decodes to the negation where weights count, except for scales of "optimal"
      and "exact" below 2^-13: readers lose the sign of scales below 2^-14, so only positive ones
      are stored there. A tensor times a power of two has other scales only, where float16 has them
      ("exact" may choose another of two equal errors: 3 groups in 1,000).
    - "exact" ends its search in hard groups after some 40 times the usual time, with the best found
      so far. So symmetric codes may be better than all: in 20 of 100,000 groups, whose error is
      below 10^-3 of their energy, by less than 10^-6 of the error; and in 13 of 1,000 groups with
      importance from 10^-30 to 10^30, there by a multiple of an error next to 0.

    ``pytest -m slow tests/test_method_properties.py`` measures these, on 100,000 groups of a method
    each (10,000 for "exact" where importance is 0 or far apart).

    References
    ----------
    .. [1] E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh: GPTQ: accurate post-training
       quantization for generative pre-trained transformers. ICLR 2023, arXiv:2210.17323.
    .. [2] J. Chee, Y. Cai, V. Kuleshov, C. De Sa: QuIP: 2-bit quantization of large language models
       with guarantees. NeurIPS 2023, arXiv:2307.13304.

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

    Of correlated inputs x, the outputs W x change less with error feedback:

    >>> rng = np.random.default_rng(0)
    >>> weights = rng.standard_normal((64, 256)).astype(np.float32)
    >>> inputs = rng.standard_normal((1000, 32)) @ rng.standard_normal((32, 256))
    >>> hessian = inputs.T @ inputs / len(inputs)
    >>> def output_error(**options):
    ...     packed = q43nl(weights, "optimal", effort=2, **options)
    ...     error = (weights - dequantize(packed, weights.shape)) @ inputs.T
    ...     return (error**2).mean()
    >>> bool(output_error(hessian=hessian) < 0.1 * output_error(importance=np.diag(hessian)))
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
    wanted = _feedback.check_options(hessian, damping, sweeps, importance, array)
    if out is None:
        packed = np.empty(groups * GROUP_BYTES, np.uint8)
    else:
        packed = check_out(out, np.dtype(np.uint8), groups * GROUP_BYTES, array)
        with np.errstate(over="ignore", invalid="ignore"):
            check_storable(array, largest_storable(chosen, parameters))
    if wanted is None:
        _encode_pieces(call, array, check_importance(importance, array), packed)
    else:
        _encode_with_feedback(call, array, wanted, packed)
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
    # What overflows float32 becomes infinite and is then refused; so is any kind of NaN.
    with np.errstate(over="ignore", invalid="ignore"):
        for weights, weighting in zip(
            pieces(array, size=size), importance_pieces(importance, array.shape, size), strict=True
        ):
            part = packed[at : at + weights.size // GROUP_SIZE * GROUP_BYTES]
            if not encode(call, weights, weighting, part):
                _raise_not_storable(call, array)
            at += part.size


def _encode_with_feedback(
    call: Call, array: NDArray[Any], wanted: _feedback.Options, packed: NDArray[np.uint8]
) -> None:
    """Encode an array so that the rows' outputs change little."""
    importance, moments = _feedback.prepare(wanted, call.num_threads)
    if moments is None:
        _encode_pieces(call, array, importance, packed)
        return
    # What overflows float32 becomes infinite and is then refused; so is any kind of NaN.
    with np.errstate(over="ignore", invalid="ignore"):
        if not _feedback.encode_rows(call, array, importance, moments, wanted.sweeps, packed):
            _raise_not_storable(call, array)


def _raise_not_storable(call: Call, array: NDArray[Any]) -> None:
    """Raise an error that says what in an array could not be stored."""
    check_storable(array, largest_storable(call.method, call.parameters))
    raise RuntimeError(
        "tensor must not change while it is quantized, found a value that could not be stored and "
        "is gone"
    )


def largest_storable_weight(method: str, *, codes: str = "full", **options: Any) -> float:
    """Return the largest magnitude that such a call can store, on one side of zero at least."""
    chosen = methods.find_method(methods.TABLE, method)
    return LARGEST_STORABLE if chosen.joint and codes == "full" else MAX_SCALE


def largest_storable(method: Method, parameters: Any) -> float:
    """Return the largest magnitude that a method can store, on one side of zero at least."""
    return LARGEST_STORABLE if method.joint and parameters.full else MAX_SCALE
