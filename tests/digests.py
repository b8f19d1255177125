"""Digests of the stored bytes of fixed input: what a release may not change in silence.

The input is made of Philox's raw bits and integer arithmetic alone, which every NumPy and every
machine has alike; NumPy's samplers may change from version to version.

``python tests/digests.py`` records the digests anew, for the commit that says in CHANGELOG.md why
the bytes changed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from q43nl_numba import GROUP_BYTES, GROUP_SIZE, dequantize, q43nl
from q43nl_numba.compare import VARIANTS

RECORD = Path(__file__).parent / "golden" / "digests.json"
DECODER = "dequantize"

GROUPS = 4_096
KEY = 43
FINITE_SCALE = 0xBFFF  # clears the top bit of the exponent: magnitudes below 2, no infinity or NaN


def raw_bits(count, kind):
    """Numbers of a little-endian integer type out of raw 64-bit words."""
    words = np.random.Philox(key=KEY).random_raw(count * np.dtype(kind).itemsize // 8)
    return words.astype("<u8").view(kind)


def fixed_weights():
    """float32 [n, 32]: bell-shaped, peaked and flat groups, and the ones at the format's edges."""
    integers = raw_bits(GROUPS * GROUP_SIZE * 4, "<i2").astype(np.int64)
    flat = integers[: GROUPS * GROUP_SIZE].reshape(GROUPS, GROUP_SIZE)
    bell = integers.reshape(-1, 4).sum(axis=1).reshape(GROUPS, GROUP_SIZE)
    peaked = flat * abs(flat) // 2**15
    drawn = np.concatenate([bell, flat, peaked]).astype(np.float32) / np.float32(2**16)
    extremes = [scaled(drawn[:64], power) for power in (-30, -17, 13)]
    return np.concatenate([drawn, *extremes, edges()])


def scaled(weights, power):
    """The weights times a power of two: exact, and at the small end subnormal as a scale."""
    return np.ldexp(weights, power).astype(np.float32)


def edges():
    """Groups of zeros, of one magnitude, of one weight, and of the largest weight there is."""
    groups = np.zeros((6, GROUP_SIZE), np.float32)
    groups[1] = -0.0
    groups[2] = 1
    groups[3, ::2], groups[3, 1::2] = 3, -3
    groups[4, 7] = -65504
    groups[5] = np.arange(-16, 16)
    return groups


def fixed_packed():
    """uint8 [n * 19]: any codes and curves, any sign of scale, and every finite kind of it."""
    groups = raw_bits(GROUPS * 24, "u1").reshape(GROUPS, 24)[:, :GROUP_BYTES].copy()
    scales = groups[:, 16:18].copy().view("<u2")
    groups[:, 16:18] = (scales & FINITE_SCALE).astype("<u2").view(np.uint8)
    return groups.reshape(-1)


def digest(array):
    """sha256 of an array's little-endian bytes."""
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def digest_of(variant):
    """Digest of what a variant of `q43nl` stores of the fixed weights."""
    return digest(q43nl(fixed_weights(), variant.method, **variant.parameters))


def digest_of_decoder():
    """Digest of the float32 weights that the fixed bytes decode to."""
    return digest(dequantize(fixed_packed()))


def digests():
    """Every digest by the variant's label, with the decoder's."""
    return {**{v.label: digest_of(v) for v in VARIANTS}, DECODER: digest_of_decoder()}


def recorded():
    """The digests that the repository says are right."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


if __name__ == "__main__":
    RECORD.write_text(json.dumps(digests(), indent=2) + "\n", encoding="utf-8")
