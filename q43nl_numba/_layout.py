"""The 19 bytes of a group, and IEEE binary16 by integer arithmetic.

============  ===========  ====================================================================
bytes         field        meaning
============  ===========  ====================================================================
0 to 15       ``codes``    32 nibbles: byte ``i`` holds weight ``2 i`` low, ``2 i + 1`` high;
                           nibble = code + 8
16 and 17     ``scale``    binary16, little-endian
18            ``curve``    signed 8-bit integer, c = curve / 127
============  ===========  ====================================================================
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ._jit import helper

GROUP_SIZE: Final = 32
"""Weights in a group."""

GROUP_DTYPE: Final[np.dtype[Any]] = np.dtype(
    [("codes", "u1", GROUP_SIZE // 2), ("scale", "<f2"), ("curve", "i1")]
)
"""A group as NumPy sees it: ``packed.view(GROUP_DTYPE)["curve"]``."""

GROUP_BYTES: Final = GROUP_DTYPE.itemsize
"""Bytes in a stored group."""

SCALE_AT: Final = GROUP_DTYPE.fields["scale"][1]  # type: ignore[index]
CURVE_AT: Final = GROUP_DTYPE.fields["curve"][1]  # type: ignore[index]

NIBBLE_OF_ZERO: Final = 8
LARGEST_CURVE: Final = 127

MAX_SCALE: Final = 65504.0
"""Largest finite binary16."""

# Bit patterns of float32 and binary16 numbers. The exponents' biases differ by 127 - 15 = 112.
SIGN_BIT: Final = np.uint32(0x80000000)
MAGNITUDE_BITS: Final = np.uint32(0x7FFFFFFF)
MAX_SCALE_BITS: Final = np.uint32(np.float32(MAX_SCALE).view(np.uint32))
_REBIAS: Final = np.uint32(112 << 23)
_DROPPED_BITS: Final = np.uint32(13)
_DROPPED_MASK: Final = np.uint32(0x1FFF)
_FLOAT_INFINITY: Final = np.uint32(0x7F800000)
_SMALLEST_NORMAL: Final = np.float32(2.0**-14)
_SUBNORMAL_STEPS: Final = np.float32(2.0**24)
_SUBNORMAL_STEP: Final = np.float32(2.0**-24)
_SIGN_SHIFT: Final = np.uint32(16)

SCALE_SIGN: Final = np.uint32(0x8000)
SCALE_MAGNITUDE: Final = np.uint32(0x7FFF)
SMALLEST_NORMAL_SCALE: Final = np.uint32(0x0400)
LARGEST_SCALE: Final = np.uint32(0x7BFF)
_INFINITE_SCALE: Final = np.uint32(0x7C00)


@helper
def float_bits(value: np.float32) -> np.uint32:
    """Return the bits of a float32."""
    return np.float32(value).view(np.uint32)


@helper
def float_of_bits(bits: np.uint32) -> np.float32:
    """Return the float32 with the given bits."""
    return np.uint32(bits).view(np.float32)


@helper
def scale_bits_not_below(magnitude: np.float32) -> np.uint32:
    """Return the bits of the least binary16 not below a magnitude of at most `MAX_SCALE`."""
    if magnitude < _SMALLEST_NORMAL:
        return np.uint32(np.ceil(magnitude * _SUBNORMAL_STEPS))
    return np.uint32((float_bits(magnitude) - _REBIAS + _DROPPED_MASK) >> _DROPPED_BITS)


@helper
def scale_of_bits(scale_bits: np.uint32) -> np.float32:
    """Return the value of the binary16 with the given bits, infinities and NaN included."""
    magnitude = np.uint32(scale_bits & SCALE_MAGNITUDE)
    sign = np.uint32((scale_bits & SCALE_SIGN) << _SIGN_SHIFT)
    shifted = np.uint32(magnitude << _DROPPED_BITS)
    bits = np.uint32(shifted + _REBIAS)
    if magnitude < SMALLEST_NORMAL_SCALE:
        bits = float_bits(np.float32(np.float32(np.int32(magnitude)) * _SUBNORMAL_STEP))
    if magnitude >= _INFINITE_SCALE:
        bits = np.uint32(shifted | _FLOAT_INFINITY)
    return float_of_bits(np.uint32(bits | sign))
