"""Encoding: roundtrip, distributions, a 32K tensor, a sweep of parameters, methods compared."""

from itertools import pairwise

import brute_force
import numba
import numpy as np
import oracle
import pytest
import samples

from q43nl_numba import GROUP_DTYPE, METHODS, dequantize, q43nl, quality
from q43nl_numba.methods.grid import seventh
from q43nl_numba.methods.statistics import group_statistics as hints

CLASSIC = ("grid", "coarse_fine", "gradient")
# Every method at its defaults, and the gradient method at its other settings.
SETTINGS = {
    **{method: {"method": method} for method in METHODS},
    "gradient_10_01": samples.GOLDEN_METHODS["gradient_10_01"],
    "gradient_20_01": samples.GOLDEN_METHODS["gradient_20_01"],
}
every_method = pytest.mark.parametrize("method", METHODS)
every_setting = pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)


def assert_same_or_tied(weights, ours, theirs):
    """The same bytes; a few groups may differ where two candidates have one error."""
    ours, theirs = (packed.reshape(-1, 19) for packed in (ours, theirs))
    assert (ours != theirs).any(axis=1).mean() <= 0.001
    change = np.abs(oracle.errors(weights, ours) - oracle.errors(weights, theirs))
    assert np.all(change <= 1e-6 * (weights.astype(np.float64) ** 2).sum(axis=1))


# --- roundtrip -------------------------------------------------------------------------------


@every_setting
def test_roundtrip(normal, options):
    packed = q43nl(normal, **options)
    assert packed.dtype == np.uint8
    assert packed.shape == (normal.size // 32 * 19,)
    assert packed.flags.c_contiguous
    assert packed.flags.writeable
    decoded = dequantize(packed, normal.shape)
    assert decoded.dtype == np.float32
    assert decoded.shape == normal.shape
    assert oracle.snr_db(normal, packed) > 21.5


@pytest.mark.parametrize("method", CLASSIC)
def test_classic_scale_is_the_rounded_up_maximum(normal, method):
    packed = q43nl(normal, method=method)
    codes, scales, _ = oracle.unpack(packed)
    expected = oracle.scale_up(np.abs(normal).max(axis=1))
    assert np.array_equal(scales.view(np.uint16), expected.view(np.uint16))
    assert np.array_equal(np.abs(codes).max(axis=1), np.full(len(codes), 7))


@pytest.mark.parametrize("method", ["coarse_fine", "gradient"])
def test_codes_are_the_nearest_levels(normal, method):
    """Given the stored scale and curve, no code of -7..7 is nearer than the stored one."""
    codes, scales, curves = oracle.unpack(q43nl(normal, method=method))
    v = oracle.normalize(normal, scales.astype(np.float32)[:, None])
    c = curves[:, None] / 127
    found = np.abs(v - oracle.curve(codes / 7, c))
    nearest = np.abs(v - oracle.curve(oracle.round_nearest(v, c) / 7, c))
    assert np.all(found <= nearest + 1e-6)


def test_grid_codes_are_the_rounded_roots(normal):
    """Given the stored scale and curve, the codes follow the classic rule."""
    codes, scales, curves = oracle.unpack(q43nl(normal, method="grid"))
    v = oracle.normalize(normal, scales.astype(np.float32)[:, None])
    assert np.array_equal(codes, oracle.round_classic(v, curves[:, None] / 127))


# --- distributions ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", samples.DISTRIBUTIONS)
@every_setting
def test_distributions(name, options):
    weights = samples.draw(name, 256)
    packed = q43nl(weights, **options)
    assert oracle.snr_db(weights, packed) > 20
    zero = (weights == 0).all(axis=1)
    assert np.array_equal((packed.reshape(-1, 19) == 0).all(axis=1), zero)


@every_setting
@pytest.mark.parametrize("value", [1.0, -1.0, 0.7, -0.1, 3e-5, 65504.0, -12345.0])
def test_constant_groups(options, value):
    """One value is one level, as near as the scale can hold it."""
    weights = np.full((3, 32), value, np.float32)
    decoded = dequantize(q43nl(weights, **options), weights.shape)
    spacing = max(abs(value) * 2**-10, 2**-24)
    assert np.all(np.abs(decoded - weights) <= spacing * 1.001)


@every_setting
def test_one_weight_among_zeros(options):
    weights = np.diag(np.linspace(-4, 4, 32)).astype(np.float32)
    decoded = dequantize(q43nl(weights, **options), weights.shape)
    assert np.all(decoded[weights == 0] == 0)
    np.testing.assert_allclose(decoded, weights, rtol=2**-10)


@every_setting
def test_weights_on_levels_are_kept(options):
    """A group that some storable curve meets exactly loses only rounding."""
    curves = np.array([-127, -100, -64, -30, 0, 30, 64, 100, 127])
    codes = np.tile([*range(-7, 8), *range(-7, 8), 7, -7], (len(curves), 1))
    weights = (1.5 * oracle.curve(codes / 7, curves[:, None] / 127)).astype(np.float32)
    packed = q43nl(weights, **options)
    if options["method"] in ("gradient", "predictor"):  # few steps come near, not always there
        assert oracle.snr_db(weights, packed) > 30
    else:
        np.testing.assert_allclose(dequantize(packed, weights.shape), weights, atol=1e-6)


@every_setting
def test_negative_weights(normal, options):
    weights = -np.abs(normal)
    decoded = dequantize(q43nl(weights, **options), weights.shape)
    assert np.all(decoded <= 0)
    packed = q43nl(weights, **options)
    assert oracle.mse(weights, packed) <= 1.02 * oracle.mse(weights, oracle.grid(weights))


# --- a 32K tensor ----------------------------------------------------------------------------


@every_setting
def test_a_32k_tensor(rng, options):
    weights = (0.02 * rng.standard_normal((128, 256))).astype(np.float32)
    packed = q43nl(weights, **options)
    assert packed.size == 32768 // 32 * 19
    record = quality(weights, packed)
    assert record.bits_per_weight == 4.75
    assert record.mse == pytest.approx(oracle.mse(weights, packed), rel=1e-9)
    assert record.snr_db == pytest.approx(oracle.snr_db(weights, packed), abs=1e-6)
    assert record.max_abs_error == pytest.approx(oracle.max_abs_error(weights, packed), rel=1e-6)
    assert 21.5 < record.snr_db < 25


def test_quality_is_a_frozen_record(normal):
    record = quality(normal, q43nl(normal))
    with pytest.raises(AttributeError):
        record.mse = 0.0
    assert record == quality(normal, q43nl(normal))
    assert "snr_db" in repr(record)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ">f4"])
def test_quality_of_other_dtypes(normal, dtype):
    weights = normal.astype(dtype)
    packed = q43nl(weights, method="grid")
    assert quality(weights, packed).mse == pytest.approx(oracle.mse(weights, packed), rel=1e-6)


def test_quality_without_error():
    """Powers of two on the levels of curve 0 at code 7 and 0: nothing is lost."""
    weights = np.tile([0.0, 2.0], 16).astype(np.float32)
    record = quality(weights, q43nl(weights))
    assert (record.mse, record.max_abs_error, record.snr_db) == (0, 0, np.inf)


# --- a sweep of parameters -------------------------------------------------------------------


def test_sevenths_are_rounded_as_quotients_are():
    """The grid search takes two products for them: its double precision must not suffer."""

    @numba.njit
    def sevenths(values):
        result = np.empty_like(values)
        for i in range(values.size):
            result[i] = seventh(values[i])
        return result

    values = np.arange(0, 10.5, 0.5)
    np.testing.assert_array_equal(sevenths(values), values / 7)


@pytest.mark.parametrize("grid_size", [2, 3, 5, 9, 16, 17, 64, 127, 254, 255, 256, 1000])
def test_grid_sizes_match_the_oracle(normal, grid_size):
    weights = normal[:256]
    ours = q43nl(weights, method="grid", grid_size=grid_size)
    assert_same_or_tied(weights, ours, oracle.grid(weights, grid_size))


def test_more_candidates_never_cost(normal):
    """Each of these grids holds the candidates of the one before it."""
    errors = [
        oracle.errors(normal, q43nl(normal, method="grid", grid_size=size))
        for size in (2, 3, 5, 255)
    ]
    for fewer, more in pairwise(errors):
        assert np.all(more <= fewer * (1 + 1e-5))


def test_grid_of_two_stores_only_the_ends(normal):
    _, _, curves = oracle.unpack(q43nl(normal, method="grid", grid_size=2))
    assert set(curves.tolist()) == {-127, 127}


@pytest.mark.parametrize("name", samples.DISTRIBUTIONS)
def test_grid_matches_the_oracle(name):
    weights = samples.draw(name, 300, seed=1)
    ours = q43nl(weights, method="grid").reshape(-1, 19)
    theirs = oracle.grid(weights)
    if name in ("sparse", "outlier"):  # nearly all codes zero: many curves give one error
        change = np.abs(oracle.errors(weights, ours) - oracle.errors(weights, theirs))
        assert np.all(change <= 1e-6 * (weights.astype(np.float64) ** 2).sum(axis=1))
    else:
        assert_same_or_tied(weights, ours, theirs)


def test_one_pass_chooses_what_brute_force_chooses():
    """The same curve in every one of 32,768 groups."""
    weights = np.random.default_rng(5).standard_normal((32_768, 32), dtype=np.float32)
    expected = np.empty(len(weights), np.int32)
    brute_force.best_curves(brute_force.magnitudes_of(weights), expected)
    found = q43nl(weights, "grid").view(GROUP_DTYPE)["curve"]
    np.testing.assert_array_equal(found, expected)


def test_gradient_starts_know_the_statistics(normal):
    """Kurtosis about zero and quartiles of the magnitudes, as SciPy and NumPy define them."""
    found = hints(normal)
    for row, expected in zip(found, oracle.statistics(normal), strict=True):
        np.testing.assert_allclose(row, expected, rtol=1e-5)


@pytest.mark.parametrize("gd_lr", [1e-6, 0.01, 0.1, 0.3, 1.0, 1e6])
@pytest.mark.parametrize("gd_iterations", [1, 2, 5, 10, 40])
def test_gradient_parameters(normal, gd_iterations, gd_lr):
    """Any rate and any number of steps give a sound result."""
    packed = q43nl(normal, method="gradient", gd_iterations=gd_iterations, gd_lr=gd_lr)
    reference = oracle.mse(normal, q43nl(normal, method="grid"))
    assert oracle.mse(normal, packed) <= 1.05 * reference


def test_gradient_parameters_take_effect(normal):
    default = q43nl(normal)
    assert np.array_equal(default, q43nl(normal, method="gradient", gd_iterations=5, gd_lr=0.3))
    assert not np.array_equal(default, q43nl(normal, gd_iterations=20))
    assert not np.array_equal(default, q43nl(normal, gd_lr=0.01))


# --- comparison of methods -------------------------------------------------------------------


@pytest.mark.parametrize("name", samples.DISTRIBUTIONS)
def test_methods_compared(name):
    """Every method stays near the reference, and coarse_fine nearer than a short gradient."""
    weights = samples.draw(name, 1024, seed=2)
    reference = oracle.mse(weights, q43nl(weights, method="grid"))
    ratio = {
        key: oracle.mse(weights, q43nl(weights, **SETTINGS[key])) / reference for key in SETTINGS
    }
    assert ratio["grid"] == 1
    # The predictor was made for dense groups.
    limits = {key: 1.1 if key == "predictor" and name == "sparse" else 1.05 for key in ratio}
    assert all(ratio[key] <= limits[key] for key in ratio)
    assert ratio["hybrid"] <= 1.001
    assert ratio["coarse_fine"] <= 1.005


def test_methods_differ(normal):
    packed = {q43nl(normal, **options).tobytes() for options in SETTINGS.values()}
    assert len(packed) == len(SETTINGS)


# --- scales at the edges ---------------------------------------------------------------------


@every_setting
@pytest.mark.parametrize("zero", [0.0, -0.0, 1e-9, -9e-7])
def test_zero_groups(options, zero):
    """A group whose scale is at most eps_scale is 19 zero bytes; its neighbors do not mind."""
    weights = samples.draw("normal", 5)
    weights[[0, 3]] = zero
    options = {**options, "eps_scale": 1e-6}
    packed = q43nl(weights, **options).reshape(-1, 19)
    assert not packed[[0, 3]].any()
    alone = q43nl(weights[[1, 2, 4]], **options).reshape(-1, 19)
    assert np.array_equal(packed[[1, 2, 4]], alone)
    assert np.all(dequantize(packed, (-1, 32))[[0, 3]] == 0)


@every_method
def test_eps_scale_is_compared_with_the_rounded_scale(method):
    weights = np.linspace(-0.3, 0.3, 32).astype(np.float32)
    scale = float(oracle.scale_up(np.abs(weights).max()))
    assert not q43nl(weights, method=method, eps_scale=scale).any()
    assert q43nl(weights, method=method, eps_scale=np.nextafter(scale, 0)).any()
    assert not q43nl(weights, method=method, eps_scale=1e9).any()


@every_setting
@pytest.mark.parametrize("magnitude", [2e-7, 3e-6, 5.9e-8, 6e-5])
def test_subnormal_scales(options, magnitude):
    """Scales below 2^-14 are stored, with eps_scale = 0 down to the least subnormal."""
    weights = magnitude * np.linspace(-1, 1, 64, dtype=np.float32)
    packed = q43nl(weights, **options, eps_scale=0)
    _, scales, _ = oracle.unpack(packed)
    assert np.all(np.abs(scales) > 0)
    error = np.abs(dequantize(packed) - weights)
    assert np.all(error <= 0.14 * np.abs(scales[0]).astype(np.float64))


def test_subnormal_scales_match_the_oracle(normal):
    weights = normal[:64] * np.float32(2**-20)
    ours = q43nl(weights, method="grid", eps_scale=0)
    assert_same_or_tied(weights, ours, oracle.grid(weights, eps_scale=0))


@every_setting
def test_weights_far_below_the_least_scale(options):
    """Magnitudes that only float32 subnormals hold round to zeros at the least scale."""
    weights = np.full(32, 1e-40, np.float32)
    assert not dequantize(q43nl(weights, **options, eps_scale=0)).any()
    assert not q43nl(np.zeros(32, np.float32), **options, eps_scale=0).any()


@every_setting
def test_largest_scale(options):
    weights = 65504 * np.linspace(-1, 1, 32, dtype=np.float32)
    packed = q43nl(weights, **options)
    decoded = dequantize(packed)
    assert np.isfinite(decoded).all()
    assert np.all(np.abs(decoded - weights) <= 0.14 * 65504)


@pytest.mark.parametrize("method", CLASSIC)
def test_scale_rounds_up_to_the_largest(method):
    """Just above the last but one binary16."""
    weights = np.full(32, 65473, np.float32)
    assert oracle.unpack(q43nl(weights, method=method))[1][0] == 65504


# --- invariances -----------------------------------------------------------------------------


@every_setting
@pytest.mark.parametrize("exponent", [-12, -5, 1, 8, 13])
def test_powers_of_two_change_only_scales(normal, options, exponent):
    factor = np.float32(2.0**exponent)
    codes, scales, curves = oracle.unpack(q43nl(normal, **options))
    scaled = oracle.unpack(q43nl(normal * factor, **options))
    assert np.array_equal(scaled[0], codes)
    assert np.array_equal(scaled[1].astype(np.float64), scales.astype(np.float64) * factor)
    assert np.array_equal(scaled[2], curves)


@every_setting
@pytest.mark.parametrize("cut", [1, 3, 8, 33, 500, 1023])
def test_parts_are_quantized_as_the_whole(normal, options, cut):
    parts = [q43nl(normal[:cut], **options), q43nl(normal[cut:], **options)]
    assert np.array_equal(np.concatenate(parts), q43nl(normal, **options))


@every_setting
def test_groups_do_not_see_their_neighbors(options):
    """Each group alone, and all in another order."""
    weights = np.concatenate([samples.draw(name, 6) for name in samples.DISTRIBUTIONS])
    packed = q43nl(weights, **options).reshape(-1, 19)
    backward = q43nl(weights[::-1], **options).reshape(-1, 19)
    assert np.array_equal(packed, backward[::-1])
    alone = [q43nl(group, **options) for group in weights]
    assert np.array_equal(packed, alone)


@every_setting
def test_thread_count_does_not_matter(options):
    weights = np.concatenate([samples.draw(name, 403, seed=9) for name in samples.DISTRIBUTIONS])
    expected = q43nl(weights, **options)
    for num_threads in (1, 2, 2, 3, 1000, None):
        assert np.array_equal(q43nl(weights, **options, num_threads=num_threads), expected)


@every_setting
def test_every_run_gives_the_same_bytes(normal, options):
    assert len({q43nl(normal, **options).tobytes() for _ in range(3)}) == 1


@every_setting
def test_negation_mirrors_the_weights(normal, options):
    decoded = dequantize(q43nl(normal, **options))
    assert np.array_equal(dequantize(q43nl(-normal, **options)), -decoded)


@pytest.mark.parametrize("name", samples.DISTRIBUTIONS)
@pytest.mark.parametrize("method", CLASSIC)
def test_negation_only_mirrors_the_codes(name, method):
    weights = samples.draw(name, 128)
    codes, scales, curves = oracle.unpack(q43nl(weights, method=method))
    mirrored = oracle.unpack(q43nl(-weights, method=method))
    zero = scales == 0  # a zero group has no codes to mirror
    assert np.array_equal(mirrored[0][~zero], -codes[~zero])
    assert np.array_equal(mirrored[1], scales)
    assert np.array_equal(mirrored[2], curves)


@every_setting
def test_input_is_left_alone(normal, options):
    before = normal.copy()
    q43nl(normal, **options)
    assert np.array_equal(normal, before)
