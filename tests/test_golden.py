"""The original's bytes: `grid` reproduces them, the other methods beat them."""

import numpy as np
import oracle
import pytest
import samples

from q43nl_numba import dequantize, q43nl

pytestmark = pytest.mark.parametrize("name", samples.GOLDEN_SETS)

# A set's error is compared with a hair of slack, for sums in another order.
ROUNDING = 1e-9


def energies(weights):
    return (weights.astype(np.float64) ** 2).sum(axis=1)


def test_grid_is_the_original(name):
    """Byte for byte in dense groups; where candidates tie, the same error."""
    weights, theirs = samples.golden()[name]["input"], samples.golden()[name]["grid"]
    ours = q43nl(weights, method="grid").reshape(-1, oracle.GROUP_BYTES)
    differs = (ours != theirs).any(axis=1)
    if name in samples.DENSE_SETS:
        assert differs.mean() <= 0.001
    change = np.abs(oracle.errors(weights, ours) - oracle.errors(weights, theirs))
    assert np.all(change <= 1e-6 * energies(weights))


@pytest.mark.parametrize("stored", samples.GOLDEN_METHODS)
def test_methods_beat_the_original(name, stored):
    """The error of our bytes is at most that of the original's, on the same weights."""
    weights, theirs = samples.golden()[name]["input"], samples.golden()[name][stored]
    ours = q43nl(weights, **samples.GOLDEN_METHODS[stored])
    slack = ROUNDING * energies(weights).sum()
    assert oracle.errors(weights, ours).sum() <= oracle.errors(weights, theirs).sum() + slack


@pytest.mark.parametrize("stored", ["grid", *samples.GOLDEN_METHODS])
def test_dequantize_reads_the_original(name, stored):
    """The original's bytes decode to the engine's float32, bit for bit."""
    packed = samples.golden()[name][stored]
    decoded = dequantize(packed, shape=(-1, oracle.GROUP_SIZE))
    assert np.array_equal(decoded.view(np.uint32), oracle.decode(packed).view(np.uint32))


@pytest.mark.parametrize("stored", ["grid", *samples.GOLDEN_METHODS])
def test_zero_groups_are_nineteen_zero_bytes(name, stored):
    """Where the original stores a zero group, so does every method of ours."""
    weights, theirs = samples.golden()[name]["input"], samples.golden()[name][stored]
    ours = q43nl(weights, **samples.GOLDEN_METHODS.get(stored, {"method": "grid"}))
    zero = (theirs == 0).all(axis=1)
    assert np.array_equal((ours.reshape(-1, oracle.GROUP_BYTES) == 0).all(axis=1), zero)
