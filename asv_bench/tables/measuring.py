"""Measuring contenders on the same arrays: they take turns, a call each, and the best counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from asv_bench.tables.contenders import Contender, Rows
from q43nl_numba.compare import best_times


@dataclass(frozen=True)
class Row:
    """What one contender made of the weights."""

    label: str
    bits_per_weight: float
    mse: float
    snr_db: float
    quantize: Mapping[int, float]
    """Million weights a second by number of threads; empty where not measured."""
    dequantize: Mapping[int, float]


Key = tuple[int, str, int]  # contender, what it does, threads


def measure(
    found: Sequence[Contender], weights: Rows, threads: Sequence[int], repeat: int
) -> list[Row]:
    """Each contender's error and speeds; the first call of each may compile, and is not timed."""
    out = np.empty_like(weights)
    most = max(threads)
    results = []
    calls: dict[Key, Callable[[], object]] = {}
    for i, one in enumerate(found):
        packed = one.quantize(weights, most)
        one.dequantize(packed, out, most)
        results.append((one.label, one.bits(packed) / weights.size, *error(weights, out)))
        for count in threads if one.takes_threads else [most]:
            calls[i, "quantize", count] = partial(one.quantize, weights, count)
            calls[i, "dequantize", count] = partial(one.dequantize, packed, out, count)
    calls = {key: call for key, call in calls.items() if repeat and key[1] in found[key[0]].timed}
    for call in calls.values():
        call()
    speeds = {
        key: weights.size / seconds / 1e6 for key, seconds in best_times(calls, repeat).items()
    }
    return [
        Row(*result, by_threads(speeds, i, "quantize"), by_threads(speeds, i, "dequantize"))
        for i, result in enumerate(results)
    ]


def by_threads(speeds: Mapping[Key, float], i: int, what: str) -> dict[int, float]:
    return {count: speed for (j, name, count), speed in speeds.items() if (j, name) == (i, what)}


def error(weights: Rows, decoded: Rows) -> tuple[float, float]:
    """Mean squared error and signal-to-noise ratio in dB, summed up in float64."""
    noise = signal = 0.0
    for rows, back in zip(weights, decoded, strict=True):
        noise += float(np.square(rows - back, dtype=np.float64).sum())
        signal += float(np.square(rows, dtype=np.float64).sum())
    return noise / weights.size, 10 * math.log10(signal / noise) if noise else math.inf
