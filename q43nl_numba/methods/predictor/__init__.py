"""A small neural network says where to look: its three estimates of c, each refined once.

A group's error as a function of c is full of notches, and three curves a notch too far are worth
little: the least error lies in one of several notches, which one hangs on where exactly the
magnitudes lie. So the network sees how many magnitudes exceed each of 32 evenly spaced thresholds
(from which their mean, spread and shape follow), and answers with three estimates at once, trained
so that the best of them is good; each is a `Trial`, that is, one Newton step to the bottom of its
notch.

What it is worth, on normal weights and in units of the error of `grid`: the three estimates reach
1.008; the three best constants instead of them, 1.14; three steps one after another from c = 0,
1.31. It takes twelve constant starts to come as near (1.009), in 1.4 times the time of the network
and its estimates. Only where most weights are zero the constants do better (1.004 against 1.07).
``python -m q43nl_numba.methods.predictor.train --check`` trains the network anew and prints its
errors, and those of constants, on distributions that it was not trained on.

What did not help: the magnitudes' first four moments beside the counts (with 15 counts and four
estimates 1.016 either way; the moments alone gave 1.030), the sorted magnitudes themselves (1.028),
a single estimate (1.11 to 1.2), a wider first layer. Finer counts did: 1.016 with 15 of them, 1.012
with 23, 1.009 with 31.

With importance, a magnitude counts as much as it weighs.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ..._jit import helper, inlined
from ..._layout import GROUP_SIZE
from ...kernels.curve import NEAREST_LEVEL, curve_of_c, evaluate, keep_better, new_trial
from ...kernels.curve_search import curve_encoder
from ...kernels.tile import Doubles, Floats, Integers, weighted
from ..method import Method
from .network import COUNTS, ESTIMATES, HIDDEN, flat_network

_ROW: Final = 8
"""Weights compared with a threshold before its count is stored again."""


@inlined
def search_predictor(
    magnitudes: Floats,
    importance: Any,
    scales: Floats,
    statistics: None,
    network: Doubles,
    curves: Integers,
) -> None:
    """Take the best of the curves that the network's estimates lead to."""
    lanes = curves.size
    counts = np.empty((COUNTS, lanes), np.float32)
    estimates = np.empty((ESTIMATES, lanes), np.float32)
    set_counts(magnitudes, importance, counts)
    estimate(counts, network, estimates)
    trial = new_trial(lanes)
    least = np.full(lanes, np.inf, np.float32)
    for place in range(ESTIMATES):
        for lane in range(lanes):
            trial.curves[lane] = curve_of_c(estimates[place, lane])
        evaluate(magnitudes, importance, trial)
        keep_better(trial, curves, least)


@helper
def set_counts(magnitudes: Floats, importance: Any, counts: Floats) -> None:
    """Count how many of each lane's magnitudes exceed each threshold."""
    for k in range(COUNTS):
        threshold = np.float32((k + 0.5) / COUNTS)
        for lane in range(counts.shape[1]):
            counts[k, lane] = np.float32(0)
        for row in range(0, GROUP_SIZE, _ROW):
            for lane in range(counts.shape[1]):
                count = np.float32(0)
                for i in range(_ROW):
                    one = weighted(np.float32(1), importance, row + i, lane)
                    above = magnitudes[row + i, lane] > threshold
                    count += one if above else np.float32(0)
                counts[k, lane] += count
    if importance is not None:
        for lane in range(counts.shape[1]):
            total = np.float32(0)
            for i in range(GROUP_SIZE):
                total += importance[i, lane]
            for k in range(COUNTS):
                counts[k, lane] *= np.float32(GROUP_SIZE) / total


@helper
def estimate(counts: Floats, network: Doubles, estimates: Floats) -> None:
    """Write the network's estimates: two hidden layers of rectified sums, then sums."""
    first = np.empty((HIDDEN, counts.shape[1]), np.float32)
    second = np.empty((HIDDEN, counts.shape[1]), np.float32)
    at = add_layer(counts, network, 0, first)
    rectify(first)
    at = add_layer(first, network, at, second)
    rectify(second)
    add_layer(second, network, at, estimates)


@helper
def add_layer(inputs: Floats, network: Doubles, at: int, outputs: Floats) -> int:
    """Write each output's bias and weighted inputs, from number `at` of the network on.

    Return where they end.

    The number of inputs must be a multiple of four.
    """
    for j in range(outputs.shape[0]):
        bias = np.float32(network[at])
        for lane in range(outputs.shape[1]):
            outputs[j, lane] = bias
        # Four inputs a pass share one load and store of the output.
        for i in range(0, inputs.shape[0], 4):
            a, b = np.float32(network[at + 1 + i]), np.float32(network[at + 2 + i])
            c, d = np.float32(network[at + 3 + i]), np.float32(network[at + 4 + i])
            for lane in range(outputs.shape[1]):
                near = a * inputs[i, lane] + b * inputs[i + 1, lane]
                far = c * inputs[i + 2, lane] + d * inputs[i + 3, lane]
                outputs[j, lane] += near + far
        at += 1 + inputs.shape[0]
    return at


@helper
def rectify(values: Floats) -> None:
    """Replace negative numbers by 0."""
    for j in range(values.shape[0]):
        for lane in range(values.shape[1]):
            values[j, lane] = max(values[j, lane], np.float32(0))


PREDICTOR = Method(
    name="predictor",
    encoder=curve_encoder(search_predictor, nearest=NEAREST_LEVEL, name="predictor"),
    cost=lambda parameters: 3.5,
    parameters=flat_network,
)
