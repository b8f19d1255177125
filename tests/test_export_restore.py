"""From the engine's file back to a folder, and what inspect tells of such files."""

from __future__ import annotations

import json
import os
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
    expected,
    read_file,
    read_tensors,
)
from model_files import BF16, read_raw, write_model, write_raw

from q43nl_numba import dequantize, q43nl
from q43nl_numba.convert import ModelFileError
from q43nl_numba.convert.reading import read_header
from q43nl_numba.export import (
    ExportWarning,
    export_model,
    inspect_model,
    is_engine_file,
    restore_model,
)

pytestmark = pytest.mark.filterwarnings("ignore::q43nl_numba.export.ExportWarning")


def export_tiny(model: str | Path, path: Path, **options: Any) -> Path:
    folder = ENGINE / model
    export_model(folder, path, allow_rope_scaling=folder.name in ROPE_SCALED, **options)
    return path


def upstream_layout(path: Path) -> None:
    """Lay a file out as the engine's own converter does: gaps, padding, tokens by the bell."""
    header, data = read_raw(path)
    laid: dict[str, Any] = {"__metadata__": header.pop("__metadata__")}
    moved = b""
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        content = data[begin:end]
        if name == "tokenizer.tokens":
            content = content.replace(b"\1\0\0\0\0", b"\1\0\0\0\7")
        moved += bytes(-len(moved) % 4096)
        laid[name] = {**entry, "data_offsets": [len(moved), len(moved) + len(content)]}
        moved += content
    text = json.dumps(laid).encode()
    write_raw(path, text + b" " * (-(8 + len(text)) % 4096), moved)


# There and back


@pytest.mark.parametrize("model", MODELS)
def test_grid_gives_the_same_bytes_again(model: str, tmp_path: Path) -> None:
    first = export_tiny(model, tmp_path / "first.st", method="grid")
    report = restore_model(first, tmp_path / "back")
    assert report.files == (
        "config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors",
    )  # fmt: skip
    second = export_tiny(tmp_path / "back", tmp_path / "second.st", method="grid")
    assert second.read_bytes() == first.read_bytes()


@pytest.mark.parametrize("model", ["smollm2", "gemma", "phi3"])
def test_exact_gives_the_same_bytes_or_values_again(model: str, tmp_path: Path) -> None:
    """With all codes some groups have two encodings of the same values, of opposite signs."""
    for codes in ("symmetric", "full"):
        options = {"method": "exact", "codes": codes}
        first = export_tiny(model, tmp_path / f"{codes}.st", **options)
        restore_model(first, tmp_path / codes)
        second = export_tiny(tmp_path / codes, tmp_path / f"{codes}2.st", **options)
        if codes == "symmetric":
            assert second.read_bytes() == first.read_bytes()
        tensors, again = read_file(first), read_file(second)
        for name, array in tensors.items():
            if array.dtype == np.uint8 and name != "tokenizer.tokens":
                np.testing.assert_array_equal(dequantize(again[name]), dequantize(array))
            else:
                np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize("model", MODELS)
def test_bf16_brings_every_tensor_back(model: str, tmp_path: Path) -> None:
    """The folder's own tensors, bit for bit: names, fused rows, permutations, Gemma's factors."""
    restore_model(
        export_tiny(model, tmp_path / "x.st", dtype="bf16"), tmp_path / "back", dtype="bfloat16"
    )
    source, back = read_tensors(ENGINE / model), read_tensors(tmp_path / "back")
    assert set(back) == set(source)
    for name, array in source.items():
        np.testing.assert_array_equal(back[name], array.astype(BF16), err_msg=name)
    header, _ = read_raw(tmp_path / "back" / "model.safetensors")
    assert header["__metadata__"] == {"format": "pt"}


def test_gemma_of_another_width(tmp_path: Path, rng: Any) -> None:
    """The root of 96 is no power of two, so the products are rounded; grid's bytes still hold."""

    def widen(tensors: Any) -> None:
        for name, array in tensors.items():
            shape = [96 if size == 64 else size for size in array.shape]
            scale = 0.1 if len(shape) == 1 else 0.02
            tensors[name] = (scale * rng.standard_normal(shape)).astype(BF16)

    copy = ModelCopy("gemma", tmp_path / "model").tensors(widen).config(hidden_size=96)
    first = export_tiny(copy.path, tmp_path / "first.st", method="grid")
    restore_model(first, tmp_path / "back")
    second = export_tiny(tmp_path / "back", tmp_path / "second.st", method="grid")
    assert second.read_bytes() == first.read_bytes()


def test_values_are_what_the_engine_computes_with(tmp_path: Path) -> None:
    restore_model(export_tiny("smollm2", tmp_path / "x.st", method="grid"), tmp_path / "back")
    name = "model.layers.1.mlp.down_proj.weight"
    source = read_tensors(ENGINE / "smollm2")[name].astype(np.float32)
    wanted = dequantize(q43nl(source, "grid"), source.shape)
    np.testing.assert_array_equal(read_tensors(tmp_path / "back")[name], wanted)


CONFIGURATIONS = [
    ("mistral", {"sliding_window": 64}),
    ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}),
    ("smollm3", {"no_rope_layers": [0, 1, 1, 0], "rope_theta": 5000000}),
    ("phi3", {"partial_rotary_factor": 0.5, "eos_token_id": [2, 436]}),
    ("qwen3moe", {"num_experts_per_tok": 1, "attention_dropout": 0.25}),
    ("mixtral", {"eos_token_id": None, "bos_token_id": None}),
    ("gemma", {"hidden_activation": "gelu_pytorch_tanh"}),
    ("smollm2", {"qk_norm": True, "attention_bias": None, "hidden_act": "relu"}),
]


@pytest.mark.parametrize(("model", "changes"), CONFIGURATIONS)
def test_the_metadata_comes_back(model: str, changes: dict[str, Any], tmp_path: Path) -> None:
    copy = ModelCopy(model, tmp_path / "model").config(**changes)
    copy.json("generation_config.json", lambda content: content.pop("eos_token_id"))
    first = export_tiny(copy.path, tmp_path / "first.st", dtype="bf16")
    restore_model(first, tmp_path / "back")
    second = export_tiny(tmp_path / "back", tmp_path / "second.st", dtype="bf16")
    assert read_raw(second)[0]["__metadata__"] == read_raw(first)[0]["__metadata__"]
    assert second.read_bytes() == first.read_bytes()


def test_a_window_of_all_layers_comes_back_as_one(tmp_path: Path) -> None:
    """transformers' Mistral does not read layer_types."""
    copy = ModelCopy("mistral", tmp_path / "model").config(sliding_window=64)
    restore_model(export_tiny(copy.path, tmp_path / "x.st", dtype="bf16"), tmp_path / "back")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["sliding_window"] == 64
    assert "layer_types" not in config


def test_biases_come_back(tmp_path: Path, rng: Any) -> None:
    biases = {
        f"model.layers.{layer}.self_attn.{letter}_proj.bias": rng.standard_normal(rows).astype(BF16)
        for layer in (0, 1)
        for letter, rows in (("q", 96), ("k", 32), ("v", 32))
    }
    copy = ModelCopy("smollm2", tmp_path / "model").config(attention_bias=True)
    copy.tensors(lambda tensors: tensors.update(biases))
    first = export_tiny(copy.path, tmp_path / "first.st", dtype="bf16")
    restore_model(first, tmp_path / "back", dtype="bfloat16")
    back = read_tensors(tmp_path / "back")
    for name, bias in biases.items():
        np.testing.assert_array_equal(back[name], bias)
    second = export_tiny(tmp_path / "back", tmp_path / "second.st", dtype="bf16")
    assert second.read_bytes() == first.read_bytes()


# With the original folder at hand


@pytest.mark.parametrize("model", ["smollm2", "qwen3"])
def test_like_copies_what_is_beside_the_weights(model: str, tmp_path: Path) -> None:
    first = export_tiny(model, tmp_path / "x.st", method="grid")
    report = restore_model(first, tmp_path / "back", like=ENGINE / model)
    assert report.notes == ()
    for file in (ENGINE / model).iterdir():
        if file.suffix != ".safetensors" and file.name != "expected.json":
            assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()
    second = export_tiny(tmp_path / "back", tmp_path / "second.st", method="grid")
    assert second.read_bytes() == first.read_bytes()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda copy: copy.config(rope_theta=1.0), "'rope_theta' must be '1.0' as in"),
        (lambda copy: copy.config(num_hidden_layers=1), "'n_layers' must be '1' as in"),
        (
            lambda copy: copy.json("tokenizer.json", lambda t: t["model"]["merges"].reverse()),
            "the tokenizer must be that of",
        ),
    ],
)
def test_like_must_be_the_folder(edit: Any, message: str, tmp_path: Path) -> None:
    first = export_tiny("smollm2", tmp_path / "x.st", dtype="bf16")
    copy = ModelCopy("smollm2", tmp_path / "model")
    edit(copy)
    with pytest.raises(ModelFileError, match=message):
        restore_model(first, tmp_path / "back", like=copy.path)
    assert sorted(os.listdir(tmp_path)) == ["model", "x.st"]


# Files of the engine's own converter


@pytest.mark.parametrize("model", ["smollm2", "mixtral", "phi3"])
@pytest.mark.parametrize("dtype", FORMATS)
def test_files_of_the_original(model: str, dtype: str, tmp_path: Path) -> None:
    """Its whole file, rebuilt from ours, has its digest; restoring it gives the same folder."""
    ours = export_tiny(model, tmp_path / "ours.st", dtype=dtype, method="grid")
    restore_model(ours, tmp_path / "from-ours")
    copy = tmp_path / "original.st"
    copy.write_bytes(ours.read_bytes())
    upstream_layout(copy)
    if model != "phi3":  # whose metadata is corrected
        made = expected(model, dtype)
        from engine_models import digest

        assert digest(copy.read_bytes()) == made["file_sha256"]
    restore_model(copy, tmp_path / "from-original")
    for name in os.listdir(tmp_path / "from-ours"):
        one, other = (tmp_path / folder / name for folder in ("from-ours", "from-original"))
        assert one.read_bytes() == other.read_bytes(), name
    assert inspect_model(copy).problem == ""


def test_a_file_that_a_stock_writer_wrote(tmp_path: Path) -> None:
    """Sorted, without qtype."""
    from safetensors.numpy import save_file

    ours = export_tiny("smollm2", tmp_path / "ours.st", method="grid")
    save_file(read_file(ours), tmp_path / "stock.st", read_raw(ours)[0]["__metadata__"])
    restore_model(ours, tmp_path / "a")
    restore_model(tmp_path / "stock.st", tmp_path / "b")
    for name in os.listdir(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert inspect_model(tmp_path / "stock.st").problem == ""


# What is refused


def spoiled(tmp_path: Path, metadata: dict[str, Any], tensors: Any = lambda t: None) -> Path:
    """A file of smollm2 with other metadata (None removes a key) and other tensors."""
    ours = export_tiny("smollm2", tmp_path / "ours.st", dtype="bf16")
    changed = {**read_raw(ours)[0]["__metadata__"], **metadata}
    arrays = read_file(ours)
    tensors(arrays)
    ours.unlink()
    kept = {key: value for key, value in changed.items() if value is not None}
    return write_model(tmp_path / "spoiled.st", arrays, kept)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"palm": None, "pasllm": None}, "an engine file must have the metadata key 'pasllm'"),
        ({"arch": "gemma2"}, "arch must be one of llama, .*found 'gemma2'"),
        ({"dtype": "Q80"}, "dtype must be one of Q43NL, BF16, FP16, FP32, found 'Q80'"),
        ({"dtype": "FP32"}, "'model.embed.weight'.* must have 172032 bytes of F32 .* found 86016"),
        ({"dim": None}, "metadata key 'dim' must be an integer of at least 1, found none"),
        ({"dim": "big"}, "metadata key 'dim' must be .* found 'big'"),
        ({"n_heads": "0"}, "metadata key 'n_heads' must be .* found '0'"),
        ({"dim": "64"}, "'model.embed.weight'.* must have 57344 bytes of BF16"),
        ({"hidden_dim": "95"}, "intermediate_size must be a multiple of 32, found 95"),
        ({"n_layers": "3"}, "'model.layers.2.attn.norm.weight'.* must be in the file, found none"),
        ({"n_layers": "1"}, "'model.layers.1.attn.norm.weight'.* is no tensor of LlamaForCausalLM"),
        ({"rotary_dim": "7"}, "even number from 2 .* found 7"),
        ({"eos_token_id": "[2"}, "'eos_token_id' must be a number, a list.* found '\\[2'"),
    ],
)
def test_metadata_that_does_not_fit(metadata: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = spoiled(tmp_path, metadata)
    with pytest.raises(ModelFileError, match=message):
        restore_model(path, tmp_path / "back")
    assert os.listdir(tmp_path) == ["spoiled.st"]


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    def cut(tensors: Any) -> None:
        tensors["tokenizer.tokens"] = tensors["tokenizer.tokens"][:-1]

    for edit, message in (
        (lambda t: t.pop("tokenizer.scores"), "'tokenizer.scores'.* must be in the file as F32"),
        (lambda t: t.update({"x": np.zeros(4, np.float32)}), "'x'.* is no tensor of"),
        (
            lambda t: t.update({"tokenizer.scores": np.zeros(4, np.float32)}),
            "must have 448 values, found 4",
        ),
        (cut, "'tokenizer.tokens'.* must hold .* bytes for its pieces"),
    ):
        path = spoiled(tmp_path, {}, edit)
        with pytest.raises(ModelFileError, match=message):
            restore_model(path, tmp_path / "back")


def test_arguments_and_folders(tmp_path: Path) -> None:
    path = export_tiny("smollm2", tmp_path / "x.st", dtype="bf16")
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, found"):
        restore_model(path, tmp_path / "back", dtype="q43nl")
    with pytest.raises(ValueError, match="num_threads"):
        restore_model(path, tmp_path / "back", num_threads=0)
    with pytest.raises(ValueError, match="max_shard_size"):
        restore_model(path, tmp_path / "back", max_shard_size="big")
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "file").touch()
    with pytest.raises(ModelFileError, match="must be a new or empty folder"):
        restore_model(path, tmp_path / "back")
    with pytest.raises(ModelFileError, match="there is no folder"):
        restore_model(path, tmp_path / "none" / "back")


def test_shards(tmp_path: Path) -> None:
    path = export_tiny("phi3", tmp_path / "x.st", method="grid")
    report = restore_model(path, tmp_path / "back", max_shard_size="150KB")
    shards = [name for name in report.files if name.endswith(".safetensors")]
    assert len(shards) > 1
    assert "model.safetensors.index.json" in report.files
    again = export_tiny(tmp_path / "back", tmp_path / "again.st", method="grid")
    assert again.read_bytes() == path.read_bytes()


def test_a_value_that_a_dtype_cannot_hold(tmp_path: Path) -> None:
    def spoil(tensors: Any) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e6

    copy = ModelCopy("smollm2", tmp_path / "model").tensors(spoil)
    path = export_tiny(copy.path, tmp_path / "x.st", dtype="bf16")
    with pytest.raises(ModelFileError, match=r"up_proj\.weight'.*too large for float16"):
        restore_model(path, tmp_path / "back", dtype="float16")
    assert not (tmp_path / "back").exists()


def test_a_tokenizer_that_cannot_be_rebuilt_is_told(tmp_path: Path) -> None:
    copy = ModelCopy("smollm2", tmp_path / "model")
    copy.json("tokenizer.json", lambda file: file["model"]["merges"].insert(5, "t h"))
    copy.json("tokenizer.json", lambda file: file["model"]["merges"].insert(5, "t h"))
    path = export_tiny(copy.path, tmp_path / "x.st", dtype="bf16")
    report = restore_model(path, tmp_path / "back")
    assert "tokenizer.json" not in report.files
    assert not (tmp_path / "back" / "tokenizer.json").exists()
    assert any("no tokenizer.json is written" in note for note in report.notes)
    assert "note" in report.table()


# Inspecting


def test_is_engine_file(tmp_path: Path) -> None:
    path = export_tiny("smollm2", tmp_path / "x.st", dtype="bf16")
    assert is_engine_file(read_header(str(path)))
    assert not is_engine_file(read_header(str(ENGINE / "smollm2" / "model.safetensors")))


@pytest.mark.parametrize("dtype", ["q43nl", "bf16"])
def test_inspect(dtype: str, tmp_path: Path) -> None:
    path = export_tiny("qwen3moe", tmp_path / "x.st", dtype=dtype, method="grid")
    contents = inspect_model(path)
    assert (contents.arch, contents.class_name) == ("qwen3moe", "Qwen3MoeForCausalLM")
    assert contents.word == dtype.upper()
    assert contents.tokens == 416
    assert contents.problem == ""
    assert not contents.tied
    source = read_tensors(ENGINE / "qwen3moe")
    assert contents.weights == sum(array.size for array in source.values())
    assert contents.bits_per_weight == path.stat().st_size * 8 / contents.weights
    shapes = {tensor.name: tensor.shape for tensor in contents.file.tensors}
    assert shapes["model.embed.weight"] == (448, 64)
    assert shapes["model.layers.0.moegate.weight"] == (4, 64)
    table = contents.table()
    assert "qwen3moe (Qwen3MoeForCausalLM)" in table
    assert "layers 2" in table
    assert "experts 4" in table
    assert "448x64" in table


def test_inspect_tells_what_is_wrong(tmp_path: Path) -> None:
    path = spoiled(tmp_path, {"dim": "64"})
    contents = inspect_model(path)
    assert "'model.embed.weight'" in contents.problem
    assert "problem" in contents.table()
    path = spoiled(tmp_path, {"arch": "olmo"})
    contents = inspect_model(path)
    assert contents.class_name is None
    assert contents.tokens is None
    assert "not known here" in contents.table()


def test_export_warns_nothing_of_a_sound_model(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error", ExportWarning)
        export_tiny("smollm2", tmp_path / "x.st", dtype="bf16")
