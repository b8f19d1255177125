"""Data that several test files share: golden vectors, drawn samples, and how methods are called."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

GOLDEN_FILE = Path(__file__).parent / "golden" / "classic.npz"

# Groups with few distinct values: many curves give the same error there.
TIED_SETS = ("edge", "sparse")
DENSE_SETS = (
    "bimodal",
    "laplace",
    "lognormal",
    "normal",
    "normal_llm",
    "real_weights",
    "student_t3",
    "uniform",
)
GOLDEN_SETS = (*DENSE_SETS, *TIED_SETS)

# What the original stored -> how the same is asked of `q43nl`.
GOLDEN_METHODS = {
    "coarse_fine": {"method": "coarse_fine"},
    "gradient_5_03": {"method": "gradient", "gd_iterations": 5, "gd_lr": 0.3},
    "gradient_10_01": {"method": "gradient", "gd_iterations": 10, "gd_lr": 0.1},
    "gradient_20_01": {"method": "gradient", "gd_iterations": 20, "gd_lr": 0.1},
}


@functools.cache
def golden() -> dict[str, dict[str, np.ndarray]]:
    """The golden file as ``{set: {"input": float32 [G, 32], method: uint8 [G, 19]}}``."""
    sets: dict[str, dict[str, np.ndarray]] = {}
    with np.load(GOLDEN_FILE, allow_pickle=False) as stored:
        for key in stored.files:
            name, field = key.split("/")
            array = stored[key]
            array.flags.writeable = False
            sets.setdefault(name, {})[field] = array
    return sets


def _bimodal(rng, shape):
    return rng.choice([-1.0, 1.0], shape) + 0.1 * rng.standard_normal(shape)


def _sparse(rng, shape):
    return rng.standard_normal(shape) * (rng.random(shape) < 0.1)


def _outlier(rng, shape):
    weights = rng.standard_normal(shape)
    weights[..., 5] *= 100
    return weights


DISTRIBUTIONS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "normal_llm": lambda rng, shape: 0.02 * rng.standard_normal(shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "positive": lambda rng, shape: rng.uniform(0.5, 1, shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
    "student_t3": lambda rng, shape: rng.standard_t(3, shape),
    "lognormal": lambda rng, shape: rng.choice([-1, 1], shape) * rng.lognormal(0, 1, shape),
    "bimodal": _bimodal,
    "sparse": _sparse,
    "outlier": _outlier,
}


def draw(name: str, groups: int, seed: int = 0) -> np.ndarray:
    """A float32 ``[groups, 32]`` sample of one of the DISTRIBUTIONS."""
    rng = np.random.default_rng(seed)
    return DISTRIBUTIONS[name](rng, (groups, 32)).astype(np.float32)
