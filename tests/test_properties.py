"""Properties of any input: the roundtrip bound, what is never written, decoding anything."""

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from q43nl_numba import GROUP_DTYPE, METHODS, dequantize, q43nl, quality

CLASSIC = ("grid", "coarse_fine", "gradient")
every_method = pytest.mark.parametrize("method", METHODS)

# Few shapes, values of every size: hypothesis likes the extremes.
any_weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.just(32)),
    elements=st.floats(-65504, 65504, width=32),
)


@st.composite
def drawn_weights(draw):
    """Groups as tensors have them: a distribution times any magnitude that a scale can hold."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["normal", "uniform", "heavy", "few"]))
    shape = (draw(st.integers(1, 9)), 32)
    if kind == "normal":
        weights = rng.standard_normal(shape)
    elif kind == "uniform":
        weights = rng.uniform(-1, 1, shape)
    elif kind == "heavy":
        weights = rng.standard_cauchy(shape)
    else:
        weights = rng.integers(-2, 3, shape)
    magnitude = draw(st.floats(-9, 4.8))
    return np.clip(weights * 10**magnitude, -65504, 65504).astype(np.float32)


some_weights = st.one_of(any_weights, drawn_weights())


def roundtrip_bound(weights, packed):
    """The largest |w - w_hat| that rounding to a level can leave, per weight.

    A weight inside the span of the levels lies between two neighbors. Rounding to the nearer one
    leaves at most half their gap. The classic rule rounds 7x instead: it parts the levels k and
    k + 1 not at their midpoint but at y((k + 1/2) / 7, c), which is c / 196 away from it, so it may
    leave |c| / 196 more. A weight outside the span is off by its overhang. All times the scale,
    plus what float32 rounding adds in decoding: a few parts in 2^24. The span is that of the codes
    -7..7; a method that also uses -8 has one more level to be near to, never fewer.
    """
    _, scales, curves = oracle.unpack(packed)
    scale = np.abs(scales.astype(np.float64))[:, None]
    c = curves.astype(np.float64) / 127
    inside = oracle.largest_gap(c) / 2 + np.abs(c) / 196
    overhang = np.maximum(np.abs(weights.astype(np.float64)) - scale, 0)
    return np.maximum(inside[:, None] * scale, overhang) + 1e-6 * scale


@every_method
@given(weights=some_weights, eps_scale=st.sampled_from([0.0, 1e-6, 1e-3]))
def test_any_finite_input_round_trips_within_its_bound(method, weights, eps_scale):
    packed = q43nl(weights, method=method, eps_scale=eps_scale).reshape(-1, 19)
    error = np.abs(dequantize(packed, weights.shape).astype(np.float64) - weights)
    zero = oracle.scale_up(np.abs(weights).max(axis=1)).astype(np.float64) <= eps_scale
    assert not packed[zero].any()
    assert np.all(error[~zero] <= roundtrip_bound(weights, packed)[~zero])


@pytest.mark.parametrize("method", CLASSIC)
@given(weights=some_weights)
def test_error_is_bounded_by_the_largest_weight(method, weights):
    """The widest gap of any curve is 13/49, so no weight is off by more than a seventh of the
    group's largest, give or take the rounding of the scale."""
    packed = q43nl(weights, method=method, eps_scale=0).reshape(-1, 19)
    error = np.abs(dequantize(packed, weights.shape).astype(np.float64) - weights).max(axis=1)
    largest = oracle.scale_up(np.abs(weights).max(axis=1)).astype(np.float64)
    assert np.all(error <= (13 / 98 + 1 / 196 + 1e-6) * largest)


@every_method
@given(weights=some_weights)
def test_what_is_never_written(method, weights):
    """No NaN, infinite, negative zero or negative subnormal scale; zero scale only with zeros."""
    packed = q43nl(weights, method=method, eps_scale=0).reshape(-1, 19)
    _, scales, _ = oracle.unpack(packed)
    assert np.isfinite(scales).all()
    bits = scales.view(np.uint16)
    assert not np.any((bits >= 0x8000) & (bits <= 0x83FF))
    assert not packed[scales == 0].any()
    if method in CLASSIC:
        assert np.array_equal(scales == 0, (weights == 0).all(axis=1))
    else:  # groups of zeros, and those below the least scale for which zeros are as near
        assert np.all(scales[(weights == 0).all(axis=1)] == 0)
        assert np.all(np.abs(weights[scales == 0]) < 2.0**-24)


@pytest.mark.parametrize("method", CLASSIC)
@given(weights=some_weights)
def test_classic_methods_keep_to_their_codes(method, weights):
    """Codes -7..7, curves -127..127, positive scales that hold the largest weight."""
    codes, scales, curves = oracle.unpack(q43nl(weights, method=method, eps_scale=0))
    stored = scales != 0
    assert np.all(np.abs(codes[stored]) <= 7)
    assert np.all(curves != -128)
    expected = oracle.scale_up(np.abs(weights).max(axis=1))
    assert np.array_equal(scales.view(np.uint16), expected.view(np.uint16))


@given(weights=drawn_weights())
def test_grid_has_the_oracle_error(weights):
    energy = (weights.astype(np.float64) ** 2).sum(axis=1)
    ours = oracle.errors(weights, q43nl(weights, method="grid"))
    theirs = oracle.errors(weights, oracle.grid(weights))
    assert np.all(np.abs(ours - theirs) <= 1e-6 * energy)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "exact"])
@given(weights=some_weights, exponent=st.integers(-6, 6))
def test_magnitude_changes_only_scales(method, weights, exponent):
    """Where neither result meets an end of binary16's range."""
    factor = np.float32(2.0**exponent)
    weights = within_binary16(weights)
    codes, scales, curves = oracle.unpack(q43nl(weights, method=method))
    scaled = oracle.unpack(q43nl(weights * factor, method=method))
    assert np.array_equal(scaled[0], codes)
    assert np.array_equal(scaled[1].astype(float), scales.astype(float) * factor)
    assert np.array_equal(scaled[2], curves)


@given(weights=some_weights, exponent=st.integers(-6, 6))
def test_magnitude_leaves_the_least_error(weights, exponent):
    """Of several optima, the one that is found may be another for weights of another magnitude."""
    factor = np.float32(2.0**exponent)
    weights = within_binary16(weights)
    found = oracle.errors(weights, q43nl(weights, "exact"))
    scaled = oracle.errors(weights * factor, q43nl(weights * factor, "exact"))
    energy = (weights.astype(np.float64) ** 2).sum(axis=1)
    assert np.all(np.abs(scaled / float(factor) ** 2 - found) <= 1e-6 * energy)


def within_binary16(weights):
    """Return the weights of groups whose scales stay clear of the ends of binary16's range."""
    largest = np.abs(weights).max(axis=1)
    held = (largest > 2.0**-7) & (largest < 2.0**9)
    weights = np.where(held[:, None], weights, np.float32(0))
    weights[np.abs(weights) < 1e-20] = 0  # products stay clear of float32's subnormals
    return weights


@pytest.mark.parametrize("method", CLASSIC)
@given(weights=some_weights)
def test_negation_negates(method, weights):
    decoded = dequantize(q43nl(weights, method=method))
    assert np.array_equal(dequantize(q43nl(-weights, method=method)), -decoded)


@given(weights=some_weights)
def test_negation_leaves_the_least_error(weights):
    """Of several optima, the one that is found may be another for the negated weights.

    Subnormal scales are left out: of those, only the positive ones are written.
    """
    held = np.abs(weights).max(axis=1) > 2.0**-7
    weights = np.where(held[:, None], weights, np.float32(0))
    found = oracle.errors(weights, q43nl(weights, "exact"))
    negated = oracle.errors(-weights, q43nl(-weights, "exact"))
    energy = (weights.astype(np.float64) ** 2).sum(axis=1)
    assert np.all(np.abs(found - negated) <= 1e-6 * energy)


@given(packed=hnp.arrays(np.uint8, st.tuples(st.integers(0, 20), st.just(19))))
def test_any_bytes_decode_as_the_oracle(packed):
    found, expected = dequantize(packed, (len(packed), 32)), oracle.decode(packed)
    same = found.view(np.uint32) == expected.view(np.uint32)
    assert np.all(same | (np.isnan(found) & np.isnan(expected)))
    assert np.array_equal(found.ravel(), dequantize(packed.tobytes()), equal_nan=True)
    structured = packed.reshape(-1).view(GROUP_DTYPE)
    assert np.array_equal(found.ravel(), dequantize(structured), equal_nan=True)


@every_method
@given(weights=some_weights)
def test_quality_is_the_oracle_figure(method, weights):
    packed = q43nl(weights, method=method)
    record = quality(weights, packed)
    assert record.mse == pytest.approx(oracle.mse(weights, packed), rel=1e-6)
    assert record.max_abs_error == pytest.approx(oracle.max_abs_error(weights, packed), rel=1e-6)
    assert record.bits_per_weight == 4.75
