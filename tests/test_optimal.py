"""`optimal` and `exact`: the optimum proven by other means, closeness, codes and scales."""

import numba
import numpy as np
import oracle
import pytest
import samples

from q43nl_numba import dequantize, q43nl
from q43nl_numba.kernels.joint import LARGEST_STORABLE
from q43nl_numba.kernels.tile import LANES
from q43nl_numba.methods import exact
from q43nl_numba.methods.optimal import refinement, starts
from q43nl_numba.methods.optimal.starts import SLICE

JOINT = ("optimal", "exact")
every_free = pytest.mark.parametrize("method", JOINT)
both_codes = pytest.mark.parametrize("codes", ["full", "symmetric"])

EFFORTS = range(1, 10)
# Largest ratio of the mean squared error to that of `exact` on normal data.
CLOSENESS = {
    1: 1.03,
    2: 1.025,
    3: 1.015,
    4: 1.005,
    5: 1.002,
    6: 1.001,
    7: 1.001,
    8: 1.001,
    9: 1.001,
}


def assert_optimal(weights, packed, optimum, importance=1.0):
    """As decoded: levels are rounded to float32, which costs or gains next to nothing."""
    energy = (importance * weights.astype(np.float64) ** 2).sum(axis=1)
    optimum = np.asarray(optimum)
    slack = 1e-5 * optimum + 1e-6 * np.sqrt(optimum * energy) + 1e-13 * energy
    found = oracle.errors(weights, packed, importance)
    assert np.all(np.abs(found - optimum) <= slack), (found, optimum)


# --- exact is the optimum --------------------------------------------------------------------


@both_codes
@pytest.mark.parametrize("name", samples.DISTRIBUTIONS)
def test_exact_is_what_a_sweep_finds(name, codes):
    weights = samples.draw(name, 2, seed=11)
    packed = q43nl(weights, "exact", codes=codes)
    optimum = [oracle.sweep_optimum(group, full=codes == "full") for group in weights]
    assert_optimal(weights, packed, optimum)


@both_codes
@pytest.mark.parametrize("magnitude", [3e-9, 2e-8, 6e-8, 2e-7, 1e-6])
def test_exact_is_what_a_blunt_search_finds(rng, codes, magnitude):
    """Groups so small that all scales that come into question can be tried."""
    weights = (magnitude * rng.standard_normal((3, 32))).astype(np.float32)
    packed = q43nl(weights, "exact", codes=codes)
    # Every weight is nearest to 0 at scales above 98 times the largest.
    scale_bits = range(1, int(99 * np.abs(weights).max() * 2**24) + 2)
    scale_bits = [half for half in scale_bits if half < 0x0800]
    optimum = [oracle.blunt_optimum(group, scale_bits, full=codes == "full") for group in weights]
    assert_optimal(weights, packed, optimum)


def test_the_two_oracles_agree(rng):
    weights = (4e-7 * rng.standard_normal((2, 32))).astype(np.float32)
    for group in weights:
        swept = oracle.sweep_optimum(group)
        assert swept == pytest.approx(oracle.blunt_optimum(group, range(1, 200)), rel=1e-12)


def test_exact_with_importance_is_what_a_sweep_finds(rng):
    weights = samples.draw("normal", 3, seed=12)
    importance = rng.exponential(size=weights.shape).astype(np.float32)
    importance[1, :20] = 0
    packed = q43nl(weights, "exact", importance=importance)
    optimum = [oracle.sweep_optimum(*pair) for pair in zip(weights, importance, strict=True)]
    assert_optimal(weights, packed, optimum, importance)


def test_exact_below_the_curve_where_code_8_turns_inward():
    """Groups drawn from the levels of curves below c = -7/8, where code -8 lies inside code -7."""
    rng = np.random.default_rng(3)
    curves = np.array([-128, -127, -120, -113, -111])
    codes = rng.integers(-8, 8, (len(curves), 32))
    weights = (1.5 * oracle.curve(codes / 7, curves[:, None] / 127)).astype(np.float32)
    noisy = (weights + 0.01 * rng.standard_normal(weights.shape)).astype(np.float32)
    for groups in (weights, noisy):
        optimum = [oracle.sweep_optimum(group) for group in groups]
        assert_optimal(groups, q43nl(groups, "exact"), optimum)


# --- optimal comes near ----------------------------------------------------------------------


@pytest.mark.parametrize("effort", EFFORTS)
def test_closeness_to_the_optimum(normal, effort):
    best = oracle.mse(normal, q43nl(normal, "exact"))
    found = oracle.mse(normal, q43nl(normal, "optimal", effort=effort))
    assert best * (1 - 1e-9) <= found <= CLOSENESS[effort] * best


@pytest.mark.parametrize("name", samples.DISTRIBUTIONS)
def test_default_effort_on_other_distributions(name):
    weights = samples.draw(name, 512, seed=4)
    best = oracle.mse(weights, q43nl(weights, "exact"))
    assert oracle.mse(weights, q43nl(weights, "optimal")) <= 1.005 * best + 1e-12


@pytest.mark.parametrize("effort", [3, 9])
def test_a_few_weights_among_zeros(rng, effort):
    """Their best scales are up to twice the peak, with strongly bent curves."""
    weights = rng.standard_normal((1024, 32)) * (rng.random((1024, 32)) < 0.1)
    weights = weights.astype(np.float32)
    best = oracle.mse(weights, q43nl(weights, "exact"))
    found = oracle.mse(weights, q43nl(weights, "optimal", effort=effort))
    assert found <= {3: 1.005, 9: 1.001}[effort] * best


@numba.njit
def keep_compiled(score, scale_bits, curves, kept_scores, kept_scale_bits, kept_curves):
    refinement.keep_best_pairs(score, scale_bits, curves, kept_scores, kept_scale_bits, kept_curves)


@pytest.mark.parametrize("places", [1, 2, 3, 9])
def test_kept_candidates_stay_whole(rng, places):
    """The best ones, sorted, each with its own scale and curve, whatever the compiler does."""
    kept_scores = np.full((places, LANES), -1, np.float32)
    kept_scale_bits = np.zeros((places, LANES), np.uint32)
    kept_curves = np.zeros((places, LANES), np.int32)
    scores = rng.random((12, LANES)).astype(np.float32)
    for row in scores:
        scale_bits, curves = (row * 2**15).astype(np.uint32), (row * 2**20).astype(np.int32)
        keep_compiled(row.copy(), scale_bits, curves, kept_scores, kept_scale_bits, kept_curves)
    best = np.sort(scores, axis=0)[::-1][:places]
    np.testing.assert_array_equal(kept_scores, best)
    np.testing.assert_array_equal(kept_scale_bits, (best * 2**15).astype(np.uint32))
    np.testing.assert_array_equal(kept_curves, (best * 2**20).astype(np.int32))


@numba.njit
def enter_compiled(scores, turns, first, names, best, number):
    starts.keep_best_starts(scores, turns, first, names, best, number)


@pytest.mark.parametrize("kept", [1, 2, 5])
def test_starts_enter_lists_one_after_another(rng, kept):
    """Batches leave the lists that single starts would: with equal scores, too, order decides."""
    scores = rng.integers(0, 12, (3, 40, SLICE)).astype(np.float32)
    turns = rng.integers(0, 2, (3, 40, SLICE)).astype(np.int32)
    best = np.full((kept, SLICE), -1, np.float32)
    number = np.zeros((kept, SLICE), np.int32)
    expected = [[(-1.0, 0)] * kept for _ in range(SLICE)]
    for batch in range(3):
        for k, lane in np.ndindex(40, SLICE):
            entry = (scores[batch, k, lane], 2 * (40 * batch + k) + turns[batch, k, lane])
            for place in range(kept):
                if entry[0] > expected[lane][place][0]:
                    entry, expected[lane][place] = expected[lane][place], entry
        names = np.empty((40, SLICE), np.int32)
        enter_compiled(scores[batch], turns[batch], 40 * batch, names, best, number)
    found = [list(zip(best[:, lane], number[:, lane], strict=True)) for lane in range(SLICE)]
    assert found == expected


def test_the_work_of_exact_is_bounded(monkeypatch):
    """This importance used to take 3.5 s for a single group; boxes are counted, not seconds."""
    weights = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    importance = np.full(32, 4e-12, np.float32)
    importance[np.argmax(np.abs(weights))] = 1e-40
    one_more = exact.MOST_BOXES + exact.BOXES
    assert 90e-9 * one_more < 0.1  # nanoseconds that a box takes
    packed = q43nl(weights, "exact", importance=importance)
    found = oracle.errors(weights, packed, importance)
    assert found <= oracle.errors(
        weights, q43nl(weights, "grid", importance=importance), importance
    )


def test_gain_over_grid(normal):
    reference = oracle.mse(normal, q43nl(normal, "grid"))
    assert oracle.mse(normal, q43nl(normal, "optimal", effort=1)) < 0.8 * reference
    assert oracle.mse(normal, q43nl(normal, "optimal", codes="symmetric")) < 0.94 * reference
    assert oracle.mse(normal, q43nl(normal, "exact")) < 0.745 * reference


@both_codes
@pytest.mark.parametrize("effort", [1, 3, 5])
@pytest.mark.parametrize("name", [*samples.DISTRIBUTIONS, *samples.GOLDEN_SETS])
def test_never_worse_than_grid(name, effort, codes):
    """On any single group, and no exact optimum is above what `optimal` finds."""
    golden = samples.golden()
    weights = golden[name]["input"] if name in golden else samples.draw(name, 1024, seed=5)
    found = oracle.errors(weights, q43nl(weights, "optimal", effort=effort, codes=codes))
    assert np.all(found <= oracle.errors(weights, q43nl(weights, "grid")))


@both_codes
@pytest.mark.parametrize("name", samples.DISTRIBUTIONS)
def test_exact_is_never_worse_than_optimal(name, codes):
    weights = samples.draw(name, 256, seed=6)
    exact = oracle.errors(weights, q43nl(weights, "exact", codes=codes))
    optimal = oracle.errors(weights, q43nl(weights, "optimal", effort=9, codes=codes))
    assert np.all(exact <= optimal * (1 + 1e-12))


# --- codes and scales ------------------------------------------------------------------------


@every_free
def test_codes_are_the_nearest_levels(normal, method):
    packed = q43nl(normal[:256], method)
    weights = normal[:256].astype(np.float64)
    codes, scales, curves = oracle.unpack(packed)
    every = oracle.engine_levels(oracle.ALL_CODES[None, :], curves[:, None])
    every = (every * scales.astype(np.float32)[:, None]).astype(np.float64)
    nearest = np.abs(weights[:, :, None] - every[:, None, :]).min(axis=2)
    assert np.array_equal(np.abs(weights - oracle.decode(packed)), nearest)
    assert (codes == -8).any()
    assert (scales < 0).any()


@every_free
@pytest.mark.parametrize("name", samples.DISTRIBUTIONS)
def test_symmetric_codes(method, name):
    """What the classic methods write: codes -7 to 7, positive scales, curves from -127 on."""
    weights = samples.draw(name, 256)
    codes, scales, curves = oracle.unpack(q43nl(weights, method, codes="symmetric"))
    assert codes[scales > 0].min() >= -7
    assert not np.signbit(scales).any()
    assert curves.min() >= -127


FEW_CODES = ([5, -5], [1, -1], [7, -3], [0, -8], [2, 3], [-8, -1, 1], [6, -6, 0], [4, -7, 2])


def groups_of_any_bytes(codes, count=64):
    """Groups of all codes and of few in turn, some of the smallest, largest and odd curves."""
    rng = np.random.default_rng(41)
    least = -8 if codes == "full" else -7
    drawn = rng.integers(least, 8, (count, 32))
    for group in range(0, count, 2):
        few = np.maximum(FEW_CODES[group // 2 % len(FEW_CODES)], least)
        drawn[group] = rng.choice(few, 32)
    bits = rng.integers(1, 0x7C00, count)
    bits[::5] = rng.integers(1, 0x0420, len(bits[::5]))  # subnormal, most of them
    bits[3::20] = 0x7BFF
    curves = rng.integers(least - 120, 128, count)
    curves[1::7] = 127
    curves[2::9] = least - 120
    if codes == "full":
        bits[(rng.random(count) < 0.5) & (bits >= 0x0400)] |= 0x8000
    return oracle.pack(drawn, bits.astype(np.uint16).view(np.float16), curves)


@both_codes
@pytest.mark.parametrize("share", [1.0, 0.7, 0.2])
def test_what_any_bytes_decode_to_is_stored_without_loss(codes, share):
    """Of the weights that count, a share; the search alone misses half of these groups."""
    weights = dequantize(groups_of_any_bytes(codes), (-1, 32))
    importance = (np.random.default_rng(42).random(weights.shape) < share).astype(np.float32)
    importance[:, 0] = 1
    spoiled = np.where(importance > 0, weights, weights[:, :1] * np.float32(0.337))
    packed = q43nl(spoiled, "optimal", effort=1, codes=codes, importance=importance)
    decoded = dequantize(packed, weights.shape)
    assert np.array_equal(decoded[importance > 0], weights[importance > 0])


@every_free
@both_codes
@pytest.mark.parametrize(
    "magnitude", [1e-45, 1e-38, 1e-9, 6e-8, 1e-6, 3e-5, 6e-5, 1e-4, 1e4, 65000]
)
def test_scales_are_sound(rng, method, codes, magnitude):
    """Finite, and negative ones are neither zero nor subnormal."""
    weights = (magnitude * rng.uniform(-1, 1, (64, 32))).astype(np.float32)
    packed = q43nl(weights, method, codes=codes)
    bits = oracle.unpack(packed)[1].view(np.uint16)
    assert np.all((bits <= 0x7BFF) | ((bits >= 0x8400) & (bits <= 0xFBFF)))
    zero = bits == 0
    assert not packed.reshape(-1, 19)[zero].any()
    energy = (weights.astype(np.float64) ** 2).sum(axis=1)
    assert np.all(oracle.errors(weights, packed) <= energy)


@every_free
def test_small_groups_are_kept(rng, method):
    """What the classic methods store as zeros, though binary16 can express it."""
    weights = (2e-7 * rng.uniform(-1, 1, (64, 32))).astype(np.float32)
    assert oracle.snr_db(weights, q43nl(weights, method)) > 15
    assert not q43nl(weights, method, eps_scale=1e-6).any()


@every_free
@pytest.mark.parametrize("sign", [1, -1])
def test_beyond_the_largest_scale(rng, method, sign):
    """One side of zero reaches to 1.3 times the largest scale."""
    weights = np.full((4, 32), sign * 80000, np.float32)
    weights[1] = rng.uniform(-60000, 60000, 32)
    weights[1, 3] = sign * 84000
    weights[2, 1:] = sign * rng.uniform(0, 70000, 31)
    weights[3, :] = sign * np.float32(LARGEST_STORABLE)
    packed = q43nl(weights, method)
    decoded = dequantize(packed, weights.shape)
    assert np.all(np.isfinite(decoded))
    np.testing.assert_allclose(decoded[[0, 3]], weights[[0, 3]], rtol=1e-3)
    assert oracle.snr_db(weights, packed) > 24


@every_free
def test_beyond_every_level(method):
    outside = np.nextafter(np.float32(LARGEST_STORABLE), np.float32(np.inf))
    one = np.ones(64, np.float32)
    for place, value in ((40, outside), (41, -outside), (63, 3e38)):
        tensor = one.copy()
        tensor[place] = value
        with pytest.raises(ValueError, match=f"tensor.*65504.*index {place}"):
            q43nl(tensor, method)
    tensor = one.copy()
    tensor[[33, 40]] = 70000, -70000  # each could be reached, both cannot
    with pytest.raises(ValueError, match=r"tensor.*70000.*index 33"):
        q43nl(tensor, method)
    tensor[40] = 1
    assert np.abs(dequantize(q43nl(tensor, method))[33] - 70000) < 100
    with pytest.raises(ValueError, match=r"tensor.*65504.*index 33"):
        q43nl(tensor, method, codes="symmetric")


# --- parameters and threads ------------------------------------------------------------------


@pytest.mark.parametrize("effort", [0, 10, -1, 1.5, "5", None, True])
def test_effort_out_of_range(effort):
    with pytest.raises((TypeError, ValueError), match="effort"):
        q43nl(np.ones(32), "optimal", effort=effort)


@every_free
@pytest.mark.parametrize("codes", ["", "Full", None, 15])
def test_unknown_codes(method, codes):
    with pytest.raises(ValueError, match=r"codes.*full, symmetric"):
        q43nl(np.ones(32), method, codes=codes)


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [("grid", "effort", 3), ("exact", "effort", 3), ("gradient", "codes", "symmetric")],
)
def test_parameters_of_another_method(method, name, value):
    with pytest.raises(ValueError, match=f"{name}.*optimal"):
        q43nl(np.ones(32), method, **{name: value})


@every_free
@both_codes
def test_threads_and_neighbors_change_nothing(method, codes):
    weights = samples.draw("student_t3", 300, seed=9)
    packed = q43nl(weights, method, codes=codes, num_threads=1)
    for threads in (2, 3, None):
        assert np.array_equal(q43nl(weights, method, codes=codes, num_threads=threads), packed)
    turned = q43nl(weights[::-1], method, codes=codes).reshape(-1, 19)
    assert np.array_equal(turned[::-1], packed.reshape(-1, 19))
