"""The format and the classic encoder in plain NumPy and SciPy: slow, obvious, independent.

Nothing here imports the package: every kernel is held against these functions, so they share
no code with it. Arrays of weights are ``[groups, 32]``, packed bytes ``[groups, 19]``. The
encoder works in float64; the decoder rounds every step to float32 as the engine does.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

GROUP_SIZE = 32
GROUP_BYTES = 19
LARGEST_SCALE = 65504.0  # the largest finite binary16
CLASSIC_CODES = np.arange(-7, 8)
ALL_CODES = np.arange(-8, 8)


# --- the curve -------------------------------------------------------------------------------


def curve(x, c):
    """y(x, c) = (1 - c) x + c x |x|."""
    return (1 - c) * x + c * x * np.abs(x)


def inverse(v, c):
    """The x with y(x, c) = v, for |v| <= 1 and |c| <= 1, by the cases the format lists."""
    v, c = np.broadcast_arrays(np.asarray(v, np.float64), np.asarray(c, np.float64))
    size = np.abs(v)
    straight = np.abs(c) < 1e-6
    root = np.sqrt(np.maximum((1 - c) ** 2 + 4 * c * size, 0))
    # 2|v| / ((1 - c) + root) is the textbook root (root - (1 - c)) / 2c without its cancellation;
    # its denominator is zero only at c = 1, v = 0, where x = 0.
    below = (1 - c) + root
    x = np.where(below > 0, 2 * size / np.where(below > 0, below, 1), 0)
    x = np.where(straight, size, x)
    x = np.where(c >= 1, np.sqrt(size), x)
    x = np.where(c <= -1, 1 - np.sqrt(np.maximum(1 - size, 0)), x)
    return np.sign(v) * x


def levels(c, codes=CLASSIC_CODES):
    """What each code decodes to at a scale of one, real arithmetic: ``[..., codes]``."""
    return curve(np.asarray(codes) / 7, np.asarray(c, np.float64)[..., None])


def largest_gap(c):
    """The widest distance between neighboring levels of the codes -7..7 at c."""
    return np.diff(np.sort(levels(c), axis=-1), axis=-1).max(axis=-1)


# --- binary16 --------------------------------------------------------------------------------


def scale_up(largest):
    """The least binary16 that is not below the (float32) magnitude given."""
    largest = np.asarray(largest, np.float32)
    nearest = largest.astype(np.float16)
    with np.errstate(over="ignore"):  # what follows the largest is infinity, and is not taken
        above = np.nextafter(nearest, np.float16(np.inf))
    return np.where(nearest.astype(np.float32) < largest, above, nearest).astype(np.float16)


# --- rounding a weight to a code -------------------------------------------------------------


def normalize(weights, scale):
    """v = clip(w / scale, -1, 1), divided in float32 as the format says; float64 from there."""
    scale = np.asarray(scale, np.float32)
    v = np.asarray(weights, np.float32) / np.where(scale > 0, scale, np.float32(1))
    return np.clip(v, -1, 1).astype(np.float64)


def round_classic(v, c):
    """The nearest integer of 7x, half to even, kept within -7..7."""
    return np.clip(np.rint(7 * inverse(v, c)), -7, 7).astype(np.int64)


def round_nearest(v, c, codes=CLASSIC_CODES):
    """The code whose level is nearest to v, by trying them all; the first of equals."""
    distance = np.abs(np.asarray(v)[..., None] - levels(c, codes))
    return np.asarray(codes)[np.argmin(distance, axis=-1)]


def group_error(weights, scale, c, codes, importance=1.0):
    """Sum over each group of h (w - scale y(code / 7, c))^2."""
    decoded = np.asarray(scale, np.float64) * curve(codes / 7, c)
    return (importance * (np.asarray(weights, np.float64) - decoded) ** 2).sum(axis=-1)


# --- the 19 bytes ----------------------------------------------------------------------------


def pack(codes, scales, curves):
    """codes ``[G, 32]`` in -8..7, scales ``[G]`` binary16, curves ``[G]`` int8 -> ``[G, 19]``."""
    packed = np.zeros((len(codes), GROUP_BYTES), np.uint8)
    for i in range(16):
        low = codes[:, 2 * i] + 8
        high = codes[:, 2 * i + 1] + 8
        packed[:, i] = low + 16 * high
    bits = np.asarray(scales, np.float16).view(np.uint16)
    packed[:, 16] = bits & 255
    packed[:, 17] = bits >> 8
    packed[:, 18] = np.asarray(curves, np.int8).view(np.uint8)
    return packed


def unpack(packed):
    """Packed bytes -> codes ``[G, 32]``, scales ``[G]`` (binary16), curves ``[G]`` (int8)."""
    packed = np.asarray(packed, np.uint8).reshape(-1, GROUP_BYTES)
    codes = np.empty((len(packed), GROUP_SIZE), np.int64)
    for i in range(16):
        codes[:, 2 * i] = packed[:, i] % 16
        codes[:, 2 * i + 1] = packed[:, i] // 16
    bits = packed[:, 16].astype(np.uint16) + 256 * packed[:, 17].astype(np.uint16)
    return codes - 8, bits.view(np.float16), packed[:, 18].view(np.int8)


# --- decoding as the engine does -------------------------------------------------------------


def fma32(a, b, c):
    """a * b + c of float32 values, rounded once to float32.

    The product of two float32 is exact in float64, but rounding the sum to float64 and then to
    float32 rounds twice. So the float64 sum is rounded to odd: where it is inexact, the neighbor
    with the odd last bit is taken. 53 bits are more than 24 + 2, so the rounding to float32 that
    follows then gives what one rounding of the exact sum gives.
    """
    a, b, c = (np.asarray(value, np.float32).astype(np.float64) for value in (a, b, c))
    product = a * b
    total = np.asarray(product + c)
    # Knuth's error-free sum: product + c == total + error, exactly.
    part = total - product
    error = (product - (total - part)) + (c - part)
    even = (total.view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.copysign(np.inf, error))
    return np.where((error != 0) & even, odd, total).astype(np.float32)


def engine_levels(codes, curves):
    """y of the engine's AVX2 path, every step rounded to float32."""
    seventh = np.float32(1 / 7)
    per_127 = np.float32(1 / 127)
    x = np.asarray(codes).astype(np.float32) * seventh
    c = np.asarray(curves).astype(np.float32) * per_127
    t = (x * c) * np.abs(x)
    return fma32(np.float32(1) - c, x, t)


def decode(packed):
    """Packed bytes -> float32 ``[G, 32]``, bit for bit what the engine's AVX2 path gives."""
    codes, scales, curves = unpack(packed)
    y = engine_levels(codes, curves[:, None])
    with np.errstate(invalid="ignore"):  # infinite scale times the level 0 is NaN
        return y * scales.astype(np.float32)[:, None]


def decode_exact(packed):
    """Packed bytes -> float64 ``[G, 32]`` in (nearly) real arithmetic: c = curve / 127."""
    codes, scales, curves = unpack(packed)
    c = curves.astype(np.float64) / 127
    return scales.astype(np.float64)[:, None] * curve(codes / 7, c[:, None])


# --- the encoder -----------------------------------------------------------------------------


def candidate_curves(grid_size=255):
    """The stored curves that `grid` tries, in its order: evenly spaced c, made storable."""
    return np.rint(127 * np.linspace(-1, 1, grid_size)).astype(np.int64)


def search(weights, curves, rounding, eps_scale=1e-6, importance=1.0):
    """Every candidate for every group, keeping the first with the least error -> ``[G, 19]``."""
    weights = np.asarray(weights, np.float32).reshape(-1, GROUP_SIZE)
    scales = scale_up(np.abs(weights).max(axis=1, initial=0))
    column = scales.astype(np.float64)[:, None]
    v = normalize(weights, column)
    least = np.full(len(weights), np.inf)
    best_curve = np.zeros(len(weights), np.int64)
    best_codes = np.zeros(weights.shape, np.int64)
    for stored in curves:
        c = stored / 127
        codes = rounding(v, c)
        error = group_error(weights, column, c, codes, importance)
        better = error < least
        least[better] = error[better]
        best_curve[better] = stored
        best_codes[better] = codes[better]
    packed = pack(best_codes, scales, best_curve)
    packed[scales.astype(np.float64) <= eps_scale] = 0
    return packed


def grid(weights, grid_size=255, eps_scale=1e-6, importance=1.0):
    """The classic reference: all candidates, nearest integer of 7x."""
    return search(weights, candidate_curves(grid_size), round_classic, eps_scale, importance)


def best_nearest(weights, eps_scale=1e-6):
    """The least error that the scale of step 1 and the codes -7..7 allow: all 255 curves,
    nearest level. No classic method can be below it."""
    return search(weights, candidate_curves(), round_nearest, eps_scale)


# --- the optimum of the 19 bytes -------------------------------------------------------------

LARGEST_HALF = 0x7BFF
SMALLEST_NORMAL_HALF = 0x0400


def _choice(weights, importance, scales, curves, codes):
    """Error of each pair of scale and curve ``[n]``, every weight at its nearest level."""
    y = levels(np.asarray(curves) / 127, codes)
    distance = np.abs(weights[:, None] - np.asarray(scales)[:, None, None] * y[:, None, :])
    return (importance * distance.min(axis=2) ** 2).sum(axis=1)


def blunt_optimum(weights, halves, importance=1.0, full=True):
    """The least error of a group over scales of the given bits, all curves, signs and codes."""
    weights = np.asarray(weights, np.float64)
    codes = ALL_CODES if full else CLASSIC_CODES
    least = (importance * weights**2).sum()
    for sign in (1, -1) if full else (1,):
        for half in halves:
            if sign < 0 and half < SMALLEST_NORMAL_HALF:
                continue  # readers lose such a sign
            curves = np.arange(-128 if full else -127, 128)
            scale = sign * np.uint16(half).view(np.float16).astype(np.float64)
            scales = np.full(len(curves), scale)
            least = min(least, _choice(weights, importance, scales, curves, codes).min())
    return least


def sweep_optimum(weights, importance=1.0, full=True):
    """The least error of a group over all scales, curves and codes: for every curve and sign, all
    code assignments that are nearest at some scale, each at the two scales next to its best.

    The best scale of all is nearest-assigned somewhere in the sweep, and for that assignment the
    error is a parabola in the scale: one of the binary16 next to its lowest point is as good.
    """
    weights = np.asarray(weights, np.float64)
    weighting = np.broadcast_to(np.asarray(importance, np.float64), weights.shape)
    codes = ALL_CODES if full else CLASSIC_CODES
    least = (weighting * weights**2).sum()
    halves = np.arange(1, LARGEST_HALF + 1, dtype=np.uint16).view(np.float16).astype(np.float64)
    for sign in (1, -1) if full else (1,):
        allowed = halves if sign > 0 else halves[SMALLEST_NORMAL_HALF - 1 :]
        for stored in range(-128 if full else -127, 128):
            y = np.sort(sign * levels(stored / 127, codes))
            middles = (y[1:] + y[:-1]) / 2
            with np.errstate(divide="ignore", invalid="ignore"):
                changes = (weights[:, None] / middles).ravel()
            changes = np.sort(changes[np.isfinite(changes) & (changes > 0)])
            if not len(changes):
                continue
            ends = np.concatenate([changes[:1] / 2, changes, changes[-1:] * 2])
            scales = np.sqrt(ends[1:] * ends[:-1])
            choice = np.abs(weights[:, None] - scales[:, None, None] * y).argmin(axis=2)
            used = y[choice]
            with np.errstate(divide="ignore", invalid="ignore"):
                best = (weighting * weights * used).sum(1) / (weighting * used**2).sum(1)
            above = np.clip(np.searchsorted(allowed, np.nan_to_num(best)), 0, len(allowed) - 1)
            for place in (above, np.maximum(above - 1, 0)):
                e = weights - allowed[place][:, None] * used
                least = min(least, (weighting * e**2).sum(axis=1).min())
    return least


# --- statistics and quality ------------------------------------------------------------------


def statistics(weights):
    """Kurtosis about zero, and the quartiles of the magnitudes, of each group: three ``[G]``.

    Together with its mirror image a group has the mean zero, so that SciPy's central kurtosis
    (Pearson's, 3 for a normal distribution) of both is the kurtosis about zero of one.
    """
    weights = np.asarray(weights, np.float64)
    mirrored = np.concatenate([weights, -weights], axis=1)
    lower, upper = np.quantile(np.abs(weights), [0.25, 0.75], axis=1, method="lower")
    return stats.kurtosis(mirrored, axis=1, fisher=False), lower, upper


def errors(weights, packed, importance=1.0):
    """Squared error of each group, decoded from the stored bytes: ``[G]``."""
    weights = np.asarray(weights, np.float64).reshape(-1, GROUP_SIZE)
    return (importance * (weights - decode(packed).astype(np.float64)) ** 2).sum(axis=1)


def mse(weights, packed):
    """Mean squared error, decoded from the stored bytes."""
    return float(errors(weights, packed).sum() / np.asarray(weights).size)


def snr_db(weights, packed):
    """10 log10(sum w^2 / sum (w - w_hat)^2)."""
    energy = (np.asarray(weights, np.float64) ** 2).sum()
    return float(10 * np.log10(energy / errors(weights, packed).sum()))


def max_abs_error(weights, packed):
    """The largest |w - w_hat|."""
    weights = np.asarray(weights, np.float64).reshape(-1, GROUP_SIZE)
    return float(np.abs(weights - decode(packed).astype(np.float64)).max())
