"""Error budgets: MSE ratios against `grid`, decoded from the stored bytes."""

import functools

import oracle
import pytest
import samples

from q43nl_numba import METHODS, dequantize, q43nl

# MSE ratio on normal data that each setting promises.
PROMISED = {
    "coarse_fine": 1.0003,
    "gradient_5_03": 1.0100,
    "gradient_10_01": 1.0053,
    "gradient_20_01": 1.0026,
}

# MSE ratios of the original on other distributions: coarse_fine, then gradient at 5/0.3, 10/0.1
# and 20/0.1. A budget loose enough for any sample of the distribution.
ORIGINAL = {
    "normal_llm": (1.0020, 1.0416, 1.0061, 1.0062),
    "uniform": (1.0013, 1.0331, 1.0053, 1.0054),
    "laplace": (1.0024, 1.0618, 1.0109, 1.0108),
    "student_t3": (1.0039, 1.0890, 1.0149, 1.0150),
    "lognormal": (1.0029, 1.0767, 1.0166, 1.0158),
    "bimodal": (1.0044, 1.1167, 1.0369, 1.0366),
    "sparse": (1.0046, 1.1263, 1.0465, 1.0461),
}


@functools.cache
def weights_and_grid_mse(name, groups):
    weights = samples.draw(name, groups, seed=65537)
    return weights, oracle.mse(weights, q43nl(weights, method="grid"))


def mse_ratio(name, groups, **options):
    weights, grid_mse = weights_and_grid_mse(name, groups)
    return oracle.mse(weights, q43nl(weights, **options)) / grid_mse


@pytest.mark.parametrize("setting", PROMISED)
def test_normal_data(setting):
    """65,536 groups of N(0, 1)."""
    ratio = mse_ratio("normal", 65536, **samples.GOLDEN_METHODS[setting])
    assert ratio <= PROMISED[setting]


@pytest.mark.parametrize("name", ORIGINAL)
@pytest.mark.parametrize("setting", range(4), ids=list(PROMISED))
def test_other_distributions(name, setting):
    options = samples.GOLDEN_METHODS[list(PROMISED)[setting]]
    assert mse_ratio(name, 4096, **options) <= ORIGINAL[name][setting]


def test_gradient_gains_from_iterations():
    """More iterations at a lower rate never cost quality on a large sample."""
    options = list(samples.GOLDEN_METHODS.values())[1:]
    ratios = [mse_ratio("normal", 65536, **option) for option in options]
    assert ratios == sorted(ratios, reverse=True)


def test_hybrid_on_normal_data():
    assert mse_ratio("normal", 65536, method="hybrid") <= 1.0010


@pytest.mark.parametrize("name", samples.GOLDEN_SETS)
def test_hybrid_is_at_least_as_good_as_the_best_gradient(name):
    weights = samples.golden()[name]["input"]
    gradient = oracle.mse(weights, q43nl(weights, **samples.GOLDEN_METHODS["gradient_20_01"]))
    assert oracle.mse(weights, q43nl(weights, "hybrid")) <= gradient * (1 + 1e-9)


@pytest.mark.parametrize("name", ["normal", "laplace", "uniform", "student_t3", "lognormal"])
def test_predictor(name):
    assert mse_ratio(name, 16384, method="predictor") <= 1.02


@pytest.mark.parametrize("name", ["normal", "normal_llm", "laplace", "real_weights"])
def test_predictor_on_golden_sets(name):
    weights = samples.golden()[name]["input"]
    reference = oracle.mse(weights, q43nl(weights, "grid"))
    assert oracle.mse(weights, q43nl(weights, "predictor")) <= 1.02 * reference


@pytest.mark.parametrize("method", METHODS)
def test_no_method_is_far_from_grid(method):
    """Whatever the method, its defaults stay within the loosest promise on normal data."""
    assert mse_ratio("normal", 65536, method=method) <= max(PROMISED.values())


@pytest.mark.parametrize("method", ["grid", "coarse_fine", "gradient", "hybrid", "predictor"])
@pytest.mark.parametrize("name", ["normal", "bimodal", "student_t3"])
def test_classic_methods_cannot_beat_the_optimum(name, method):
    """With the scale fixed and codes -7..7, all curves and the nearest levels are the floor."""
    weights = samples.draw(name, 512, seed=3)
    floor = oracle.errors(weights, oracle.best_nearest(weights))
    slack = 1e-6 * (weights.astype(float) ** 2).sum(axis=1)
    assert (oracle.errors(weights, q43nl(weights, method=method)) >= floor - slack).all()


def test_signal_to_noise_of_normal_data():
    """The reference's own figure for N(0, 1): 21.9 dB."""
    weights, grid_mse = weights_and_grid_mse("normal", 65536)
    packed = q43nl(weights, method="grid")
    assert 21.8 < oracle.snr_db(weights, packed) < 22.1
    decoded = dequantize(packed, weights.shape)
    assert ((weights.astype(float) - decoded) ** 2).mean() == pytest.approx(grid_mse, rel=1e-12)
