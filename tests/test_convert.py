"""Model files: what convert writes, restore brings back, inspect sees, and what is refused."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q43nl_numba import GROUP_DTYPE, __version__, dequantize, q43nl, quality

pytest.importorskip("safetensors")
ml_dtypes = pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")

from model_files import (  # noqa: E402
    BF16,
    DTYPES,
    NAMES,
    Tensors,
    gauss,
    info,
    read_raw,
    stored,
    write_model,
    write_raw,
)
from safetensors import safe_open  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from q43nl_numba.convert import (  # noqa: E402
    CurveDistribution,
    ModelFileError,
    conversion,
    convert,
    inspect,
    packing,
    restore,
)

FLOATING = ("F64", "F32", "F16", "BF16")


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    header, data = read_raw(path)
    change(header)
    return write_raw(path, header, data)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file with something of everything."""
    tensors: Tensors = {
        "embed.weight": gauss((6, 96), BF16),
        "ids": np.arange(8, dtype=np.int64).reshape(1, 8),
        "mask": np.array([True, False, True]),
        "layers.0.attn.weight": gauss((5, 64), np.dtype("<f4"), 2),
        "layers.0.norm.bias": gauss((7,), np.dtype("<f4"), 3),
        "layers.0.experts": gauss((3, 2, 64), np.dtype("<f2"), 4),
        "layers.1.odd": gauss((4, 48), np.dtype("<f2"), 5),
        "layers.1.half.bias": gauss((32,), BF16, 6),
        "layers.1.double": gauss((1, 32), np.dtype("<f8"), 7),
        "scale": np.array(1.5, np.float32),
        "none": np.zeros((0, 64), np.float32),
        "bytes": np.arange(32, dtype=np.uint8).reshape(1, 32),
    }
    return write_model(tmp_path / "model.safetensors", tensors, {"format": "pt", "author": "né"})


PACKED = ["embed.weight", "layers.0.attn.weight", "layers.0.experts", "layers.1.double"]


def litter(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".tmp")]


# What convert writes


def test_packed_bytes_are_those_of_the_library(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    convert(model, out, "grid")
    for name in PACKED:
        weights = stored(model, name)
        packed = stored(out, name)
        assert packed.dtype == np.uint8
        assert packed.shape == (*weights.shape[:-1], weights.shape[-1] // 32 * 19)
        np.testing.assert_array_equal(packed.ravel(), q43nl(weights, "grid"))


def test_pieces_make_the_same_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(model, tmp_path / "whole", "grid", keep_dtype="float16")
    restore(tmp_path / "whole", tmp_path / "whole.back")
    monkeypatch.setattr("q43nl_numba.convert.tensors.PIECE_WEIGHTS", 32)
    report = convert(model, tmp_path / "pieces", "grid", keep_dtype="float16")
    restore(tmp_path / "pieces", tmp_path / "pieces.back")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()
    assert (tmp_path / "whole.back").read_bytes() == (tmp_path / "pieces.back").read_bytes()
    assert len(report.packed) == len(PACKED)


def test_the_rest_is_copied(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    convert(model, out, "grid")
    header, _ = read_raw(model)
    kept = [name for name in header if name not in (*PACKED, "__metadata__")]
    assert len(kept) == 8
    for name in kept:
        assert stored(out, name).dtype == stored(model, name).dtype
        np.testing.assert_array_equal(stored(out, name), stored(model, name))
        assert "qtype" not in read_raw(out)[0][name]


def test_header_order_metadata_and_qtype(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    convert(model, out, "coarse_fine", eps_scale=1e-5)
    before, after = read_raw(model)[0], read_raw(out)[0]
    assert list(after) == list(before)
    assert [name for name in after if after[name].get("qtype") == "Q43NL"] == PACKED
    metadata = after["__metadata__"]
    assert metadata["format"] == "pt"
    assert metadata["author"] == "né"
    assert metadata["dtype"] == "Q43NL"
    record = json.loads(metadata["q43nl_numba"])
    assert record["made_by"] == {
        "version": __version__, "method": "coarse_fine", "eps_scale": 1e-5
    }  # fmt: skip
    assert record["packed_dtype"] in ("BF16", "F32", "F16", "F64")
    others = {name: before[name]["dtype"] for name in PACKED}
    assert record["dtypes"] == {
        name: dtype for name, dtype in others.items() if dtype != record["packed_dtype"]
    }


def test_the_stock_reader_opens_the_output(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    convert(model, out, "grid", exclude=["embed*"])
    arrays = load_file(out)
    for name in ("ids", "mask", "layers.0.norm.bias", "scale", "none", "embed.weight"):
        np.testing.assert_array_equal(arrays[name], stored(model, name))
    np.testing.assert_array_equal(arrays["layers.0.experts"], stored(out, "layers.0.experts"))
    with safe_open(out, framework="np") as file:
        assert file.metadata()["dtype"] == "Q43NL"
        assert file.get_slice("layers.0.experts").get_shape() == [3, 2, 38]


def test_every_tensor_is_aligned_and_there_are_no_gaps(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    convert(model, out, "grid")
    header, data = read_raw(out)
    assert (out.stat().st_size - len(data)) % 8 == 0
    entries = [header[name] for name in header if name != "__metadata__"]
    entries.sort(key=lambda entry: entry["data_offsets"])
    position = 0
    for entry in entries:
        assert entry["data_offsets"][0] == position
        assert position % DTYPES[entry["dtype"]].itemsize == 0
        position = entry["data_offsets"][1]
    assert position == len(data)


def test_method_and_parameters_are_passed_on(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    convert(model, out, "gradient", gd_iterations=2, gd_lr=0.1, eps_scale=0.05, num_threads=1)
    name = "layers.0.attn.weight"
    expected = q43nl(stored(model, name), "gradient", gd_iterations=2, gd_lr=0.1, eps_scale=0.05)
    np.testing.assert_array_equal(stored(out, name).ravel(), expected)
    made_by = json.loads(read_raw(out)[0]["__metadata__"]["q43nl_numba"])["made_by"]
    assert "num_threads" not in made_by


def test_report(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    report = convert(model, out, "grid")
    for tensor in report.packed:
        weights = stored(model, tensor.name)
        expected = quality(weights, q43nl(weights, "grid")).snr_db
        assert tensor.snr_db == pytest.approx(expected, rel=1e-5)
        assert tensor.bits_per_weight == 4.75
    assert report.bytes_in == model.stat().st_size
    assert report.bytes_out == out.stat().st_size
    names = [name for name in read_raw(model)[0] if name != "__metadata__"]
    assert report.weights == sum(stored(model, name).size for name in names)
    lines = report.table().splitlines()
    listed = [line.split()[0] for line in lines[1 : 1 + len(PACKED)]]
    worst_first = sorted(report.packed, key=lambda tensor: tensor.snr_db)
    assert listed == [tensor.name for tensor in worst_first]
    assert "1 last dimension no multiple of 32" in report.table()


def test_an_exact_tensor_has_infinite_snr(tmp_path: Path) -> None:
    path = write_model(tmp_path / "in", {"zeros": np.zeros((2, 32), np.float32)})
    report = convert(path, tmp_path / "out", "grid")
    assert report.packed[0].snr_db == math.inf
    assert not stored(tmp_path / "out", "zeros").any()


# Include, exclude, keep-dtype


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["layers.*"], [], PACKED[1:]),
        ([], ["layers.*"], PACKED[:1]),
        (["layers.*"], ["*.experts"], [PACKED[1], PACKED[3]]),
        (["embed*", "*.double"], [], [PACKED[0], PACKED[3]]),
        ([], ["embed.weigh?", "layers.0.[ae]*"], [PACKED[3]]),
        ([], ["*.norm.*"], PACKED),
    ],
)
def test_include_and_exclude(
    model: Path, tmp_path: Path, include: list[str], exclude: list[str], expected: list[str]
) -> None:
    out = tmp_path / "out.safetensors"
    report = convert(model, out, "grid", include=include, exclude=exclude)
    assert sorted(tensor.name for tensor in report.packed) == sorted(expected)
    for name in set(PACKED) - set(expected):
        np.testing.assert_array_equal(stored(out, name), stored(model, name))


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_pattern_that_matches_nothing(model: Path, tmp_path: Path, argument: str) -> None:
    patterns: Any = {argument: ["layers.*", "layer.*"]}
    with pytest.raises(ModelFileError, match=f"{argument} 'layer.\\*' matches no tensor"):
        convert(model, tmp_path / "out", "grid", **patterns)


def test_an_include_that_matches_nothing_to_quantize(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"'\*\.bias' matches no tensor that can be quant"):
        convert(model, tmp_path / "out", "grid", include=["*.bias"])


@pytest.mark.parametrize(
    ("keep", "dtype"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")]
)
def test_keep_dtype_casts_floating_tensors_only(
    model: Path, tmp_path: Path, keep: str, dtype: str
) -> None:
    out = tmp_path / "out.safetensors"
    convert(model, out, "grid", exclude=["*.double"], keep_dtype=keep)
    floating = ("layers.0.norm.bias", "layers.1.odd", "layers.1.half.bias", "layers.1.double")
    for name in (*floating, "scale", "none"):
        expected = stored(model, name).astype(DTYPES[dtype])
        assert stored(out, name).dtype == expected.dtype
        np.testing.assert_array_equal(stored(out, name), expected)
    for name in ("ids", "mask", "bytes"):
        np.testing.assert_array_equal(stored(out, name), stored(model, name))
    load_file(out)

    restore(out, tmp_path / "back")
    for name in floating:
        original = stored(model, name)
        expected = original.astype(DTYPES[dtype]).astype(original.dtype)
        assert stored(tmp_path / "back", name).dtype == original.dtype
        np.testing.assert_array_equal(stored(tmp_path / "back", name), expected)


def test_keep_dtype_refuses_what_does_not_fit(tmp_path: Path) -> None:
    path = write_model(tmp_path / "in", {"big": np.array([1, 70000], np.float32)})
    with pytest.raises(ModelFileError, match=r"in: tensor 'big': its value 70000.0 is too large"):
        convert(path, tmp_path / "out", "grid", keep_dtype="float16", allow_empty=True)
    assert os.listdir(tmp_path) == ["in"]


def test_keep_dtype_keeps_infinities(tmp_path: Path) -> None:
    values = np.array([np.inf, -np.inf, np.nan, 1], np.float32)
    path = write_model(tmp_path / "in", {"mask": values})
    convert(path, tmp_path / "out", "grid", keep_dtype="float16", allow_empty=True)
    np.testing.assert_array_equal(stored(tmp_path / "out", "mask"), values.astype(np.float16))


def test_unknown_keep_dtype(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"keep_dtype must be one of as-is, .*, found 'int8'"):
        convert(model, tmp_path / "out", keep_dtype="int8")


# The way back


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("shape", [(1, 32), (3, 96), (2, 3, 64), (2, 1, 2, 32)])
def test_round_trip_of_every_dtype(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    weights = gauss(shape, DTYPES[dtype])
    path = write_model(tmp_path / "in", {"w": weights})
    convert(path, tmp_path / "packed", "grid")
    report = restore(tmp_path / "packed", tmp_path / "back")
    assert (report.unpacked, report.tensors) == (1, 1)
    back = stored(tmp_path / "back", "w")
    assert back.dtype == weights.dtype
    expected = dequantize(q43nl(weights, "grid"), shape, dtype=weights.dtype)
    np.testing.assert_array_equal(back, expected)
    # half a step of the coarsest part of the steepest curve, and no more
    largest = np.abs(weights.astype(np.float64)).max()
    assert np.abs(back.astype(np.float64) - weights.astype(np.float64)).max() < largest * 0.14


def test_restore_brings_back_names_shapes_dtypes_metadata(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "packed", "grid")
    report = restore(tmp_path / "packed", tmp_path / "back")
    before, after = read_raw(model)[0], read_raw(tmp_path / "back")[0]
    assert list(after) == list(before)
    assert after.pop("__metadata__") == before.pop("__metadata__")
    for name, entry in before.items():
        assert (after[name]["dtype"], after[name]["shape"]) == (entry["dtype"], entry["shape"])
        assert "qtype" not in after[name]
        if name not in PACKED:
            np.testing.assert_array_equal(stored(tmp_path / "back", name), stored(model, name))
    assert report.bytes_out == (tmp_path / "back").stat().st_size
    load_file(tmp_path / "back")


@pytest.mark.parametrize("metadata", [None, {"dtype": "float32", "by": "us"}, {"a": "\n\x00é😀"}])
def test_metadata_round_trip(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = write_model(tmp_path / "in", {"w": gauss((1, 32), BF16)}, metadata)
    convert(path, tmp_path / "packed", "grid")
    assert read_raw(tmp_path / "packed")[0]["__metadata__"]["dtype"] == "Q43NL"
    restore(tmp_path / "packed", tmp_path / "back")
    assert read_raw(tmp_path / "back")[0].get("__metadata__") == metadata


def test_a_file_rewritten_by_the_stock_writer_restores(model: Path, tmp_path: Path) -> None:
    """Stock writers keep the metadata, but drop qtype and sort the tensors."""
    from safetensors.numpy import save_file

    packed, rewritten = tmp_path / "packed", tmp_path / "rewritten"
    convert(model, packed, "grid", exclude=["embed*"], keep_dtype="float32")
    with safe_open(packed, framework="np") as file:
        save_file(load_file(packed), rewritten, file.metadata())
    assert "qtype" not in rewritten.read_bytes().split(b"__metadata__")[0].decode("latin1")
    restore(packed, tmp_path / "a")
    restore(rewritten, tmp_path / "b")
    (header_a, data_a), (header_b, data_b) = read_raw(tmp_path / "a"), read_raw(tmp_path / "b")
    assert header_a.keys() == header_b.keys()
    for name in header_a.keys() - {"__metadata__"}:
        np.testing.assert_array_equal(stored(tmp_path / "a", name), stored(tmp_path / "b", name))
        assert header_a[name]["shape"] == header_b[name]["shape"]
    assert len(data_a) == len(data_b)
    types = {tensor.name: tensor.dtype for tensor in inspect(rewritten).tensors}
    assert {name for name in types if types[name] == "Q43NL"} == set(PACKED) - {"embed.weight"}


def test_a_file_without_tensors(tmp_path: Path) -> None:
    path = write_model(tmp_path / "in", {})
    report = convert(path, tmp_path / "out", "grid", allow_empty=True)
    assert "0 tensors" in report.table()
    assert load_file(tmp_path / "out") == {}
    assert "0 tensors" in inspect(path).table()


def test_an_input_that_is_not_aligned(tmp_path: Path) -> None:
    """Files of other writers may start anywhere."""
    weights = gauss((2, 32), np.dtype("<f4"))
    header = {"b": info("U8", [1], 0, 1), "w": info("F32", [2, 32], 1, weights.nbytes)}
    path = write_raw(tmp_path / "in", json.dumps(header).encode() + b" ", b"\7" + weights.tobytes())
    convert(path, tmp_path / "out", "grid")
    np.testing.assert_array_equal(stored(tmp_path / "out", "w").ravel(), q43nl(weights, "grid"))


# Inspect


def test_inspect_a_converted_file(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    convert(model, out, "grid")
    contents = inspect(out)
    names = [name for name in read_raw(model)[0] if name != "__metadata__"]
    assert [tensor.name for tensor in contents.tensors] == names
    for tensor in contents.tensors:
        assert tensor.shape == stored(model, tensor.name).shape
        if tensor.name not in PACKED:
            assert tensor.curves is None
            assert tensor.dtype == NAMES[stored(out, tensor.name).dtype]
            continue
        assert (tensor.dtype, tensor.bits_per_weight) == ("Q43NL", 4.75)
        curves = stored(out, tensor.name).ravel().view(GROUP_DTYPE)["curve"]
        assert tensor.curves is not None
        expected = np.quantile(curves, [0, 0.25, 0.5, 0.75, 1], method="inverted_cdf")
        found = [tensor.curves.quantile(share) for share in (0, 0.25, 0.5, 0.75, 1)]
        assert found == expected.tolist()
        assert tensor.curves.groups == curves.size
    assert contents.file_bytes == out.stat().st_size
    table = contents.table()
    assert "format: pt" in table
    assert "q43nl_numba" not in table
    assert len(table.splitlines()) == len(names) + 7  # 3 metadata keys, 2 blanks, titles, totals


def test_inspect_counts_zero_groups_apart(tmp_path: Path) -> None:
    weights = gauss((4, 32), np.dtype("<f4"))
    weights[1:] = 0
    convert(write_model(tmp_path / "in", {"w": weights}), tmp_path / "out", "grid")
    (tensor,) = inspect(tmp_path / "out").tensors
    assert tensor.curves is not None
    assert (tensor.curves.zero_groups, tensor.curves.groups) == (3, 4)
    assert sum(tensor.curves.counts) == 1
    assert "75.0%" in inspect(tmp_path / "out").table()


def test_inspect_any_safetensors_file(model: Path) -> None:
    contents = inspect(model)
    assert all(tensor.curves is None for tensor in contents.tensors)
    by_name = {tensor.name: tensor for tensor in contents.tensors}
    assert by_name["layers.1.half.bias"].bits_per_weight == 16
    assert math.isnan(by_name["none"].bits_per_weight)
    assert "curve" not in contents.table()


def test_inspect_a_file_of_the_engine(tmp_path: Path) -> None:
    """Only qtype tells what is packed; other formats are shown as they call themselves."""
    packed = q43nl(gauss((2, 64), np.dtype("<f4")), "grid")
    header = {
        "w": info("U8", [2, 38], 0, 76, qtype="Q43NL"),
        "v": info("U8", [18], 76, 18, qtype="Q40NL"),
    }
    path = write_raw(tmp_path / "engine", header, packed.tobytes() + bytes(18))
    w, v = inspect(path).tensors
    assert (w.dtype, w.shape) == ("Q43NL", (2, 64))
    assert w.curves is not None
    assert (v.dtype, v.shape, v.curves) == ("Q40NL", (18,), None)


def test_sparkline() -> None:
    counts = [0] * 256
    counts[0], counts[255], counts[128] = 8, 4, 1
    curves = CurveDistribution(tuple(counts), 0)
    assert curves.sparkline() == "█" + " " * 7 + "▁" + " " * 6 + "▄"
    assert (curves.quantile(0), curves.quantile(1)) == (-128, 127)
    assert CurveDistribution((0,) * 256, 3).quantile(0.5) is None


def test_names_cannot_disturb_the_terminal(tmp_path: Path) -> None:
    tensors = {"a\x1b[2J\nb": gauss((1, 32), BF16), "größe": gauss((1, 32), BF16)}
    path = write_model(tmp_path / "in", tensors, {"k": "v\r\x07" + "x" * 500})
    report = convert(path, tmp_path / "out", "grid")
    tables = f"{report.table()}\n{inspect(tmp_path / 'out').table()}"
    assert "\x1b" not in tables
    assert "\r" not in tables
    assert "\x07" not in tables
    assert "größe" in tables
    assert max(map(len, tables.splitlines())) < 150
    assert set(load_file(tmp_path / "out")) == set(tensors)


# Values that cannot be quantized


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(d, v) for d in FLOATING for v in (math.nan, math.inf, -math.inf)]
    + [("F32", -70000.0), ("F64", 1e300), ("BF16", 1e6)],
)
def test_bad_values_name_file_tensor_and_place(tmp_path: Path, dtype: str, value: float) -> None:
    bad = gauss((4, 64), DTYPES[dtype])
    bad[2, 5] = bad[3, 63] = value
    good = gauss((4, 64), DTYPES[dtype])
    path = write_model(tmp_path / "in.st", {"good": good, "bad": bad})
    shown = float(DTYPES[dtype].type(value))
    with pytest.raises(ModelFileError) as caught:
        convert(path, tmp_path / "out", "grid")
    message = str(caught.value)
    assert message.startswith(f"{path}: tensor 'bad': 2 of its 256 values cannot be quantized")
    assert f"the first is {shown} at [2, 5]" in message
    assert os.listdir(tmp_path) == ["in.st"]


def test_the_place_counts_from_the_start_of_the_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("q43nl_numba.convert.tensors.PIECE_WEIGHTS", 64)
    bad = gauss((3, 2, 64), np.dtype("<f4"))
    bad[2, 1, 7] = math.nan
    path = write_model(tmp_path / "in.st", {"bad": bad})
    with pytest.raises(ModelFileError, match=r"the first is nan at \[2, 1, 7\]"):
        convert(path, tmp_path / "out", "grid")


def test_the_range_is_the_methods_own(tmp_path: Path) -> None:
    """Code -8 reaches beyond the largest scale, on one side of zero."""
    beyond = gauss((2, 32), np.dtype("<f4"))
    beyond[0, 3] = 80000
    path = write_model(tmp_path / "in.st", {"beyond": beyond})
    convert(path, tmp_path / "out", "optimal")
    assert abs(float(dequantize(load_file(tmp_path / "out")["beyond"])[3]) - 80000) < 100
    for options, limit in (
        ({"method": "grid"}, "up to 65504"),
        ({"method": "optimal", "codes": "symmetric"}, "up to 65504"),
    ):
        with pytest.raises(ModelFileError, match=rf"1 of its 64 .* 80000.0 at \[0, 3\].*{limit}$"):
            convert(path, tmp_path / "out2", **options)
    beyond[1, 4] = math.nan
    path = write_model(tmp_path / "in.st", {"beyond": beyond})
    problem = r"1 of its 64 .* nan at \[1, 4\].*65504 \(85556 on one side of zero\)"
    with pytest.raises(ModelFileError, match=problem):
        convert(path, tmp_path / "out2", "exact")


@pytest.mark.parametrize(
    "options",
    [{"method": "none"}, {"gd_lr": -1.0}, {"method": "grid", "grid_size": 1}, {"num_threads": 0}],
)
def test_wrong_arguments_are_found_before_the_work(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        convert(tmp_path / "there is no such file", tmp_path / "out", **options)
    assert next(reversed(options)) in str(caught.value)


# Output files


def test_an_existing_output_is_replaced(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"old")
    convert(model, out, "grid")
    assert len(inspect(out).tensors) == 12
    back = tmp_path / "back"
    back.write_bytes(b"old")
    restore(out, back)
    assert len(inspect(back).tensors) == 12


@pytest.mark.parametrize("num_threads", [0, -1])
def test_threads_are_checked_before_the_work(tmp_path: Path, num_threads: int) -> None:
    """Even before the file is looked for."""
    with pytest.raises(ValueError, match="num_threads must be an integer of at least 1"):
        restore(tmp_path / "missing", tmp_path / "back", num_threads=num_threads)


@pytest.mark.parametrize(("mask", "mode"), [(0o027, 0o640), (0o000, 0o666)])
def test_the_output_has_the_mode_of_any_new_file(
    model: Path, tmp_path: Path, mask: int, mode: int
) -> None:
    before = os.umask(mask)
    try:
        convert(model, tmp_path / "out", "grid")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == mode


def test_a_linked_output_is_written_through(model: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere" / "real")
    for _ in range(2):  # the target is missing first, and there the second time
        convert(model, link, "grid")
        assert link.is_symlink()
        assert (tmp_path / "elsewhere" / "real").is_file()


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_the_output_is_not_the_input(model: Path, tmp_path: Path, link: Any) -> None:
    out = model if link is None else tmp_path / "link"
    if link is not None:
        link(model, out)
    content = model.read_bytes()
    with pytest.raises(ModelFileError, match="the output is the input"):
        convert(model, out, "grid")
    convert(model, tmp_path / "packed", "grid")
    with pytest.raises(ModelFileError, match="the output is the input"):
        restore(tmp_path / "packed", tmp_path / "packed")
    assert model.read_bytes() == content


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("folder", "is a folder, expected a file name"),
        ("missing/out", "there is no folder"),
        ("model.safetensors/out", "there is no folder"),
        ("new/", "is a folder, expected a file name"),
        ("", "is a folder, expected a file name"),
        ("pipe", "is not a regular file"),
    ],
)
def test_outputs_that_cannot_be(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, problem: str
) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ModelFileError, match=problem) as caught:
        convert(model, output, "grid")
    assert str(caught.value).startswith(f"{output}: ")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, RuntimeError])
def test_an_interrupted_run_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"old")
    before = sorted(os.listdir(tmp_path))
    seen_while_working = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if np.asarray(args[0]).size:  # the empty call only checks the arguments
            seen_while_working.append(litter(tmp_path))
            if len(seen_while_working) == 3:
                raise error
        return q43nl(*args, **kwargs)

    monkeypatch.setattr(packing, "q43nl", interrupted)
    with pytest.raises(error):
        convert(model, out, "grid")
    assert [len(names) for names in seen_while_working] == [1, 1, 1]
    assert sorted(os.listdir(tmp_path)) == before
    assert out.read_bytes() == b"old"


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    tensors = {f"w{i}": gauss((64, 1024), np.dtype("<f4"), i) for i in range(4)}
    path = write_model(tmp_path / "in.st", tensors)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    convert(path, tmp_path / "warm", "grid")  # so that nothing else is written below
    os.unlink(tmp_path / "warm")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            convert(path, tmp_path / "out.st", "grid")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / "out.st")
    assert os.listdir(tmp_path) == ["in.st"]


# Files that are not sound

UNSOUND = "is not a sound safetensors file: "  # and then the stock reader's words


W = info("F32", [2, 32], 0, 256)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is too short for a safetensors file: 0 bytes"),
        (b"abc", "is too short for a safetensors file: 3 bytes"),
        (struct.pack("<Q", 1 << 62) + b"{}", f"should have {1 << 62} bytes, 2 are there"),
        (struct.pack("<Q", 500) + b"{}", "should have 500 bytes, 2 are there"),
        (struct.pack("<Q", 6) + b"{nope}", UNSOUND),
        (struct.pack("<Q", 3) + b"[1]", UNSOUND),
        (struct.pack("<Q", 4) + b"\xff\xfe{}", UNSOUND),
    ],
)
@pytest.mark.parametrize("work", [convert, restore, inspect])
def test_no_header(tmp_path: Path, work: Any, content: bytes, problem: str) -> None:
    path = tmp_path / "in.st"
    path.write_bytes(content)
    refused(work, path, problem)


@pytest.mark.parametrize(
    ("header", "nbytes", "problem"),
    [
        ({"w": W}, 255, "is truncated: its header describes"),
        ({"w": W}, 0, "is truncated: its header describes"),
        ({"w": W}, 300, "is too long: its header describes"),
        ({"w": info("F32", [2, 32], 0, 252)}, 252, "tensor 'w': shape [2, 32] of F32 needs 256"),
        (
            {"w": W, "v": info("F32", [2, 32], 128, 256)},
            384,
            "tensor 'v': data_offsets [128, 384] overlap others, expected to begin at 256",
        ),
        ({"w": info("F32", [-2, 32], 0, 256)}, 256, "tensor 'w': shape [-2, 32]"),
        ({"w": info("F32", ["a"], 0, 256)}, 256, "tensor 'w': shape ['a'] must be a list"),
        ({"w": info("F\x1b", [2, 32], 0, 256)}, 256, "tensor 'w': dtype must be one of"),
        ({"w": info("F32", [1] * 65, 0, 4)}, 4, "tensor 'w': shape [1, 1"),
        ({"\ud800": W}, 256, "tensor '\\ud800': its name must be Unicode text"),
        ({"w": info("F32", [1 << 40, 1 << 40], 0, 256)}, 256, "tensor 'w': shape"),
        ({"w": {"dtype": "F32", "shape": [2, 32]}}, 256, "tensor 'w': data_offsets must be"),
        ({"w": {**W, "data_offsets": [0]}}, 256, "tensor 'w': data_offsets must be"),
        ({"w": {**W, "qtype": 5}}, 256, "tensor 'w': qtype must be a string, found 5"),
        ({"w": [1, 2, 3]}, 0, "tensor 'w': its entry must be a JSON object"),
        ({"__metadata__": {"a": 1}, "w": W}, 256, UNSOUND),
        (f'{{"w": {json.dumps(W)}, "w": {json.dumps(W)}}}'.encode(), 256, "key 'w' more than once"),
    ],
)
@pytest.mark.parametrize("work", [convert, restore, inspect])
def test_unsound_headers(
    tmp_path: Path, work: Any, header: object, nbytes: int, problem: str
) -> None:
    refused(work, write_raw(tmp_path / "in.st", header, bytes(nbytes)), problem)


def refused(work: Any, path: Path, problem: str) -> None:
    """One line that starts with the file and holds the problem, and nothing is left behind."""
    before = sorted(os.listdir(path.parent))
    arguments = (path,) if work is inspect else (path, path.parent / "out")
    with pytest.raises(ModelFileError) as caught:
        work(*arguments)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert problem in message
    assert sorted(os.listdir(path.parent)) == before


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_anywhere(model: Path, tmp_path: Path, keep: float) -> None:
    content = model.read_bytes()
    model.write_bytes(content[: int(len(content) * keep)])
    for work in (convert, restore, inspect):
        refused(work, model, "")


@pytest.mark.parametrize("work", [convert, restore, inspect])
def test_inputs_that_are_no_files(tmp_path: Path, work: Any) -> None:
    more = () if work is inspect else (tmp_path / "out",)
    with pytest.raises(FileNotFoundError) as caught:
        work(tmp_path / "missing", *more)
    assert caught.value.filename == str(tmp_path / "missing")
    with pytest.raises(ModelFileError, match="must be a folder with safetensors files, found no"):
        work(tmp_path, *more)
    with pytest.raises(ModelFileError, match="is not a regular file"):
        work(os.devnull, *more)


@pytest.mark.parametrize("change", ["shorter", "other"])
def test_a_file_that_changes_while_it_is_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Half of one model and half of another would be no model."""

    def change_then_decide(*args: Any) -> Any:
        decisions = decide(*args)
        if change == "shorter":
            os.truncate(model, model.stat().st_size - 500)
        else:
            content = model.read_bytes()
            model.unlink()
            model.write_bytes(content)
        return decisions

    decide = conversion.decide
    monkeypatch.setattr(conversion, "decide", change_then_decide)
    refused(convert, model, "the file changed while it was read")


def test_a_converted_file_is_not_converted_again(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "packed", "grid")
    refused(convert, tmp_path / "packed", "is quantized already")
    rewrite_header(tmp_path / "packed", lambda header: header.pop("__metadata__"))
    refused(convert, tmp_path / "packed", "is quantized already")


# Metadata that restore cannot use


def test_restore_needs_the_metadata(model: Path) -> None:
    refused(restore, model, "no tensor is marked Q43NL")


def set_record(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    def changed(header: dict[str, Any]) -> None:
        record = json.loads(header["__metadata__"]["q43nl_numba"])
        change(record)
        header["__metadata__"]["q43nl_numba"] = json.dumps(record)

    return changed


def set_first_record(change: Callable[[dict[str, Any]], object]) -> Any:
    """The same for a record of version 1, which named every tensor."""

    def first_then_changed(record: dict[str, Any]) -> None:
        record["version"] = 1
        record["tensors"] = {
            "w": {"dtype": "BF16", "shape": [2, 64], "qtype": "Q43NL"},
            "b": {"dtype": "BF16", "shape": [8]},
        }
        change(record)

    return set_record(first_then_changed)


def set_text(text: str) -> Callable[[dict[str, Any]], object]:
    return lambda header: header["__metadata__"].update(q43nl_numba=text)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (set_text("{"), "metadata is invalid: not JSON"),
        (set_text("[" * 100_000), "metadata is invalid: not JSON"),
        (set_text("[]"), "metadata is invalid: not an object"),
        (set_text("{}"), "metadata is invalid: version None"),
        (set_record(lambda r: r.update(version=99)), "version 99, this library reads 1 and 2"),
        (set_record(lambda r: r.update(displaced={"dtype": 1})), "not an object of strings"),
        (set_record(lambda r: r.update(packed_dtype="I8")), "'packed_dtype' is 'I8'"),
        (set_record(lambda r: r.update(unpacked=[1])), "'unpacked' is not a list of strings"),
        (set_record(lambda r: r.update(dtypes=["w"])), "'dtypes' is not an object of strings"),
        (set_record(lambda r: r.update(dtypes={"v": "F32"})), "tensor 'v': is in the metadata"),
        (set_record(lambda r: r.update(dtypes={"w": "U8"})), "tensor 'w': is stored as U8"),
        (set_record(lambda r: r.update(dtypes={"b": "I32"})), "tensor 'b': is stored as BF16"),
        (lambda header: header["w"].update(shape=[76, 1]), "tensor 'w': is marked Q43NL but is"),
        (set_first_record(lambda r: r.update(tensors=[])), "'tensors' is not an object"),
        (set_first_record(lambda r: r["tensors"].pop("w")), "tensor 'w': is not in the"),
        (
            set_first_record(lambda r: r["tensors"].update(v=r["tensors"]["w"])),
            "tensor 'v': is in the",
        ),
        (set_first_record(lambda r: r["tensors"].update(w=7)), "tensor 'w': its"),
        (set_first_record(lambda r: r["tensors"]["w"].update(qtype="Q9")), "tensor 'w': its"),
        (set_first_record(lambda r: r["tensors"]["w"].update(shape=[2, -64])), "tensor 'w': its"),
        (
            set_first_record(lambda r: r["tensors"]["w"].update(shape=[4, 32])),
            "tensor 'w': is stored",
        ),
        (
            set_first_record(lambda r: r["tensors"]["w"].update(shape=[2, 65])),
            "tensor 'w': is stored",
        ),
        (set_first_record(lambda r: r["tensors"]["w"].update(shape=[])), "tensor 'w': is stored"),
        (
            set_first_record(lambda r: r["tensors"]["w"].update(dtype="I32")),
            "tensor 'w': is stored",
        ),
        (set_first_record(lambda r: r["tensors"]["w"].pop("qtype")), "tensor 'w': is stored"),
        (set_first_record(lambda r: r["tensors"]["b"].update(shape=[7])), "tensor 'b': is stored"),
        (
            set_first_record(lambda r: r["tensors"]["b"].update(dtype="I32")),
            "tensor 'b': is stored",
        ),
        (set_first_record(lambda r: r["tensors"]["w"].update(shape=[4, 64])), "'w': is stored"),
    ],
)
def test_restore_checks_the_metadata(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    tensors = {"w": gauss((2, 64), BF16), "b": gauss((8,), BF16)}
    path = write_model(tmp_path / "in.st", tensors, {"dtype": "old"})
    convert(path, tmp_path / "packed.st", "grid")
    refused(restore, rewrite_header(tmp_path / "packed.st", change), problem)


@pytest.mark.parametrize("entry", [info("U8", [2, 37], 0, 74), info("F32", [19], 0, 76)])
def test_inspect_checks_what_is_marked(tmp_path: Path, entry: dict[str, Any]) -> None:
    nbytes = entry["data_offsets"][1]
    path = write_raw(tmp_path / "in.st", {"w": {**entry, "qtype": "Q43NL"}}, bytes(nbytes))
    refused(inspect, path, "tensor 'w': is marked Q43NL but is")


@pytest.mark.parametrize("package", ["safetensors", "ml_dtypes"])
def test_a_missing_package_names_the_extra(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        convert(model, tmp_path / "out", "grid")
    assert package in str(caught.value)
    assert 'pip install ".[convert]"' in str(caught.value)
    assert os.listdir(tmp_path) == ["model.safetensors"]
