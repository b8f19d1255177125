"""The 19 bytes of a group: what sits where, and that nothing is lost."""

import numpy as np
import oracle
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import q43nl_numba
from q43nl_numba import GROUP_BYTES, GROUP_DTYPE, GROUP_SIZE, dequantize, q43nl

group_bytes = hnp.arrays(np.uint8, st.tuples(st.integers(1, 8), st.just(19)))


def test_constants():
    assert (GROUP_SIZE, GROUP_BYTES) == (32, 19)
    assert GROUP_DTYPE.itemsize == 19
    assert np.dtype([("codes", "u1", 16), ("scale", "<f2"), ("curve", "i1")]) == GROUP_DTYPE
    assert [GROUP_DTYPE.fields[name][1] for name in ("codes", "scale", "curve")] == [0, 16, 18]


def test_public_names_exist():
    assert all(hasattr(q43nl_numba, name) for name in q43nl_numba.__all__)
    assert isinstance(q43nl_numba.METHODS, tuple)
    assert {"grid", "coarse_fine", "gradient"} <= set(q43nl_numba.METHODS)
    assert isinstance(q43nl_numba.__version__, str)


def test_a_group_decoded_by_hand():
    """Scale 2, curve 0: the level of code k is k / 7."""
    packed = np.zeros(19, np.uint8)
    packed[:16] = 0x88  # nibble 8, code 0
    packed[0] = 0xF8  # weight 0: code 0, weight 1: code 7
    packed[1] = 0x91  # weight 2: code -7, weight 3: code 1
    packed[15] = 0x0F  # weight 30: code 7, weight 31: code -8
    packed[16:18] = 0x00, 0x40  # 2.0
    expected = np.zeros(32)
    expected[[1, 2, 3, 30, 31]] = 2, -2, 2 / 7, 2, -16 / 7
    np.testing.assert_allclose(dequantize(packed), expected, rtol=1e-6)


def test_a_curved_group_decoded_by_hand():
    """Curve 127 squares: level k is sign(k) (k / 7)^2. Curve -127 is its mirror at the end."""
    packed = np.zeros((2, 19), np.uint8)
    packed[:, :16] = 0xC5  # codes -3 and 4
    packed[:, 16:18] = 0x00, 0x3C  # 1.0
    packed[:, 18] = 127, 129  # 127 and -127
    decoded = dequantize(packed, shape=(2, 16, 2))
    np.testing.assert_allclose(decoded[0], np.tile([-9 / 49, 16 / 49], (16, 1)), rtol=1e-6)
    np.testing.assert_allclose(decoded[1], np.tile([-33 / 49, 40 / 49], (16, 1)), rtol=1e-6)


def test_a_group_encoded_by_hand():
    """Weights on the levels of curve 0 come back as their codes; the scale is their maximum."""
    codes = np.array([*range(-7, 8), *range(-7, 8), 0, 7])
    packed = q43nl((codes / 7).astype(np.float32), method="grid").view(GROUP_DTYPE)
    assert packed.shape == (1,)
    assert packed["scale"][0] == 1
    assert packed["curve"][0] == 0
    stored = packed["codes"][0]
    assert np.array_equal(stored & 15, codes[0::2] + 8)
    assert np.array_equal(stored >> 4, codes[1::2] + 8)


def test_structured_view_shows_the_fields(normal):
    packed = q43nl(normal, method="grid")
    assert packed.dtype == np.uint8
    assert packed.shape == (normal.size // 32 * 19,)
    groups = packed.view(GROUP_DTYPE)
    _, scales, curves = oracle.unpack(packed)
    assert np.array_equal(groups["scale"], scales)
    assert np.array_equal(groups["curve"], curves)


@given(group_bytes)
def test_every_group_is_its_fields(packed):
    """Bytes -> fields -> bytes changes nothing: packing is onto and one to one."""
    assert np.array_equal(oracle.pack(*oracle.unpack(packed)), packed)
    fields = packed.reshape(-1).view(GROUP_DTYPE)
    codes, scales, curves = oracle.unpack(packed)
    assert np.array_equal(fields["codes"] & 15, codes[:, 0::2] + 8)
    assert np.array_equal(fields["codes"] >> 4, codes[:, 1::2] + 8)
    assert np.array_equal(fields["scale"].view(np.uint16), scales.view(np.uint16))
    assert np.array_equal(fields["curve"], curves)


@given(
    hnp.arrays(np.int64, (3, 32), elements=st.integers(-8, 7)),
    hnp.arrays(np.uint16, 3),
    hnp.arrays(np.int8, 3),
)
def test_every_field_is_its_bytes(codes, scale_bits, curves):
    """Fields -> bytes -> fields changes nothing."""
    back = oracle.unpack(oracle.pack(codes, scale_bits.view(np.float16), curves))
    assert np.array_equal(back[0], codes)
    assert np.array_equal(back[1].view(np.uint16), scale_bits)
    assert np.array_equal(back[2], curves)
