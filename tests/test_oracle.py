"""The oracle itself: held against exact rational arithmetic and the original's bytes."""

from fractions import Fraction

import numpy as np
import oracle
import pytest
import samples


def test_fma_rounds_the_exact_sum_once():
    """Every y of the format, and sums where two roundings would go wrong, against fractions."""
    codes, curves = np.meshgrid(np.arange(-8, 8), np.arange(-128, 128))
    x = codes.astype(np.float32) * np.float32(1 / 7)
    c = curves.astype(np.float32) * np.float32(1 / 127)
    a, t = np.float32(1) - c, x * c * np.abs(x)
    # (1 + 2^-23) + 2^-24 - 2^-70: just below a half, which float64 cannot tell from a half.
    a = np.append(a.ravel(), np.float32(2**-12 * (1 + 2**-23)))
    b = np.append(x.ravel(), np.float32(2**-12 * (1 - 2**-23)))
    t = np.append(t.ravel(), np.float32(1 + 2**-23))
    result = oracle.fma32(a, b, t)
    neighbors = [np.nextafter(result, np.float32(side)) for side in (-np.inf, np.inf)]
    for i in range(result.size):
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(t[i]))
        distance = abs(Fraction(float(result[i])) - exact)
        assert all(distance <= abs(Fraction(float(n[i])) - exact) for n in neighbors)
    rounded_twice = (a.astype(np.float64) * b + t).astype(np.float32)
    assert result[-1] == np.float32(1 + 2**-23) != rounded_twice[-1]


def test_inverse_undoes_the_curve():
    v = np.linspace(-1, 1, 401)
    for c in np.arange(-127, 128) / 127:
        x = oracle.inverse(v, c)
        assert np.abs(x).max() <= 1 + 1e-14
        np.testing.assert_allclose(oracle.curve(x, c), v, rtol=0, atol=1e-14)


def test_scale_is_the_least_binary16_that_holds_the_magnitude():
    bits = np.arange(0x7C00, dtype=np.uint16)  # zero to the largest finite
    exact = bits.view(np.float16).astype(np.float32)
    assert np.array_equal(oracle.scale_up(exact).view(np.uint16), bits)
    above = np.nextafter(exact[:-1], np.float32(np.inf))
    assert np.array_equal(oracle.scale_up(above).view(np.uint16), bits[1:])


@pytest.mark.parametrize("name", samples.DENSE_SETS)
def test_grid_is_the_original_byte_for_byte(name):
    vectors = samples.golden()[name]
    assert np.array_equal(oracle.grid(vectors["input"]), vectors["grid"])


@pytest.mark.parametrize("name", samples.TIED_SETS)
def test_grid_has_the_original_error_where_curves_tie(name):
    vectors = samples.golden()[name]
    ours = oracle.errors(vectors["input"], oracle.grid(vectors["input"]))
    theirs = oracle.errors(vectors["input"], vectors["grid"])
    energy = (vectors["input"].astype(np.float64) ** 2).sum(axis=1)
    assert np.all(np.abs(ours - theirs) <= 1e-6 * energy)


def test_engine_arithmetic_is_near_real_arithmetic(rng):
    packed = oracle.pack(
        rng.integers(-8, 8, (512, 32)),
        rng.uniform(-2, 2, 512).astype(np.float16),
        rng.integers(-128, 128, 512),
    )
    np.testing.assert_allclose(oracle.decode(packed), oracle.decode_exact(packed), rtol=2e-6)
