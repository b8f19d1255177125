"""The matrix arithmetic of error feedback: a product and a factorization, of fixed rounding.

BLAS and LAPACK sum up in an order that depends on the processor and the number of threads, and so
do their last digits. Here every sum runs over its terms in their order, by fused multiply-adds;
threads and vectors divide only what is apart. So the results have the same bits everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .._jit import TileFunction, fma, helper, prange, types
from .._kernel import Kernel
from .._layout import GROUP_SIZE
from .tile import LANES, Bytes, Doubles, Integers

TERMS: Final = 16
"""Terms of a product added at a time: the rows of those fit the L1 cache beside the result."""

BLOCK: Final = LANES
"""Rows and columns of the matrix that are worked on at a time; its size is a multiple of this."""

POSITIVE_DEFINITE: Final = -1
OUT_OF_MEMORY: Final = -2
"""What `factorize` found, where that is not the number of a column."""

_NOISE: Final = 2.0**-40
"""Pivots are nothing but rounding below this share of the diagonal."""


@helper
def add_product(left: NDArray[Any], right: NDArray[Any], result: NDArray[Any]) -> None:
    """Add the product of two matrices to a third, eight terms and two rows a pass.

    Parameters
    ----------
    left : float[rows, terms]
        An even number of rows, and a multiple of eight terms.
    right : float[terms, LANES]
        Contiguous.
    result : float[rows, LANES]
        Contiguous.
    """
    for k in range(0, right.shape[0], 8):
        for i in range(0, result.shape[0], 2):
            a0, a1, a2, a3 = left[i, k], left[i, k + 1], left[i, k + 2], left[i, k + 3]
            a4, a5, a6, a7 = left[i, k + 4], left[i, k + 5], left[i, k + 6], left[i, k + 7]
            j = i + 1
            b0, b1, b2, b3 = left[j, k], left[j, k + 1], left[j, k + 2], left[j, k + 3]
            b4, b5, b6, b7 = left[j, k + 4], left[j, k + 5], left[j, k + 6], left[j, k + 7]
            for lane in range(LANES):  # a known number: else 1.7 times the time
                r0, r1 = right[k, lane], right[k + 1, lane]
                r2, r3 = right[k + 2, lane], right[k + 3, lane]
                r4, r5 = right[k + 4, lane], right[k + 5, lane]
                r6, r7 = right[k + 6, lane], right[k + 7, lane]
                a = fma(a1, r1, fma(a0, r0, result[i, lane]))
                b = fma(b1, r1, fma(b0, r0, result[j, lane]))
                a = fma(a3, r3, fma(a2, r2, a))
                b = fma(b3, r3, fma(b2, r2, b))
                a = fma(a5, r5, fma(a4, r4, a))
                b = fma(b5, r5, fma(b4, r4, b))
                result[i, lane] = fma(a7, r7, fma(a6, r6, a))
                result[j, lane] = fma(b7, r7, fma(b6, r6, b))


def factorize(matrix: Doubles, status: Integers, *, num_threads: int) -> None:
    """Factorize a matrix A = R R^T, R upper triangular, in its place; see `_factorize`."""
    _kernel(_SUBTRACT.compiled, _SOLVE.compiled, matrix, status, num_threads=num_threads)


def _factorize(
    subtract: Callable[..., None], complete: Callable[..., None], matrix: Doubles, status: Integers
) -> None:
    """Factorize a matrix A = R R^T, R upper triangular, in its place.

    Rows are computed from the last on, `BLOCK` of them at a time: from all their elements what the
    later rows explain is subtracted, then the rest is a small matrix of its own to factorize and to
    solve with (Golub and Van Loan, "Matrix computations", section 4.2).

    Parameters
    ----------
    subtract, complete : compiled functions
        `subtract_later` and `solve`.
    matrix : float64[n, n]
        n a multiple of `BLOCK`. Only the lower triangle is read. It is overwritten with R^T;
        elements above the diagonal are left with no meaning.

    status : int32[1]
        Overwritten with `POSITIVE_DEFINITE`, the column whose pivot is not above rounding, or
        `OUT_OF_MEMORY`: what a loop on several threads raises gets lost.
    """
    status[0] = POSITIVE_DEFINITE
    n = matrix.shape[0]
    diagonal = np.empty(n, np.float64)
    for k in range(n):
        diagonal[k] = matrix[k, k]
    done = np.zeros(max(BLOCK // GROUP_SIZE, n // BLOCK), np.uint8)
    for end in range(n, 0, -BLOCK):
        start = end - BLOCK
        for part in prange(BLOCK // GROUP_SIZE):
            top: Any = np.int64(start + part * GROUP_SIZE)  # a loop's own is unsigned
            explained = np.empty((GROUP_SIZE, BLOCK), np.float64)
            right = np.empty((TERMS, BLOCK), np.float64)
            subtract(matrix, top, top + GROUP_SIZE, end, n, start, explained, right)
            done[part] = 1
        status[0] = OUT_OF_MEMORY
        if not all_done(done, BLOCK // GROUP_SIZE):
            break
        status[0] = factorize_block(subtract, complete, matrix, diagonal, start, end)
        if status[0] != POSITIVE_DEFINITE:
            break
        for chunk in prange(start // BLOCK):
            first: Any = np.int64(chunk * BLOCK)
            explained = np.empty((BLOCK, BLOCK), np.float64)
            right = np.empty((TERMS, BLOCK), np.float64)
            subtract(matrix, start, end, end, n, first, explained, right)
            for bottom in range(end, start, -GROUP_SIZE):
                top = bottom - GROUP_SIZE
                subtract(matrix, top, bottom, bottom, end, first, explained, right)
                complete(matrix, top, bottom, first, first + BLOCK)
            done[chunk] = 1
        if not all_done(done, start // BLOCK):
            status[0] = OUT_OF_MEMORY
            break


@helper
def all_done(done: Bytes, count: int) -> bool:
    """Return whether so many first items are marked, and take the marks away."""
    marked = 0
    for item in range(count):
        marked += done[item]
        done[item] = 0
    return marked == count


def subtract_later(
    matrix: Doubles,
    top: int,
    bottom: int,
    later: int,
    end: int,
    first: int,
    explained: Doubles,
    right: Doubles,
) -> None:
    """Subtract from some rows and `BLOCK` columns what the rows from `later` to `end` explain.

    The last two arguments are scratch of at least as many rows and of `TERMS` rows: a function that
    is passed to a kernel cannot say that there was no memory.
    """
    if later == end:
        return
    explained[: bottom - top] = 0.0
    for k in range(later, end, TERMS):
        for i in range(TERMS):
            for j in range(BLOCK):
                right[i, j] = matrix[k + i, first + j]
        for row in range(0, bottom - top, GROUP_SIZE):
            left = matrix[k : k + TERMS, top + row : top + row + GROUP_SIZE].T
            add_product(left, right, explained[row : row + GROUP_SIZE])
    for i in range(bottom - top):
        for j in range(BLOCK):
            matrix[top + i, first + j] -= explained[i, j]


@helper
def factorize_block(
    subtract: Callable[..., None],
    complete: Callable[..., None],
    matrix: Doubles,
    diagonal: Doubles,
    start: int,
    end: int,
) -> int:
    """Factorize the square on the diagonal from `start` to `end`; return `_factorize`'s status."""
    explained = np.empty((GROUP_SIZE, BLOCK), np.float64)
    right = np.empty((TERMS, BLOCK), np.float64)
    for bottom in range(end, start, -GROUP_SIZE):
        top = bottom - GROUP_SIZE
        subtract(matrix, top, bottom, bottom, end, start, explained, right)
        for k in range(bottom - 1, top - 1, -1):
            subtract_rows(matrix, k, bottom, top, k + 1)
            if not matrix[k, k] > _NOISE * diagonal[k]:
                return k
            matrix[k, k] = np.sqrt(matrix[k, k])
            for j in range(top, k):
                matrix[k, j] /= matrix[k, k]
        complete(matrix, top, bottom, start, top)
    return POSITIVE_DEFINITE


def solve(matrix: Doubles, top: int, bottom: int, first: int, stop: int) -> None:
    """Complete some rows, whose square on the diagonal is done, in some columns."""
    for k in range(bottom - 1, top - 1, -1):
        subtract_rows(matrix, k, bottom, first, stop)
        for j in range(first, stop):
            matrix[k, j] /= matrix[k, k]


@helper
def subtract_rows(matrix: Doubles, k: int, bottom: int, first: int, stop: int) -> None:
    """Subtract from some columns of row k what the rows between it and `bottom` explain."""
    for later in range(k + 1, bottom):
        factor = -matrix[later, k]
        for j in range(first, stop):
            matrix[k, j] = fma(factor, matrix[later, j], matrix[k, j])


_MATRIX: Final = types.float64[:, ::1]
_INDEX: Final = types.int64
_SUBTRACT: Final = TileFunction(
    subtract_later, "factor-subtract", types.void(_MATRIX, *[_INDEX] * 5, _MATRIX, _MATRIX)
)
_SOLVE: Final = TileFunction(solve, "factor-solve", types.void(_MATRIX, *[_INDEX] * 4))
_kernel: Final = Kernel(_factorize)
