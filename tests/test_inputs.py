"""Whatever NumPy takes as numbers: dtypes, layouts, foreign arrays, `out`, and the memory used."""

import tracemalloc

import numpy as np
import oracle
import pytest

from q43nl_numba import dequantize, q43nl, quality

MIB = 1 << 20


@pytest.fixture(scope="module")
def whole():
    """Whole numbers, which every dtype below holds exactly: one set of bytes for all of them."""
    weights = np.random.default_rng(11).integers(-100, 101, (24, 64))
    weights.flags.writeable = False
    return weights


@pytest.fixture(scope="module")
def packed(whole):
    return q43nl(whole.astype(np.float32), method="grid")


def pack(tensor, **options):
    return q43nl(tensor, method="grid", **options)


def dtype_of(name):
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(name)


class HasArray:
    """Offers ``__array__`` and nothing else."""

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return np.array(self._array, dtype=dtype)


class HasDlpack:
    """Offers the DLPack protocol and nothing else, as a tensor on the CPU does."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


# --- dtypes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("float32", "float16", "float64", "bfloat16", "longdouble"),
        *("int8", "int16", "int32", "int64"),
        *(">f4", ">f2", ">f8", ">i2", ">i4", ">i8"),
    ],
)
def test_dtypes(whole, packed, name):
    assert np.array_equal(pack(whole.astype(dtype_of(name))), packed)


@pytest.mark.parametrize("name", ["uint8", "uint16", "uint32", "uint64", ">u4"])
def test_unsigned_dtypes(whole, name):
    positive = np.abs(whole)
    assert np.array_equal(pack(positive.astype(name)), pack(positive.astype(np.float32)))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_short_floats_are_widened_exactly(rng, name):
    """All finite values of the dtype that a scale can hold, in random order."""
    dtype = dtype_of(name)
    values = np.arange(65536, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        wide = values.astype(np.float32)
        values = values[np.isfinite(wide) & (np.abs(wide) <= 65504)]
    values = rng.permutation(values)[: values.size // 32 * 32]
    assert np.array_equal(pack(values), pack(values.astype(np.float32)))


def test_float64_is_rounded_once(rng):
    weights = rng.standard_normal((64, 32))
    assert np.array_equal(pack(weights), pack(weights.astype(np.float32)))


@pytest.mark.parametrize("value", [65504.0, 65504.001])
def test_float64_that_rounds_to_the_largest(value):
    """What is quantized is the value in float32, with `out` and without."""
    weights = np.full(32, value)
    expected = pack(weights.astype(np.float32))
    assert np.array_equal(pack(weights), expected)
    assert np.array_equal(pack(weights, out=np.empty(19, np.uint8)), expected)


# --- shapes and layouts ----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1536,), (48, 32), (2, 3, 4, 64), (1536, 1), (1, 1, 1536)])
def test_shapes(whole, packed, shape):
    """Any shape: groups are formed in C order."""
    found = pack(whole.reshape(shape).astype(np.float32))
    assert found.shape == (1536 // 32 * 19,)
    assert np.array_equal(found, packed)


LAYOUTS = {
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "fortran": np.asfortranarray,
    "sliced": lambda a: np.repeat(np.repeat(a, 2, axis=0), 3, axis=1)[::2, ::3],
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "columns": lambda a: np.concatenate([a, a + 1], axis=1)[:, : a.shape[1]],
    "swapped": lambda a: a.reshape(4, 6, 64).transpose(1, 0, 2).copy().transpose(1, 0, 2),
    "unaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    "field": lambda a: np.rec.fromarrays([a, a], names="first,second")["second"],
    "matrix": lambda a: a.view(np.matrix),
}


@pytest.mark.parametrize("name", ["float32", "float16", "float64", "bfloat16", "int32", ">f4"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_layouts(whole, packed, layout, name):
    if (layout, name) == ("field", "bfloat16"):
        pytest.skip("record arrays hold no bfloat16")
    assert np.array_equal(pack(LAYOUTS[layout](whole.astype(dtype_of(name)))), packed)


def test_groups_cross_rows(whole, packed):
    """Only the size matters, not the last dimension."""
    assert np.array_equal(pack(whole.astype(np.float32).reshape(96, 16)), packed)


def test_broadcast():
    row = np.linspace(-1, 1, 64, dtype=np.float32)
    tall = np.broadcast_to(row, (10, 64))
    assert np.array_equal(pack(tall), np.tile(pack(row), 10))
    assert (
        pack(np.broadcast_to(np.float32(3), (4, 32))).tobytes() == pack(np.full(128, 3.0)).tobytes()
    )


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_read_only(whole, packed, name):
    weights = whole.astype(name)
    weights.flags.writeable = False
    assert np.array_equal(pack(weights), packed)
    assert np.array_equal(pack(weights, num_threads=1), packed)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("name", ["float32", "float16", ">f4"])
def test_memory_mapped(tmp_path, whole, packed, name, mode):
    path = tmp_path / "weights.bin"
    path.write_bytes(whole.astype(name).tobytes())
    mapped = np.memmap(path, name, mode=mode, shape=whole.shape)
    found = pack(mapped)
    assert type(found) is np.ndarray
    assert np.array_equal(found, packed)


def test_many_pieces_have_no_seams(rng):
    """A converted tensor of several pieces, of a size no piece divides, in two layouts."""
    weights = rng.standard_normal((1237, 4096))  # float64, 5M weights
    expected = pack(weights.astype(np.float32))
    assert np.array_equal(pack(weights), expected)
    assert np.array_equal(pack(np.asfortranarray(weights)), expected)


@pytest.mark.parametrize(
    "shape", [(3200, 1237), (1237, 3200), (64, 321, 223), (2, 2000016), (32, 131073)]
)
def test_pieces_of_odd_rows_have_no_seams(rng, shape):
    """Rows that hold no whole groups, in layouts that leave no flat view, over several pieces."""
    weights = rng.standard_normal(shape, dtype=np.float32)
    expected = q43nl(weights, "coarse_fine")
    error = oracle.mse(weights, expected)
    padded = np.concatenate([weights, weights[..., :1]], axis=-1)[..., :-1]
    for layout in (np.asfortranarray(weights), padded, np.ascontiguousarray(weights[::-1])[::-1]):
        assert not layout.flags.c_contiguous
        assert np.array_equal(q43nl(layout, "coarse_fine"), expected)
        assert quality(layout, expected).mse == pytest.approx(error, rel=1e-6)


# --- other objects ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float32", "float16", "float64", "int16"])
@pytest.mark.parametrize("wrapper", [HasArray, HasDlpack])
def test_foreign_arrays(whole, packed, wrapper, name):
    tensor = wrapper(whole.astype(name))
    assert np.array_equal(pack(tensor), packed)
    assert quality(tensor, packed) == quality(whole.astype(np.float32), packed)


def test_lists_and_scalars_in_them(whole, packed):
    assert np.array_equal(pack(whole.tolist()), packed)
    assert np.array_equal(pack(whole.astype(float).tolist()), packed)
    assert np.array_equal(pack(tuple(map(tuple, whole.tolist()))), packed)


def test_buffers(whole, packed):
    assert np.array_equal(pack(memoryview(whole.astype(np.float32))), packed)


@pytest.mark.parametrize("shape", [(0,), (0, 32), (5, 0), (3, 0, 64)])
@pytest.mark.parametrize("name", ["float32", "float16", "int8"])
def test_empty(shape, name):
    found = q43nl(np.empty(shape, name))
    assert found.shape == (0,)
    assert found.dtype == np.uint8


def test_empty_list_and_out():
    assert q43nl([]).shape == (0,)
    out = np.empty(0, np.uint8)
    assert q43nl(np.empty(0, np.float32), out=out) is out


# --- out -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(912,), (48, 19), (24, 38), (1, 2, 456)])
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_out(whole, packed, shape, name):
    out = np.full(shape, 0xAA, np.uint8)
    assert pack(whole.astype(name), out=out) is out
    assert np.array_equal(out.ravel(), packed)


def test_out_inside_a_larger_buffer(whole, packed):
    buffer = np.full(912 + 20, 0xAA, np.uint8)
    pack(whole, out=buffer[10:-10])
    assert np.array_equal(buffer[10:-10], packed)
    assert (buffer[:10] == 0xAA).all()
    assert (buffer[-10:] == 0xAA).all()


def test_out_memory_mapped(tmp_path, whole, packed):
    out = np.memmap(tmp_path / "out.bin", np.uint8, mode="w+", shape=912)
    pack(whole, out=out)
    out.flush()
    assert (tmp_path / "out.bin").read_bytes() == packed.tobytes()


# --- memory ----------------------------------------------------------------------------------


def peak_memory(call):
    """Bytes that Python and NumPy held at most during the call, above what they held before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """Compiling holds memory of its own, and is slow where memory is traced: do it before."""
    for weights in (np.ones((2, 32), np.float32), np.ones((2, 32), np.float16)):
        dequantize(q43nl(weights, "coarse_fine"), dtype=weights.dtype)


LARGE = 1 << 25  # weights; 128 MiB as float32


def large_broadcast(name):
    return np.broadcast_to(np.arange(1024).astype(dtype_of(name)), (LARGE // 1024, 1024))


def large_transposed(name):
    rows = np.broadcast_to(np.arange(1024).astype(name)[:, None], (1024, LARGE // 1024))
    return rows.T


@pytest.mark.parametrize("name", ["float16", "float64", "bfloat16", "int32", ">f4", "float32"])
def test_conversion_is_bounded_in_memory(name):
    """The output is the caller's; all else together stays under 64 MiB."""
    tensor = large_broadcast(name)
    out = np.empty(LARGE // 32 * 19, np.uint8)
    assert peak_memory(lambda: q43nl(tensor, "coarse_fine", out=out)) < 64 * MIB


def test_transposed_conversion_is_bounded_in_memory():
    out = np.empty(LARGE // 32 * 19, np.uint8)
    tensor = large_transposed("float32")
    assert peak_memory(lambda: q43nl(tensor, "coarse_fine", out=out)) < 64 * MIB


def test_large_memmap_is_bounded_in_memory(tmp_path):
    """A sparse file: 32M float16 weights that are read, never held at once."""
    path = tmp_path / "zeros.bin"
    with open(path, "wb") as file:
        file.truncate(2 * LARGE)
    mapped = np.memmap(path, np.float16, mode="r")
    out = np.empty(mapped.size // 32 * 19, np.uint8)
    assert peak_memory(lambda: q43nl(mapped, "coarse_fine", out=out)) < 64 * MIB
    assert not out.any()


def test_contiguous_float32_is_not_copied(rng):
    tensor = rng.standard_normal(1 << 24, dtype=np.float32)  # 64 MiB
    out = np.empty(tensor.size // 32 * 19, np.uint8)
    assert peak_memory(lambda: q43nl(tensor, "coarse_fine", out=out)) < 8 * MIB
    assert peak_memory(lambda: q43nl(tensor, "coarse_fine")) < out.nbytes + MIB


@pytest.mark.parametrize("name", ["float16", "float64"])
def test_dequantize_is_bounded_in_memory(name):
    packed = np.broadcast_to(np.zeros(19, np.uint8), (LARGE // 32, 19))
    contiguous = np.ascontiguousarray(packed)
    out = np.empty(LARGE, name)
    assert peak_memory(lambda: dequantize(contiguous, dtype=name, out=out)) < 64 * MIB


def test_dequantize_of_float32_holds_only_its_result():
    packed = oracle.grid(np.linspace(-1, 1, 32, dtype=np.float32))
    packed = np.repeat(packed, 1 << 16, axis=0)
    out = np.empty(1 << 21, np.float32)
    dequantize(packed[:1])
    assert peak_memory(lambda: dequantize(packed, out=out)) < MIB


def test_quality_is_bounded_in_memory():
    tensor = large_broadcast("float16")
    packed = np.tile(q43nl(tensor[0], "coarse_fine"), LARGE // 1024)
    assert peak_memory(lambda: quality(tensor, packed)) < 64 * MIB
