"""Error feedback as `q43nl` offers it: checks, the factorization, and rows piece by piece."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _portions
from ._arrays import checked_integer, number_array, pieces, read_only
from ._layout import GROUP_BYTES, GROUP_SIZE
from ._portions import Call
from ._threads import thread_count
from .kernels import feedback, quadratic
from .kernels.factor import BLOCK, OUT_OF_MEMORY, POSITIVE_DEFINITE, factorize
from .kernels.feedback import Rows
from .kernels.quadratic import Quadratic
from .kernels.tile import LANES, Floats

DAMPING: Final = 0.01
SWEEPS: Final = 1
"""Defaults of `q43nl`."""

MOST_DAMPING: Final = 1e6

_COST: Final = 0.03
"""Nanoseconds that a core takes for a term of a product: for a weight, by a column."""
_COST_OF_A_PASS: Final = 40.0
"""Nanoseconds that a core takes for a weight in a pass or sweep, whatever the columns."""

_NANOSECONDS: Final = 5e8
"""Time between two looks for interrupts, about."""

_PIECE_BYTES: Final = 48 << 20
"""Memory for a piece of the rows, beside as much as H takes in float32."""
_BYTES_A_WEIGHT: Final = 20
"""What the arrays of a piece take: weights, errors, codes, importance, and a copy of the input."""


class Options(NamedTuple):
    """What a call with a hessian asks for, checked."""

    hessian: NDArray[Any]
    """float32 or float64[columns, columns], contiguous and read-only."""
    damping: float
    sweeps: int


def check_options(
    hessian: Any, damping: Any, sweeps: Any, importance: Any, tensor: NDArray[Any]
) -> Options | None:
    """Check a call's options; None for a call without a hessian."""
    options = (check_damping(damping), checked_integer("sweeps", sweeps, 0))
    if hessian is None:
        for name, found, default in zip(
            ("damping", "sweeps"), options, (DAMPING, SWEEPS), strict=True
        ):
            if found != default:
                raise ValueError(f"{name} belongs to hessian, found {found!r} without one")
        return None
    if importance is not None:
        raise ValueError(
            "importance must be None with a hessian, whose diagonal is the columns' importance; "
            "found both"
        )
    return Options(check_hessian(hessian, tensor), *options)


def check_damping(damping: Any) -> float:
    """Check a `damping` argument: a number from 0 to `MOST_DAMPING`."""
    if isinstance(damping, bool) or not isinstance(damping, (Real, np.number)):
        raise TypeError(f"damping must be a number, found {damping!r}")
    if not 0 <= float(damping) <= MOST_DAMPING:
        raise ValueError(f"damping must be a number from 0 to {MOST_DAMPING:g}, found {damping!r}")
    return float(damping)


def check_hessian(hessian: Any, tensor: NDArray[Any]) -> NDArray[Any]:
    """Check a `hessian` argument but for its values; return it contiguous."""
    array = number_array(hessian, "hessian")
    if array.dtype.newbyteorder("=") not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"hessian must be float32 or float64, found dtype {array.dtype}")
    if tensor.ndim == 0 or tensor.shape[-1] % GROUP_SIZE:
        raise ValueError(
            f"tensor must have a multiple of {GROUP_SIZE} columns where there is a hessian, "
            f"found shape {tensor.shape}"
        )
    columns = tensor.shape[-1]
    if array.shape != (columns, columns):
        raise ValueError(
            f"hessian must have shape {(columns, columns)} for a tensor of shape {tensor.shape}, "
            f"found shape {array.shape}"
        )
    # A symmetric matrix may be read either way.
    turned = array.T if array.flags.f_contiguous else array
    return read_only(np.ascontiguousarray(turned, array.dtype.newbyteorder("=")))


def prepare(options: Options, num_threads: int | None) -> tuple[Floats, Quadratic | None]:
    """Return the importance of the columns, and what the kernels need of H.

    The latter is None if nothing is off the diagonal: there are no errors to feed back then.

    Raises
    ------
    ValueError
        H is not finite, symmetric and, with the damping, positive definite.
    """
    hessian = options.hessian
    found = survey(hessian, num_threads)
    diagonal = hessian.diagonal().astype(np.float64)
    # Python's sum of floats is exact; the last bits of NumPy's depend on the processor.
    mean = math.fsum(diagonal) / max(int(np.count_nonzero(diagonal)), 1)
    factor = math.ldexp(1.0, max(-math.frexp(mean)[1], -1000))
    importance = (diagonal * factor).astype(np.float32)
    if not found & quadratic.OFF_DIAGONAL:
        return importance, None
    sums = [math.fsum(group) for group in diagonal.reshape(-1, GROUP_SIZE).tolist()]
    order = np.argsort(-np.array(sums), kind="stable").astype(np.int32)
    return importance, _factorized(options, order, factor, mean, num_threads)


def survey(hessian: NDArray[Any], num_threads: int | None) -> int:
    """Check that H can be a matrix of second moments; return all that `quadratic.survey` found."""
    found = np.zeros(hessian.shape[0] // GROUP_SIZE, np.int32)
    quadratic.survey(hessian, found, num_threads=thread_count(num_threads, hessian.size))
    for flaw, wanted in (
        (quadratic.NOT_FINITE, "finite"),
        (quadratic.NEGATIVE, "positive semidefinite"),
        (quadratic.ASYMMETRIC, "symmetric"),
        (quadratic.INDEFINITE, "positive semidefinite"),
    ):
        if (found & flaw).any():
            group = int(np.argmax(found & flaw != 0))
            raise ValueError(f"hessian must be {wanted}, found {_flaw(hessian, group, flaw)}")
    return int(np.bitwise_or.reduce(found, initial=0))


def _flaw(hessian: NDArray[Any], group: int, flaw: int) -> str:
    """Describe the first element of a group's rows that has a flaw."""
    stop = (group + 1) * GROUP_SIZE
    rows = np.arange(group * GROUP_SIZE, stop)
    with np.errstate(all="ignore"):
        a = hessian[rows, :stop].astype(np.float64)
        b = hessian[:stop, rows].T.astype(np.float64)
        limit = np.outer(hessian.diagonal()[rows], hessian.diagonal()[:stop]).astype(np.float64)
        wrong = {
            quadratic.NOT_FINITE: ~np.isfinite(a) | ~np.isfinite(b),
            quadratic.NEGATIVE: (a < 0) & np.eye(GROUP_SIZE, stop, group * GROUP_SIZE, bool),
            quadratic.ASYMMETRIC: (a - b) ** 2 > quadratic.ASYMMETRY**2 * limit,
            quadratic.INDEFINITE: ((a + b) / 2) ** 2 > (1 + quadratic.ASYMMETRY) ** 2 * limit,
        }[flaw]
    i, j = (int(index) for index in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
    i += group * GROUP_SIZE
    there = f"{hessian[i, j]} at [{i}, {j}]"
    if flaw == quadratic.NOT_FINITE:
        return there if not math.isfinite(hessian[i, j]) else f"{hessian[j, i]} at [{j}, {i}]"
    if flaw == quadratic.ASYMMETRIC:
        return f"{there} and {hessian[j, i]} at [{j}, {i}]"
    if flaw == quadratic.INDEFINITE:
        return f"{there}, {hessian[i, i]} at [{i}, {i}] and {hessian[j, j]} at [{j}, {j}]"
    return there


def _factorized(
    options: Options,
    order: NDArray[np.int32],
    factor: float,
    mean: float,
    num_threads: int | None,
) -> Quadratic:
    """Damp and factorize H times a factor, groups in an order, of a given mean diagonal."""
    hessian = options.hessian
    columns, groups = hessian.shape[0], order.size
    threads = thread_count(num_threads, _COST * columns**3 / 3)
    places = (GROUP_SIZE * order[:, None] + np.arange(GROUP_SIZE)).reshape(-1)
    live = hessian.diagonal()[places] > 0
    damping = np.where(live, options.damping * mean * factor, 0.0).astype(np.float32)
    size = -(-columns // BLOCK) * BLOCK
    root = np.zeros((size, size), np.float64)
    quadratic.set_damped(hessian, order, factor, damping, root, num_threads=threads)
    status = np.empty(1, np.int32)
    factorize(root, status, num_threads=threads)
    if status[0] == OUT_OF_MEMORY:
        raise MemoryError(f"a hessian of {columns} columns needs more memory")
    if status[0] != POSITIVE_DEFINITE:
        raise ValueError(
            f"hessian must be positive definite after damping, found that it is not at column "
            f"{int(places[status[0]])} with a damping of {options.damping:g}"
        )
    result = Quadratic(
        order,
        np.empty((0, 0), np.float32),
        np.empty((columns, columns), np.float32),
        np.empty(columns, np.float32),
        damping,
        np.empty((groups, GROUP_SIZE, GROUP_SIZE), np.float32),
    )
    quadratic.set_feedback(
        root, live, result.feedback, result.importance, result.metrics, num_threads=threads
    )
    del root  # makes room for H
    result = result._replace(hessian=np.empty((columns, columns), np.float32))
    quadratic.set_hessian(hessian, order, factor, result.hessian, num_threads=threads)
    return result


def encode_rows(
    call: Call,
    array: NDArray[Any],
    importance: Floats,
    moments: Quadratic,
    sweeps: int,
    packed: NDArray[np.uint8],
) -> bool:
    """Encode an array's rows with error feedback; False if there are weights that cannot be stored.

    Each row takes the better of two ways: error feedback, and the method with the importance of the
    columns alone.
    """
    columns = array.shape[-1]
    # Of a weight. The first pass takes half of the terms: those of the columns before.
    nanoseconds = (0.5 + sweeps) * _COST * columns + (1 + sweeps) * _COST_OF_A_PASS
    threads = thread_count(call.num_threads, nanoseconds * array.size)
    at = 0
    for piece in pieces(array, size=_piece_rows(columns, nanoseconds, threads) * columns):
        part = packed[at : at + piece.size // GROUP_SIZE * GROUP_BYTES]
        at += part.size
        weights = piece.reshape(-1, columns)
        repeated = np.broadcast_to(importance, weights.shape).reshape(-1)
        if not _portions.encode(call, piece, repeated, part):
            return False
        del repeated
        _take_better_rows(call, read_only(weights), moments, sweeps, part, threads)
    return True


def _piece_rows(columns: int, nanoseconds: float, threads: int) -> int:
    """Return the rows to take at once: as many as memory and the wait for an interrupt allow."""
    block = LANES * columns
    by_memory = (_PIECE_BYTES + 4 * columns**2) // (_BYTES_A_WEIGHT * block)
    by_time = threads * int(_NANOSECONDS / (nanoseconds * block))
    return LANES * max(min(by_memory, by_time), 1)


def _take_better_rows(
    call: Call,
    weights: Floats,
    moments: Quadratic,
    sweeps: int,
    packed: NDArray[np.uint8],
    threads: int,
) -> None:
    """Overwrite the packed rows that error feedback makes better."""
    full = call.method.joint and bool(call.parameters.full)
    statistics = None
    if call.method.statistics is not None:
        statistics = call.method.statistics(weights.reshape(-1, GROUP_SIZE))
    rows = _new_rows(*weights.shape)
    steps = feedback.steps_of(moments.order.size, sweeps)
    feedback.improve_rows(
        feedback.MULTIPLY.compiled,
        feedback.VISIT.compiled,
        call.method.encoder.tile_function(weights).compiled,
        statistics,
        call.method.feedback_parameters(call.parameters),
        call.eps_scale,
        moments,
        full,
        sweeps,
        steps,
        weights,
        rows,
        packed,
        num_threads=threads,
    )
    if (rows.steps != steps).any():
        raise MemoryError(f"{weights.shape[0]} rows of {weights.shape[1]} weights need more memory")


def _new_rows(count: int, columns: int) -> Rows:
    """Return memory for a number of rows."""
    blocks, groups = -(-count // LANES), columns // GROUP_SIZE
    return Rows(
        np.empty((blocks, columns, LANES), np.float32),
        np.empty((blocks, columns, LANES), np.float32),
        np.empty((blocks, columns, LANES), np.int8),
        np.empty((blocks, groups, LANES), np.uint32),
        np.empty((blocks, groups, LANES), np.int32),
        np.zeros((blocks, LANES), np.float64),
        np.zeros(blocks, np.int32),
    )
