"""Error of the stored bytes by method and distribution; lower is better everywhere."""

import math

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
        return number(found["mse"] / reference["mse"])

    track_mse_ratio.unit = "MSE / MSE of grid"

    def track_relative_mse(self, results, variant, distribution):
        """MSE over the weights' own mean square, which moves when `grid` does, too."""
        found = results[variant, distribution]
        return number(found["mse"] / found["energy"])

    track_relative_mse.unit = "MSE / mean square"

    def track_bits_per_weight(self, results, variant, distribution):
        return number(results[variant, distribution]["bits"])

    track_bits_per_weight.unit = "bits"
    track_bits_per_weight.params = (list(VARIANTS), ["normal"])


def measure(variant, weights):
    """What the stored bytes of one variant cost."""
    packed = quantizer(variant)(weights)
    return {
        "mse": q43nl_numba.quality(weights, packed).mse,
        "energy": float((weights.astype("float64") ** 2).mean()),
        "bits": packed.nbytes * 8 / weights.size,
    }


def number(value):
    """The value, or an error: a NaN would only leave a silent gap in the history."""
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, found {value}")
    return value
