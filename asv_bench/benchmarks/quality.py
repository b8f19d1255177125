"""Error of the stored bytes by method and distribution, and whether they are still the same bytes.

Lower is better everywhere.
"""

import importlib.util
import math
from pathlib import Path

import q43nl_numba

from .common import DISTRIBUTIONS, VARIANTS, draw, known, quantizer

SIZE = 8_192 * 32


class Quality:
    params = (list(VARIANTS), list(DISTRIBUTIONS))
    param_names = ("variant", "distribution")

    def setup_cache(self):
        """Everything in one process: loading the kernels takes longer than running them."""
        return {
            (variant, distribution): measure(variant, draw(distribution, SIZE))
            for distribution in DISTRIBUTIONS
            for variant in VARIANTS
            if known(variant)
        }

    def setup(self, results, variant, distribution):
        quantizer(variant)  # skips what the commit does not know

    def track_mse_ratio(self, results, variant, distribution):
        """MSE over the MSE of `grid` at the same commit."""
        found, reference = results[variant, distribution], results["grid", distribution]
        return finite(found["mse"] / reference["mse"])

    track_mse_ratio.unit = "MSE / MSE of grid"

    def track_relative_mse(self, results, variant, distribution):
        """MSE over the weights' own mean square, which moves when `grid` does, too."""
        found = results[variant, distribution]
        return finite(found["mse"] / found["energy"])

    track_relative_mse.unit = "MSE / mean square"

    def track_bits_per_weight(self, results, variant, distribution):
        return finite(results[variant, distribution]["bits"])

    track_bits_per_weight.unit = "bits"
    track_bits_per_weight.params = (list(VARIANTS), ["normal"])


class Digests:
    """A jump to 1: here the stored bytes of fixed input departed from the recorded ones.

    The guard itself stands among the tests, which fail at such a commit; this is its memory.
    """

    params = ([*VARIANTS, "dequantize"],)
    param_names = ("variant",)

    def setup_cache(self):
        guard = load_guard()
        known = guard.recorded()
        found = guard.digests()
        return {name: int(known.get(name) != digest) for name, digest in found.items()}

    def setup(self, changed, variant):
        if variant not in changed:
            raise NotImplementedError(f"this commit has no variant {variant!r}")

    def track_bytes_changed(self, changed, variant):
        return changed[variant]

    track_bytes_changed.unit = "1 where changed"


def load_guard():
    """The tests' digests, which are no package."""
    path = Path(__file__).parents[2] / "tests" / "digests.py"
    spec = importlib.util.spec_from_file_location("q43nl_digests", path)
    guard = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(guard)
    return guard


def measure(variant, weights):
    """What the stored bytes of one variant cost."""
    packed = quantizer(variant)(weights)
    return {
        "mse": q43nl_numba.quality(weights, packed).mse,
        "energy": float((weights.astype("float64") ** 2).mean()),
        "bits": packed.nbytes * 8 / weights.size,
    }


def finite(value):
    """The value, or an error: a NaN would only leave a silent gap in the history."""
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, found {value}")
    return value
