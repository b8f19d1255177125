"""`quality`: what a quantization cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ._arrays import check_num_threads, check_whole_groups, number_array, pieces, read_only
from ._dequantize import decode_group, packed_bytes
from ._jit import prange
from ._kernel import Kernel
from ._layout import GROUP_BYTES, GROUP_SIZE
from ._threads import thread_count

_BLOCK: Final = 1 << 9
"""Groups whose sums a thread takes at a time; their results are added up in the blocks' order."""

_COST: Final = 0.5
"""Nanoseconds that a weight takes on one core."""

_SIGNAL, _NOISE, _LARGEST, _SUMS = 0, 1, 2, 3

_MISSING: Final = -1.0
"""A sum of squares that no block has."""


@dataclass(frozen=True)
class Quality:
    """How far packed weights are from the original ones."""

    mse: float
    """Mean squared error, in squared units of the weights."""
    snr_db: float
    """Signal-to-noise ratio 10 log10(sum w^2 / sum error^2), in decibels; infinite if exact."""
    max_abs_error: float
    """Largest absolute error, in units of the weights."""
    bits_per_weight: float
    """Stored bits per weight."""


def quality(tensor: Any, packed: Any, *, num_threads: int | None = None) -> Quality:
    """Compare packed weights, decoded, with the weights they were made from.

    Parameters
    ----------
    tensor : array_like
        The original weights, as `q43nl` takes them.
    packed : array of uint8 or `GROUP_DTYPE`, or a bytes-like object
        Their packed groups, as `dequantize` takes them.
    num_threads : int, optional
        Most threads to use, as for `q43nl`.

    Returns
    -------
    Quality
        Mean squared error, signal-to-noise ratio in dB, largest absolute error, bits per weight.
        Errors are those of the decoded float32 weights, summed up in float64.

    Raises
    ------
    TypeError
        An argument is not an array of numbers or bytes.
    ValueError
        The sizes do not belong together.
    MemoryError
        There is not enough memory for the comparison.

    Examples
    --------
    >>> import numpy as np
    >>> from q43nl_numba import q43nl, quality
    >>> weights = np.random.default_rng(0).standard_normal(32_768)
    >>> result = quality(weights, q43nl(weights, method="grid"))
    >>> f"{result.snr_db:.1f} dB at {result.bits_per_weight} bits"
    '21.9 dB at 4.75 bits'
    """
    array = number_array(tensor, "tensor")
    groups = check_whole_groups(array, "tensor")
    data = packed_bytes(packed, "packed")
    if data.size != groups * GROUP_BYTES:
        raise ValueError(
            f"packed must have {groups * GROUP_BYTES} bytes for {array.size} weights, "
            f"found {data.size}"
        )
    threads = thread_count(check_num_threads(num_threads), _COST * array.size)
    # Half precision and float32 are compared as they are, in half the memory traffic.
    dtype = np.float32 if np.can_cast(array.dtype, np.float32) else np.float64
    signal = noise = largest = 0.0
    at = 0
    for weights in pieces(array, dtype):
        stop = at + weights.size // GROUP_SIZE * GROUP_BYTES
        blocks = -(-(stop - at) // (GROUP_BYTES * _BLOCK))
        sums = np.full((blocks, _SUMS), _MISSING)
        _add_errors(data[at:stop], read_only(weights), sums, num_threads=threads)
        if (sums[:, _SIGNAL] == _MISSING).any():  # what a thread of Numba raises gets lost
            raise MemoryError(f"the sums of {blocks} blocks of groups need more memory")
        signal += float(sums[:, _SIGNAL].sum())
        noise += float(sums[:, _NOISE].sum())
        largest = float(np.maximum(largest, sums[:, _LARGEST].max()))  # keeps NaN
        at = stop
    return Quality(
        mse=noise / max(array.size, 1),
        snr_db=_decibels(signal, noise),
        max_abs_error=largest,
        bits_per_weight=8 * GROUP_BYTES / GROUP_SIZE,
    )


def _add_block_errors(
    data: NDArray[np.uint8], weights: NDArray[Any], sums: NDArray[np.float64]
) -> None:
    """Write each block's signal, noise and largest error.

    Parameters
    ----------
    data : uint8[19 groups]
    weights : float32[32 groups] or float64[32 groups]
    sums : float64[blocks, 3]
        Overwritten.
    """
    groups = data.size // GROUP_BYTES
    for block in prange(sums.shape[0]):
        decoded = np.empty(GROUP_SIZE, np.float32)
        # One sum for each place in a group: they do not wait for each other.
        signal = np.zeros(GROUP_SIZE)
        noise = np.zeros(GROUP_SIZE)
        largest = np.zeros(GROUP_SIZE)
        for group in range(block * _BLOCK, min(groups, (block + 1) * _BLOCK)):
            start, at = group * GROUP_BYTES, group * GROUP_SIZE
            decode_group(data[start : start + GROUP_BYTES], decoded)
            for i in range(GROUP_SIZE):
                w = np.float64(weights[at + i])
                error = abs(np.float64(decoded[i]) - w)
                signal[i] += w * w
                noise[i] += error * error
                # The compiler makes one instruction of this form, but NaN may be lost in it.
                largest[i] = largest[i] if error <= largest[i] else error
        for k in range(_SUMS):
            sums[block, k] = 0.0
        for i in range(GROUP_SIZE):
            sums[block, _SIGNAL] += signal[i]
            sums[block, _NOISE] += noise[i]
            sums[block, _LARGEST] = max(sums[block, _LARGEST], largest[i])
        if np.isnan(sums[block, _NOISE]):  # just then, some error is NaN
            sums[block, _LARGEST] = np.nan


_add_errors = Kernel(_add_block_errors)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
