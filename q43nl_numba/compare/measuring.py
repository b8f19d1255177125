"""Measuring: every variant on the same weights, timed in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import GROUP_SIZE, q43nl, quality
from .._arrays import is_too_large
from .variants import REFERENCE, VARIANTS, Variant

LEAST_ROUNDS = 5
SHORTEST_TIMING = 0.5  # seconds for all variants together

Key = TypeVar("Key")


@dataclass(frozen=True)
class Row:
    """What one variant made of the sample.

    Parameters
    ----------
    label, method : str
        The variant and its method.
    parameters : mapping
        The variant's keyword arguments.
    mse : float
        Mean squared error, decoded from the packed bytes.
    mse_ratio : float
        `mse` over the `mse` of ``grid``; 1 when both are 0.
    snr_db : float
        Signal-to-noise ratio in dB.
    seconds : float
        Best time of one call, without compilation.
    speed : float
        Million weights a second.
    speedup : float
        Time of ``grid`` over `seconds`.
    packed_bytes : int or None
        Size of the result.

    Notes
    -----
    Where the sample exceeds what the variant can store, the numbers are NaN and `packed_bytes` is
    None. Where it exceeds what ``grid`` can store, only `mse_ratio` and `speedup` are NaN.
    """

    label: str
    method: str
    parameters: Mapping[str, Any]
    mse: float = math.nan
    mse_ratio: float = math.nan
    snr_db: float = math.nan
    seconds: float = math.nan
    speed: float = math.nan
    speedup: float = math.nan
    packed_bytes: int | None = None

    @property
    def measured(self) -> bool:
        """Whether the variant can store the sample."""
        return self.packed_bytes is not None


def compare(
    weights: ArrayLike,
    variants: Sequence[Variant] = VARIANTS,
    *,
    num_threads: int | None = None,
    repeat: int | None = None,
) -> tuple[Row, ...]:
    """Quantize the same weights with several methods and measure each.

    ``grid`` is always measured, as the reference, and has a row if it is among the variants.

    Parameters
    ----------
    weights : array_like
        What `q43nl` accepts, at least one group of it. Magnitudes may exceed 65504 where one of the
        variants can store them; the rows of the others are empty then.
    variants : sequence of Variant, default `VARIANTS`
        What to compare.
    num_threads : int, optional
        As for `q43nl`.
    repeat : int, optional
        Calls of each variant to time, after one that compiles; the best counts. By default as many
        as take half a second in all, and at least 5.

    Returns
    -------
    tuple of Row
        One row a variant, in their order.

    Raises
    ------
    ValueError
        If there are no weights, `repeat` is less than 1, or `q43nl` refuses the input.

    Examples
    --------
    >>> from q43nl_numba.compare import Variant, compare, draw
    >>> rows = compare(draw("normal", 64), [Variant("grid")], repeat=1)
    >>> [(row.label, row.mse_ratio, row.packed_bytes) for row in rows]
    [('grid', 1.0, 38)]
    """
    if repeat is not None and repeat < 1:
        raise ValueError(f"repeat must be at least 1, found {repeat}")
    weights = np.asarray(weights)
    if weights.size == 0:
        raise ValueError(f"weights must have at least one group of {GROUP_SIZE}, found none")
    chosen = [REFERENCE, *(variant for variant in variants if variant != REFERENCE)]
    able = [variant for variant in chosen if _can_store(variant, weights)]
    if not any(variant in able for variant in variants):
        able = list(variants[:1])  # its call says what cannot be stored
    calls = {v.label: partial(_quantize, weights, v, num_threads) for v in able}
    results = {label: _result(weights, call) for label, call in calls.items()}  # compiles, too
    seconds = best_times(calls, repeat)
    reference = results.get(REFERENCE.label), seconds.get(REFERENCE.label, math.nan)
    return tuple(
        _row(variant, weights.size, results[variant.label], seconds[variant.label], *reference)
        if variant.label in results
        else Row(variant.label, variant.method, dict(variant.parameters))
        for variant in variants
    )


def best_times(
    calls: Mapping[Key, Callable[[], object]], repeat: int | None = None
) -> dict[Key, float]:
    """Return the seconds of each call's fastest run, the one that was disturbed least.

    The calls take turns, so that a disturbance does not meet one of them alone.

    Parameters
    ----------
    calls : mapping of callables
        What to time. Whatever only the first call does (compiling) must be done before.
    repeat : int, optional
        Runs of each call; infinity is returned for 0. By default as many as take half a second in
        all, and at least 5.
    """
    best = dict.fromkeys(calls, math.inf)
    start, rounds = time.perf_counter(), 0
    while rounds < (LEAST_ROUNDS if repeat is None else repeat) or (
        repeat is None and time.perf_counter() - start < SHORTEST_TIMING
    ):
        for key, call in calls.items():
            best[key] = min(best[key], _seconds(call))
        rounds += 1
    return best


def _seconds(call: Callable[[], object]) -> float:
    """Return the seconds of one run."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@dataclass(frozen=True)
class _Result:
    """What the packed bytes of a variant hold."""

    mse: float
    snr_db: float
    packed_bytes: int


def _can_store(variant: Variant, weights: NDArray[Any]) -> bool:
    """Return whether no weight is too large for a variant.

    Weights that no method takes (NaN, an odd number of them) are left to `q43nl`.
    """
    if weights.dtype.kind not in "fiu" or weights.size % GROUP_SIZE:
        return True
    with np.errstate(over="ignore"):
        flat = weights.reshape(-1).astype(np.float32, copy=False)
    return not (is_too_large(flat, variant.largest_storable) & np.isfinite(flat)).any()


def _quantize(
    weights: NDArray[Any], variant: Variant, num_threads: int | None
) -> NDArray[np.uint8]:
    """Return the packed bytes of a variant."""
    return q43nl(weights, variant.method, num_threads=num_threads, **variant.parameters)


def _result(weights: NDArray[Any], call: Callable[[], NDArray[np.uint8]]) -> _Result:
    """Return what the packed bytes that a call makes hold."""
    packed = call()
    found = quality(weights, packed)
    return _Result(found.mse, found.snr_db, packed.nbytes)


def _row(
    variant: Variant,
    size: int,
    result: _Result,
    seconds: float,
    reference: _Result | None,
    reference_seconds: float,
) -> Row:
    """Return the row of a variant that was measured."""
    return Row(
        label=variant.label,
        method=variant.method,
        parameters=dict(variant.parameters),
        mse=result.mse,
        mse_ratio=math.nan if reference is None else mse_ratio(result.mse, reference.mse),
        snr_db=result.snr_db,
        seconds=seconds,
        speed=size / seconds / 1e6,
        speedup=reference_seconds / seconds,
        packed_bytes=result.packed_bytes,
    )


def mse_ratio(mse: float, reference: float) -> float:
    """Return a mean squared error over the reference's; two exact results are equally good.

    >>> mse_ratio(1.0, 4.0), mse_ratio(0.0, 0.0), mse_ratio(1.0, 0.0)
    (0.25, 1.0, inf)
    """
    if mse == reference:
        return 1.0
    return mse / reference if reference > 0 else math.inf
