"""GGUF files: every type, Hugging Face's names and order of rows, and damaged files."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q43nl_numba import q43nl

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")
gguf = pytest.importorskip("gguf")

from model_files import BF16, gauss, read_raw, stored  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from q43nl_numba.convert import (  # noqa: E402
    ModelFileError,
    convert_model,
    inspect,
    plan_model,
    restore,
    verify_model,
)
from q43nl_numba.convert.gguf_names import ARCHITECTURES, hugging_face_name  # noqa: E402

HEADS, KV_HEADS, WIDTH = 4, 2, 256


def write_gguf(
    path: Path, tensors: dict[str, tuple[np.ndarray, str]], architecture: str = "llama"
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    for name, (array, kind) in tensors.items():
        number = gguf.GGMLQuantizationType[kind]
        if kind in ("F32", "F16"):
            writer.add_tensor(name, array.astype({"F32": "<f4", "F16": "<f2"}[kind]))
        else:
            writer.add_tensor(name, gguf.quantize(array, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_cpp_order(weights: np.ndarray, heads: int) -> np.ndarray:
    """As `LlamaModel.permute` of llama.cpp's converter."""
    rows, *rest = weights.shape
    return (
        weights.reshape(heads, 2, rows // heads // 2, *rest).swapaxes(1, 2).reshape(weights.shape)
    )


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("piece", [64, 1 << 20])
def test_every_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, piece: int) -> None:
    monkeypatch.setattr("q43nl_numba.convert.tensors.PIECE_WEIGHTS", piece)
    weights = gauss((24, WIDTH))
    path = write_gguf(
        tmp_path / "in.gguf",
        {"blk.0.ffn_up.weight": (weights, kind), "output_norm.weight": (weights[0], "F32")},
    )
    number = gguf.GGMLQuantizationType[kind]
    if kind in ("F32", "F16"):
        values = weights.astype({"F32": "<f4", "F16": "<f2"}[kind])
    else:
        values = gguf.dequantize(gguf.quantize(weights, number), number)
    name = "model.layers.0.mlp.up_proj.weight"
    report = convert_model(path, tmp_path / "out.safetensors", "grid")
    assert [tensor.name for tensor in report.packed] == [name]
    header, _ = read_raw(tmp_path / "out.safetensors")
    assert header["__metadata__"]["format"] == "pt"
    np.testing.assert_array_equal(
        stored(tmp_path / "out.safetensors", name).ravel(), q43nl(values, "grid")
    )
    np.testing.assert_array_equal(
        stored(tmp_path / "out.safetensors", "model.norm.weight"), weights[0]
    )
    restore(tmp_path / "out.safetensors", tmp_path / "back")
    expected = {"F16": np.float16, "BF16": BF16}.get(kind, np.float32)
    assert stored(tmp_path / "back", name).dtype == expected
    assert verify_model(path, tmp_path / "out.safetensors").is_faithful
    convert_model(path, tmp_path / "kept", "grid", exclude="*", allow_empty=True)
    np.testing.assert_array_equal(
        stored(tmp_path / "kept", name).astype(np.float32), np.asarray(values, np.float32)
    )


@pytest.mark.parametrize("architecture", ["llama", "smollm3", "qwen2", "qwen3", "mamba"])
@pytest.mark.parametrize("piece", [WIDTH, 3 * WIDTH, 1 << 20])
def test_names_and_order_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, piece: int
) -> None:
    monkeypatch.setattr("q43nl_numba.convert.tensors.PIECE_WEIGHTS", piece)
    q, k, v = (gauss((rows, WIDTH), seed=rows) for rows in (64, 32, 33))
    bias = gauss((64,), seed=9)
    is_permuted = architecture in ("llama", "smollm3")

    def order(weights: np.ndarray, heads: int) -> np.ndarray:
        return llama_cpp_order(weights, heads) if is_permuted else weights

    path = write_gguf(
        tmp_path / "in.gguf",
        {
            "token_embd.weight": (v, "F32"),
            "blk.1.attn_q.weight": (order(q, HEADS), "F32"),
            "blk.1.attn_q.bias": (order(bias, HEADS), "F32"),
            "blk.1.attn_k.weight": (order(k, KV_HEADS), "F32"),
            "blk.1.attn_v.weight": (v, "F32"),
            "rope_freqs.weight": (bias, "F32"),
        },
        architecture,
    )
    convert_model(path, tmp_path / "out", "grid")
    found = load_file(tmp_path / "out")
    prefix = "model.layers.1.self_attn."
    names = {
        "model.embed_tokens.weight": q43nl(v, "grid"),
        f"{prefix}q_proj.weight": q43nl(q, "grid"),
        f"{prefix}q_proj.bias": bias,
        f"{prefix}k_proj.weight": q43nl(k, "grid"),
        f"{prefix}v_proj.weight": q43nl(v, "grid"),
        "rope_freqs.weight": bias,
    }
    if architecture == "mamba":
        own = ("token_embd.weight", "blk.1.attn_q.weight", "blk.1.attn_q.bias",
               "blk.1.attn_k.weight", "blk.1.attn_v.weight", "rope_freqs.weight")  # fmt: skip
        names = dict(zip(own, names.values(), strict=True))
    assert found.keys() == names.keys()
    for name, expected in names.items():
        np.testing.assert_array_equal(found[name].ravel(), expected)


def test_names_are_those_of_the_gguf_package() -> None:
    """Its own table maps the other way, and each name to one tensor."""
    arches = {arch: number for number, arch in gguf.MODEL_ARCH_NAMES.items()}
    for architecture in ARCHITECTURES:
        table = gguf.get_tensor_name_map(arches[architecture], 3)
        known = [gguf.TENSOR_NAMES[t] for t in gguf.MODEL_TENSORS[arches[architecture]]]
        mapped = 0
        for template in known:
            own = template.format(bid=2) + ".weight"
            name = hugging_face_name(architecture, own)
            if name != own:
                mapped += 1
                assert table.get_name(name, try_suffixes=(".weight",)) == own
        assert mapped >= 10


def test_folders_plans_and_inspect(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = write_gguf(tmp_path / "in" / "m.gguf", {"output.weight": (gauss((8, WIDTH)), "Q8_0")})
    plan = plan_model(tmp_path / "in", tmp_path / "out.st", "grid")
    assert [(t.name, t.dtype, t.stored_dtype) for t in plan.tensors] == [
        ("lm_head.weight", "F32", "Q43NL")
    ]
    assert plan.bytes_in == path.stat().st_size
    convert_model(path, tmp_path / "out", "grid", max_shard_size="1MB")
    assert os.listdir(tmp_path / "out") == ["model.safetensors"]
    (tensor,) = inspect(path).tensors
    assert (tensor.name, tensor.dtype, tensor.shape) == ("lm_head.weight", "F32", (8, WIDTH))
    with pytest.raises(ModelFileError, match="must be Q43NL in a safetensors file"):
        restore(path, tmp_path / "back")


@pytest.mark.parametrize("keep", [4, 12, 60, 300, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("work", [convert_model, inspect])
def test_a_file_cut_anywhere(tmp_path: Path, work: Any, keep: float) -> None:
    path = write_gguf(tmp_path / "in", {"output.weight": (gauss((8, WIDTH)), "Q8_0")})
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep > 1 else len(content) * keep)])
    with pytest.raises(ModelFileError) as caught:
        work(*((path,) if work is inspect else (path, tmp_path / "out")))
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()
    assert os.listdir(tmp_path) == ["in"]


def test_an_array_that_is_longer_than_the_file(tmp_path: Path) -> None:
    """2**60 numbers, of which none is there, would take for ever to go through."""
    key = b"general.numbers"
    text = [b"GGUF", struct.pack("<IQQ", 3, 0, 1), struct.pack("<Q", len(key)), key]
    text.append(struct.pack("<IIQ", 9, 4, 1 << 60))  # an array of uint32
    (tmp_path / "in").write_bytes(b"".join(text) + bytes(8))
    with pytest.raises(ModelFileError, match="the file ends early"):
        inspect(tmp_path / "in")


def test_heads_that_do_not_fit(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "in", {"blk.0.attn_q.weight": (gauss((12, WIDTH)), "F32")})
    with pytest.raises(ModelFileError, match="has 12 rows, expected a multiple of twice its 4"):
        convert_model(path, tmp_path / "out")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "in", {"output.weight": (gauss((8, WIDTH)), "F32")})
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match=r"'gguf' is needed .* pip install \"\.\[convert"):
        convert_model(path, tmp_path / "out")
