"""The generations of the original's gradient optimizer, as its change log tells them.

`original`: one start, forward differences. `v1`: four starts, central differences, a rate that
adapts. `v2`: eight starts, momentum, a rate that decays faster. `v3`: twelve starts, Adam, a line
search. Each is a search in the package's own encoder, on the package's own error of a group, and
every start of each has the same iterations; so they differ by the optimizer alone. Beside them
stands what the package does today.

This file looks into the package's private rooms, which a benchmark should not: the generations are
not worth a public method each, and rooms of their own would compare encoders, not optimizers. At a
commit that has the rooms arranged otherwise they are skipped.
"""

import hashlib
import time
from pathlib import Path

import numpy as np

import q43nl_numba

from .common import DISTRIBUTIONS, draw
from .quality import finite

try:
    from q43nl_numba._jit import helper
    from q43nl_numba.kernels.curve import NEAREST_LEVEL, curve_of_c, evaluate, new_trial
    from q43nl_numba.kernels.curve_search import curve_encoder
except ImportError:
    curve_encoder = None

    def helper(function):
        return function


SIZE = 8_192 * 32
NO_PARAMETERS = np.zeros(0)
EPS_SCALE = 1e-6
CALLS = 3

ITERATIONS = 5
RATE = np.float32(0.3)
DIFFERENCE = np.float32(4 / 127)  # as the package's: wide enough to see past a notch
LINE_STEP = np.float32(5 / 127)
LINE_EACH_SIDE = 3


@helper
def errors_at(magnitudes, importance, trial, c):
    """Error of each lane's group at the curve next to its c."""
    for lane in range(c.size):
        trial.curves[lane] = curve_of_c(c[lane])
    evaluate(magnitudes, importance, trial)
    return trial.errors.copy()


@helper
def keep_better(c, errors, curves, least):
    """Take the curves next to c in the lanes where they have less error."""
    for lane in range(c.size):
        if errors[lane] < least[lane]:
            least[lane] = errors[lane]
            curves[lane] = curve_of_c(c[lane])


@helper
def storable(c):
    return np.minimum(np.maximum(c, np.float32(-1)), np.float32(1))


@helper
def starts(count, lanes):
    """Evenly spaced values of c, the ends left out: a row a start."""
    rows = np.empty((count, lanes), np.float32)
    for start in range(count):
        rows[start] = np.float32(2 * (start + 1) / (count + 1) - 1)
    return rows


@helper
def central_slope(magnitudes, importance, trial, c):
    above = errors_at(magnitudes, importance, trial, storable(c + DIFFERENCE))
    below = errors_at(magnitudes, importance, trial, storable(c - DIFFERENCE))
    return (above - below) / (DIFFERENCE + DIFFERENCE)


@helper
def original(magnitudes, importance, scales, statistics, parameters, curves):
    trial = new_trial(curves.size)
    least = np.full(curves.size, np.inf, np.float32)
    for c in starts(1, curves.size):
        for _ in range(ITERATIONS):
            here = errors_at(magnitudes, importance, trial, c)
            keep_better(c, here, curves, least)
            ahead = errors_at(magnitudes, importance, trial, storable(c + DIFFERENCE))
            c = storable(c - RATE * (ahead - here) / DIFFERENCE)
        keep_better(c, errors_at(magnitudes, importance, trial, c), curves, least)


@helper
def v1(magnitudes, importance, scales, statistics, parameters, curves):
    trial = new_trial(curves.size)
    least = np.full(curves.size, np.inf, np.float32)
    for c in starts(4, curves.size):
        rate = np.full(curves.size, RATE)
        before = errors_at(magnitudes, importance, trial, c)
        keep_better(c, before, curves, least)
        for _ in range(ITERATIONS):
            c = storable(c - rate * central_slope(magnitudes, importance, trial, c))
            here = errors_at(magnitudes, importance, trial, c)
            keep_better(c, here, curves, least)
            rate *= np.where(here < before, np.float32(1.2), np.float32(0.5))
            before = here


@helper
def v2(magnitudes, importance, scales, statistics, parameters, curves):
    trial = new_trial(curves.size)
    least = np.full(curves.size, np.inf, np.float32)
    for c in starts(8, curves.size):
        rate = RATE
        velocity = np.zeros(curves.size, np.float32)
        keep_better(c, errors_at(magnitudes, importance, trial, c), curves, least)
        for _ in range(ITERATIONS):
            slope = central_slope(magnitudes, importance, trial, c)
            velocity = np.float32(0.9) * velocity - rate * slope
            c = storable(c + velocity)
            keep_better(c, errors_at(magnitudes, importance, trial, c), curves, least)
            rate *= np.float32(0.8)


@helper
def v3(magnitudes, importance, scales, statistics, parameters, curves):
    trial = new_trial(curves.size)
    least = np.full(curves.size, np.inf, np.float32)
    for c in starts(12, curves.size):
        rate = RATE
        first = np.zeros(curves.size, np.float32)
        second = np.zeros(curves.size, np.float32)
        keep_better(c, errors_at(magnitudes, importance, trial, c), curves, least)
        for step in range(1, ITERATIONS + 1):
            slope = central_slope(magnitudes, importance, trial, c)
            first += np.float32(0.1) * (slope - first)
            second += np.float32(0.001) * (slope * slope - second)
            mean = first / np.float32(1 - 0.9**step)
            size = np.sqrt(second / np.float32(1 - 0.999**step)) + np.float32(1e-8)
            c = storable(c - rate * mean / size)
            keep_better(c, errors_at(magnitudes, importance, trial, c), curves, least)
            rate *= np.float32(0.9)
    center = curves.astype(np.float32) / np.float32(127)
    for place in range(-LINE_EACH_SIDE, LINE_EACH_SIDE + 1):
        c = storable(center + np.float32(place) * LINE_STEP)
        keep_better(c, errors_at(magnitudes, importance, trial, c), curves, least)


SEARCHES = {"original": original, "v1": v1, "v2": v2, "v3": v3}
TODAY = "today"


def encoder(generation):
    """A function from weights to packed bytes, on one thread."""
    if generation == TODAY:
        return lambda weights: q43nl_numba.q43nl(weights, "gradient", num_threads=1)
    # Numba's cache knows of an edit in this file only by the name.
    edition = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    name = f"{generation}_{edition}"
    encode = curve_encoder(SEARCHES[generation], nearest=NEAREST_LEVEL, name=name)

    def quantize(weights):
        packed = np.empty(weights.size // 32 * 19, np.uint8)
        encode(weights, None, None, NO_PARAMETERS, EPS_SCALE, packed, num_threads=1)
        return packed

    return quantize


class Generations:
    """Error and time, both measured in one process: loading the kernels takes longer than they."""

    params = ([*SEARCHES, TODAY], list(DISTRIBUTIONS))
    param_names = ("generation", "distribution")
    timeout = 300

    def setup_cache(self):
        known = self.params[0] if curve_encoder is not None else [TODAY]
        quantizers = {generation: encoder(generation) for generation in known}
        results = {}
        for distribution in DISTRIBUTIONS:
            weights = draw(distribution, SIZE)
            reference = mse(weights, q43nl_numba.q43nl(weights, "grid"))
            for generation, quantize in quantizers.items():
                ratio = mse(weights, quantize(weights)) / reference
                results[generation, distribution] = ratio, seconds(quantize, weights)
        return results

    def setup(self, results, generation, distribution):
        if (generation, distribution) not in results:
            raise NotImplementedError("this commit has no encoder to put a search into")

    def track_mse_ratio(self, results, generation, distribution):
        return finite(results[generation, distribution][0])

    track_mse_ratio.unit = "MSE / MSE of grid"

    def track_time(self, results, generation, distribution):
        return finite(results[generation, distribution][1])

    track_time.unit = "seconds"


def mse(weights, packed):
    return q43nl_numba.quality(weights, packed).mse


def seconds(quantize, weights):
    """The fastest of some calls, the one that was disturbed least."""

    def call():
        start = time.perf_counter()
        quantize(weights)
        return time.perf_counter() - start

    return min(call() for _ in range(CALLS))
