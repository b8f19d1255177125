"""What `gradient` is told of each group: by SciPy, and for few groups by a kernel, bit for bit."""

import numpy as np
import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from q43nl_numba import q43nl
from q43nl_numba._portions import STATISTICS_PORTION
from q43nl_numba.methods import statistics

any_groups = hnp.arrays(
    np.float32,
    st.tuples(st.integers(statistics.FEW + 1, statistics.FEW + 9), st.just(32)),
    elements=st.floats(-65504, 65504, width=32),
)


def assert_both_ways_agree(groups):
    with np.errstate(all="ignore"):
        whole = statistics.group_statistics(groups)
        parts = [
            statistics.group_statistics(groups[at : at + 7]) for at in range(0, len(groups), 7)
        ]
    np.testing.assert_array_equal(whole, np.hstack(parts))


@given(any_groups)
def test_any_groups(groups):
    assert_both_ways_agree(groups)


@pytest.mark.parametrize("magnitude", [1e-20, 1e-9, 1, 2000])
@pytest.mark.parametrize("name", samples.DISTRIBUTIONS)
def test_distributions(name, magnitude):
    groups = samples.draw(name, 200, seed=30) * np.float32(magnitude)
    groups[9] = 0
    largest = np.float32(65504)  # an int would make NumPy 1.26 clip to float64
    assert_both_ways_agree(np.clip(groups, -largest, largest))


def test_statistics_are_the_textbook_ones(normal):
    """In double precision, with SciPy's plain functions."""
    groups = normal[:100].astype(np.float64)
    found = statistics.group_statistics(normal[:100])
    kurtosis = [
        stats.moment(group, 4, center=0) / stats.moment(group, 2, center=0) ** 2 for group in groups
    ]
    np.testing.assert_allclose(found[0], kurtosis, rtol=1e-5)
    ordered = np.sort(np.abs(normal[:100]), axis=1)
    np.testing.assert_array_equal(found[1:], ordered[:, [7, 23]].T)


@pytest.mark.parametrize("more", [32, 32 * statistics.FEW, 32 * statistics.FEW + 32])
def test_bytes_at_the_borders_of_portions(more):
    """A rest of any size gives what the groups give by themselves."""
    weights = samples.draw("student_t3", (2 * STATISTICS_PORTION + more) // 32, seed=31)
    packed = q43nl(weights)
    rest = q43nl(weights[-more // 32 :])
    np.testing.assert_array_equal(packed[-rest.size :], rest)
    np.testing.assert_array_equal(q43nl(weights, num_threads=1), packed)
