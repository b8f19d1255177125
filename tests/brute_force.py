"""The grid by trying every candidate: the judge of the package's one-pass grid.

Vectorized over groups and compiled, so that it is also what the one-pass grid's speed is held
against: ``python tests/brute_force.py`` prints both.
"""

import time

import numba
import numpy as np

CURVES = 255
LANES = 128


@numba.njit(parallel=True, error_model="numpy", cache=True)
def best_curves(magnitudes, curves):
    """Curve of the least error of each group, of equals the first.

    Magnitudes are ``[32, groups]`` in units of the scale; curves ``[groups]`` is overwritten.
    """
    groups = magnitudes.shape[1]
    for tile in numba.prange(groups // LANES):
        start = tile * LANES
        weights = magnitudes[:, start : start + LANES].copy()
        least = np.full(LANES, np.inf)
        best = np.zeros(LANES)
        for curve in range(-127, 128):
            errors = errors_at(weights, curve / 127.0)
            for lane in range(LANES):
                better = errors[lane] < least[lane]
                least[lane] = errors[lane] if better else least[lane]
                best[lane] = curve if better else best[lane]
        for lane in range(LANES):
            curves[start + lane] = np.int32(best[lane])


@numba.njit(error_model="numpy")
def errors_at(weights, c):
    """Squared error of each group with the codes that rounding the root gives."""
    errors = np.zeros(LANES)
    for i in range(32):
        for lane in range(LANES):
            v = weights[i, lane]
            # The tiny summand is for v = 0 at c = 1, where the root is 0 / 0.
            root = 2.0 * v / ((1.0 - c) + np.sqrt((1.0 - c) ** 2 + 4.0 * c * v) + 1e-300)
            x = np.rint(7.0 * root) / 7.0
            error = v - ((1.0 - c) * x + c * x * x)
            errors[lane] += error * error
    return errors


def magnitudes_of(weights):
    """Magnitudes in units of the scale, groups side by side, as the classic encoder forms them."""
    peaks = np.abs(weights).max(axis=1)
    halves = peaks.astype(np.float16)
    halves = np.where(halves < peaks, np.nextafter(halves, np.float16(np.inf)), halves)
    scaled = np.abs(weights) / halves.astype(np.float32)[:, None]
    return np.ascontiguousarray(scaled.T.astype(np.float64))


def compare_speed(groups=131_072, rounds=5):
    """Best time of both, taking turns."""
    from q43nl_numba import q43nl

    weights = np.random.default_rng(0).standard_normal((groups, 32), dtype=np.float32)
    magnitudes, curves = magnitudes_of(weights), np.empty(groups, np.int32)
    calls = {
        "brute force": lambda: best_curves(magnitudes, curves),
        "q43nl, grid": lambda: q43nl(weights, "grid"),
    }
    best = dict.fromkeys(calls, np.inf)
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_:  # the first one compiles
                best[name] = min(best[name], time.perf_counter() - start)
    for name, seconds in best.items():
        print(f"{name}: {weights.size / seconds / 1e6:.1f} million weights a second")


if __name__ == "__main__":
    compare_speed()
