"""Inputs in other formats: checkpoints quantized already, files of the format's own tools."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q43nl_numba import dequantize, q43nl

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")

from model_files import BF16, DTYPES, gauss, info, read_raw, stored, write_model, write_raw
from safetensors.numpy import load_file

from q43nl_numba.convert import ModelFileError, convert, inspect, restore
from q43nl_numba.convert.blocks import Blocks, block_shape

F8 = DTYPES["F8_E4M3"]


def spread(scale: np.ndarray, shape: tuple[int, ...], block: tuple[int, ...]) -> np.ndarray:
    for axis, size in enumerate(block):
        scale = np.repeat(scale, size, axis)
    return scale[tuple(slice(size) for size in shape)]


# 8-bit floats with scales


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("piece", [32, 1 << 19])
@pytest.mark.parametrize(
    ("suffix", "shape", "scale_shape", "block"),
    [
        ("_scale_inv", (130, 288), (2, 3), (128, 128)),
        ("_scale_inv", (128, 128), (1, 1), (128, 128)),
        ("_scale_inv", (2, 256, 160), (2, 2, 2), (1, 128, 128)),
        ("_scale", (6, 64), (6, 1), (1, 64)),
        ("_scale", (6, 64), (6,), (1, 64)),
        ("_scale", (6, 64), (), (6, 64)),
        ("_scale", (6, 64), (1,), (6, 64)),
        ("_scale", (3, 4, 32), (3, 1, 1), (1, 4, 32)),
        ("_scale", (64, 96), (2, 3), (32, 32)),
    ],
)
def test_8_bit_floats_are_packed_as_their_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, piece: int,
    suffix: str, shape: tuple[int, ...], scale_shape: tuple[int, ...], block: tuple[int, ...],
) -> None:  # fmt: skip
    monkeypatch.setattr("q43nl_numba.convert.tensors.PIECE_WEIGHTS", piece)
    codes = gauss(shape).astype(DTYPES[dtype])
    scale = np.random.default_rng(2).uniform(0.5, 2, scale_shape).astype(np.float32)
    path = write_model(
        tmp_path / "in", {"l.weight": codes, f"l.weight{suffix}": scale, "b": gauss((8,))}
    )
    report = convert(path, tmp_path / "out", "grid")
    full = scale.reshape(scale_shape + (1,) * (len(shape) - len(scale_shape)))
    full = np.broadcast_to(full, shape) if full.size == 1 else spread(full, shape, block)
    weights = codes.astype(np.float32) * full
    assert set(load_file(tmp_path / "out")) == {"l.weight", "b"}
    np.testing.assert_array_equal(
        stored(tmp_path / "out", "l.weight").ravel(), q43nl(weights, "grid")
    )
    assert report.packed[0].shape == shape
    restore(tmp_path / "out", tmp_path / "back")
    back = stored(tmp_path / "back", "l.weight")
    assert back.dtype == BF16
    np.testing.assert_array_equal(back, dequantize(q43nl(weights, "grid"), shape, dtype=BF16))


def test_other_names_of_a_scale(tmp_path: Path) -> None:
    codes = gauss((4, 32)).astype(F8)
    path = write_model(
        tmp_path / "in", {"l.weight": codes, "l.scale_weight": np.array([2], np.float32)}
    )
    convert(path, tmp_path / "out", "grid")
    expected = q43nl(codes.astype(np.float32) * 2, "grid")
    np.testing.assert_array_equal(stored(tmp_path / "out", "l.weight").ravel(), expected)


def test_excluded_8_bit_floats_keep_their_scale(tmp_path: Path) -> None:
    """A scale is never packed on its own, whatever its shape."""
    tensors = {
        "a.weight": gauss((256, 4096)).astype(F8),
        "a.weight_scale_inv": gauss((2, 32)),
        "b.weight": gauss((256, 4096)).astype(F8),
        "b.weight_scale_inv": gauss((2, 32)),
    }
    path = write_model(tmp_path / "in", tensors)
    report = convert(path, tmp_path / "out", "grid", exclude="b.*")
    assert [tensor.name for tensor in report.packed] == ["a.weight"]
    assert {tensor.name for tensor in report.kept} == {"b.weight", "b.weight_scale_inv"}
    for name in ("b.weight", "b.weight_scale_inv"):
        np.testing.assert_array_equal(
            stored(tmp_path / "out", name).view(np.uint8), tensors[name].view(np.uint8)
        )


@pytest.mark.parametrize(
    ("scale", "problem"),
    [
        (np.ones((3, 5), np.float32), r"is F32 \[3, 5\], expected a floating scale"),
        (np.ones((2, 2), np.int32), r"is I32 \[2, 2\], expected a floating scale"),
        (np.ones((2, 2, 1), np.float32), r"is F32 \[2, 2, 1\], expected"),
    ],
)
def test_scales_that_do_not_fit(tmp_path: Path, scale: np.ndarray, problem: str) -> None:
    tensors = {"l.weight": gauss((256, 256)).astype(F8), "l.weight_scale_inv": scale}
    with pytest.raises(ModelFileError, match=f"in: tensor 'l.weight_scale_inv': {problem}"):
        convert(write_model(tmp_path / "in", tensors), tmp_path / "out", "grid")


def test_a_scale_without_its_tensor(tmp_path: Path) -> None:
    path = write_model(tmp_path / "in", {"l.weight_scale_inv": gauss((2, 32)), "w": gauss((1, 32))})
    with pytest.raises(ModelFileError, match=r"'l.weight_scale_inv': is the scale of 8-bit floats"):
        convert(path, tmp_path / "out", "grid")


def test_blocks_by_brute_force() -> None:
    for values, shape in [((2, 3), (5, 9)), ((2, 1, 3), (4, 3, 9)), ((5, 1), (5, 7)), ((3,), (9,))]:
        block = tuple(-(-n // c) for n, c in zip(shape, values, strict=True))
        array = np.arange(np.prod(values)).reshape(values)
        expected = spread(array, shape, block).ravel()
        blocks = Blocks(array, shape, block)
        for start in range(expected.size):
            for stop in range(start, expected.size + 1):
                np.testing.assert_array_equal(blocks.piece(start, stop), expected[start:stop])
    assert block_shape((2, 2), (257, 256)) is None
    assert block_shape((2, 2, 2), (4, 4)) is None


# Other quantized formats

I32, U8, I8, U32, F16, F32 = (DTYPES[name] for name in ("I32", "U8", "I8", "U32", "F16", "F32"))

FOREIGN: list[tuple[str, dict[str, tuple[np.dtype[Any], tuple[int, ...]]]]] = [
    ("GPTQ", {"l.qweight": (I32, (8, 96)), "l.qzeros": (I32, (1, 12)), "l.scales": (F16, (1, 96)),
              "l.g_idx": (I32, (64,))}),
    ("GPTQ", {"l.qweight": (I32, (8, 96)), "l.qzeros": (I32, (1, 12)), "l.scales": (F16, (1, 96))}),
    ("AWQ", {"l.qweight": (I32, (64, 12)), "l.qzeros": (I32, (1, 12)), "l.scales": (F16, (1, 96))}),
    ("bitsandbytes", {"l.weight": (U8, (64, 1)), "l.weight.absmax": (F32, (2,)),
                      "l.weight.quant_map": (F32, (16,)),
                      "l.weight.quant_state.bitsandbytes__nf4": (U8, (80,))}),
    ("bitsandbytes", {"l.weight": (I8, (64, 64)), "l.SCB": (F32, (64,))}),
    ("compressed-tensors", {"l.weight_packed": (I32, (64, 8)), "l.weight_scale": (F16, (64, 32))}),
    ("MXFP4", {"m.up_blocks": (U8, (2, 64, 2, 16)), "m.up_scales": (U8, (2, 64, 2))}),
    ("NVFP4", {"l.weight": (U8, (64, 32)), "l.weight_scale": (F8, (64, 4)),
               "l.weight_scale_2": (F32, ())}),
    ("MLX", {"l.weight": (U32, (64, 8)), "l.scales": (F16, (64, 32)), "l.biases": (F16, (64, 32))}),
    ("HQQ", {"l.W_q": (U8, (64, 64)), "l.scale": (F16, (64, 1)), "l.zero": (F16, (64, 1))}),
    ("quanto", {"l.weight._data": (I8, (64, 64)), "l.weight._scale": (F16, (64, 1))}),
    ("EXL2", {"l.q_weight": (I32, (8, 96)), "l.q_scale": (I32, (1, 12))}),
    ("I8 with scales", {"l.weight": (I8, (64, 64)), "l.weight_scale": (F16, (64, 32))}),
]  # fmt: skip


@pytest.mark.parametrize(("found", "tensors"), FOREIGN)
def test_other_formats_are_refused_by_name(
    tmp_path: Path, found: str, tensors: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
) -> None:
    arrays = {name: np.ones(shape, dtype) for name, (dtype, shape) in tensors.items()}
    path = write_model(tmp_path / "in", {"norm": gauss((8,)), "other": gauss((8, 64)), **arrays})
    first = next(iter(tensors))
    with pytest.raises(ModelFileError) as caught:
        convert(path, tmp_path / "out", "grid")
    assert f"in: tensor {first!r}: is quantized already ({found})" in str(caught.value)
    assert os.listdir(tmp_path) == ["in"]
    assert len(inspect(path).tensors) == len(tensors) + 2


def test_ordinary_names_are_no_other_format(tmp_path: Path) -> None:
    """Words that quantizers use too, in a model that is not quantized."""
    tensors = {
        "scales": gauss((4, 32)),
        "a.scale": gauss((4, 32)),
        "a.weight": gauss((4, 32)),
        "m.codes": np.arange(64, dtype=np.int64).reshape(2, 32),
        "m.weight": np.arange(64, dtype=np.int64).reshape(2, 32),
    }
    report = convert(write_model(tmp_path / "in", tensors), tmp_path / "out", "grid")
    assert [tensor.name for tensor in report.packed] == ["scales", "a.scale", "a.weight"]


# Runs that pack nothing


@pytest.mark.parametrize(
    ("tensors", "options", "reason"),
    [
        ({"w": gauss((4, 32))}, {"exclude": ["*"]}, "1 excluded"),
        ({"b": gauss((32,)), "odd": gauss((2, 33))}, {}, "1 fewer than 2 dimensions, 1 last"),
        ({"w": gauss((4, 32)).astype(F8)}, {}, "1 8-bit float without scale"),
        ({}, {}, "it has none"),
    ],
)
def test_a_run_that_packs_nothing_fails(
    tmp_path: Path, tensors: dict[str, np.ndarray], options: dict[str, Any], reason: str
) -> None:
    path = write_model(tmp_path / "in", tensors, {"format": "pt"})
    with pytest.raises(ModelFileError, match=rf"no tensor is to be quantized \({reason}"):
        convert(path, tmp_path / "out", "grid", **options)
    assert os.listdir(tmp_path) == ["in"]
    convert(path, tmp_path / "out", "grid", allow_empty=True, **options)
    assert read_raw(tmp_path / "out")[0].pop("__metadata__") == {"format": "pt"}
    assert set(read_raw(tmp_path / "out")[0]) - {"__metadata__"} == set(tensors)


# Files of the format's own tools: gaps, flat packed tensors, no record


def engine_file(path: Path, **more: Any) -> tuple[Path, np.ndarray]:
    weights = gauss((4, 64))
    packed = q43nl(weights, "grid")
    header = {
        "__metadata__": {"pasllm": "true", "dtype": "Q43NL"},
        "norm": info("F32", [8], 0, 32),
        "w": info("U8", [packed.size], 4096, packed.size, qtype="Q43NL"),
        "tokens": info("U8", [38], 8192, 38),
        "half": info("BF16", [4], 12288, 8, qtype="BF16"),
        **more,
    }
    norm = np.arange(8, dtype=np.float32).tobytes()
    data = norm.ljust(4096, b"\0") + packed.tobytes().ljust(4096, b"\0") + bytes(4096) + bytes(8)
    return write_raw(path, header, data), weights


def test_files_of_the_formats_tools(tmp_path: Path) -> None:
    path, weights = engine_file(tmp_path / "engine")
    tensors = {tensor.name: tensor for tensor in inspect(path).tensors}
    assert (tensors["w"].dtype, tensors["w"].shape) == ("Q43NL", (256,))
    assert tensors["tokens"].curves is None
    report = restore(path, tmp_path / "back")
    assert (report.unpacked, report.tensors) == (1, 4)
    expected = dequantize(q43nl(weights, "grid"))
    np.testing.assert_array_equal(load_file(tmp_path / "back")["w"], expected)
    np.testing.assert_array_equal(load_file(tmp_path / "back")["norm"], np.arange(8))
    header = read_raw(tmp_path / "back")[0]
    assert header["__metadata__"] == {"pasllm": "true"}
    assert "qtype" not in header["half"]
    with pytest.raises(ModelFileError, match="is quantized already"):
        convert(path, tmp_path / "out", "grid")


def test_a_gap_is_no_reason_to_refuse_but_an_overlap_is(tmp_path: Path) -> None:
    tensors = {"a": gauss((4, 32)), "b": gauss((5,)), "c": gauss((2, 64), BF16)}
    path = write_model(tmp_path / "in", tensors, gap=4096)
    plain = write_model(tmp_path / "plain", tensors)
    convert(path, tmp_path / "out", "grid")
    convert(plain, tmp_path / "same", "grid")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "same").read_bytes()
    path, _ = engine_file(tmp_path / "engine", half=info("BF16", [4], 8224, 8))
    os.truncate(path, path.stat().st_size - 4096)
    for work in (restore, convert):
        with pytest.raises(ModelFileError, match=r"tensor 'half': .* overlap"):
            work(path, tmp_path / "x")
    with pytest.raises(ModelFileError, match=r"tensor 'half': .* overlap"):
        inspect(path)


def test_groups_as_rows(tmp_path: Path) -> None:
    packed = q43nl(gauss((4, 64)), "grid").reshape(8, 19)
    header = {"w": info("U8", packed.shape, 0, packed.size, qtype="Q43NL")}
    path = write_raw(tmp_path / "in", header, packed.tobytes())
    restore(path, tmp_path / "back")
    np.testing.assert_array_equal(load_file(tmp_path / "back")["w"], dequantize(packed, (8, 32)))


# Files that are something else


def torch_checkpoint(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (torch_checkpoint, "a PyTorch checkpoint (pickle)"),
        (lambda p: p.write_bytes(pickle.dumps({"w": [1.0] * 100})), "a pickle, most likely"),
        (
            lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
            "a Git LFS pointer",
        ),
        (
            lambda p: p.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "b"}})),
            "the index of a model in several files",
        ),
        (lambda p: p.write_text('{"a": 1}' + " " * 20), "a JSON file"),
        (lambda p: p.write_text("<!DOCTYPE html><html>not found</html>"), "an HTML page"),
        (lambda p: np.savez(p.open("wb"), w=np.ones(32)), "a NumPy archive (npz)"),
        (lambda p: np.save(p.open("wb"), np.ones(32)), "a NumPy array file"),
    ],
)
@pytest.mark.parametrize("work", [convert, restore, inspect])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_wrong_files_are_named(tmp_path: Path, work: Any, write: Any, name: str) -> None:
    path = tmp_path / "in.bin"
    write(path)
    with pytest.raises(ModelFileError, match=re.escape(f"{path}: is {name}")):
        work(*((path,) if work is inspect else (path, tmp_path / "out")))
    assert os.listdir(tmp_path) == ["in.bin"]


def test_control_characters_never_reach_a_message(tmp_path: Path) -> None:
    evil = "\x1b[2J\n\u202e\x07"
    cases = [
        {f"w{evil}": info(f"F{evil}", [2], 0, 8)},
        {f"w{evil}": info("F32", [evil], 0, 8)},
        {f"w{evil}": info("F32", [3], 0, 8)},
        {f"w{evil}": info("F32", [2], 0, [evil][0:1] and 8, qtype=[evil])},
        {"__metadata__": {evil: 1}, "w": info("F32", [2], 0, 8)},
        {f"w{evil}": info("U8", [8], 0, 8, qtype="Q43NL")},
    ]
    folder = tmp_path / f"folder{evil.replace('/', '')}"
    folder.mkdir()
    for header in cases:
        path = write_raw(folder / f"in{evil}", header, bytes(8))
        for work in (convert, restore, inspect):
            with pytest.raises(ModelFileError) as caught:
                work(*((path,) if work is inspect else (path, tmp_path / "out")))
            assert str(caught.value).isprintable()


def test_a_string_is_one_pattern(tmp_path: Path) -> None:
    path = write_model(tmp_path / "in", {"lm_head.weight": gauss((4, 32)), "w": gauss((4, 32))})
    report = convert(path, tmp_path / "out", "grid", exclude="lm_head*")
    assert [tensor.name for tensor in report.packed] == ["w"]
    report = convert(path, tmp_path / "out", "grid", include="lm_head*")
    assert [tensor.name for tensor in report.packed] == ["lm_head.weight"]
    with pytest.raises(TypeError, match="exclude must hold patterns"):
        convert(path, tmp_path / "out", "grid", exclude=[1])  # type: ignore[list-item]
