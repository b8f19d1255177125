"""Whole engine files: equal to what the engine's own converter makes, and what they must be."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")

from engine_models import (
    ENGINE,
    FORMATS,
    MODELS,
    ROPE_SCALED,
    ModelCopy,
    digest,
    expected,
    read_file,
    read_pieces,
    read_tensors,
)
from model_files import BF16, DTYPES, read_raw, write_model
from safetensors import safe_open

from q43nl_numba import dequantize, q43nl, quality
from q43nl_numba._text import json_text
from q43nl_numba.convert import ModelFileError
from q43nl_numba.convert import tensors as convert_tensors
from q43nl_numba.convert.json_file import read_json
from q43nl_numba.convert.model import open_model
from q43nl_numba.convert.rules import Rule
from q43nl_numba.export import (
    CLASS_NAMES,
    ExportReport,
    ExportWarning,
    export_model,
)
from q43nl_numba.export.tensors import EngineTensor, Rotary
from q43nl_numba.export.values import EngineValues


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExportWarning)
        yield


def export_tiny(model: str, path: Path, **options: Any) -> ExportReport:
    with quietly():
        return export_model(
            ENGINE / model, path, allow_rope_scaling=model in ROPE_SCALED, **options
        )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Every tiny model in the two formats of which there is an original."""
    at = tmp_path_factory.mktemp("exported")
    paths = {(model, dtype): at / f"{model}-{dtype}.st" for model in MODELS for dtype in FORMATS}
    for (model, dtype), path in paths.items():
        export_tiny(model, path, dtype=dtype, method="grid")
    return paths


EVERY_FILE = pytest.mark.parametrize(
    ("model", "dtype"), [(model, dtype) for model in MODELS for dtype in FORMATS]
)


# Equal to the original


def test_every_architecture_has_a_tiny_model() -> None:
    classes = {
        read_json(str(ENGINE / model / "config.json")).get("architectures")[0] for model in MODELS
    }
    assert classes == set(CLASS_NAMES)


@EVERY_FILE
def test_metadata_equals_the_original(model: str, dtype: str, exported: Any) -> None:
    header, _ = read_raw(exported[model, dtype])
    assert list(header["__metadata__"].items()) == list(expected(model, dtype)["metadata"].items())


@EVERY_FILE
def test_tensors_equal_the_original(model: str, dtype: str, exported: Any) -> None:
    """Names in order, dtypes, shapes, qtypes and every byte; tokens up to the byte 0."""
    header, data = read_raw(exported[model, dtype])
    header.pop("__metadata__")
    made = expected(model, dtype)["tensors"]
    assert list(header) == list(made)
    for name, entry in header.items():
        begin, end = entry.pop("data_offsets")
        content = data[begin:end]
        if name == "tokenizer.tokens":
            content = as_the_original_writes_byte_0(content)
        assert {**entry, "sha256": digest(content)} == made[name], name


def as_the_original_writes_byte_0(tokens: bytes) -> bytes:
    """The original writes the piece of byte 0 as that of byte 7; nothing else may differ."""
    zero = b"\x01\0\0\0\0"
    pieces = read_pieces(tokens)
    assert pieces.count(b"\0") <= 1
    assert all(b"\0" not in piece or piece == b"\0" for piece in pieces)
    rewritten = [b"\x07" if piece == b"\0" else piece for piece in pieces]
    assert tokens.count(zero) >= pieces.count(b"\0")
    return b"".join(len(piece).to_bytes(4, "little") + piece for piece in rewritten)


@pytest.mark.parametrize("model", ["smollm2", "qwen2", "llama3"])
def test_byte_0_of_a_byte_level_vocabulary_is_byte_0(model: str, exported: Any) -> None:
    pieces = read_pieces(read_file(exported[model, "bf16"])["tokenizer.tokens"].tobytes())
    assert pieces.count(b"\0") == pieces.count(b"\x07") == 1


# The container


@EVERY_FILE
def test_stock_readers_open_it(model: str, dtype: str, exported: Any) -> None:
    tensors = read_file(exported[model, dtype])
    with safe_open(exported[model, dtype], framework="np") as file:
        assert file.metadata()["pasllm"] == "true"
        for name in file.keys():  # noqa: SIM118 - it is no dictionary
            if tensors[name].dtype != BF16:
                np.testing.assert_array_equal(file.get_tensor(name), tensors[name])


@EVERY_FILE
def test_contiguous_float32_first_tokens_last(model: str, dtype: str, exported: Any) -> None:
    header, data = read_raw(exported[model, dtype])
    header.pop("__metadata__")
    in_order = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    position = 0
    for _, entry in in_order:
        assert entry["data_offsets"][0] == position
        position = entry["data_offsets"][1]
    assert position == len(data)
    dtypes = [entry["dtype"] for _, entry in in_order]
    assert "F32" not in dtypes[dtypes.count("F32") :]
    assert in_order[-1][0] == "tokenizer.tokens"


def test_same_bytes_every_time_and_at_every_piece_size(
    tmp_path: Path, exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for weights in (32, 1 << 12):
        monkeypatch.setattr(convert_tensors, "PIECE_WEIGHTS", weights)
        for model in ("phi3", "qwen3", "gemma"):
            export_tiny(model, tmp_path / "again.st", method="grid", num_threads=1)
            assert (tmp_path / "again.st").read_bytes() == exported[model, "q43nl"].read_bytes()


def test_a_piece_reads_the_heads_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by the piece and a head, whatever the size of the tensor."""
    query = open_model(ENGINE / "qwen3").tensors["model.layers.0.self_attn.q_proj.weight"]
    read: list[tuple[int, int]] = []
    read_values = type(query).values

    def noted(self: Any, start: int, stop: int) -> Any:
        read.append((start // 64, stop // 64))
        return read_values(self, start, stop)

    monkeypatch.setattr(type(query), "values", noted)
    values = EngineValues.of(query, EngineTensor("", (128, 64), "", rotary=Rotary(32, 32)))
    whole = values.values(0, values.size)
    for start, stop, rows in (
        (0, 64, (0, 32)),
        (40 * 64, 41 * 64, (32, 64)),
        (10 * 64 + 32, 90 * 64, (0, 96)),
        (127 * 64, 128 * 64, (96, 128)),
    ):
        np.testing.assert_array_equal(values.values(start, stop), whole[start:stop])
        assert read[-1] == rows


# Formats


@pytest.mark.parametrize("model", MODELS)
def test_other_floats(model: str, tmp_path: Path, exported: Any) -> None:
    """The same file as bf16 but for the matrices' dtype, of which float32 is exact."""
    exact_path = tmp_path / "fp32.st"
    export_tiny(model, exact_path, dtype="fp32")
    reference, _ = read_raw(exported[model, "bf16"])
    reference_metadata = reference.pop("__metadata__")
    exact, rounded = read_file(exact_path), read_file(exported[model, "bf16"])
    for dtype, word, stored in (("fp16", "FP16", "F16"), ("fp32", "FP32", "F32")):
        export_tiny(model, tmp_path / "out.st", dtype=dtype)
        header, _ = read_raw(tmp_path / "out.st")
        tensors = read_file(tmp_path / "out.st")
        assert header.pop("__metadata__") == {**reference_metadata, "dtype": word}
        assert list(header) == list(reference)
        for name, entry in header.items():
            is_matrix = "qtype" in reference[name]
            assert entry["shape"] == reference[name]["shape"]
            assert entry.get("qtype") == (word if is_matrix else None)
            assert entry["dtype"] == (stored if is_matrix else reference[name]["dtype"])
            np.testing.assert_array_equal(tensors[name], exact[name].astype(tensors[name].dtype))
            np.testing.assert_array_equal(rounded[name], exact[name].astype(rounded[name].dtype))


def test_fp32_is_what_the_engine_should_compute_with(tmp_path: Path, exported: Any) -> None:
    export_tiny("llama3", tmp_path / "out.st", dtype="fp32")
    exact = read_file(tmp_path / "out.st")
    packed = read_file(exported["llama3", "q43nl"])
    for name, matrix in exact.items():
        if matrix.ndim == 2:
            np.testing.assert_array_equal(packed[name], q43nl(matrix, "grid"))


def test_a_value_beyond_float16_is_an_error(tmp_path: Path) -> None:
    def spoil(tensors: Any) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e6

    copy = ModelCopy("smollm2", tmp_path / "model").tensors(spoil)
    for dtype in ("fp16", "q43nl"):
        with pytest.raises(ModelFileError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight'.*"):
            export_model(copy.path, tmp_path / "out.st", dtype=dtype)
    assert not (tmp_path / "out.st").exists()
    export_model(copy.path, tmp_path / "out.st", dtype="bf16")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
@pytest.mark.parametrize("dtype", ["q43nl", "fp32"])
def test_a_value_that_is_not_finite_is_an_error(
    value: float, name: str, dtype: str, tmp_path: Path
) -> None:
    copy = ModelCopy("smollm2", tmp_path / "model")
    copy.tensors(lambda tensors: tensors[name].reshape(-1).__setitem__(40, value))
    with pytest.raises(ModelFileError, match=f"tensor '{name}': .* finite"):
        export_model(copy.path, tmp_path / "out.st", dtype=dtype)
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_dtypes_of_the_folder(dtype: str, tmp_path: Path, exported: Any) -> None:
    def cast(tensors: Any) -> None:
        for name, array in tensors.items():
            tensors[name] = array.astype(DTYPES[dtype])

    copy = ModelCopy("smollm2", tmp_path / "model").tensors(cast)
    export_model(copy.path, tmp_path / "out.st", method="grid")
    if dtype != "F16":
        assert (tmp_path / "out.st").read_bytes() == exported["smollm2", "q43nl"].read_bytes()
    else:  # it rounds small bfloat16 numbers
        tensors = read_tensors(copy.path)
        query = read_file(tmp_path / "out.st")["model.layers.0.mlp.w1.weight"]
        source = tensors["model.layers.0.mlp.gate_proj.weight"].astype(np.float32)
        np.testing.assert_array_equal(query, q43nl(source, "grid"))


def test_one_file_or_shards(tmp_path: Path, exported: Any) -> None:
    copy = ModelCopy("llama3", tmp_path / "model").tensors()
    assert sorted(p.name for p in copy.path.glob("model*")) == ["model.safetensors"]
    with quietly():
        export_model(copy.path, tmp_path / "out.st", method="grid", allow_rope_scaling=True)
    assert (tmp_path / "out.st").read_bytes() == exported["llama3", "q43nl"].read_bytes()


@pytest.mark.parametrize("given", ["snapshots/5f3a", ""])
def test_links_into_a_cache(given: str, tmp_path: Path, exported: Any) -> None:
    """As the hub's cache lays a model out, given the snapshot or the model."""
    cache = tmp_path / "models--a--b"
    for name in ("blobs", "refs", "snapshots/5f3a"):
        (cache / name).mkdir(parents=True)
    (cache / "refs" / "main").write_text("5f3a")
    for index, file in enumerate((ENGINE / "smollm2").iterdir()):
        shutil.copy(file, cache / "blobs" / str(index))
        (cache / "snapshots" / "5f3a" / file.name).symlink_to(f"../../blobs/{index}")
    export_model(cache / given, tmp_path / "out.st", method="grid")
    assert (tmp_path / "out.st").read_bytes() == exported["smollm2", "q43nl"].read_bytes()


# Methods, importance, the report


def test_methods_and_their_options(tmp_path: Path, exported: Any) -> None:
    export_tiny("smollm2", tmp_path / "out.st", method="optimal", effort=1, codes="symmetric")
    packed = read_file(tmp_path / "out.st")["model.layers.0.mlp.w2.weight"]
    source = read_tensors(ENGINE / "smollm2")["model.layers.0.mlp.down_proj.weight"]
    wanted = q43nl(source.astype(np.float32), "optimal", effort=1, codes="symmetric")
    np.testing.assert_array_equal(packed, wanted)


def rope_order(head_dim: int, rows: int) -> np.ndarray:
    """Where each of the engine's rows comes from, spelled out."""
    order = []
    for head in range(rows // head_dim):
        for index in range(head_dim // 2):
            order += [head * head_dim + index, head * head_dim + head_dim // 2 + index]
    return np.array(order)


@pytest.mark.parametrize("model", ["smollm2", "phi3"])
@pytest.mark.parametrize("whole", [True, False])
def test_importance_follows_the_rows(model: str, whole: bool, tmp_path: Path, rng: Any) -> None:
    """By the folder's names; cut and permuted like the rows, columns as they are."""
    source = {
        "smollm2": "model.layers.0.self_attn.k_proj.weight",
        "phi3": "model.layers.0.self_attn.qkv_proj.weight",
    }[model]
    weights = read_tensors(ENGINE / model)[source].astype(np.float32)
    shape = weights.shape if whole else weights.shape[-1:]
    importance = rng.random(shape).astype(np.float32) ** 4
    write_model(tmp_path / "importance.st", {source: importance})
    export_tiny(model, tmp_path / "out.st", method="grid", importance=tmp_path / "importance.st")
    packed = read_file(tmp_path / "out.st")
    rows = slice(0, 32) if model == "smollm2" else slice(64, 128)
    order = rope_order(16, rows.stop - rows.start)
    permuted = importance[rows][order] if whole else importance
    wanted = q43nl(weights[rows][order], "grid", importance=permuted)
    np.testing.assert_array_equal(packed["model.layers.0.attn.wk.weight"], wanted)
    assert not np.array_equal(wanted, q43nl(weights[rows][order], "grid"))


def test_importance_that_does_not_fit(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    for array, message in (
        (np.ones((96, 32), np.float32), f"'{name}': importance .*\\[96, 32\\]"),
        (np.ones(96, np.int32), f"'{name}': importance of dtype I32"),
        (np.full(96, -1, np.float32), f"'{name}'.*-1"),
    ):
        write_model(tmp_path / "importance.st", {name: array})
        with pytest.raises(ModelFileError, match=message):
            export_tiny("smollm2", tmp_path / "out.st", importance=tmp_path / "importance.st")
    write_model(tmp_path / "importance.st", {"other": np.ones(96, np.float32)})
    with pytest.raises(ModelFileError, match=r"'other'.*no such tensor"):
        export_tiny("smollm2", tmp_path / "out.st", importance=tmp_path / "importance.st")
    assert not (tmp_path / "out.st").exists()


def test_importance_that_nothing_uses_is_listed(tmp_path: Path) -> None:
    write_model(
        tmp_path / "importance.st",
        {
            "model.layers.0.mlp.up_proj.weight": np.ones(96, np.float32),
            "model.norm.weight": np.ones(96, np.float32),
        },
    )
    with pytest.warns(ExportWarning, match=r"importance.*'model\.norm\.weight'"):
        export_model(ENGINE / "smollm2", tmp_path / "out.st", importance=tmp_path / "importance.st")


def test_report(tmp_path: Path) -> None:
    report = export_tiny("qwen2", tmp_path / "out.st", method="grid")
    assert (report.class_name, report.arch, report.word) == ("Qwen2ForCausalLM", "qwen2", "Q43NL")
    assert report.bytes_out == (tmp_path / "out.st").stat().st_size
    assert (report.tied, report.tokens, report.notes) == (True, 416, ())
    source = read_tensors(ENGINE / "qwen2")
    assert len(report.packed) == 1 + 2 * 7
    assert len(report.conversion.kept) == 2 * 5 + 1
    assert report.weights == sum(array.size for array in source.values())
    assert report.bits_per_weight == report.bytes_out * 8 / report.weights
    first = report.packed[0]
    embedding = source["model.embed_tokens.weight"].astype(np.float32)
    measured = quality(embedding, q43nl(embedding, "grid"))
    assert first.name == "model.embed.weight"
    assert first.snr_db == pytest.approx(measured.snr_db, abs=1e-4)
    assert (first.mse_ratio, first.method) == (1.0, "grid")
    table = report.table()
    assert "Qwen2ForCausalLM as qwen2" in table
    assert "tied" in table
    assert f"{report.bytes_out:,} bytes" in table


def test_report_of_other_formats(tmp_path: Path) -> None:
    report = export_tiny("smollm2", tmp_path / "out.st", dtype="bf16")
    assert report.packed == ()
    assert "15 matrices in BF16, 5 vectors" in report.table()
    assert math.isnan(report.snr_db)
    assert "SNR" not in report.table()
    assert json_text(report.document())


# Arguments and outputs


def test_wrong_arguments(tmp_path: Path) -> None:
    for options, error, message in (
        ({"dtype": "q80"}, ValueError, "dtype must be one of q43nl, bf16, fp16, fp32, found 'q80'"),
        ({"method": "best"}, ValueError, "best"),
        ({"method": "grid", "effort": 3}, ValueError, "effort"),
        ({"nonsense": 3}, TypeError, "nonsense"),
        ({"dtype": "bf16", "effort": 3, "method": "optimal"}, ValueError, "dtype must be 'q43nl'"),
        ({"dtype": "bf16", "importance": "x"}, ValueError, "dtype must be 'q43nl'"),
    ):
        with pytest.raises(error, match=message):
            export_tiny("smollm2", tmp_path / "out.st", **options)
    assert os.listdir(tmp_path) == []


def test_a_choice_of_matrices_is_an_error(tmp_path: Path) -> None:
    for options, message in (
        ({"exclude": "*embed*"}, "'model.embed_tokens.weight': must be in the format.*excluded"),
        ({"include": "*mlp*"}, "'model.embed_tokens.weight': must be in the .*not included"),
        ({"exclude": ["*.q_proj.*"]}, "q_proj.weight': must be in the format of all"),
        ({"exclude": ["*nothing*"]}, "exclude '\\*nothing\\*' matches no tensor"),
        ({"include": ["*", "nothing"]}, "include 'nothing' matches no tensor"),
        ({"rules": [Rule(("*.v_proj.*",), keep="as-is")]}, "v_proj.weight': must.*by a rule"),
        ({"dtype": "bf16", "exclude": ["*mlp*"]}, "gate_proj.weight': must be in the format"),
    ):
        with pytest.raises(ModelFileError, match=message):
            export_tiny("smollm2", tmp_path / "out.st", **options)
    assert not (tmp_path / "out.st").exists()


def test_a_choice_that_leaves_no_matrix_out(tmp_path: Path, exported: Any) -> None:
    export_tiny("smollm2", tmp_path / "out.st", method="grid", include=["*"], exclude=["*norm*"])
    assert (tmp_path / "out.st").read_bytes() == exported["smollm2", "q43nl"].read_bytes()


def test_rules_choose_methods(tmp_path: Path) -> None:
    """A mix of methods is possible: all write the same format."""
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\npattern = "*.down_proj.*"\nmethod = "optimal"\neffort = 1\n')
    report = export_tiny("smollm2", tmp_path / "out.st", method="grid", rules=rules)
    methods = {tensor.name: tensor.method for tensor in report.packed}
    assert methods["model.layers.0.mlp.w2.weight"] == "optimal"
    assert methods["model.layers.0.mlp.w1.weight"] == "grid"
    source = read_tensors(ENGINE / "smollm2")["model.layers.1.mlp.down_proj.weight"]
    packed = read_file(tmp_path / "out.st")["model.layers.1.mlp.w2.weight"]
    wanted = q43nl(source.astype(np.float32), "optimal", effort=1)
    np.testing.assert_array_equal(packed, wanted)


def test_outputs_that_are_refused(tmp_path: Path) -> None:
    copy = ModelCopy("smollm2", tmp_path / "model")
    before = (copy.path / "model.safetensors").read_bytes()
    for path in (copy.path / "model.safetensors", tmp_path, tmp_path / "none" / "out.st"):
        with pytest.raises(ModelFileError):
            export_model(copy.path, path)
    assert (copy.path / "model.safetensors").read_bytes() == before
    for name in ("config.json", "tokenizer.json"):
        with pytest.raises(ModelFileError, match="is the input file"):
            export_model(copy.path, copy.path / name)
    (tmp_path / "there.st").write_text("old")
    with pytest.raises(ModelFileError, match="exists already"):
        export_model(copy.path, tmp_path / "there.st", no_clobber=True)
    assert (tmp_path / "there.st").read_text() == "old"


def test_an_interrupted_run_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from q43nl_numba.convert import packing

    (tmp_path / "out.st").write_text("old")
    calls = 0

    def interrupted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyboardInterrupt
        return q43nl(*args, **options)

    monkeypatch.setattr(packing, "q43nl", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_tiny("smollm2", tmp_path / "out.st", method="grid")
    assert os.listdir(tmp_path) == ["out.st"]
    assert (tmp_path / "out.st").read_text() == "old"


# Gemma's arithmetic, where the root is not a power of two


def test_gemma_factors_are_rounded_once(tmp_path: Path) -> None:
    """sqrt(96) is no float32: factor and product are each rounded to float32 once."""
    rng = np.random.default_rng(3)

    def widen(tensors: Any) -> None:
        for name, array in tensors.items():
            shape = [96 if size == 64 else size for size in array.shape]
            tensors[name] = rng.standard_normal(shape).astype(BF16)

    copy = ModelCopy("gemma", tmp_path / "model").tensors(widen).config(hidden_size=96)
    export_model(copy.path, tmp_path / "out.st", dtype="fp32")
    made, source = read_file(tmp_path / "out.st"), read_tensors(copy.path)
    embedding = source["model.embed_tokens.weight"].astype(np.float32)
    factor = np.float32(math.sqrt(96))
    np.testing.assert_array_equal(made["model.embed.weight"], embedding * factor)
    norm = source["model.norm.weight"].astype(np.float32)
    wanted = (norm + np.float32(1)) * np.float32(1 / math.sqrt(96))
    np.testing.assert_array_equal(made["model.norm.weight"], wanted)
    assert made["model.norm.weight"].dtype == np.float32


def test_packed_decodes_to_nearly_the_permuted_weights(exported: Any) -> None:
    """The way from the folder's rows to the engine's, spelled out by hand."""
    source = read_tensors(ENGINE / "qwen3")["model.layers.1.self_attn.q_proj.weight"]
    packed = read_file(exported["qwen3", "q43nl"])["model.layers.1.attn.wq.weight"]
    decoded = dequantize(packed, (128, 64))
    wanted = source.astype(np.float32)[rope_order(32, 128)]
    assert np.abs(decoded - wanted).max() < 0.15 * np.abs(wanted).max()


def test_8_bit_floats_with_scales(tmp_path: Path) -> None:
    """As some models come; what is written is the products, and the quantization is over."""
    name = "model.layers.0.mlp.up_proj.weight"
    scales = np.linspace(0.5, 2.0, 96, dtype=np.float32).reshape(96, 1)
    products: dict[str, np.ndarray] = {}

    def quantize(tensors: Any) -> None:
        codes = (tensors[name].astype(np.float32) * 64 / scales).astype(DTYPES["F8_E4M3"])
        products[name] = codes.astype(np.float32) * scales
        tensors[name] = codes
        tensors[f"{name}_scale_inv"] = scales

    copy = ModelCopy("smollm2", tmp_path / "model").tensors(quantize)
    copy.config(quantization_config={"quant_method": "fp8"})
    export_model(copy.path, tmp_path / "out.st", method="grid")
    packed = read_file(tmp_path / "out.st")["model.layers.0.mlp.w3.weight"]
    np.testing.assert_array_equal(packed, q43nl(products[name], "grid"))


def test_folders_that_are_quantized_otherwise(tmp_path: Path) -> None:
    base = "model.layers.0.mlp.up_proj."

    def quantize(tensors: Any) -> None:
        tensors.pop(f"{base}weight")
        tensors[f"{base}qweight"] = np.zeros((12, 96), np.int32)
        tensors[f"{base}scales"] = np.ones((1, 96), np.float16)

    copy = ModelCopy("smollm2", tmp_path / "model").tensors(quantize)
    with pytest.raises(ModelFileError, match="is quantized already"):
        export_model(copy.path, tmp_path / "out.st")
