"""Importance: every method's choice minimizes the weighted error; ones change nothing."""

import numpy as np
import oracle
import pytest
import samples

from q43nl_numba import METHODS, q43nl
from q43nl_numba.methods import TABLE

every_method = pytest.mark.parametrize("method", METHODS)
JOINT = [name for name in METHODS if TABLE[name].joint]

# The largest weighted error, in units of what the same method has without being told.
GAIN = {method: 0.93 if method in JOINT else 0.985 for method in METHODS}


@every_method
@pytest.mark.parametrize("value", [1.0, 0.0, 0.25, 3e38, 1e-40])
def test_equal_importance_changes_nothing(normal, method, value):
    weights = normal[:160]
    importance = np.full(weights.shape, value, np.float32)
    assert np.array_equal(q43nl(weights, method, importance=importance), q43nl(weights, method))
    row = np.full(32, value)
    assert np.array_equal(q43nl(weights, method, importance=row), q43nl(weights, method))


@every_method
@pytest.mark.parametrize("name", samples.DISTRIBUTIONS)
def test_ones_change_nothing_whatever_the_distribution(method, name):
    weights = samples.draw(name, 48 if method == "exact" else 700, seed=8)
    weights[3] = 0
    assert np.array_equal(q43nl(weights, method, importance=np.ones(32)), q43nl(weights, method))


@every_method
def test_importance_lowers_the_weighted_error(normal, rng, method):
    weights = normal[:256]
    importance = rng.exponential(size=weights.shape)
    plain = oracle.errors(weights, q43nl(weights, method), importance).sum()
    packed = q43nl(weights, method, importance=importance)
    assert oracle.errors(weights, packed, importance).sum() < GAIN[method] * plain


@pytest.mark.parametrize("name", samples.DISTRIBUTIONS)
@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_grid_minimizes_the_weighted_error(rng, name, zeros):
    """As the oracle does by trying all curves; groups without importance count equally."""
    weights = samples.draw(name, 300, seed=21)
    importance = rng.exponential(size=weights.shape).astype(np.float32)
    importance[rng.random(weights.shape) < zeros] = 0
    importance[5] = 0
    told = np.where(importance.any(axis=1, keepdims=True), importance, 1)
    expected = oracle.errors(weights, oracle.grid(weights, importance=told), told)
    found = oracle.errors(weights, q43nl(weights, "grid", importance=importance), told)
    # Where candidates tie but for rounding, either may be taken.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-8 * expected.max())


@every_method
@pytest.mark.parametrize("name", ["normal", "laplace", "uniform", "student_t3"])
def test_quality_under_importance(rng, method, name):
    """Beside the grid's, which knows the importance as well."""
    weights = samples.draw(name, 256, seed=22)
    importance = rng.exponential(size=weights.shape).astype(np.float32)
    reference = oracle.errors(weights, q43nl(weights, "grid", importance=importance), importance)
    found = oracle.errors(weights, q43nl(weights, method, importance=importance), importance)
    assert found.sum() <= (1.02 if method == "predictor" else 1.004) * reference.sum()
    if method in JOINT:
        assert np.all(found <= reference * (1 + 1e-9))


@every_method
def test_importance_of_columns(normal, rng, method):
    """One value per column, also where columns and groups are out of step or in pieces."""
    importance = rng.exponential(size=96).astype(np.float32)
    weights = normal[:12].reshape(-1, 96)
    spread = np.broadcast_to(importance, weights.shape)
    expected = q43nl(weights, method, importance=spread)
    assert np.array_equal(q43nl(weights, method, importance=importance), expected)
    odd = rng.exponential(size=24)
    weights = normal[:12].reshape(-1, 24)
    expected = q43nl(weights, method, importance=np.tile(odd, (len(weights), 1)))
    assert np.array_equal(q43nl(weights, method, importance=list(odd)), expected)


def test_importance_of_a_tensor_of_three_dimensions(normal, rng):
    """The last dimension's, or the tensor's own shape; not that of its last two."""
    weights, importance = normal[:12].reshape(3, 2, 64), rng.exponential(size=64)
    spread = np.broadcast_to(importance, weights.shape)
    packed = q43nl(weights, "coarse_fine", importance=importance)
    assert np.array_equal(q43nl(weights, "coarse_fine", importance=spread), packed)
    with pytest.raises(ValueError, match=r"importance.*\(3, 2, 64\).*found shape \(2, 64\)"):
        q43nl(weights, "coarse_fine", importance=spread[0])


@pytest.mark.parametrize("method", [name for name in METHODS if name != "exact"])
def test_importance_of_columns_in_pieces(method):
    """Also where a piece is divided further, and whatever the number of threads."""
    weights = np.random.default_rng(0).standard_normal((11000, 96)).astype(np.float32)
    importance = np.random.default_rng(1).exponential(size=96).astype(np.float32)
    packed = q43nl(weights, method, importance=importance)
    tail = q43nl(weights[-32:], method, importance=importance)
    assert np.array_equal(packed[-tail.size :], tail)
    assert np.array_equal(q43nl(weights, method, importance=importance, num_threads=1), packed)


@pytest.mark.parametrize("method", JOINT)
def test_weights_without_importance_do_not_count(method):
    weights = samples.draw("normal", 8)
    spoiled = weights.copy()
    spoiled[:, 7] = 5000
    importance = np.ones(32)
    importance[7] = 0
    ours = q43nl(spoiled, method, importance=importance)
    plain = oracle.errors(weights, q43nl(weights, method, importance=importance), importance)
    np.testing.assert_allclose(oracle.errors(spoiled, ours, importance), plain, rtol=1e-9)


@every_method
@pytest.mark.parametrize(
    ("importance", "found"),
    [
        (np.full(32, -1.0), "-1"),
        (np.r_[np.ones(31), np.nan], "nan"),
        (np.r_[np.ones(31), np.inf], "inf"),
        (np.full(32, 1e300), "1e"),
        (np.ones(31), "31"),
        (np.ones((2, 16)), "16"),
        (np.ones((1, 32)), "32"),
        (1.0, r"\(\)"),
    ],
)
def test_importance_that_is_none(method, importance, found):
    with pytest.raises(ValueError, match=f"importance.*{found}"):
        q43nl(np.ones((4, 32)), method, importance=importance)


@every_method
@pytest.mark.parametrize("importance", ["ones", np.ones(32, complex), [None] * 32])
def test_importance_that_is_no_number(method, importance):
    with pytest.raises(TypeError, match="importance"):
        q43nl(np.ones((4, 32)), method, importance=importance)
