"""Named synthetic weights: the same name, size and seed always give the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Weights: TypeAlias = NDArray[np.floating[Any]]
Distribution: TypeAlias = Callable[[np.random.Generator, int], Weights]


def _normal(rng: np.random.Generator, size: int) -> Weights:
    """Return N(0, 1): what most trained layers look like, their magnitude aside."""
    return rng.standard_normal(size)


def _normal_llm(rng: np.random.Generator, size: int) -> Weights:
    """Return N(0, 0.02): the magnitude that language models are initialized with."""
    return rng.normal(0.0, 0.02, size)


def _uniform(rng: np.random.Generator, size: int) -> Weights:
    """Return weights that are evenly spread over [-1, 1)."""
    return rng.uniform(-1.0, 1.0, size)


def _laplace(rng: np.random.Generator, size: int) -> Weights:
    """Return Laplace(1): a sharper peak and heavier tails than normal."""
    return rng.laplace(0.0, 1.0, size)


def _student_t(rng: np.random.Generator, size: int) -> Weights:
    """Return Student's t, 4 degrees of freedom: heavy tails, an infinite fourth moment."""
    return rng.standard_t(4, size)


def _lognormal(rng: np.random.Generator, size: int) -> Weights:
    """Return log-normal magnitudes with random signs: most weights tiny, some large."""
    return rng.lognormal(0.0, 1.0, size) * _signs(rng, size)


def _bimodal(rng: np.random.Generator, size: int) -> Weights:
    """Return two narrow peaks at -1 and +1, with next to nothing around zero."""
    return _signs(rng, size) + rng.normal(0.0, 0.1, size)


def _sparse(rng: np.random.Generator, size: int) -> Weights:
    """Return weights of which nine in ten are exactly zero, the tenth is normal."""
    return rng.standard_normal(size) * (rng.random(size) < 0.1)


def _outliers(rng: np.random.Generator, size: int) -> Weights:
    """Return normal weights, one in a hundred twenty times as large."""
    return rng.standard_normal(size) * (1.0 + 19.0 * (rng.random(size) < 0.01))


def _constant(rng: np.random.Generator, size: int) -> Weights:
    """Return one random value in (0, 1], everywhere: every weight is its group's maximum."""
    return np.full(size, 1.0 - rng.random())


def _signs(rng: np.random.Generator, size: int) -> Weights:
    """Return random signs."""
    return rng.integers(2, size=size) * 2.0 - 1.0


#: The distributions by name; each takes a generator and a size.
DISTRIBUTIONS: Mapping[str, Distribution] = MappingProxyType(
    {
        "normal": _normal,
        "normal-llm": _normal_llm,
        "uniform": _uniform,
        "laplace": _laplace,
        "student-t": _student_t,
        "lognormal": _lognormal,
        "bimodal": _bimodal,
        "sparse": _sparse,
        "outliers": _outliers,
        "constant": _constant,
    }
)


def draw(distribution: str, size: int, seed: int = 0) -> NDArray[np.float32]:
    """Draw weights from a named distribution.

    Parameters
    ----------
    distribution : str
        One of the names in `DISTRIBUTIONS`.
    size : int
        How many weights, at least 0.
    seed : int, default 0
        Seed of NumPy's default generator, at least 0.

    Returns
    -------
    ndarray of float32, shape (size,)
        The same numbers for the same arguments, on one NumPy version.

    Raises
    ------
    ValueError
        If the name is unknown, or `size` or `seed` is negative.

    Examples
    --------
    >>> draw("constant", 3).dtype
    dtype('float32')
    >>> bool((draw("normal", 64, seed=1) == draw("normal", 64, seed=1)).all())
    True
    """
    if distribution not in DISTRIBUTIONS:
        known = ", ".join(DISTRIBUTIONS)
        raise ValueError(f"distribution: unknown name {distribution!r}; expected one of {known}")
    for name, value in (("size", size), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name}: {value}; expected at least 0")
    weights = DISTRIBUTIONS[distribution](np.random.default_rng(seed), size)
    return weights.astype(np.float32)
