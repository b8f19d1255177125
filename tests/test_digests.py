"""Stored bytes are an interface: nothing changes them without a line in the change log."""

import digests
import numpy as np
import pytest

from q43nl_numba.compare import VARIANTS

CHANGED = """\
{name}: the {what} of fixed input changed. If that is meant, say so in CHANGELOG.md and record the
new digests with `python tests/digests.py`, in the same commit."""


def explain(name, what="stored bytes"):
    return CHANGED.format(name=name, what=what)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.label)
def test_stored_bytes_have_not_changed(variant):
    known = digests.recorded()
    assert variant.label in known, f"{variant.label}: record it with `python tests/digests.py`"
    assert digests.digest_of(variant) == known[variant.label], explain(variant.label)


def test_decoded_weights_have_not_changed():
    known = digests.recorded()[digests.DECODER]
    assert digests.digest_of_decoder() == known, explain(digests.DECODER, "decoded weights")


def test_nothing_is_recorded_that_is_gone():
    assert set(digests.recorded()) == {*(v.label for v in VARIANTS), digests.DECODER}


def test_the_input_is_the_same_everywhere():
    """The guard guards nothing if the input moves; these are the sums of its integers."""
    weights = digests.fixed_weights()
    assert weights.dtype == np.float32
    assert weights.shape == (3 * digests.GROUPS + 3 * 64 + 6, 32)
    assert np.isfinite(weights).all()
    integers = (weights[: 3 * digests.GROUPS].astype(np.float64) * 2**16).astype(np.int64)
    assert digests.digest(integers) == INTEGERS
    assert digests.digest(digests.fixed_packed()) == PACKED


INTEGERS = "0bf265472bb130e6973089b83aa9b80c541abc5789359bd7b54da4dad73f39bc"
PACKED = "dcb074a9ec9b30097ebc72121ff1cc7f4c648ec246b71ba2ae52a025c5ab7182"
