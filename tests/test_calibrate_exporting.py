"""Exports with statistics: the groups of the conversion, with the rows in the engine's order."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")

from calibrate_folders import text_file
from engine_models import ENGINE, ModelCopy, read_file, read_tensors
from safetensors.numpy import load_file

from q43nl_numba import cli, q43nl
from q43nl_numba.calibrate import (
    CalibrationError,
    Statistics,
    calibrate,
    convert_calibrated,
    convert_with_hessians,
    export_calibrated,
    export_with_hessians,
    packing,
)
from q43nl_numba.calibrate.statistics import shrunk
from q43nl_numba.convert import ModelFileError, tensors
from q43nl_numba.export import ExportWarning, export_model, restore_model

SIZES: dict[str, Any] = {"tokens": 120, "window": 30}
METHOD = "coarse_fine"
EMBEDDING = "model.embed_tokens.weight"

Bytes = npt.NDArray[np.uint8]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return text_file(tmp_path, words=600)


def statistics_of(model: str, tmp_path: Path, text: Path) -> Path:
    path = tmp_path / "stats.safetensors"
    calibrate(ENGINE / model, path, [text], **SIZES, hessians=True)
    return path


def rows_of(model: str, converted: Path) -> Iterator[tuple[str, Bytes]]:
    """Yield the engine's name and packed rows of every matrix of a converted folder.

    The order of rows is written out here, so that the exporter's own table is not its judge.
    """
    config = json.loads((ENGINE / model / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    stored = load_file(converted / "model.safetensors")

    def interleaved(rows: Bytes, heads: int) -> Bytes:
        halves = rows.reshape(heads, 2, -1, rows.shape[1])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)

    yield "model.embed.weight", stored[EMBEDDING]
    if not config["tie_word_embeddings"]:
        yield "model.output.weight", stored["lm_head.weight"]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        if f"{at}self_attn.qkv_proj.weight" in stored:
            fused = stored[f"{at}self_attn.qkv_proj.weight"]
            size = len(fused) // (heads + 2 * kv_heads)
            q, k, v = np.split(fused, [heads * size, (heads + kv_heads) * size])
            gate, up = np.split(stored[f"{at}mlp.gate_up_proj.weight"], 2)
        else:
            q, k, v = (stored[f"{at}self_attn.{letter}_proj.weight"] for letter in "qkv")
            gate, up = (stored[f"{at}mlp.{name}_proj.weight"] for name in ("gate", "up"))
        yield f"{at}attn.wq.weight", interleaved(q, heads)
        yield f"{at}attn.wk.weight", interleaved(k, kv_heads)
        yield f"{at}attn.wv.weight", v
        yield f"{at}attn.wo.weight", stored[f"{at}self_attn.o_proj.weight"]
        yield f"{at}mlp.w1.weight", gate
        yield f"{at}mlp.w2.weight", stored[f"{at}mlp.down_proj.weight"]
        yield f"{at}mlp.w3.weight", up


def check_same_groups(model: str, exported: Path, converted: Path) -> None:
    written = read_file(exported)
    matrices = dict(rows_of(model, converted))
    assert {name for name, array in written.items() if array.dtype == np.uint8} == {
        *matrices, "tokenizer.tokens"
    }  # fmt: skip
    for name, rows in matrices.items():
        np.testing.assert_array_equal(written[name], rows.reshape(-1), name)


# tied and untied outputs, biases, norms of heads, fused matrices
@pytest.mark.parametrize("model", ["smollm2", "tinyllama", "qwen2", "qwen3", "mistral", "phi3"])
def test_hessians_of_a_file(model: str, tmp_path: Path, text: Path) -> None:
    stats = statistics_of(model, tmp_path, text)
    report = export_with_hessians(ENGINE / model, tmp_path / "a.st", METHOD, hessians=stats)
    converted = convert_with_hessians(
        ENGINE / model, tmp_path / "b", METHOD, hessians=stats, single_file=True
    )
    check_same_groups(model, tmp_path / "a.st", tmp_path / "b")
    assert sum(t.figures.noise for t in report.conversion.packed) == pytest.approx(
        sum(t.figures.noise for t in converted.packed)
    )
    plain = export_model(ENGINE / model, tmp_path / "plain.st", method=METHOD)
    assert [t.name for t in report.conversion.packed] == [t.name for t in plain.conversion.packed]
    assert report.bytes_out == plain.bytes_out
    matrix = "model.layers.0.mlp.w2.weight"
    with_statistics, without = read_file(tmp_path / "a.st"), read_file(tmp_path / "plain.st")
    assert not np.array_equal(with_statistics.pop(matrix), without.pop(matrix))
    for name, array in without.items():
        if array.dtype != np.uint8 or name.startswith("tokenizer"):
            np.testing.assert_array_equal(with_statistics[name], array, name)


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("model", ["smollm2", "tinyllama", "qwen3"])
def test_the_quantized_stream(model: str, feedback: bool, tmp_path: Path, text: Path) -> None:
    arguments: dict[str, Any] = {"text": [text], "feedback": feedback, **SIZES}
    export_calibrated(ENGINE / model, tmp_path / "a.st", METHOD, **arguments)
    convert_calibrated(ENGINE / model, tmp_path / "b", METHOD, single_file=True, **arguments)
    check_same_groups(model, tmp_path / "a.st", tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == ["a.st", "b", "text.txt"]


@pytest.mark.parametrize("model", ["mixtral", "qwen3moe", "smollm3", "gemma"])
def test_restoring(model: str, tmp_path: Path, text: Path) -> None:
    """The folder's weights come back, as near as the statistics left them."""
    report = export_calibrated(ENGINE / model, tmp_path / "a.st", text=[text], **SIZES)
    assert min(tensor.snr_db for tensor in report.conversion.packed) > 10
    restore_model(tmp_path / "a.st", tmp_path / "back")
    restored = read_tensors(tmp_path / "back")
    for name, array in read_tensors(ENGINE / model).items():
        if name in restored and array.ndim == 2:
            weights = array.astype(np.float32)
            error = np.linalg.norm(restored[name] - weights) / np.linalg.norm(weights)
            assert error < 0.32, name


def test_gemma_s_embedding_is_scaled_before_it_is_packed(tmp_path: Path, text: Path) -> None:
    stats = statistics_of("gemma", tmp_path, text)
    export_with_hessians(ENGINE / "gemma", tmp_path / "a.st", METHOD, hessians=stats)
    weights = read_tensors(ENGINE / "gemma")[EMBEDDING].astype(np.float32)
    scaled = weights * np.float32(np.sqrt(weights.shape[1]))
    statistics = Statistics(stats)
    hessian = statistics.hessian(EMBEDDING)
    assert hessian is not None
    expected = q43nl(scaled, METHOD, hessian=shrunk(hessian, statistics.tokens))
    np.testing.assert_array_equal(read_file(tmp_path / "a.st")["model.embed.weight"], expected)


def test_pieces_within_a_head(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stats = statistics_of("smollm2", tmp_path, text)
    convert_with_hessians(
        ENGINE / "smollm2", tmp_path / "b", METHOD, hessians=stats, single_file=True
    )
    for weights in (32, 3 * 64):
        monkeypatch.setattr(tensors, "PIECE_WEIGHTS", weights)
        export_with_hessians(ENGINE / "smollm2", tmp_path / "a.st", METHOD, hessians=stats)
        check_same_groups("smollm2", tmp_path / "a.st", tmp_path / "b")


def test_a_warning_names_the_caller_s_line(tmp_path: Path, text: Path) -> None:
    with pytest.warns(ExportWarning, match="rope_scaling of") as caught:
        export_calibrated(
            ENGINE / "llama3", tmp_path / "a.st", METHOD, text=[text], allow_rope_scaling=True,
            **SIZES,
        )  # fmt: skip
    assert {warning.filename for warning in caught} == {__file__}


def test_rules_and_the_quantizer_s_options(tmp_path: Path, text: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\npattern = "*.down_proj.*"\nmethod = "grid"\n')
    stats = statistics_of("smollm2", tmp_path, text)
    arguments: dict[str, Any] = {"hessians": stats, "rules": rules, "num_threads": 1}
    report = export_with_hessians(ENGINE / "smollm2", tmp_path / "a.st", METHOD, **arguments)
    convert_with_hessians(ENGINE / "smollm2", tmp_path / "b", METHOD, single_file=True, **arguments)
    check_same_groups("smollm2", tmp_path / "a.st", tmp_path / "b")
    methods = {tensor.name: tensor.method for tensor in report.conversion.packed}
    assert methods["model.layers.0.mlp.w2.weight"] == "grid"
    assert methods["model.layers.0.mlp.w1.weight"] == METHOD


# ---------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------


def test_another_format(tmp_path: Path, text: Path) -> None:
    stats = statistics_of("smollm2", tmp_path, text)
    before = sorted(os.listdir(tmp_path))
    target = tmp_path / "out.st"
    with pytest.raises(ValueError, match="dtype must be 'q43nl' for statistics, found 'bf16'"):
        export_with_hessians(ENGINE / "smollm2", target, hessians=stats, dtype="bf16")
    with pytest.raises(ValueError, match="dtype must be 'q43nl' for statistics, found 'fp32'"):
        export_calibrated(ENGINE / "smollm2", target, text=[text], dtype="fp32")
    with pytest.raises(TypeError, match="importance"):
        export_with_hessians(ENGINE / "smollm2", target, hessians=stats, importance=stats)
    assert sorted(os.listdir(tmp_path)) == before


def test_statistics_that_do_not_fit(tmp_path: Path, text: Path) -> None:
    stats = statistics_of("qwen3", tmp_path, text)
    with pytest.raises(CalibrationError, match=r"must be statistics of this model \(Llama"):
        export_with_hessians(ENGINE / "smollm2", tmp_path / "out.st", hessians=stats)
    calibrate(ENGINE / "smollm2", stats, [text], **SIZES)
    with pytest.raises(CalibrationError, match="must have hessians, found importance alone"):
        export_with_hessians(ENGINE / "smollm2", tmp_path / "out.st", hessians=stats)
    assert sorted(os.listdir(tmp_path)) == ["stats.safetensors", "text.txt"]


def test_files_that_must_not_be_replaced(tmp_path: Path, text: Path) -> None:
    stats = statistics_of("smollm2", tmp_path, text)
    contents = stats.read_bytes(), text.read_bytes()
    with pytest.raises(ModelFileError, match="the output is the input file"):
        export_with_hessians(ENGINE / "smollm2", stats, hessians=stats)
    with pytest.raises(ModelFileError, match="the output is the input file"):
        export_calibrated(ENGINE / "smollm2", text, text=[text], **SIZES)
    other = tmp_path / "other.st"
    shutil.copy(text, other)
    with pytest.raises(ModelFileError, match="exists"):
        export_with_hessians(ENGINE / "smollm2", other, hessians=stats, no_clobber=True)
    assert (stats.read_bytes(), text.read_bytes()) == contents
    assert other.read_bytes() == text.read_bytes()


def test_weights_that_cannot_be_quantized(tmp_path: Path, text: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    copy = ModelCopy("tinyllama", tmp_path / "model").tensors(lambda t: t[name].fill(np.inf))
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ModelFileError, match=f"tensor '{name}'"):
        export_calibrated(copy.path, tmp_path / "out.st", METHOD, text=[text], **SIZES)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_disk_that_gets_full(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize, calls = packing.q43nl, [0]

    def failing(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] > 7:
            raise OSError(28, "No space left on device")
        return quantize(*arguments, **options)

    monkeypatch.setattr(packing, "q43nl", failing)
    with pytest.raises(OSError, match="No space left"):
        export_calibrated(ENGINE / "smollm2", tmp_path / "out.st", METHOD, text=[text], **SIZES)
    assert os.listdir(tmp_path) == ["text.txt"]


def test_an_interrupted_copy_leaves_nothing(tmp_path: Path, text: Path) -> None:
    def interrupted(progress: Any) -> None:
        if progress.done > progress.total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_calibrated(
            ENGINE / "smollm2", tmp_path / "out.st", METHOD, text=[text], progress=interrupted,
            **SIZES,
        )  # fmt: skip
    assert os.listdir(tmp_path) == ["text.txt"]


# ---------------------------------------------------------------------------------------------
# On the command line
# ---------------------------------------------------------------------------------------------


def run(*arguments: object) -> int:
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as error:
        return int(error.code or 0)


def test_the_command(tmp_path: Path, text: Path, capsys: Any) -> None:
    command = ("export", ENGINE / "qwen2", tmp_path / "a.st", "--method", METHOD)
    sizes = ("--tokens", 120, "--window", 30)
    assert run(*command, "--calibrate", text, "--no-feedback", *sizes, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["packed"][0]["snr_db"] > 10
    export_calibrated(
        ENGINE / "qwen2", tmp_path / "b.st", METHOD, text=[text], feedback=False, **SIZES
    )
    assert (tmp_path / "a.st").read_bytes() == (tmp_path / "b.st").read_bytes()

    stats = statistics_of("qwen2", tmp_path, text)
    page = tmp_path / "report.html"
    assert run(*command, "--hessians", stats, "--report", page) == 0
    assert "SNR" in capsys.readouterr().out
    assert "model.layers.0.attn.wq.weight" in page.read_text("utf-8")
    export_with_hessians(ENGINE / "qwen2", tmp_path / "b.st", METHOD, hessians=stats)
    assert (tmp_path / "a.st").read_bytes() == (tmp_path / "b.st").read_bytes()


def test_the_command_with_the_built_in_text(tmp_path: Path, capsys: Any) -> None:
    command = ("export", ENGINE / "llama3", tmp_path / "a.st", "--method", METHOD)
    sizes = ("--calibrate", "--tokens", 64, "--window", 32)
    assert run(*command, *sizes) == 1
    assert "'rope_scaling' must be absent" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
    assert run(*command, *sizes, "--allow-rope-scaling") == 0
    lines = capsys.readouterr().err
    assert "built-in text" in lines
    assert "warning: rope_scaling of" in lines


def test_the_command_does_not_resume(tmp_path: Path, text: Path, capsys: Any) -> None:
    command = ("export", ENGINE / "smollm2", tmp_path / "a.st", "--resume")
    for option in ("--calibrate", "--hessians"):
        assert run(*command, option, text) == 1
        assert "--resume must not be given with --calibrate" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["text.txt"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--calibrate", "a", "--hessians", "b"], "not allowed with argument"),
        (["--calibrate", "a", "--importance", "b"], "--calibrate must be given without"),
        (["--hessians", "a", "--importance", "b"], "--hessians must be given without"),
        (["--hessians", "a", "--dtype", "bf16"], "must be given with --dtype q43nl, found bf16"),
        (["--calibrate", "a", "--dtype", "fp16"], "must be given with --dtype q43nl, found fp16"),
        (["--no-feedback"], "--no-feedback must be given with --calibrate"),
    ],
)
def test_arguments_that_do_not_go_together(
    arguments: list[str], problem: str, tmp_path: Path, capsys: Any
) -> None:
    assert run("export", ENGINE / "smollm2", tmp_path / "a.st", *arguments) == 2
    assert problem in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
