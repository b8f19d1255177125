"""Error feedback: time, memory, and the objective beside that of importance alone.

Lower is better everywhere.
"""

import contextlib
import inspect

import numpy as np

import q43nl_numba

from .common import SEED
from .quality import finite

OPTIONS = {"optimal-2": ("optimal", {"effort": 2}), "grid": ("grid", {})}
# Label -> hidden factors, noise, spread of the columns' deviations: how the inputs are correlated.
INPUTS = {"few factors": (64, 0.35, 0.15), "many": (128, 0.25, 0.15), "outliers": (64, 0.3, 0.8)}
SWEEPS = [0, 1, 2]


def skip_older_commits():
    if "hessian" not in inspect.signature(q43nl_numba.q43nl).parameters:
        raise NotImplementedError("this commit has no error feedback")


def second_moments(columns, inputs="few factors", tokens=4096):
    """Mean of x x^T of inputs that are noise over a few hidden factors."""
    factors, noise, spread = INPUTS[inputs]
    rng = np.random.default_rng(SEED)
    hidden = rng.standard_normal((tokens, factors)) @ rng.standard_normal((factors, columns))
    values = hidden / np.sqrt(factors) + noise * rng.standard_normal((tokens, columns))
    values *= np.exp(spread * rng.standard_normal(columns))
    return values.T @ values / tokens


def matrix(rows, columns):
    return np.random.default_rng(SEED).standard_normal((rows, columns), dtype=np.float32)


class Objective:
    """trace((W - Q) H (W - Q)^T) over that with importance, of 256 rows and 512 columns."""

    params = (list(OPTIONS), list(INPUTS), SWEEPS)
    param_names = ("variant", "inputs", "sweeps")

    def setup_cache(self):
        """Everything in one process: loading the kernels takes longer than running them."""
        try:
            skip_older_commits()
        except NotImplementedError:
            return {}
        weights = matrix(256, 512)
        ratios = {}
        for inputs in INPUTS:
            hessian = second_moments(512, inputs)

            def objective(packed, hessian=hessian):
                error = weights - q43nl_numba.dequantize(packed, weights.shape).astype(np.float64)
                return np.einsum("ri,ij,rj", error, hessian, error, optimize=True)

            for variant, (method, options) in OPTIONS.items():
                importance = np.diag(hessian)
                reference = q43nl_numba.q43nl(weights, method, importance=importance, **options)
                for sweeps in SWEEPS:
                    packed = q43nl_numba.q43nl(
                        weights, method, hessian=hessian, sweeps=sweeps, **options
                    )
                    found = objective(packed) / objective(reference)
                    ratios[variant, inputs, sweeps] = finite(found)
        return ratios

    def setup(self, ratios, variant, inputs, sweeps):
        skip_older_commits()

    def track_objective_ratio(self, ratios, variant, inputs, sweeps):
        return ratios[variant, inputs, sweeps]

    track_objective_ratio.unit = "objective / that with importance"


class Time:
    """Square matrices, the factorization included; all threads."""

    params = (["optimal-2"], [512, 1_024, 4_096], [1, 2])
    param_names = ("variant", "columns", "sweeps")
    number = 1
    repeat = (2, 5, 20.0)
    timeout = 300

    def setup(self, variant, columns, sweeps):
        skip_older_commits()
        method, options = OPTIONS[variant]
        weights = matrix(columns, columns)
        hessian = second_moments(columns).astype(np.float32)

        def quantize():
            q43nl_numba.q43nl(weights, method, hessian=hessian, sweeps=sweeps, **options)

        self.quantize = quantize
        q43nl_numba.q43nl(weights[:256], method, hessian=hessian, **options)

    def time_quantize(self, variant, columns, sweeps):
        self.quantize()


class Memory:
    """H of 64 MiB and weights of 64 MiB; subtract the empty reference."""

    columns = 4_096

    def setup_cache(self):
        """Compile into the cache: the compiler's memory would hide the call's."""
        with contextlib.suppress(NotImplementedError):
            self.setup()

    def setup(self):
        skip_older_commits()
        # In place and in float32: a larger temporary would hide what the call takes.
        inputs = matrix(64, self.columns)
        self.hessian = inputs.T @ inputs
        self.hessian /= np.float32(64)
        self.weights = matrix(self.columns, self.columns)
        # The same code on next to no memory, and with as many threads.
        small = second_moments(512, tokens=64).astype(np.float32)
        q43nl_numba.q43nl(matrix(1_024, 512), "optimal", effort=1, hessian=small)

    def peakmem_empty_reference(self):
        """Interpreter, packages, kernels and input; no call."""

    def peakmem_quantize(self):
        q43nl_numba.q43nl(self.weights, "optimal", effort=1, hessian=self.hessian)
