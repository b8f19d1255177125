"""Decoding: the engine's float32, bit for bit, for every group that 19 bytes can spell."""

import numpy as np
import oracle
import pytest

from q43nl_numba import GROUP_DTYPE, dequantize

FLOATS = ["float32", "float16", "float64", "bfloat16"]


def dtype_of(name):
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(name)


def assert_same_bits(found, expected):
    """Equal bit for bit, so that zeros keep their sign; any NaN equals any NaN."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    unsigned = np.dtype(f"u{found.dtype.itemsize}")
    same = found.view(unsigned) == expected.view(unsigned)
    assert np.all(same | (np.isnan(found) & np.isnan(expected)))


def every_nibble(scale_bits, curves):
    """One group for every (scale, curve), its weights running twice through the 16 nibbles."""
    scale_bits, curves = (a.ravel() for a in np.meshgrid(scale_bits, curves))
    codes = np.tile(np.arange(-8, 8), (scale_bits.size, 2))
    return oracle.pack(codes, scale_bits.astype(np.uint16).view(np.float16), curves)


@pytest.fixture(scope="module")
def packed():
    """500 groups of random bytes with finite scales, read-only."""
    rng = np.random.default_rng(5)
    groups = rng.integers(0, 256, (500, 19), dtype=np.uint8)
    scales = rng.normal(0, 3, 500).astype(np.float16)
    groups[:, 16:18] = scales.view(np.uint8).reshape(-1, 2)
    groups.flags.writeable = False
    return groups


@pytest.fixture(scope="module")
def decoded(packed):
    return oracle.decode(packed)


@pytest.mark.parametrize("num_threads", [None, 1, 2])
def test_all_nibbles_and_curves(num_threads):
    """All 16 nibbles x 256 curves x scales of every kind."""
    kinds = [
        *(0x0000, 0x0001, 0x0002, 0x03FF, 0x0400, 0x0401),  # zero, subnormals, least normals
        *(0x3BFF, 0x3C00, 0x3C01, 0x2E66, 0x5555, 0x7BFE, 0x7BFF),  # about one, others, largest
        *(0x7C00, 0x7C01, 0x7DFF, 0x7E00, 0x7FFF),  # infinity, NaNs both signaling and quiet
    ]
    scale_bits = np.array([*kinds, *(bits | 0x8000 for bits in kinds)])
    groups = every_nibble(scale_bits, np.arange(-128, 128))
    found = dequantize(groups, (-1, 32), num_threads=num_threads)
    assert_same_bits(found, oracle.decode(groups))


@pytest.mark.parametrize("curve", [-128, -127, -13, 0, 26, 127])
def test_all_scales(curve):
    """All 65,536 scales, with all nibbles."""
    groups = every_nibble(np.arange(65536), np.array([curve]))
    assert_same_bits(dequantize(groups, (-1, 32)), oracle.decode(groups))


def test_random_bytes(rng):
    groups = rng.integers(0, 256, (20000, 19), dtype=np.uint8)
    assert_same_bits(dequantize(groups, (-1, 32)), oracle.decode(groups))


def test_what_classic_methods_never_write():
    """The format's table of odd groups."""
    one, minus_two, infinite, nan = 0x3C00, 0xC000, 0x7C00, 0x7E00
    groups = every_nibble(np.array([one]), np.array([0, 127, -127, -128]))
    lowest = dequantize(groups, (-1, 32))[:, 0]
    np.testing.assert_allclose(lowest[:3], [-1.142857, -1.306122, -0.979592], rtol=1e-6)
    assert_same_bits(lowest[3:], oracle.engine_levels(np.array([-8]), np.array([-128])))
    flipped = dequantize(every_nibble(np.array([minus_two]), np.array([5])))
    straight = dequantize(every_nibble(np.array([one]), np.array([5])))
    assert np.array_equal(flipped, -2 * straight)
    boundless = dequantize(every_nibble(np.array([infinite]), np.array([5])))
    assert np.array_equal(np.isnan(boundless), np.tile(np.arange(16) == 8, 2))
    assert np.isnan(dequantize(every_nibble(np.array([nan]), np.array([5])))).all()


def test_zero_group_is_minus_zero():
    found = dequantize(np.zeros(19, np.uint8))
    assert_same_bits(found, np.full(32, -0.0, np.float32))


@pytest.mark.parametrize("name", FLOATS)
def test_dtypes(packed, decoded, name):
    """Other dtypes are the float32 result, converted once."""
    dtype = dtype_of(name)
    assert_same_bits(dequantize(packed, (-1, 32), dtype=dtype), decoded.astype(dtype))
    out = np.empty(decoded.shape, dtype)
    assert dequantize(packed, dtype=dtype, out=out, shape=decoded.shape) is out
    assert_same_bits(out, decoded.astype(dtype))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64"])
def test_dtypes_of_odd_groups(name):
    """Beyond float16's range and non-finite: what a plain conversion gives, without a warning."""
    dtype = dtype_of(name)
    groups = every_nibble(np.arange(0, 65536, 97), np.array([-128, 0, 127]))
    with np.errstate(all="ignore"):
        expected = oracle.decode(groups).astype(dtype)
    assert_same_bits(dequantize(groups, (-1, 32), dtype=dtype), expected)


def test_large_conversion_matches_in_every_piece(rng):
    """A size that is converted in several pieces has no seams."""
    groups = rng.integers(0, 256, (1 << 17, 19), dtype=np.uint8)
    groups[:, 17] &= 0x3F  # positive, moderate scales
    found = dequantize(groups, (-1, 32), dtype=np.float16)
    assert_same_bits(found, oracle.decode(groups).astype(np.float16))


@pytest.mark.parametrize("shape", [(500, 32), (16000,), (100, 5, 32), (2, 8000), (-1, 64), 16000])
def test_shape(packed, decoded, shape):
    assert_same_bits(dequantize(packed, shape), decoded.reshape(shape))


def test_shape_defaults_to_flat(packed, decoded):
    assert_same_bits(dequantize(packed), decoded.ravel())


def test_out_is_filled_and_returned(packed, decoded):
    out = np.full(decoded.shape, 7, np.float32)
    assert dequantize(packed, out=out) is out
    assert_same_bits(out, decoded)


def test_out_may_be_given_another_shape(packed, decoded):
    """The result is then a view of `out`, and fills it."""
    out = np.empty((1000, 16), np.float32)
    found = dequantize(packed, decoded.shape, out=out)
    assert np.shares_memory(found, out)
    assert_same_bits(found, decoded)
    assert_same_bits(out, decoded.reshape(1000, 16))


def test_unaligned_out(packed, decoded):
    out = np.empty(16000 * 4 + 1, np.uint8)[1:].view(np.float32)
    assert not out.flags.aligned
    assert_same_bits(dequantize(packed, out=out).copy(), decoded.ravel())


@pytest.mark.parametrize("name", [">f4", ">f2", ">f8"])
def test_big_endian_dtypes(packed, decoded, name):
    found = dequantize(packed, (-1, 32), dtype=name)
    assert np.array_equal(found, decoded.astype(name))


def strided(packed):
    wide = np.zeros((packed.shape[0], 40), np.uint8)
    wide[:, 1:39:2] = packed
    return wide[:, 1:39:2]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda p: p.ravel(),
        lambda p: p.tobytes(),
        lambda p: bytearray(p.tobytes()),
        lambda p: memoryview(p.tobytes()),
        lambda p: memoryview(p),
        lambda p: p.ravel().view(GROUP_DTYPE),
        lambda p: p.ravel().view(GROUP_DTYPE).reshape(50, 10),
        lambda p: p.ravel().view(GROUP_DTYPE).copy()[::-1][::-1],
        lambda p: p.reshape(50, 190),
        lambda p: np.asfortranarray(p),
        strided,
    ],
    ids=[
        "flat",
        "bytes",
        "bytearray",
        "memoryview",
        "memoryview-2d",
        "structured",
        "structured-2d",
        "structured-reversed-twice",
        "rows",
        "fortran",
        "strided",
    ],
)
def test_forms_of_packed(packed, decoded, wrap):
    assert_same_bits(dequantize(wrap(packed)), decoded.ravel())


def test_strided_structured(packed, decoded):
    groups = packed.ravel().view(GROUP_DTYPE)
    assert_same_bits(dequantize(groups[::-3], (-1, 32)), decoded[::-3])


def test_memmap(tmp_path, packed, decoded):
    path = tmp_path / "packed.bin"
    path.write_bytes(packed.tobytes())
    mapped = np.memmap(path, np.uint8, mode="r")
    assert_same_bits(dequantize(mapped), decoded.ravel())


@pytest.mark.parametrize("empty", [b"", np.empty(0, np.uint8), np.empty((0, 19), np.uint8)])
def test_empty(empty):
    assert dequantize(empty).shape == (0,)
    assert dequantize(empty, (0, 32)).shape == (0, 32)
    assert dequantize(empty, dtype=np.float16).dtype == np.float16


@pytest.mark.parametrize("num_threads", [1, 2, 64])
def test_thread_count_does_not_matter(packed, decoded, num_threads):
    assert_same_bits(dequantize(packed, (-1, 32), num_threads=num_threads), decoded)
