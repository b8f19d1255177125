"""Measure what packing a tensor cost, while its weights and bytes are at hand.

Errors are measured on all weights. What would cost more than the packing (the comparison with the
``grid`` method, histograms) is measured on a sample of evenly spaced groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .. import GROUP_BYTES, GROUP_DTYPE, GROUP_SIZE, dequantize, q43nl, quality

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

#: The sample has a 32nd of a tensor's groups, but at least and at most so many.
_SHARE: Final = 32
_LEAST_GROUPS: Final = 64
_MOST_GROUPS: Final = 4096

_LOWEST_CURVE: Final = -128
_CURVES: Final = 256
_NIBBLES: Final = 16
_BINS: Final = 64
_REFERENCE: Final = "grid"
#: Largest magnitude that ``grid`` takes; other methods reach further.
_GRID_LIMIT: Final = np.float32(65504)


@dataclass(frozen=True)
class Sample:
    """Figures of a tensor's sampled groups.

    Attributes
    ----------
    groups : int
        Number of groups, those of zeros included.
    noise, grid_noise : float
        Sums of squared errors, of the method and of ``grid``.
    curves : tuple of int
        ``curves[curve + 128]``: groups that have the curve; those of zeros are not counted.
    codes : tuple of int
        ``codes[nibble]``: weights that have the nibble, likewise.
    largest : float
        Largest magnitude of the weights before and after, where the histograms end.
    before, after : tuple of int
        Weights in 64 equal bins from -`largest` to `largest`, of the original and the decoded ones.
    """

    groups: int = 0
    noise: float = 0.0
    grid_noise: float = 0.0
    curves: tuple[int, ...] = (0,) * _CURVES
    codes: tuple[int, ...] = (0,) * _NIBBLES
    largest: float = 0.0
    before: tuple[int, ...] = (0,) * _BINS
    after: tuple[int, ...] = (0,) * _BINS

    def __add__(self, other: Sample) -> Sample:
        """Return the figures of two samples; the histograms of weights are the first one's."""
        return Sample(
            self.groups + other.groups,
            self.noise + other.noise,
            self.grid_noise + other.grid_noise,
            _sums(self.curves, other.curves),
            _sums(self.codes, other.codes),
            self.largest,
            self.before,
            self.after,
        )


@dataclass(frozen=True)
class Figures:
    """What packing cost: sums over all weights, and the figures of a sample.

    Attributes
    ----------
    weights : int
        Number of weights.
    signal, noise : float
        Sums of squares, of the weights and of their errors.
    max_abs_error : float
        Largest absolute error.
    sample : Sample
        What was measured on a sample.
    """

    weights: int = 0
    signal: float = 0.0
    noise: float = 0.0
    max_abs_error: float = 0.0
    sample: Sample = field(default_factory=Sample)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Figures:
        """Return figures from nested data, as `document` makes it."""
        sample: dict[str, Any] = {
            key: tuple(value) if isinstance(value, (list, tuple)) else value
            for key, value in document["sample"].items()
        }
        return cls(**{**document, "sample": Sample(**sample)})

    def document(self) -> dict[str, Any]:
        """Return the figures as nested data, as `dataclasses.asdict` does but without copies.

        A model may have 100,000 tensors, each of which has 400 numbers in histograms.
        """
        return {**vars(self), "sample": {**vars(self.sample)}}

    def __add__(self, other: Figures) -> Figures:
        """Return the figures of two parts together."""
        return Figures(
            self.weights + other.weights,
            self.signal + other.signal,
            self.noise + other.noise,
            max(self.max_abs_error, other.max_abs_error),
            self.sample + other.sample,
        )

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio in decibels; infinite where nothing was lost."""
        return snr_db(self.signal, self.noise)

    @property
    def mse_ratio(self) -> float:
        """Mean squared error of the sample, relative to that of ``grid``; NaN if both are 0."""
        if self.sample.grid_noise == 0:
            return math.nan if self.sample.noise == 0 else math.inf
        return self.sample.noise / self.sample.grid_noise


class Judge:
    """Measures the pieces of one tensor.

    Parameters
    ----------
    size : int
        Number of weights of the tensor, which decides how dense the sample is.
    is_reference : bool
        Whether the bytes are those of ``grid`` itself.
    **options
        Keyword arguments of `q43nl` for the comparison with ``grid``.
    """

    def __init__(self, size: int, *, is_reference: bool = False, **options: Any) -> None:
        groups = size // GROUP_SIZE
        wanted = min(max(groups // _SHARE, _LEAST_GROUPS), _MOST_GROUPS, max(groups, 1))
        self._stride = max(groups // wanted, 1)
        self._is_reference = is_reference
        self._options = options
        self._next = 0  # the next group of the sample, counted from the current piece's first
        self._size = 0
        self._signal = self._noise = self._max_abs_error = 0.0
        self._weights: list[Floats] = []
        self._packed: list[Bytes] = []

    def add(self, weights: Floats, packed: Bytes) -> None:
        """Measure one piece: its weights and their packed bytes."""
        signal, noise, max_abs_error = _sums_over(weights, packed)
        self._size += weights.size
        self._signal += signal
        self._noise += noise
        self._max_abs_error = max(self._max_abs_error, max_abs_error)
        self._take_sample(weights, packed)

    def figures(self) -> Figures:
        """Return the figures of all pieces together."""
        sample = self._sample() if self._weights else Sample()
        return Figures(self._size, self._signal, self._noise, self._max_abs_error, sample)

    def _take_sample(self, weights: Floats, packed: Bytes) -> None:
        """Keep the groups of a piece that belong to the sample."""
        groups = weights.size // GROUP_SIZE
        chosen = slice(self._next, groups, self._stride)
        taken = len(range(*chosen.indices(groups)))
        if taken:
            self._weights.append(weights.reshape(groups, GROUP_SIZE)[chosen].copy())
            self._packed.append(packed.reshape(groups, GROUP_BYTES)[chosen].copy())
        self._next += taken * self._stride - groups

    def _sample(self) -> Sample:
        """Return the figures of the sample."""
        weights = np.concatenate(self._weights).reshape(-1)
        packed = np.concatenate(self._packed).reshape(-1)
        _, noise, _ = _sums_over(weights, packed)
        grid_noise = noise if self._is_reference else self._grid_noise(weights)
        groups = packed.view(GROUP_DTYPE)
        used = groups[groups["scale"] != 0]
        decoded = dequantize(packed)
        largest = float(max(np.abs(weights).max(), np.abs(decoded).max()))
        return Sample(
            groups.size,
            noise,
            grid_noise,
            _curve_counts(used["curve"]),
            _code_counts(used["codes"]),
            largest,
            _histogram(weights, largest),
            _histogram(decoded, largest),
        )

    def _grid_noise(self, weights: Floats) -> float:
        """Return the squared error of the reference method."""
        within = np.clip(weights, -_GRID_LIMIT, _GRID_LIMIT)
        _, noise, _ = _sums_over(weights, q43nl(within, _REFERENCE, **self._options))
        return noise


def snr_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise).

    >>> snr_db(100.0, 1.0), snr_db(1.0, 0.0)
    (20.0, inf)
    """
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _sums_over(weights: Floats, packed: Bytes) -> tuple[float, float, float]:
    """Return the sums of squares of weights and errors, and the largest absolute error."""
    found = quality(weights, packed)
    noise = found.mse * weights.size
    signal = noise * 10 ** (found.snr_db / 10) if noise else _energy(weights)
    return signal, noise, found.max_abs_error


def _energy(weights: Floats) -> float:
    """Return the sum of squares in float64."""
    return float(np.square(weights, dtype=np.float64).sum())


def _curve_counts(curves: npt.NDArray[np.int8]) -> tuple[int, ...]:
    """Return how many groups have each curve, from -128 on."""
    counts = np.bincount(curves.astype(np.int64) - _LOWEST_CURVE, minlength=_CURVES)
    return tuple(counts.tolist())


def _code_counts(codes: Bytes) -> tuple[int, ...]:
    """Return how many weights have each nibble."""
    pairs = np.bincount(codes.reshape(-1), minlength=_NIBBLES**2).reshape(_NIBBLES, _NIBBLES)
    return tuple((pairs.sum(axis=0) + pairs.sum(axis=1)).tolist())


def _histogram(values: Floats, largest: float) -> tuple[int, ...]:
    """Return how many values lie in each of equal bins from -`largest` to `largest`."""
    limit = largest or 1.0
    counts, _ = np.histogram(values, _BINS, (-limit, limit))
    return tuple(counts.tolist())


def _sums(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sums of two tuples' elements."""
    return tuple(a + b for a, b in zip(first, second, strict=True))
