"""Every refusal names the argument, what was found and what is allowed, and writes nothing."""

import re
from fractions import Fraction

import numpy as np
import oracle
import pytest

from q43nl_numba import METHODS, dequantize, q43nl, quality

WEIGHTS = np.linspace(-1, 1, 64, dtype=np.float32)
PACKED = oracle.grid(WEIGHTS).ravel()


def with_values(size=96, dtype=np.float32, **places):
    """Ones, but for ``i5=value`` at flat index 5."""
    tensor = np.ones(size, dtype)
    for place, value in places.items():
        tensor[int(place[1:])] = value
    return tensor


def check(error, words, call, *arguments, **options):
    """The call raises the error; its message holds every word (numbers: not inside others)."""
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    for word in words:
        pattern = rf"(?<![\d.]){re.escape(word)}(?![\d])" if word[0].isdigit() else re.escape(word)
        assert re.search(pattern, message), f"{word!r} is not in {message!r}"
    assert "\n" not in message


# --- the tensor ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "found"), [((33,), "33"), ((1,), "1"), ((31,), "31"), ((5, 7), "35"), ((), "1")]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_size_not_a_multiple_of_32(shape, found, dtype):
    check(ValueError, ["tensor", found, "32"], q43nl, np.ones(shape, dtype))


def test_scalar():
    check(ValueError, ["tensor", "1", "32"], q43nl, 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", ">f4"])
def test_not_finite(value, dtype):
    """How many, and where the first is."""
    tensor = with_values(dtype=dtype, i41=value, i77=value, i95=value)
    check(ValueError, ["tensor", "3", "41", "finite"], q43nl, tensor)


def test_not_finite_bfloat16():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    tensor = with_values(dtype=bfloat16, i50=np.nan)
    check(ValueError, ["tensor", "1", "50"], q43nl, tensor)


def test_not_finite_mixed_counts_all():
    tensor = with_values(i3=-np.inf, i40=np.nan, i94=np.inf, i95=1e30)
    check(ValueError, ["tensor", "3"], q43nl, tensor)


def test_not_finite_is_counted_across_pieces():
    """The flat index and the count hold in a tensor that is converted in pieces, and for views."""
    tensor = np.ones((1024, 4099 // 32 * 32 + 32))
    tensor[700, 5] = np.nan
    tensor[1023, -1] = np.inf
    first = str(700 * tensor.shape[1] + 5)
    check(ValueError, ["tensor", "2", first], q43nl, tensor)
    check(ValueError, ["tensor", "2", first], q43nl, np.asfortranarray(tensor))
    check(ValueError, ["tensor", "2", first], q43nl, tensor.astype(np.float32))
    check(ValueError, ["tensor", "2", first], q43nl, tensor.astype(np.float16))


@pytest.mark.parametrize(
    ("dtype", "value", "shown"),
    [
        ("float32", 65505, "65505"),
        ("float32", -65536, "-65536"),
        ("float32", 3e38, "e+38"),
        ("float64", 70000.0, "70000"),
        ("float64", -1e300, "-1e+300"),
        ("int32", 65505, "65505"),
        ("int64", -(2**62), "e+18"),
        ("uint64", 2**64 - 1, "e+19"),
        ("bfloat16", 65536, "65536"),
    ],
)
def test_magnitude_beyond_float16(dtype, value, shown):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    tensor = with_values(dtype=dtype, i66=value)
    with pytest.raises(ValueError, match="tensor") as caught:
        q43nl(tensor)
    message = str(caught.value).replace(",", "").replace("_", "")
    assert "66" in message
    assert "65504" in message
    digits = shown if "e" not in shown else None
    assert digits is None or digits in message


def test_first_magnitude_beyond_float16_is_named():
    tensor = with_values(i40=-1e6, i70=1e9)
    check(ValueError, ["tensor", "40", "65504"], q43nl, tensor)
    alone = with_values(i0=1e6)
    check(ValueError, ["at flat index 0"], q43nl, alone)
    far = with_values(1 << 17, i0=1e6, i100000=1e9)  # further on than is checked at a time
    check(ValueError, ["at flat index 0"], q43nl, far)
    one_sided = with_values(i5=70000, i70=1e6)  # code -8 reaches 70000, on one side of zero
    check(ValueError, ["at flat index 70"], q43nl, one_sided, "optimal")
    both = with_values(i5=70000, i6=-70000, i70=1e6)
    check(ValueError, ["at flat index 5"], q43nl, both, "optimal")


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (np.ones(32, np.complex64), "complex64"),
        (np.ones(32, np.complex128), "complex128"),
        (np.array(["1"] * 32), "U1"),
        (np.array([b"1"] * 32), "S1"),
        (np.ones(32, object), "object"),
        (np.ones(32, "datetime64[s]"), "datetime64"),
        (np.ones(32, "timedelta64[s]"), "timedelta64"),
        (np.ones(32, [("a", "f4")]), "a"),
        (["weight"] * 32, "U6"),
        ([None] * 32, "object"),
        (None, "object"),
        ("weights", "U7"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_dtypes_that_are_no_numbers(tensor, found):
    check(TypeError, ["tensor", found], q43nl, tensor)


def test_ragged_list():
    with pytest.raises((TypeError, ValueError), match="tensor"):
        q43nl([[1.0] * 32, [1.0] * 31])


# --- the method and its parameters -----------------------------------------------------------


@pytest.mark.parametrize("method", ["newton", "", "Grid", "gradient "])
def test_unknown_method(method):
    check(ValueError, ["method", repr(method), *METHODS], q43nl, WEIGHTS, method)


@pytest.mark.parametrize("method", [None, 3, b"grid", ["grid"]])
def test_method_that_is_no_name(method):
    with pytest.raises((TypeError, ValueError), match="method"):
        q43nl(WEIGHTS, method)


# A number of the wrong kind may be called either error.
KIND = (TypeError, ValueError)

BAD_PARAMETERS = [
    ("grid", "grid_size", 1, ValueError, "2"),
    ("grid", "grid_size", 0, ValueError, "2"),
    ("grid", "grid_size", -255, ValueError, "2"),
    ("grid", "grid_size", 17.0, KIND, "int"),
    ("grid", "grid_size", "255", KIND, "int"),
    ("grid", "grid_size", None, KIND, "int"),
    ("gradient", "gd_iterations", 0, ValueError, "1"),
    ("gradient", "gd_iterations", -5, ValueError, "1"),
    ("gradient", "gd_iterations", 2.5, KIND, "int"),
    ("gradient", "gd_iterations", "5", KIND, "int"),
    ("gradient", "gd_lr", 0.0, ValueError, "0"),
    ("gradient", "gd_lr", -0.1, ValueError, "0"),
    ("gradient", "gd_lr", float("nan"), ValueError, "finite"),
    ("gradient", "gd_lr", float("inf"), ValueError, "finite"),
    ("gradient", "gd_lr", "0.3", TypeError, "number"),
    ("gradient", "gd_lr", None, TypeError, "number"),
    ("gradient", "eps_scale", -1e-9, ValueError, "0"),
    ("gradient", "eps_scale", float("nan"), ValueError, "0"),
    ("gradient", "eps_scale", "tiny", TypeError, "number"),
    ("gradient", "eps_scale", 1j, TypeError, "number"),
    ("gradient", "num_threads", 0, ValueError, "1"),
    ("gradient", "num_threads", -1, ValueError, "1"),
    ("gradient", "num_threads", 1.5, KIND, "int"),
    ("gradient", "num_threads", "2", KIND, "int"),
]


@pytest.mark.parametrize(("method", "name", "value", "error", "allowed"), BAD_PARAMETERS)
def test_parameters_out_of_range(method, name, value, error, allowed):
    check(error, [name, str(value), allowed], q43nl, WEIGHTS, method, **{name: value})


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("gradient", "grid_size", 17),
        ("coarse_fine", "grid_size", 17),
        ("grid", "gd_iterations", 10),
        ("grid", "gd_lr", 0.1),
        ("coarse_fine", "gd_iterations", 10),
        ("coarse_fine", "gd_lr", 0.1),
    ],
)
def test_parameters_of_another_method(method, name, value):
    check(ValueError, [name, method], q43nl, WEIGHTS, method, **{name: value})


@pytest.mark.parametrize("method", METHODS)
def test_defaults_of_other_methods_are_accepted(method):
    spelled = {"grid_size": 255, "gd_iterations": 5, "gd_lr": 0.3, "eps_scale": 1e-6}
    assert np.array_equal(q43nl(WEIGHTS, method, **spelled), q43nl(WEIGHTS, method))


def test_parameters_are_keywords():
    with pytest.raises(TypeError):
        q43nl(WEIGHTS, "grid", 17)


@pytest.mark.parametrize("value", [np.int64(9), np.uint8(9), True + 8])
def test_whole_numbers_of_any_kind(value):
    assert np.array_equal(
        q43nl(WEIGHTS, "grid", grid_size=value), q43nl(WEIGHTS, "grid", grid_size=9)
    )


def test_parameters_are_checked_for_empty_tensors_too():
    check(ValueError, ["grid_size", "1"], q43nl, [], "grid", grid_size=1)
    check(ValueError, ["method", "newton"], q43nl, [], "newton")


# --- out -------------------------------------------------------------------------------------


def read_only(size):
    array = np.zeros(size, np.uint8)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "error", "words"),
    [
        (np.zeros(38, np.int8), (TypeError, ValueError), ["int8", "uint8"]),
        (np.zeros(38, np.float32), (TypeError, ValueError), ["float32", "uint8"]),
        (np.zeros(37, np.uint8), ValueError, ["37", "38"]),
        (np.zeros(57, np.uint8), ValueError, ["57", "38"]),
        (np.zeros((4, 19), np.uint8), ValueError, ["76", "38"]),
        (np.zeros(76, np.uint8)[::2], ValueError, ["contiguous"]),
        (np.zeros((2, 19), np.uint8, order="F"), ValueError, ["contiguous"]),
        (np.zeros(38, np.uint8)[::-1], ValueError, ["contiguous"]),
        (read_only(38), ValueError, ["writ"]),
        (bytearray(38), TypeError, ["bytearray"]),
        ([0] * 38, TypeError, ["list"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) and len(value) < 5 else "",
)
def test_out(out, error, words):
    check(error, ["out", *words], q43nl, WEIGHTS, out=out)


def test_out_that_overlaps_the_tensor():
    buffer = np.ones(32 * 8, np.float32)
    out = buffer.view(np.uint8)[: 8 * 19]
    check(ValueError, ["out", "overlap"], q43nl, buffer, out=out)
    assert (buffer == 1).all()


FAILING = {
    "nan": with_values(size=32 * 5000, i159999=np.nan),
    "nan-float64": with_values(size=32 * 5000, dtype=np.float64, i159999=np.nan),
    "nan-in-the-last-piece": with_values(size=1 << 23, dtype=np.float16, i8388607=np.nan),
    "infinity-first": with_values(i0=np.inf),
    "large": with_values(size=32 * 5000, i159999=1e6),
    "large-float64": with_values(size=32 * 5000, dtype=np.float64, i159999=-1e6),
    "size": np.ones(97, np.float32),
    "dtype": np.ones(96, np.complex64),
}


@pytest.mark.parametrize("tensor", FAILING.values(), ids=FAILING)
def test_out_is_untouched_when_the_call_fails(tensor):
    out = np.full(tensor.size // 32 * 19, 0xAA, np.uint8)
    with pytest.raises((ValueError, TypeError), match="tensor"):
        q43nl(tensor, "coarse_fine", out=out)
    assert (out == 0xAA).all()


def test_out_is_untouched_when_a_parameter_is_wrong():
    out = np.full(38, 0xAA, np.uint8)
    for options in ({"method": "newton"}, {"gd_lr": -1}, {"num_threads": 0}, {"eps_scale": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            q43nl(WEIGHTS, **options, out=out)
    assert (out == 0xAA).all()


# --- dequantize ------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [bytes(18), bytes(20), np.zeros(1, np.uint8), bytearray(39)])
def test_size_not_a_multiple_of_19(packed):
    check(ValueError, ["packed", str(len(packed)), "19"], dequantize, packed)


@pytest.mark.parametrize(
    ("packed", "found"),
    [
        (np.zeros(19, np.float32), "float32"),
        (np.zeros(19, np.int64), "int64"),
        (np.zeros(19, np.uint16), "uint16"),
        (np.zeros(19, bool), "bool"),
        (np.zeros(1, [("codes", "u1", 16), ("scale", "<f2"), ("c", "i1")]), "c"),
        ("0" * 19, "U19"),
        (None, "object"),
        (19, "int64"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 9 else "",
)
def test_packed_of_another_type(packed, found):
    check(TypeError, ["packed", found, "uint8"], dequantize, packed)


@pytest.mark.parametrize("shape", [(63,), (65,), (2, 31), (0,), (64, 0), (128,), 63, ()])
def test_shape_that_does_not_fit(shape):
    check(ValueError, ["shape", "64"], dequantize, PACKED, shape)


@pytest.mark.parametrize("shape", [(-2, 32), (-2, -32), (-1, -1), (-1, 48), (-64,)])
def test_negative_shape(shape):
    check(ValueError, ["shape"], dequantize, PACKED, shape)


@pytest.mark.parametrize("shape", ["64", (2.0, 32), (None, 64), 64.0])
def test_shape_of_another_type(shape):
    check(TypeError, ["shape"], dequantize, PACKED, shape)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "U4", "bool", object, "uint8"])
def test_dequantize_dtype(dtype):
    check((TypeError, ValueError), ["dtype", "float32"], dequantize, PACKED, dtype=dtype)


def test_dequantize_dtype_that_is_none():
    with pytest.raises((TypeError, ValueError), match="dtype"):
        dequantize(PACKED, dtype="no such dtype")


@pytest.mark.parametrize(
    ("out", "error", "words"),
    [
        (np.zeros(64, np.float64), (TypeError, ValueError), ["float64", "float32"]),
        (np.zeros(64, np.int32), (TypeError, ValueError), ["int32", "float32"]),
        (np.zeros(63, np.float32), ValueError, ["63", "64"]),
        (np.zeros(96, np.float32), ValueError, ["96", "64"]),
        (np.zeros(128, np.float32)[::2], ValueError, ["contiguous"]),
        (np.zeros((2, 32), np.float32, order="F"), ValueError, ["contiguous"]),
        ([0.0] * 64, TypeError, ["list"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) and len(value) < 5 else "",
)
def test_dequantize_out(out, error, words):
    check(error, ["out", *words], dequantize, PACKED, out=out)


def test_dequantize_read_only_out():
    out = np.zeros(64, np.float32)
    out.flags.writeable = False
    check(ValueError, ["out", "writ"], dequantize, PACKED, out=out)


def test_dequantize_memoryview_of_floats():
    """It is not taken for bytes; a memoryview of bytes may have gaps."""
    with pytest.raises(TypeError, match=r"packed.*float32"):
        dequantize(memoryview(np.zeros(19, np.float32)))
    assert dequantize(memoryview(bytes(38))[::2]).tolist() == [0.0] * 32


def test_dequantize_out_is_untouched_when_the_call_fails():
    out = np.full(64, 7, np.float32)
    for packed, options in [(PACKED[:-1], {}), (PACKED, {"num_threads": 0}), (PACKED[:19], {})]:
        with pytest.raises(ValueError, match=r"packed|num_threads|out"):
            dequantize(packed, out=out, **options)
    assert (out == 7).all()


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-3, ValueError), (2.0, KIND)])
def test_dequantize_threads(value, error):
    check(error, ["num_threads", str(value)], dequantize, PACKED, num_threads=value)


# --- quality ---------------------------------------------------------------------------------


def test_quality_of_sizes_that_do_not_match():
    check(ValueError, ["packed", "57", "96", "38"], quality, np.ones(96, np.float32), PACKED)


def test_quality_of_bad_arguments():
    check(ValueError, ["packed", "37", "19"], quality, WEIGHTS, PACKED[:-1])
    check(TypeError, ["tensor", "complex64"], quality, WEIGHTS.astype(np.complex64), PACKED)
    check(TypeError, ["packed", "float32"], quality, WEIGHTS, PACKED.astype(np.float32))


def test_quality_does_not_hide_nan():
    """Either refused or shown in every figure, never a finite error."""
    spoiled = WEIGHTS.copy()
    spoiled[40] = np.nan
    odd = PACKED.copy()
    odd[16:18] = 0x00, 0x7E  # a NaN scale
    for tensor, packed in [(spoiled, PACKED), (WEIGHTS, odd)]:
        try:
            record = quality(tensor, packed)
        except ValueError:
            continue
        assert np.isnan([record.mse, record.snr_db, record.max_abs_error]).all()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "exact"])
@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_not_finite_is_found_in_every_portion(method, threads):
    """Wherever large tensors are cut; what else the call writes is thrown away."""
    tensor = np.ones(1 << 18, np.float32)
    for place in (0, 131_071, 131_072, tensor.size - 1):
        tensor[place] = np.nan
        with pytest.raises(ValueError, match=f"tensor must be finite.*flat index {place}"):
            q43nl(tensor, method, num_threads=threads)
        tensor[place] = 1


# --- outputs and inputs of other classes -----------------------------------------------------


class Stubborn(np.ndarray):
    """A subclass that answers every question about its shape in its own way."""

    def reshape(self, *shape, **options):
        return self

    def __getitem__(self, key):
        return np.ndarray.__getitem__(self, slice(0, 1))


@pytest.mark.parametrize("kind", [np.matrix, Stubborn, np.memmap])
def test_outputs_of_other_classes(tmp_path, kind):
    """A matrix stays two-dimensional when reshaped: kernels used to write past its end."""
    packed = q43nl(np.linspace(-1, 1, 4096))
    whole = np.zeros(4096 + 64, np.float32)  # what lies behind the output must stay
    out = whole[:4096].view(kind) if kind is not np.memmap else mapped(tmp_path, 4096, "f4")
    if kind is np.matrix:
        assert out.ndim == 2
    result = dequantize(packed, out=out)
    assert result is out
    np.testing.assert_array_equal(np.asarray(out).ravel(), dequantize(packed))
    assert not whole[4096:].any()
    target = np.zeros(packed.size + 19, np.uint8)
    out = target[:-19].view(kind) if kind is not np.memmap else mapped(tmp_path, packed.size, "u1")
    assert q43nl(np.linspace(-1, 1, 4096), out=out) is out
    np.testing.assert_array_equal(np.asarray(out).ravel(), packed)
    assert not target[-19:].any()


def mapped(folder, size, dtype):
    return np.memmap(folder / dtype, dtype=dtype, mode="w+", shape=(size,))


def test_masked_outputs_are_refused_by_name():
    out = np.ma.zeros(64, np.float32)
    check(TypeError, ["out", "MaskedArray"], dequantize, PACKED, out=out)


def test_inputs_of_other_classes():
    """They are read as NumPy reads them."""
    weights = np.linspace(-1, 1, 64).reshape(2, 32)
    packed = q43nl(weights)
    ones = np.ones((2, 32)).view(np.matrix)
    np.testing.assert_array_equal(q43nl(weights.view(np.matrix), importance=ones), packed)
    np.testing.assert_array_equal(dequantize(packed.view(np.matrix)), dequantize(packed))


def test_inputs_at_odd_addresses():
    odd = np.zeros(64 * 4 + 1, np.uint8)[1:].view(np.float32)
    odd[:] = np.linspace(-1, 1, 64)
    importance = np.abs(odd)
    even = odd.copy()
    importance_at_odd_address = np.zeros(64 * 4 + 1, np.uint8)[1:].view(np.float32)
    importance_at_odd_address[:] = importance
    np.testing.assert_array_equal(
        q43nl(odd, importance=importance_at_odd_address), q43nl(even, importance=importance)
    )


# --- numbers out of bounds -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"gd_iterations": 2**62}, ValueError, ["gd_iterations", "10000"]),
        ({"gd_iterations": 10_001}, ValueError, ["gd_iterations", "10000"]),
        ({"gd_lr": Fraction(10**400)}, ValueError, ["gd_lr", "finite"]),
        ({"gd_lr": 1e39}, ValueError, ["gd_lr", "finite"]),
        ({"gd_lr": 10**400}, ValueError, ["gd_lr", "finite"]),
        ({"eps_scale": 10**400}, ValueError, ["eps_scale", "finite"]),
        ({"effort": np.array([5, 5])}, ValueError, ["effort", "optimal"]),
        ({"codes": np.array(["full", "full"])}, ValueError, ["codes", "optimal"]),
        ({"grid_size": np.array(255)}, ValueError, ["grid_size", "grid"]),
        ({"effort": object()}, ValueError, ["effort", "optimal"]),
    ],
)
def test_options_out_of_bounds(options, error, words):
    check(error, words, q43nl, WEIGHTS, **options)


@pytest.mark.parametrize("error", [AttributeError, KeyError, ZeroDivisionError, BufferError])
@pytest.mark.parametrize("protocol", ["__dlpack__", "__array__"])
def test_what_a_foreign_array_raises(error, protocol):
    def fail(self, *_, **__):
        raise error("inside")

    foreign = type("Foreign", (), {protocol: fail, "__dlpack_device__": lambda self: (1, 0)})()
    for name, call in [
        ("tensor", lambda: q43nl(foreign)),
        ("importance", lambda: q43nl(WEIGHTS, importance=foreign)),
    ]:
        with pytest.raises(TypeError, match=name):
            call()
