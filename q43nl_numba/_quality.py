"""`quality`: what a quantization cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._arrays import check_whole_groups, number_array, pieces
from ._dequantize import decode, packed_bytes
from ._layout import GROUP_BYTES, GROUP_SIZE


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


def quality(tensor: Any, packed: Any) -> Quality:
    """Compare packed weights, decoded, with the weights they were made from.

    Parameters
    ----------
    tensor : array_like
        The original weights, as `q43nl` takes them.
    packed : array of uint8 or `GROUP_DTYPE`, or a bytes-like object
        Their packed groups, as `dequantize` takes them.

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
    signal = noise = largest = 0.0
    at = 0
    for weights in pieces(array, np.float64):
        decoded = np.empty(weights.size, np.float32)
        stop = at + weights.size // GROUP_SIZE * GROUP_BYTES
        decode(data[at:stop], decoded, None)
        error = decoded - weights
        # Not np.dot: the threads that BLAS leaves waiting would slow down the kernels.
        signal += float(np.square(weights).sum())
        noise += float(np.square(error).sum())
        largest = float(np.maximum(largest, np.abs(error).max()))  # keeps NaN
        at = stop
    return Quality(
        mse=noise / max(array.size, 1),
        snr_db=_decibels(signal, noise),
        max_abs_error=largest,
        bits_per_weight=8 * GROUP_BYTES / GROUP_SIZE,
    )


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
