"""Groups that were decoded: the scale and curve that they were decoded from.

The weights of such a group have at most eight magnitudes besides 0. Two of them, r times as large
as each other and of codes i and j, tell the curve: as code k decodes to scale k / 49 (7 + c (k -
7)) in real arithmetic::

    i (7 + c (i - 7)) = r j (7 + c (j - 7)),    c = 7 (r j - i) / (i (i - 7) - r j (j - 7))

So each pair of codes leaves one curve to try, if any is next to c; the scale is then the binary16
next to the magnitude's quotient by its level. Where there is one magnitude only, all codes and
curves are tried for which that quotient is next to a binary16. What is taken decodes to the very
weights. So this finds all that can be stored without loss.

Ordinary weights are passed over at little cost: among any nine weights of a decoded group, two have
the same magnitude or one is 0.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ..._jit import helper
from ..._layout import (
    GROUP_SIZE,
    LARGEST_CURVE,
    LARGEST_SCALE,
    MAX_SCALE,
    SCALE_SIGN,
    SMALLEST_NORMAL_SCALE,
    float_bits,
    scale_bits_not_below,
    scale_of_bits,
)
from ...kernels.joint import OUTERMOST, SMALLEST_CURVE, decoded_level
from ...kernels.tile import LANES, Doubles, Floats, Integers, ScaleBits

NOT_FOUND: Final = np.uint32(0)

_CURVE_ERROR: Final = 0.05
"""How far from a whole number 127 c may be: ten times what rounding the levels can amount to."""


def inverse_levels() -> Floats:
    """Return 1 / y of the codes 1 to 8 (rows; row 0 is not used) and the curves from -128 on."""
    x = np.arange(OUTERMOST + 1)[:, None] / 7
    c = np.arange(SMALLEST_CURVE, LARGEST_CURVE + 1) / LARGEST_CURVE
    y = x + c * (x * x - x)
    y[0] = 1
    return (1 / y).astype(np.float32)


_INVERSE: Final = inverse_levels()
_REST: Final = np.uint32(0x1FFF)
"""Bits of a float32 that a binary16 does not have."""
_NEAR: Final = np.uint32(64)
_NEAR_STEP: Final = np.float32(0.01)
"""How far from a binary16 a scale may be, in units of float32's last bit, or of the least binary16.

Twice what rounding the levels can amount to.
"""
_SMALLEST_NORMAL: Final = np.float32(2.0**-14)
_STEPS: Final = np.float32(2.0**24)


@helper
def restore_decoded(
    weights: Floats,
    importance: Floats,
    normalized: Floats,
    sides: Integers,
    full: bool,
    scale_bits: ScaleBits,
    curves: Integers,
    errors: Doubles,
) -> None:
    """Give groups that can be stored without loss, but are not yet, such a scale and curve.

    Parameters
    ----------
    weights, importance, normalized : float32[GROUP_SIZE, LANES]
    sides : int32[LANES]
        Sign that scales are tried with first, 0 where they must be positive.
    full : bool
        Whether all codes are allowed.
    scale_bits : uint32[LANES]
    curves : int32[LANES]
    errors : float64[LANES]
        Overwritten in the lanes where such a pair is found; 0 where nothing is left to find.
    """
    candidates = np.zeros(LANES, np.int32)
    set_candidates(normalized, candidates)
    group = np.empty(GROUP_SIZE, np.float32)
    magnitudes = np.empty(OUTERMOST + 1, np.float32)
    for lane in range(LANES):
        if candidates[lane] == 0 or errors[lane] == 0:
            continue
        for i in range(GROUP_SIZE):
            # Weights that do not count may decode to anything; 0 always can.
            group[i] = weights[i, lane] if importance[i, lane] > 0 else np.float32(0)
        count = distinct_magnitudes(group, magnitudes)
        if count > OUTERMOST:
            continue
        bits, curve = pair_of_group(group, magnitudes, count, sides[lane], full)
        if bits != NOT_FOUND:
            scale_bits[lane], curves[lane], errors[lane] = bits, curve, 0.0


@helper
def set_candidates(normalized: Floats, candidates: Integers) -> None:
    """Count, among each lane's first nine weights, zeros and pairs of the same magnitude."""
    for i in range(OUTERMOST + 1):
        for lane in range(LANES):
            candidates[lane] += np.int32(normalized[i, lane] == 0)
        for j in range(i):
            for lane in range(LANES):
                candidates[lane] += np.int32(abs(normalized[i, lane]) == abs(normalized[j, lane]))


@helper
def distinct_magnitudes(group: Floats, magnitudes: Floats) -> int:
    """Write the magnitudes besides 0, the largest first; return how many, 9 for any more than 8."""
    count = 0
    for i in range(GROUP_SIZE):
        size = abs(group[i])
        place = 0
        while place < count and magnitudes[place] > size:
            place += 1
        if size == 0 or (place < count and magnitudes[place] == size):
            continue
        if count == OUTERMOST:
            return OUTERMOST + 1
        for later in range(count, place, -1):
            magnitudes[later] = magnitudes[later - 1]
        magnitudes[place] = size
        count += 1
    return count


@helper
def pair_of_group(group: Floats, magnitudes: Floats, count: int, side: int, full: bool) -> Any:
    """Return bits of a scale, and a curve, that a group decodes from; bits 0 if there are none."""
    outermost = OUTERMOST if full else OUTERMOST - 1
    least, most = np.int32(SMALLEST_CURVE if full else -LARGEST_CURVE), np.int32(LARGEST_CURVE)
    if count == 1:
        for i in range(outermost, 0, -1):
            if near_scales(magnitudes[0], i, least) == 0:
                continue
            for number in range(least, most + 1):
                if is_near_scale(magnitudes[0] * _INVERSE[i, number - SMALLEST_CURVE]):
                    only = np.int32(number)
                    bits = scale_of_group(group, magnitudes[0], i, only, side, full)
                    if bits != NOT_FOUND:
                        return bits, only
        return NOT_FOUND, np.int32(0)
    ratio = np.float64(magnitudes[0]) / np.float64(magnitudes[count - 1])
    for i in range(outermost, 0, -1):
        for j in range(outermost, 0, -1):
            wanted = 127.0 * 7.0 * (ratio * j - i) / (i * (i - 7.0) - ratio * j * (j - 7.0))
            curve = np.int32(np.rint(min(max(wanted, -1e3), 1e3)))
            if i != j and least <= curve <= most and abs(wanted - curve) < _CURVE_ERROR:
                bits = scale_of_group(group, magnitudes[0], i, curve, side, full)
                if bits != NOT_FOUND:
                    return bits, curve
    return NOT_FOUND, np.int32(0)


@helper
def near_scales(magnitude: np.float32, code: int, least: Any) -> Any:
    """Count the curves with which the scale of a code is next to a binary16."""
    count = np.int32(0)
    for place in range(least - SMALLEST_CURVE, _INVERSE.shape[1]):
        count += np.int32(is_near_scale(magnitude * _INVERSE[code, place]))
    return count


@helper
def is_near_scale(scale: np.float32) -> bool:
    """Return whether a scale may be a binary16, but for rounding."""
    rest = np.uint32(float_bits(scale) + _NEAR) & _REST
    steps = np.float32(scale * _STEPS)
    is_near_step = abs(steps - np.rint(steps)) <= _NEAR_STEP
    return bool(is_near_step if scale < _SMALLEST_NORMAL else rest <= np.uint32(2) * _NEAR)


@helper
def scale_of_group(
    group: Floats, largest: np.float32, code: int, curve: np.int32, side: int, full: bool
) -> np.uint32:
    """Return bits of the scale that makes a code the largest weight; 0 if others are not met."""
    level = np.float64(decoded_level(code, np.float32(1), curve))
    wanted = np.float32(np.float64(largest) / level)
    above = scale_bits_not_below(min(wanted, np.float32(MAX_SCALE)))
    for bits in (above, np.uint32(above - np.uint32(1))):
        if not np.uint32(1) <= bits <= LARGEST_SCALE:
            continue
        scale = scale_of_bits(bits)
        if decoded_level(code, scale, curve) != largest:
            continue
        has_sign = full and bits >= SMALLEST_NORMAL_SCALE
        if has_sign and side < 0 and decodes_to(group, scale, curve, True, full):
            return np.uint32(bits | SCALE_SIGN)
        if decodes_to(group, scale, curve, False, full):
            return bits
        if has_sign and side >= 0 and decodes_to(group, scale, curve, True, full):
            return np.uint32(bits | SCALE_SIGN)
    return NOT_FOUND


@helper
def decodes_to(
    group: Floats, scale: np.float32, curve: np.int32, negative: bool, full: bool
) -> bool:
    """Return whether each weight is a level of a curve and a scale, given as magnitude and sign."""
    for i in range(GROUP_SIZE):
        size = abs(group[i])
        mirrored = group[i] > 0 if negative else group[i] < 0
        found = size == 0
        for code in range(1, OUTERMOST):
            found = found or decoded_level(code, scale, curve) == size
        if full and mirrored:
            found = found or decoded_level(OUTERMOST, scale, curve) == size
        if not found:
            return False
    return True
