"""Train the network of `predictor`: ``python -m q43nl_numba.methods.predictor.train``.

Writes ``network.json`` beside this file, or with ``--check`` only compares; then prints what the
network is worth on distributions that it was not trained on, and with ``--weights FILE`` on real
weights. A few minutes.

Training groups are drawn from synthetic distributions. Of each group all 255 curves are tried
beforehand, so a network's loss is looked up: the mean over groups of the error at the best of its
estimates, relative to what is possible on the group's distribution. Its slope is that of the table
of errors, smoothed over neighboring curves; only the best estimate of a group learns from it (and
the others a little, so that none is left behind).

The same numbers come out on every machine: sums have a fixed order, there are neither fast-math
flags nor functions beyond the square root, and the draws are NumPy's from a fixed seed. (NumPy's
streams may change between its releases.)
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..._jit import helper, prange
from ..._kernel import Kernel
from ..._layout import GROUP_SIZE, LARGEST_CURVE
from ..._threads import thread_count
from ...kernels.curve import evaluate, new_trial, set_trial
from ...kernels.curve_search import set_scales
from ...kernels.tile import LANES, Doubles, Floats, set_magnitudes
from . import add_layer, rectify, set_counts
from .network import COUNTS, ESTIMATES, FILE, SHAPES, read_network, write_network

Draw = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]

SEED: Final = 4375
CURVES: Final = 2 * LARGEST_CURVE + 1

GROUPS: Final = 96 * LANES
"""Of each distribution; a multiple of the tile's width, as batches are."""
BATCH: Final = 4096
STEPS: Final = 60_000
RATE: Final = 3e-3
LAST_RATE: Final = 1e-5
SMOOTHED: Final = 4
"""Curves on either side over which a table is averaged."""
LEAK: Final = np.float32(0.02)
"""What estimates other than the best learn."""
HEAVIEST: Final = 20.0
"""Largest weight of a group, in units of the mean."""
DECIMALS: Final = 5
"""Kept in the file: more would make it longer, not better."""
ATTEMPTS: Final = 8
PULL: Final = np.float32(0.1)
"""How strongly estimates outside of -1 to 1 are drawn back."""


def _signs(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    return rng.choice([-1.0, 1.0], shape)


def _each(rng: np.random.Generator, shape: tuple[int, int], low: float, high: float) -> Any:
    """Draw a number for each group."""
    return rng.uniform(low, high, (shape[0], 1))


TRAINING: Final[dict[str, Draw]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "student-t 4": lambda rng, shape: rng.standard_t(4, shape),
    "student-t 8": lambda rng, shape: rng.standard_t(8, shape),
    "lognormal 1": lambda rng, shape: _signs(rng, shape) * rng.lognormal(0, 1, shape),
    "lognormal 0.5": lambda rng, shape: _signs(rng, shape) * rng.lognormal(0, 0.5, shape),
    "bimodal 0.1": lambda rng, shape: _signs(rng, shape) + 0.1 * rng.standard_normal(shape),
    "bimodal 0.3": lambda rng, shape: _signs(rng, shape) + 0.3 * rng.standard_normal(shape),
    "shifted": lambda rng, shape: rng.standard_normal(shape) + rng.normal(size=(shape[0], 1)),
    "gamma": lambda rng, shape: rng.gamma(2, size=shape),
    "triangular": lambda rng, shape: rng.triangular(-1, 0, 1, shape),
    "sparse": lambda rng, shape: (
        rng.standard_normal(shape) * (rng.random(shape) < _each(rng, shape, 0.05, 0.5))
    ),
    "powers": lambda rng, shape: np.abs(rng.standard_normal(shape)) ** _each(rng, shape, 0.3, 3),
    "outlier": lambda rng, shape: (
        rng.standard_normal(shape)
        * np.where(np.arange(GROUP_SIZE) == 0, _each(rng, shape, 1, 20), 1)
    ),
}

HELD_OUT: Final[dict[str, Draw]] = {
    "logistic": lambda rng, shape: rng.logistic(size=shape),
    "student-t 3": lambda rng, shape: rng.standard_t(3, shape),
    "two widths": lambda rng, shape: rng.standard_normal(shape) * rng.choice([0.3, 1], shape),
    "beta": lambda rng, shape: 2 * rng.beta(2, 2, shape) - 1,
    "weibull": lambda rng, shape: _signs(rng, shape) * rng.weibull(1.5, shape),
}


@dataclass(frozen=True)
class Groups:
    """Groups to train with, and their errors at all curves."""

    counts: Floats
    """float32[COUNTS, n]."""
    errors: Floats
    """Error at each curve after a trial there, float32[n, CURVES], in units of squared scale."""
    weights: Doubles
    """What makes `errors` add up to 1 at each group's best curve, for every distribution."""


def draw_groups(distributions: dict[str, Draw], seed: int) -> Groups:
    """Draw groups of each distribution and try all their curves."""
    drawn = [
        _tried(draw, np.random.default_rng([seed, number]))
        for number, draw in enumerate(distributions.values())
    ]
    return Groups(
        np.concatenate([groups.counts for groups in drawn], axis=1),
        np.concatenate([groups.errors for groups in drawn]),
        np.concatenate([groups.weights for groups in drawn]),
    )


def _tried(draw: Draw, rng: np.random.Generator) -> Groups:
    weights = np.ascontiguousarray(draw(rng, (GROUPS, GROUP_SIZE)).astype(np.float32).T)
    scales = np.empty(GROUPS, np.float32)
    counts = np.empty((COUNTS, GROUPS), np.float32)
    errors = np.empty((GROUPS, CURVES), np.float32)
    _try_all(weights, scales, counts, errors, num_threads=thread_count(None))
    energy = scales.astype(np.float64) ** 2
    return Groups(counts, errors, energy / (energy * errors.min(axis=1)).sum())


def _try_tiles(weights: Floats, scales: Floats, counts: Floats, errors: Floats) -> None:
    for tile in prange(weights.shape[1] // LANES):
        _try_tile(weights, tile * LANES, scales, counts, errors)


@helper
def _try_tile(weights: Floats, first: int, scales: Floats, counts: Floats, errors: Floats) -> None:
    """Write scales, counts and errors at all curves of the groups in a tile."""
    tile_weights = np.empty((GROUP_SIZE, LANES), np.float32)
    magnitudes = np.empty((GROUP_SIZE, LANES), np.float32)
    scale_bits = np.empty(LANES, np.uint32)
    tile_scales = np.empty(LANES, np.float32)
    tile_counts = np.empty((COUNTS, LANES), np.float32)
    trial = new_trial(LANES)
    center = np.zeros(LANES, np.int32)
    for i in range(GROUP_SIZE):
        for lane in range(LANES):
            tile_weights[i, lane] = weights[i, first + lane]
    set_scales(tile_weights, 0.0, scale_bits, tile_scales)
    set_magnitudes(tile_weights, tile_scales, magnitudes)
    for lane in range(LANES):
        scales[first + lane] = tile_scales[lane]
    set_counts(magnitudes, None, tile_counts)
    for k in range(COUNTS):
        for lane in range(LANES):
            counts[k, first + lane] = tile_counts[k, lane]
    for row in range(CURVES):
        set_trial(trial, center, row - LARGEST_CURVE)
        evaluate(magnitudes, None, trial)
        for lane in range(LANES):
            errors[first + lane, row] = trial.refined_errors[lane]


_try_all = Kernel(_try_tiles)


def smoothed(errors: Floats) -> Floats:
    """Return each table's means over neighboring curves."""
    padded = np.pad(errors, ((0, 0), (SMOOTHED + 1, SMOOTHED)), mode="edge")
    sums = np.cumsum(padded, axis=1, dtype=np.float64)
    width = 2 * SMOOTHED + 1
    return ((sums[:, width:] - sums[:, :-width]) / width).astype(np.float32)


def _slopes_of(
    counts: Floats, tables: Floats, weights: Floats, chosen: Any, network: Doubles, slopes: Doubles
) -> None:
    """Slopes of a batch's loss, for every number of the network, added to `slopes`."""
    for _ in prange(1):
        _add_slopes(counts, tables, weights, chosen, network, slopes)


@helper
def _add_slopes(
    counts: Floats, tables: Floats, weights: Floats, chosen: Any, network: Doubles, slopes: Doubles
) -> None:
    batch = chosen.size
    inputs = np.empty((COUNTS, batch), np.float32)
    first = np.empty((SHAPES[0][0], batch), np.float32)
    second = np.empty((SHAPES[1][0], batch), np.float32)
    estimates = np.empty((ESTIMATES, batch), np.float32)
    for k in range(COUNTS):
        for lane in range(batch):
            inputs[k, lane] = counts[k, chosen[lane]]
    second_at = add_layer(inputs, network, 0, first)
    rectify(first)
    third_at = add_layer(first, network, second_at, second)
    rectify(second)
    add_layer(second, network, third_at, estimates)
    set_estimate_slopes(tables, weights, chosen, estimates)
    second_slopes = np.empty((SHAPES[1][0], batch), np.float32)
    first_slopes = np.empty((SHAPES[0][0], batch), np.float32)
    add_layer_slopes(second, estimates, third_at, slopes)
    pass_back(estimates, network, third_at, second, second_slopes)
    add_layer_slopes(first, second_slopes, second_at, slopes)
    pass_back(second_slopes, network, second_at, first, first_slopes)
    add_layer_slopes(inputs, first_slopes, 0, slopes)


@helper
def set_estimate_slopes(tables: Floats, weights: Floats, chosen: Any, estimates: Floats) -> None:
    """Replace estimates by the slopes of their groups' losses."""
    here = np.empty(ESTIMATES, np.float32)
    slope = np.empty(ESTIMATES, np.float32)
    for lane in range(chosen.size):
        group = chosen[lane]
        best = 0
        for k in range(ESTIMATES):
            c = min(max(estimates[k, lane], np.float32(-1)), np.float32(1))
            place = (c + np.float32(1)) * np.float32(LARGEST_CURVE)
            row = min(int(place), CURVES - 2)
            slope[k] = tables[group, row + 1] - tables[group, row]
            here[k] = tables[group, row] + slope[k] * (place - np.float32(row))
            best = k if here[k] < here[best] else best
        for k in range(ESTIMATES):
            share = np.float32(1) if k == best else LEAK
            inside = share * slope[k] * np.float32(LARGEST_CURVE) * weights[group]
            c = estimates[k, lane]
            outside = PULL if c > 0 else -PULL
            estimates[k, lane] = inside if abs(c) <= np.float32(1) else outside


@helper
def add_layer_slopes(inputs: Floats, slopes: Floats, at: int, network_slopes: Doubles) -> None:
    """Slopes of a layer's numbers, from those of its outputs; means over the batch."""
    batch = inputs.shape[1]
    for j in range(slopes.shape[0]):
        network_slopes[at] += sum_of_products(slopes[j], slopes[j], False) / batch
        for i in range(inputs.shape[0]):
            network_slopes[at + 1 + i] += sum_of_products(slopes[j], inputs[i], True) / batch
        at += 1 + inputs.shape[0]


@helper
def sum_of_products(a: Floats, b: Floats, times: bool) -> float:
    """Sum of a b, or of a alone: in sixteen partial sums, added in their order."""
    parts = np.zeros(16, np.float64)
    for start in range(0, a.size, 16):
        for k in range(16):
            factor = np.float64(b[start + k]) if times else 1.0
            parts[k] += np.float64(a[start + k]) * factor
    total = 0.0
    for k in range(16):
        total += parts[k]
    return total


@helper
def pass_back(
    slopes: Floats, network: Doubles, at: int, outputs: Floats, output_slopes: Floats
) -> None:
    """Slopes of the layer before, whose rectified outputs are given."""
    for i in range(outputs.shape[0]):
        for lane in range(outputs.shape[1]):
            output_slopes[i, lane] = np.float32(0)
        for j in range(slopes.shape[0]):
            weight = np.float32(network[at + j * (1 + outputs.shape[0]) + 1 + i])
            for lane in range(outputs.shape[1]):
                output_slopes[i, lane] += weight * slopes[j, lane]
        for lane in range(outputs.shape[1]):
            passed = outputs[i, lane] > np.float32(0)
            output_slopes[i, lane] = output_slopes[i, lane] if passed else np.float32(0)


_slopes = Kernel(_slopes_of)


def first_network(rng: np.random.Generator) -> Doubles:
    """Random layers (He et al., 2015), whose estimates are spread out."""
    layers = []
    for outputs, columns in SHAPES:
        layer = np.zeros((outputs, columns))
        layer[:, 1:] = rng.standard_normal((outputs, columns - 1)) * np.sqrt(2 / (columns - 1))
        layers.append(layer)
    layers[-1][:, 1:] *= 0.3
    layers[-1][:, 0] = np.linspace(-0.6, 0.6, ESTIMATES)
    return np.concatenate([layer.reshape(-1) for layer in layers])


def train(groups: Groups, steps: int = STEPS, seed: int = SEED) -> list[NDArray[np.float32]]:
    """Train a network by Adam on random batches; its layers."""
    rng = np.random.default_rng(seed)
    mean = groups.counts.mean(axis=1, dtype=np.float64)
    spread = groups.counts.std(axis=1, dtype=np.float64) + 1e-9
    inputs = ((groups.counts - mean[:, None]) / spread[:, None]).astype(np.float32)
    tables = smoothed(groups.errors)
    weights = groups.weights / groups.weights.mean() / groups.errors.min(axis=1).mean()
    weights = np.minimum(weights, HEAVIEST).astype(np.float32)
    network = first_network(rng)
    first, second = np.zeros_like(network), np.zeros_like(network)
    bias1 = bias2 = 1.0
    for step in range(steps):
        chosen = rng.integers(0, inputs.shape[1], BATCH)
        slopes = np.zeros_like(network)
        _slopes(inputs, tables, weights, chosen, network, slopes, num_threads=1)
        first += 0.1 * (slopes - first)
        second += 0.001 * (slopes * slopes - second)
        bias1 *= 0.9
        bias2 *= 0.999
        size = np.sqrt(second / (1 - bias2)) + 1e-9
        network -= (RATE * (1 - step / steps) + LAST_RATE) * (first / (1 - bias1)) / size
    layers = split(network)
    # The first layer takes counts as they are.
    layers[0][:, 1:] /= spread
    layers[0][:, 0] -= (layers[0][:, 1:] * mean).sum(axis=1)
    return [np.round(layer, DECIMALS).astype(np.float32) for layer in layers]


def split(network: Doubles) -> list[Doubles]:
    """Return a flat network's layers."""
    ends = np.cumsum([rows * columns for rows, columns in SHAPES])
    parts = np.split(network, ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, SHAPES, strict=True)]


def estimated_rows(layers: list[NDArray[np.float32]], counts: Floats) -> NDArray[np.int64]:
    """Rows of the tables at the network's estimates, int64[ESTIMATES, n]."""
    values = counts.astype(np.float64)
    for number, layer in enumerate(layers):
        values = layer[:, :1] + layer[:, 1:].astype(np.float64) @ values
        values = values if number == len(layers) - 1 else np.maximum(values, 0)
    return np.rint(np.clip(values, -1, 1) * LARGEST_CURVE).astype(np.int64) + LARGEST_CURVE


def excess(groups: Groups, rows: NDArray[np.int64]) -> float:
    """Error at the best of the rows, as a ratio to that of each group's best curve."""
    tried = groups.errors[np.arange(len(groups.errors))[:, None], rows.T].min(axis=1)
    return float(
        (groups.weights * tried).sum() / (groups.weights * groups.errors.min(axis=1)).sum()
    )


def best_constants(groups: Groups, count: int) -> NDArray[np.int64]:
    """Rows of the best starts that are the same for all groups: several attempts."""
    few = slice(None, None, 16)
    errors, weights = groups.errors[few], groups.weights[few]
    rng = np.random.default_rng(SEED)
    attempts = [
        _improved(errors, weights, np.sort(rng.choice(CURVES, count, replace=False)))
        for _ in range(ATTEMPTS)
    ]
    return min(attempts, key=lambda rows: float(weights @ errors[:, rows].min(axis=1)))


def _improved(errors: Floats, weights: Doubles, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows moved one at a time to where they are best, until none moves."""
    while True:
        before = rows.copy()
        for k in range(len(rows)):
            others = errors[:, np.delete(rows, k)].min(axis=1)
            rows[k] = np.argmin(weights @ np.minimum(errors, others[:, None]))
        if np.array_equal(rows, before):
            return rows


def given_weights(path: Path) -> Draw:
    """Return a draw of groups of a ``.npy`` file, taken evenly over all of it."""
    array = np.load(path, mmap_mode="r")
    if array.dtype.kind != "f" or array.size == 0 or array.size % GROUP_SIZE:
        raise ValueError(
            f"{path}: dtype {array.dtype}, {array.size} weights; expected floating ones, "
            f"a positive multiple of {GROUP_SIZE}"
        )
    groups = array.reshape(-1, GROUP_SIZE)
    return lambda rng, shape: groups[np.arange(shape[0]) * len(groups) // shape[0]]


def report(
    layers: list[NDArray[np.float32]], training: Groups, real: dict[str, Draw] | None = None
) -> None:
    """Print errors relative to the best curve of each group, beside those of constant starts."""
    constants = {count: best_constants(training, count) for count in (ESTIMATES, 6, 9, 12)}
    heads = ["network", *(f"{count} constants" for count in constants)]
    print(f"{'error / least error':20}" + "".join(f"{head:>14}" for head in heads))
    known = {name: TRAINING[name] for name in ("normal", "laplace", "uniform")}
    for name, draw in {**known, **HELD_OUT, **(real or {})}.items():
        groups = draw_groups({name: draw}, SEED + 1)
        n = len(groups.errors)
        found = [excess(groups, estimated_rows(layers, groups.counts))]
        found += [
            excess(groups, np.repeat(rows[:, None], n, axis=1)) for rows in constants.values()
        ]
        print(f"{name:20}" + "".join(f"{value:14.4f}" for value in found))


def main() -> int:
    """Train, write or compare, and report."""
    parser = argparse.ArgumentParser(description="Train the network of the method predictor.")
    parser.add_argument("--check", action="store_true", help="compare with the file, do not write")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="a .npy file of real weights to report on, too"
    )
    arguments = parser.parse_args()
    real = {arguments.weights.name: given_weights(arguments.weights)} if arguments.weights else {}
    start = time.perf_counter()
    training = draw_groups(TRAINING, SEED)
    layers = train(training)
    print(f"trained in {time.perf_counter() - start:.0f} s")
    report(layers, training, real)
    if not arguments.check:
        write_network(layers)
        return 0
    same = all(map(np.array_equal, layers, read_network()))
    print(f"{'the same numbers as in' if same else 'not the numbers of'} {FILE}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
