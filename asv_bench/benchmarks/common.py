"""What the benchmarks share: the variants and the data.

Both are spelled out here and not taken from the package, because a history compares like with
like only if they stay as they are while the package changes.
"""

from __future__ import annotations

import numpy as np

import q43nl_numba

SEED = 43
PIECE = 65_536

# Label -> method and parameters. A commit that does not know a method skips it.
VARIANTS = {
    "grid": ("grid", {}),
    "coarse_fine": ("coarse_fine", {}),
    "gradient-5/0.3": ("gradient", {"gd_iterations": 5, "gd_lr": 0.3}),
    "gradient-10/0.1": ("gradient", {"gd_iterations": 10, "gd_lr": 0.1}),
    "gradient-20/0.1": ("gradient", {"gd_iterations": 20, "gd_lr": 0.1}),
    "hybrid": ("hybrid", {}),
    "predictor": ("predictor", {}),
    "optimal-1": ("optimal", {"effort": 1}),
    "optimal-5": ("optimal", {"effort": 5}),
    "optimal-9": ("optimal", {"effort": 9}),
    "exact": ("exact", {}),
}

THREADS = {"1": 1, "all": None}

DISTRIBUTIONS = {
    "normal": lambda rng, size: rng.standard_normal(size),
    "uniform": lambda rng, size: rng.uniform(-1, 1, size),
    "laplace": lambda rng, size: rng.laplace(0, 1, size),
    "student-t": lambda rng, size: rng.standard_t(4, size),
    "lognormal": lambda rng, size: rng.lognormal(0, 1, size) * rng.choice((-1, 1), size),
    "bimodal": lambda rng, size: rng.choice((-1, 1), size) + rng.normal(0, 0.1, size),
    "sparse": lambda rng, size: rng.standard_normal(size) * (rng.random(size) < 0.1),
}


def known(variant):
    """Whether this commit has the variant's method."""
    return VARIANTS[variant][0] in q43nl_numba.METHODS


def quantizer(variant, **options):
    """A function from weights to packed bytes, or a skipped benchmark."""
    if not known(variant):
        raise NotImplementedError(f"this commit has no variant {variant!r}")
    method, parameters = VARIANTS[variant]

    def quantize(weights):
        return q43nl_numba.q43nl(weights, method, **parameters, **options)

    return quantize


def numpy_dtype(name):
    """The dtype of that name, or a skipped benchmark if it needs a package that is not there."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise NotImplementedError("bfloat16 needs ml_dtypes") from error
    return np.dtype(ml_dtypes.bfloat16)


def normal(size, dtype="float32"):
    """Normal weights, drawn in pieces so that setup needs no more memory than the result."""
    rng = np.random.default_rng(SEED)
    weights = np.empty(size, numpy_dtype(dtype))
    for start in range(0, size, PIECE):
        piece = weights[start : start + PIECE]
        piece[:] = rng.standard_normal(piece.size, dtype=np.float32)
    return weights


def draw(distribution, size):
    """Weights of a distribution."""
    return DISTRIBUTIONS[distribution](np.random.default_rng(SEED), size).astype(np.float32)


def packed(size):
    """Packed bytes of that many weights: any codes and curves, scales of 1."""
    rng = np.random.default_rng(SEED)
    groups = np.empty(size // q43nl_numba.GROUP_SIZE, q43nl_numba.GROUP_DTYPE)
    groups["codes"] = rng.integers(256, size=(groups.size, 16), dtype=np.uint8)
    groups["scale"] = 1
    groups["curve"] = rng.integers(-127, 128, size=groups.size, dtype=np.int8)
    return groups.view(np.uint8)
