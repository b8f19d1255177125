"""What holds for every method and any group: a few hundred groups, or 100,000 with ``-m slow``.

The figures in the notes of `q43nl` are those of the slow tests here.
"""

import functools

import digests
import numba
import numpy as np
import pytest
import samples

from q43nl_numba import GROUP_DTYPE, METHODS, dequantize, q43nl
from q43nl_numba.kernels import joint
from q43nl_numba.kernels.tile import LANES
from q43nl_numba.methods import TABLE, exact
from q43nl_numba.methods.optimal import optimal_parameters, search_optimal

CURVE_METHODS = [name for name in METHODS if not TABLE[name].joint]
QUICK, MANY = 110, 100_000
ROUNDING = 1 + 1e-12
"""NumPy adds the squared errors in another order than the kernels."""

EFFORTS = [{"effort": effort} for effort in (1, 5, 9)]
SYMMETRIC = {"codes": "symmetric"}

# Every setting that searches in another way: a method's name and its options.
SETTINGS = [
    *[(method, {}) for method in CURVE_METHODS],
    *[("optimal", effort) for effort in EFFORTS],
    *[("optimal", effort | SYMMETRIC) for effort in EFFORTS],
    ("exact", {}),
    ("exact", SYMMETRIC),
]
JOINT_SETTINGS = [setting for setting in SETTINGS if TABLE[setting[0]].joint]
FULL_SETTINGS = [setting for setting in JOINT_SETTINGS if "codes" not in setting[1]]


def over(settings):
    """Parametrize by settings; 100,000 groups of each are slow, and all efforts but the default."""
    cases = []
    for method, options in settings:
        name = "-".join(map(str, [method, *options.values()]))
        is_slow = options.get("effort", 5) != 5
        cases += [
            pytest.param(method, options, groups, id=f"{name}-{groups}", marks=marks)
            for groups, marks in ((QUICK, ()), (MANY, pytest.mark.slow))
            if marks or not is_slow
        ]
    return pytest.mark.parametrize(("method", "options", "groups"), cases)


weighted = pytest.mark.parametrize("kind", ["none", "usual", "zeros", "extreme"])


def drawn(groups, seed=31):
    """All distributions in turn, and of those a part in bfloat16's precision."""
    each = -(-groups // (len(samples.DISTRIBUTIONS) + 1))
    parts = [samples.draw(name, each, seed=seed) for name in samples.DISTRIBUTIONS]
    rounded = np.concatenate(parts)[:: len(parts)].view(np.uint32) & np.uint32(0xFFFF0000)
    return np.concatenate([*parts, rounded.view(np.float32)])[:groups]


def importance_of(kind, shape):
    """None, exponential, nine in ten 0, or from 10^-30 to 10^30."""
    rng = np.random.default_rng(32)
    if kind == "none":
        return None
    if kind == "extreme":
        return (10.0 ** rng.uniform(-30, 30, shape)).astype(np.float32)
    values = rng.exponential(size=shape)
    if kind == "zeros":
        values *= rng.random(shape) < 0.1
    return values.astype(np.float32)


def case(method, groups, kind):
    """Groups and importance; of those that take `exact` ten times as long, only a tenth."""
    slow = method == "exact" and kind in ("zeros", "extreme")
    weights = drawn(groups // 10 if slow and groups == MANY else groups)
    return weights, importance_of(kind, weights.shape)


@functools.cache
def stored(method, options, groups, kind):
    """What a setting, its options as pairs, stores of a case: read-only, for all tests.

    Most tests below look at every case in turn, so all are kept: 80 MB of 100,000 groups.
    """
    weights, importance = case(method, groups, kind)
    packed = q43nl(weights, method, importance=importance, **dict(options))
    packed.flags.writeable = False
    return packed


def packed_of(method, options, groups, kind):
    return stored(method, tuple(sorted(options.items())), groups, kind)


def errors(weights, packed, importance=None):
    """Squared error of each group: float64[groups]."""
    e = weights.astype(np.float64) - dequantize(packed, weights.shape)
    return ((1.0 if importance is None else counting(importance)) * e * e).sum(axis=1)


def counting(importance):
    """Importance as the kernels have it: in units of the group's largest, 1 where all are 0."""
    largest = importance.max(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore", under="ignore"):
        relative = importance / largest
    return np.where(largest > 0, relative, np.float32(1)).astype(np.float64)


@over(SETTINGS)
@weighted
def test_never_worse_than_zeros(method, options, groups, kind):
    weights, importance = case(method, groups, kind)
    found = errors(weights, packed_of(method, options, groups, kind), importance)
    zeros = errors(weights, np.zeros(len(weights) * 19, np.uint8), importance)
    slack = 0 if TABLE[method].joint else 1e-6  # levels are rounded when they are decoded
    assert np.all(found <= zeros * (1 + slack))


@over(JOINT_SETTINGS)
@weighted
def test_never_worse_than_grid(method, options, groups, kind):
    weights, importance = case(method, groups, kind)
    found = errors(weights, packed_of(method, options, groups, kind), importance)
    grid = errors(weights, q43nl(weights, "grid", importance=importance), importance)
    assert np.all(found <= grid * ROUNDING)


@over(FULL_SETTINGS)
@weighted
def test_never_worse_than_symmetric_codes(method, options, groups, kind):
    weights, importance = case(method, groups, kind)
    found, symmetric = (
        errors(weights, packed_of(method, both, groups, kind), importance)
        for both in (options, options | SYMMETRIC)
    )
    worse = found > symmetric * ROUNDING
    if method == "exact":
        # Some searches end before the optimum is proven, most of them where importance is extreme.
        assert worse.mean() <= (0.03 if kind == "extreme" else 0.001)
        worse = (found > symmetric * (1 + 1e-6)) & (kind != "extreme")
    assert not worse.any()


@over(SETTINGS)
@weighted
def test_permuted_groups_have_permuted_bytes(method, options, groups, kind):
    weights, importance = case(method, groups, kind)
    order = np.random.default_rng(33).permutation(len(weights))
    turned = None if importance is None else importance[order]
    packed = packed_of(method, options, groups, kind).reshape(-1, 19)
    again = q43nl(weights[order], method, importance=turned, **options).reshape(-1, 19)
    assert np.array_equal(again, packed[order])


@over(SETTINGS)
@pytest.mark.parametrize("kind", ["none", "usual"])
def test_a_power_of_two_changes_only_the_scales(method, options, groups, kind):
    """Where neither result meets an end of binary16's range."""
    weights, importance = case(method, groups, kind)
    largest = np.abs(weights).max(axis=1)
    within = (largest > 2.0**-7) & (largest < 2.0**9)
    packed = packed_of(method, options, groups, kind).reshape(-1, 19)[within].ravel()
    weights = weights[within]
    importance = None if importance is None else importance[within]
    for factor in (2.0**-4, 2.0**5):
        scaled = weights * np.float32(factor)
        again = q43nl(scaled, method, importance=importance, **options)
        differ = differ_by_more_than_scale(packed, again, factor)
        if method == "exact":
            # It bounds boxes of scales from one end of binary16's range to the other, so it may
            # find another of two equal errors first, and end in a hard group with another.
            assert differ.mean() <= 0.01
            error = errors(weights, packed, importance)
            other = errors(scaled, again, importance) / factor**2
            assert (np.abs(other - error) > 1e-6 * error).mean() <= 0.0005
        else:
            assert not differ.any()


def differ_by_more_than_scale(packed, again, factor):
    """Return for which groups codes, curve or the scale's mantissa differ."""
    one, other = packed.view(GROUP_DTYPE), again.view(GROUP_DTYPE)
    with np.errstate(over="ignore"):
        same_scale = other["scale"] == one["scale"] * np.float16(factor)
    same_codes = (other["codes"] == one["codes"]).all(axis=1)
    return ~(same_codes & same_scale & (other["curve"] == one["curve"]))


@over(SETTINGS)
@weighted
def test_negated_groups_decode_to_the_negation(method, options, groups, kind):
    """But for weights that do not count, and for scales about 2^-14: below, none are negative."""
    weights, importance = case(method, groups, kind)
    packed = packed_of(method, options, groups, kind)
    negated = q43nl(-weights, method, importance=importance, **options)
    small = np.zeros(len(weights), bool)
    for both in (packed, negated):
        scales = np.abs(both.view(GROUP_DTYPE)["scale"])
        small |= (scales > 0) & (scales < 2.0**-13)
    decoded, opposite = dequantize(packed, weights.shape), dequantize(negated, weights.shape)
    differ = decoded != -opposite
    if importance is not None:
        differ &= counting(importance) > 0
    assert not differ[~small].any()
    assert small.mean() < (0.1 if kind == "extreme" else 0.01)


@over([("grid", {}), *JOINT_SETTINGS])
@pytest.mark.parametrize("kind", ["none", "usual", "zeros"])
def test_what_was_decoded_is_stored_again(method, options, groups, kind):
    weights, importance = case(method, groups, kind)
    decoded = dequantize(packed_of(method, options, groups, kind), weights.shape)
    again = q43nl(decoded, method, importance=importance, **options)
    lost = dequantize(again, weights.shape) != decoded
    if importance is not None:
        lost &= counting(importance) > 0
    if method == "grid":
        # It compares errors before levels are rounded, and of the weights that count.
        lost = errors(decoded, again, importance) > 1e-12 * errors(
            decoded, np.zeros_like(again), importance
        )
    assert not lost.any()


@over(JOINT_SETTINGS)
def test_whatever_bytes_decode_to_is_stored_again(method, options, groups):
    """Any codes and curves; the scales are all that readers do not lose the sign of."""
    packed = np.random.default_rng(34).integers(0, 256, (groups, 19), dtype=np.uint8)
    fields = packed.view(GROUP_DTYPE)
    bits = fields["scale"].view(np.uint16) & np.uint16(digests.FINITE_SCALE)
    bits = np.where(bits & 0x7FFF < 0x0400, bits & 0x7FFF, bits)
    # Some groups of two or three codes: of those, many pairs of scale and curve come into question.
    few = packed[:, :16].reshape(groups, 16)
    few[::3] = np.where(few[::3] & 1, few[::3, :1], few[::3, 1:2])
    if "codes" in options:
        bits = bits & 0x7FFF
        few[:] = np.maximum(few & 15, 1) | np.maximum(few >> 4, 1) << 4
        fields["curve"][fields["curve"] == -128] = 0
    fields["scale"] = bits.astype(np.uint16).view(np.float16)
    decoded = dequantize(packed, (groups, 32))
    assert np.array_equal(dequantize(q43nl(decoded, method, **options), decoded.shape), decoded)


# --- what the notes of `q43nl` say -----------------------------------------------------------

# Share of groups of normal weights with more error than with `grid`; their median excess, and the
# excess that one in a hundred of them has.
WORSE_THAN_GRID = {
    "predictor": (0.289, 0.016, 0.173),
    "gradient": (0.029, 0.016, 0.154),
    "coarse_fine": (0.017, 0.010, 0.053),
    "hybrid": (0.0006, 0.008, 0.083),
}


def excess_over_grid(method, groups):
    """Share of groups of normal weights that are worse, and by how much, sorted."""
    weights = samples.draw("normal", groups, seed=35)
    ratio = errors(weights, q43nl(weights, method)) / errors(weights, q43nl(weights, "grid"))
    return (ratio > 1).mean(), np.sort(ratio[ratio > 1]) - 1


@pytest.mark.slow
@pytest.mark.parametrize("method", WORSE_THAN_GRID)
def test_groups_that_are_worse_than_with_grid(method):
    share, excess = excess_over_grid(method, MANY)
    expected, median, high = WORSE_THAN_GRID[method]
    tolerance = 0.4 if method == "hybrid" else 0.1  # 60 groups
    assert share == pytest.approx(expected, rel=tolerance)
    assert np.median(excess) == pytest.approx(median, rel=tolerance)
    assert np.quantile(excess, 0.99) == pytest.approx(high, rel=tolerance)


@pytest.mark.parametrize("method", WORSE_THAN_GRID)
def test_few_groups_are_much_worse_than_with_grid(method):
    share, excess = excess_over_grid(method, 2_000)
    assert share <= 1.5 * WORSE_THAN_GRID[method][0] + 0.002
    assert np.all(excess < 1)


# --- work ------------------------------------------------------------------------------------


@numba.njit(error_model="numpy")
def count_boxes(weights, importance, parameters, boxes):
    """Write how many boxes `exact` bounds for each lane of a tile."""
    normalized = np.zeros(weights.shape, np.float32)
    absmax = np.zeros(LANES, np.float32)
    found = np.zeros(LANES, np.float64)
    scale_bits = np.zeros(LANES, np.uint32)
    curves = np.zeros(LANES, np.int32)
    joint.normalize(weights, importance, 0.0, normalized, absmax)
    joint.set_errors_of_zeros(weights, importance, absmax, found)
    search_optimal(weights, importance, normalized, absmax, parameters, scale_bits, curves, found)
    stack = np.empty((exact.BOX_ROWS, exact.STACK), np.int32)
    for lane in range(LANES):
        if absmax[lane] > 0:
            boxes[lane] = exact.branch_and_bound(
                weights[:, lane].copy(), importance[:, lane].copy(), normalized[:, lane].copy(),
                absmax[lane], parameters.full, scale_bits[lane], curves[lane], found[lane], stack,
            )[3]  # fmt: skip


def hard_groups():
    """Pairs of groups and importance that took `exact` the most boxes, one tile of each kind."""
    weights = samples.draw("normal", LANES, seed=36)
    alone = np.where(np.arange(32) == 5, weights, np.float32(0))
    outlier = weights.copy()
    outlier[:, 5] *= np.float32(1e4)
    far_apart = importance_of("extreme", weights.shape)
    hidden = np.where(np.abs(weights) < np.abs(weights).max(axis=1, keepdims=True), 1, 1e-38)
    return {
        "alone": (alone, None),
        "two values": (np.where(weights > 0, np.float32(0.37), np.float32(-0.9113)), None),
        "sparse": (samples.draw("sparse", LANES, seed=36), None),
        "outlier": (outlier, far_apart),
        "far apart": (weights, far_apart),
        "hidden": (outlier, hidden),
        "subnormal": (weights * np.float32(1e-6), None),
    }


def boxes_of(weights, importance):
    ones = np.ones_like(weights)
    relative = ones if importance is None else counting(importance).astype(np.float32)
    boxes = np.zeros(LANES, np.int64)
    parameters = optimal_parameters("full", exact.FIRST_EFFORT)
    tile = np.ascontiguousarray(weights.T), np.ascontiguousarray(relative.T)
    count_boxes(*tile, parameters, boxes)
    return boxes


@pytest.mark.slow
def test_no_group_takes_exact_fifty_times_the_usual_work():
    """Other methods do the same work for every group. A box of a hard group takes no longer."""
    usual = boxes_of(samples.draw("normal", LANES, seed=36), None).mean()
    worst = {name: boxes_of(*pair).max() for name, pair in hard_groups().items()}
    assert 1_400 < usual < 1_800
    assert max(worst.values()) <= exact.MOST_BOXES + exact.BOXES < 50 * usual, worst
