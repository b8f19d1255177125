"""Whatever is given to `q43nl`, `dequantize`, `quality`: a result as of plain arrays, or an error.

An error is a TypeError or a ValueError of one line that names the argument; then nothing is
written. Nothing warns. What may be given: any dtype and byte order, any strides (negative, zero,
overlapping), any alignment, read-only memory, subclasses, other containers, any bits.
"""

from __future__ import annotations

import array
import collections
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q43nl_numba import GROUP_DTYPE, dequantize, q43nl, quality

try:
    import ml_dtypes
except ModuleNotFoundError:
    ml_dtypes = None

pytestmark = pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")

# What is made of an argument before the kernel: a few methods stand for all.
METHODS = ("coarse_fine", "grid", "predictor", "optimal")

NUMBERS = [
    *("float16", "float32", "float64", "longdouble"),
    *(">f2", ">f4", ">f8", "<f4"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", ">i2", ">u4"),
]
OTHERS = [
    *("bool", "complex64", "complex128", "U1", "S3", "object", "datetime64[s]", "timedelta64[ms]"),
    *("V4", "f4,f4", "i8,S2"),
]
EXTENSIONS = [] if ml_dtypes is None else [
    ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4,
]  # fmt: skip
DTYPES = [np.dtype(name) for name in (*NUMBERS, *OTHERS, *EXTENSIONS)]


class Odd(np.ndarray):
    """A subclass that answers everything wrong, as an array of other rules may."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(0) if self.ndim else self

    def __array_finalize__(self, parent: Any) -> None:
        self.parent = parent

    def reshape(self, *shape: Any, **_: Any) -> Any:
        raise RuntimeError("must not be asked")

    def astype(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("must not be asked")

    def view(self, *_: Any) -> Any:
        raise RuntimeError("must not be asked")


class NoUfunc(np.ndarray):
    """A subclass that no function of NumPy computes with."""

    __array_ufunc__ = None


class Raises:
    """Looks like an array and is none."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise self._error


def raw(draw: Any, dtype: np.dtype[Any], size: int) -> np.ndarray:
    """Elements of any bits, or ordinary ones."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    kind = draw(st.sampled_from(("small", "small", "bits", "zeros", "huge")))
    if dtype.hasobject:
        return np.array([None] * size, dtype)
    if kind == "bits" or dtype.kind in "UVMmS" or dtype.names:
        data = rng.bytes(size * dtype.itemsize)
        if dtype.kind in "U":
            return np.zeros(size, dtype)
        return np.frombuffer(data, dtype).copy()
    values = rng.integers(-3, 4, size) * (1 if kind == "small" else 0)
    with np.errstate(all="ignore"):
        found = values.astype(dtype)
        if kind == "huge" and size:
            found[rng.integers(size)] = np.array(70000, np.float64).astype(dtype)
    return found


@st.composite
def arrays(draw: Any, dtypes: Any = DTYPES) -> np.ndarray:
    """Arrays of every kind of memory."""
    dtype = draw(st.sampled_from(dtypes))
    shape = tuple(draw(st.lists(st.sampled_from((0, 1, 2, 3, 8, 16, 32, 64)), max_size=3)))
    size = int(np.prod(shape, dtype=np.int64))
    layout = draw(st.sampled_from(("plain", "plain", "F", "step", "back", "wide", "odd", "over")))
    if layout == "odd":  # at an address that is no multiple of anything
        flat = raw(draw, dtype, size)
        if dtype.hasobject:
            return flat.reshape(shape)
        memory = np.empty(flat.nbytes + 1, np.uint8)
        memory[1:] = np.frombuffer(flat.tobytes(), np.uint8)
        found = np.ndarray(shape, dtype, memory.data, 1)
    elif layout == "wide":
        found = np.broadcast_to(raw(draw, dtype, 1).reshape(()), shape)
    elif layout == "over" and dtype not in EXTENSIONS:  # windows that overlap
        flat = raw(draw, dtype, sum(shape) + 1)
        found = np.lib.stride_tricks.as_strided(flat, shape, (dtype.itemsize,) * len(shape))
    else:
        steps = 2 if layout == "step" else 1
        flat = raw(draw, dtype, size * steps**2)
        larger = tuple(length * steps for length in shape[:2]) + shape[2:]
        flat = flat[: int(np.prod(larger, dtype=np.int64))]
        found = flat.reshape(larger, order="F" if layout == "F" else "C")
        found = found[tuple([slice(None, None, steps)] * min(2, len(shape)))]
        found = np.asarray(found)[::-1] if layout == "back" and shape else np.asarray(found)
    if draw(st.booleans()) and found.flags.writeable:
        found.flags.writeable = False
    return found


@st.composite
def anything(draw: Any) -> Any:
    """Arrays, subclasses of them, other containers, and what is none."""
    found = draw(arrays())
    kind = draw(st.sampled_from(
        ("array", "array", "array", "odd", "noufunc", "masked", "list", "memoryview", "scalar",
         "array.array", "bytes", "raises", "other", "matrix"),
    ))  # fmt: skip
    if kind in ("odd", "noufunc"):
        return found.view(Odd if kind == "odd" else NoUfunc)
    if kind == "masked":
        return np.ma.MaskedArray(found, mask=draw(st.booleans()))
    if kind == "matrix" and found.ndim == 2:
        return np.asmatrix(found)
    if kind == "list":
        return found.tolist()
    if kind == "memoryview" and found.dtype.name in NUMBERS:
        return memoryview(found)
    if kind == "scalar" and found.size:
        return found.reshape(-1)[0]
    if kind == "array.array":
        return array.array(draw(st.sampled_from("bBhfd")), [1] * draw(st.sampled_from((0, 5, 64))))
    if kind == "bytes":
        return draw(st.sampled_from((b"", b"\0" * 19, b"\1" * 38, bytearray(19), "text")))
    if kind == "raises":
        errors = (ValueError("no\narray"), KeyError("x"), RuntimeError("\x1b"), TypeError())
        return Raises(draw(st.sampled_from(errors)))
    if kind == "other":
        return draw(st.sampled_from((None, 1, 1.5, 1j, {}, {1}, object(), range(32), int, [[1], 2],
                                     collections.deque([1.0] * 32), (), 10**400)))  # fmt: skip
    return found


def plain(tensor: Any) -> np.ndarray | None:
    """What is quantized: float32 in C order, or None where the call must fail."""
    try:
        if np.ma.is_masked(tensor):
            return None
        found = np.array(np.ma.getdata(tensor)).view(np.ndarray)
    except Exception:
        return None
    extension = found.dtype.kind == "V" and found.dtype in EXTENSIONS
    if not (found.dtype.kind in "fiu" or extension) or found.size % 32:
        return None
    with np.errstate(all="ignore"):
        weights = np.ascontiguousarray(found.astype(np.float32)).reshape(-1)
    return weights if bool(np.all(np.abs(weights) <= 65504)) else None


def check_error(error: Exception, *names: str) -> None:
    """An error that is documented: its kind, one line, the argument."""
    message = str(error)
    assert "\n" not in message
    assert any(name in message for name in names), message


def attempt(call: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return call(*arguments, **options)
    except (TypeError, ValueError) as error:
        return error


@given(tensor=anything(), method=st.sampled_from(METHODS), data=st.data())
def test_quantize_anything(tensor: Any, method: str, data: Any) -> None:
    weights = plain(tensor)
    before = np.array(np.ma.getdata(tensor)).tobytes() if isinstance(tensor, np.ndarray) else b""
    expected = None if weights is None else q43nl(weights, method)
    found = attempt(q43nl, tensor, method)
    if isinstance(tensor, np.ndarray):
        assert np.array(np.ma.getdata(tensor)).tobytes() == before
    if expected is None:
        # `optimal` stores larger magnitudes, on one side of zero
        assert isinstance(found, Exception) or method == "optimal"
        if isinstance(found, Exception):
            check_error(found, "tensor")
        return
    assert not isinstance(found, Exception), found
    assert type(found) is np.ndarray
    assert np.array_equal(found, expected)
    out = data.draw(outs(np.dtype(np.uint8), expected.size))
    kept = np.array(out).tobytes()
    answer = attempt(q43nl, tensor, method, out=out)
    if isinstance(answer, Exception):
        check_error(answer, "out")
        assert np.array(out).tobytes() == kept
        return
    assert answer is out
    assert np.array_equal(np.asarray(out).reshape(-1), expected)


@st.composite
def outs(draw: Any, dtype: np.dtype[Any], size: int) -> np.ndarray:
    """Arrays that a result may or may not be written to."""
    found = np.full(size, 85, dtype)
    kind = draw(st.sampled_from(
        ("right", "right", "2d", "subclass", "matrix", "long", "dtype", "step", "readonly", "list",
         "odd"),
    ))  # fmt: skip
    made: dict[str, Any] = {
        "2d": lambda: found.reshape(-1, 1),
        "subclass": lambda: found.view(Odd),
        "matrix": lambda: np.asmatrix(found),
        "long": lambda: np.full(size + 1, 85, dtype),
        "dtype": lambda: np.full(size, 85, np.int16),
        "step": lambda: np.full(2 * size, 85, dtype)[::2],
        "list": lambda: found.tolist(),
        "odd": lambda: np.ndarray(size, dtype, bytearray(size * dtype.itemsize + 1), 1),
    }
    if kind == "readonly":
        found.flags.writeable = False
    return made.get(kind, lambda: found)()


SHAPES = st.one_of(
    st.none(),
    st.integers(-3, 100),
    st.lists(st.sampled_from((-2, -1, 0, 1, 2, 16, 32, 64, 2**31, 2**62, 2**70)), max_size=5),
    st.sampled_from(((1,) * 70, "64", 6.4, [None], [[32]], {}, b"ab", (2.0, 32), True, np.nan)),
)


@given(packed=anything(), shape=SHAPES, dtype=st.sampled_from((*DTYPES, "no", None, int)))
def test_dequantize_anything(packed: Any, shape: Any, dtype: Any) -> None:
    found = attempt(dequantize, packed, shape, dtype=dtype)
    if isinstance(found, Exception):
        check_error(found, "packed", "shape", "dtype")
    else:
        assert isinstance(found, np.ndarray)
        data = np.frombuffer(_bytes(packed), np.uint8)
        assert found.size == data.size // 19 * 32
        expected = oracle.decode(data.reshape(-1, 19)).reshape(-1)
        with np.errstate(all="ignore"):
            assert np.array_equal(found.reshape(-1), expected.astype(found.dtype), equal_nan=True)


def _bytes(packed: Any) -> bytes:
    whole = isinstance(packed, (bytes, bytearray))
    return bytes(packed) if whole else np.array(np.ma.getdata(packed)).tobytes()


@st.composite
def packed_arrays(draw: Any) -> Any:
    """Packed groups, as bytes or as records, in any memory."""
    groups = draw(st.integers(0, 5))
    data = np.frombuffer(np.random.default_rng(draw(st.integers(0, 99))).bytes(19 * groups), "u1")
    kind = draw(st.sampled_from(("flat", "rows", "records", "step", "F", "bytes", "view", "wrong")))
    rows = data.reshape(groups, 19)
    made: dict[str, Any] = {
        "flat": data,
        "rows": rows,
        "records": data.view(GROUP_DTYPE),
        "step": np.repeat(rows, 2, axis=0)[::2],
        "F": np.asfortranarray(rows),
        "bytes": data.tobytes(),
        "view": memoryview(data),
        "wrong": data[1:],
    }
    return made[kind]


@given(packed=packed_arrays(), shape=SHAPES, data=st.data())
def test_dequantize_any_memory(packed: Any, shape: Any, data: Any) -> None:
    size = len(_bytes(packed)) // 19 * 32
    out = data.draw(st.one_of(st.none(), outs(np.dtype(np.float32), size)))
    found = attempt(dequantize, packed, shape, out=out)
    if isinstance(found, Exception):
        check_error(found, "packed", "shape", "out")
        assert out is None or np.all(np.asarray(out) == 85) or not np.any(np.asarray(out))
        return
    expected = oracle.decode(np.frombuffer(_bytes(packed), np.uint8).reshape(-1, 19)).reshape(-1)
    assert np.array_equal(np.asarray(found).reshape(-1), expected, equal_nan=True)
    assert out is None or np.shares_memory(np.asarray(found), out) or not size


@given(tensor=anything(), packed=st.one_of(anything(), packed_arrays()))
def test_quality_of_anything(tensor: Any, packed: Any) -> None:
    found = attempt(quality, tensor, packed)
    if isinstance(found, Exception):
        check_error(found, "packed", "tensor")


@given(tensor=arrays([np.dtype(name) for name in NUMBERS]), seed=st.integers(0, 99))
def test_quality_of_any_numbers(tensor: np.ndarray, seed: int) -> None:
    """Any bits on both sides: infinities and NaN are figures, and never an error or a warning."""
    if tensor.size % 32:
        return
    data = np.frombuffer(np.random.default_rng(seed).bytes(tensor.size // 32 * 19), np.uint8)
    found = quality(tensor, data)
    with np.errstate(all="ignore"):
        weights = np.array(tensor).astype(np.float64).reshape(-1)
        errors = np.abs(oracle.decode(data.reshape(-1, 19)).reshape(-1) - weights)
        mse = (errors**2).sum() / max(errors.size, 1)
    assert found.mse == pytest.approx(mse, rel=1e-6, nan_ok=True)
    assert found.max_abs_error == pytest.approx(errors.max(initial=0), rel=1e-6, nan_ok=True)


@pytest.mark.slow
@settings(max_examples=1000)
@given(tensor=anything(), method=st.sampled_from(METHODS), data=st.data())
def test_quantize_many_more(tensor: Any, method: str, data: Any) -> None:
    test_quantize_anything.hypothesis.inner_test(tensor, method, data)


@pytest.mark.slow
@settings(max_examples=1000)
@given(packed=st.one_of(anything(), packed_arrays()), shape=SHAPES, data=st.data())
def test_dequantize_many_more(packed: Any, shape: Any, data: Any) -> None:
    dtype = data.draw(st.sampled_from((*DTYPES, "no", None, int)))
    test_dequantize_anything.hypothesis.inner_test(packed, shape, dtype)
    if isinstance(packed, np.ndarray) and packed.dtype in (np.uint8, GROUP_DTYPE):
        test_dequantize_any_memory.hypothesis.inner_test(packed, shape, data)


@pytest.mark.slow
@settings(max_examples=1000)
@given(tensor=anything(), packed=st.one_of(anything(), packed_arrays()))
def test_quality_of_many_more(tensor: Any, packed: Any) -> None:
    test_quality_of_anything.hypothesis.inner_test(tensor, packed)


@pytest.mark.parametrize("dtype", ["float32", "float64", "longdouble", "float16"])
def test_nan_that_signals(dtype: str) -> None:
    """Converting one raises a flag of the processor, of which NumPy warns."""
    tensor = np.zeros(64, dtype)
    # 1 in the exponent's bits, 0 in the first of the fraction's, 1 behind it
    bits = {"float32": 0x7F800001, "float64": 0x7FF0000000000001, "float16": 0x7C01}
    if dtype == "longdouble":
        tensor.view(np.uint8).reshape(64, -1)[40, 7:10] = (0x80, 0xFF, 0x7F)
        tensor.view(np.uint8).reshape(64, -1)[40, 0] = 1
    else:
        tensor.view(f"u{tensor.itemsize}")[40] = bits[dtype]
    if not np.isnan(tensor[40]):
        pytest.skip("another long double")
    with pytest.raises(ValueError, match=r"tensor must be finite, found 1 .* index 40"):
        q43nl(tensor, "coarse_fine")
    with pytest.raises(ValueError, match=r"tensor must be finite, found 1 .* index 40"):
        q43nl(tensor[::-1][::-1], "coarse_fine", out=np.empty(38, np.uint8))
    assert np.isnan(quality(tensor, bytes(38)).mse)


def test_quality_of_tiny_weights_and_large_bytes() -> None:
    """The ratio of signal and noise is no float; its logarithm is."""
    large = q43nl(np.full(32, 65504, np.float32), "coarse_fine")
    found = quality(np.full(32, 1e-160), large)
    assert found.snr_db == pytest.approx(20 * np.log10(1e-160 / 65504), rel=1e-2)


@pytest.mark.parametrize("shape", [(1,) * 70 + (32,), [1] * 65 + [32]])
def test_more_dimensions_than_numpy_has(shape: Any) -> None:
    with pytest.raises(ValueError, match="shape must"):
        dequantize(bytes(19), shape)


@pytest.mark.parametrize("shape", [(2**70, 0), (2**62, 2**62, 0), (0, 2**63)])
def test_sides_that_are_no_sizes(shape: Any) -> None:
    with pytest.raises(ValueError, match="shape must"):
        dequantize(b"", shape)
