"""Whole conversions with statistics: of the quantized stream, and of a file with hessians."""

import json

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")

from calibrate_folders import change_tensors, model_folder, text_file
from safetensors.numpy import load_file

from q43nl_numba import dequantize, q43nl
from q43nl_numba.calibrate import (
    CalibrationError,
    calibrate,
    calibrated_layers,
    convert_calibrated,
    convert_with_hessians,
    cut_windows,
    evaluate,
    read_text,
)
from q43nl_numba.convert import ModelFileError, convert_model

SIZES = {"tokens": 120, "window": 30}
METHOD = "coarse_fine"


def expected_bytes(folder, text):
    """What the driver gives a quantizer, packed here."""
    windows = cut_windows(folder, read_text([text]), 120, window=30, vocab_size=288)
    packed = {}

    def quantize(matrix):
        packed[matrix.name] = q43nl(matrix.weights, METHOD, importance=matrix.importance)
        return dequantize(packed[matrix.name], matrix.weights.shape)

    calibrated_layers(folder, windows, quantize)
    return packed


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_the_bytes_are_those_of_the_driver(tmp_path, name):
    folder, text = model_folder(tmp_path, name), text_file(tmp_path)
    target = tmp_path / "out"
    report = convert_calibrated(folder, target, [text], METHOD, **SIZES)
    stored = load_file(target / "model.safetensors")
    expected = expected_bytes(folder, text)
    assert len(report.packed) == len(expected) == (15 if name == "qwen2" else 16)
    for tensor, packed in expected.items():
        np.testing.assert_array_equal(stored[tensor].reshape(-1), packed)
    assert report.packed[0].snr_db > 10
    assert (target / "tokenizer.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out", "text.txt"])


def test_the_record_says_how_it_was_made(tmp_path):
    from safetensors import safe_open

    folder, text = model_folder(tmp_path), text_file(tmp_path)
    convert_calibrated(folder, tmp_path / "out.safetensors", [text], METHOD, **SIZES)
    with safe_open(tmp_path / "out.safetensors", "np") as file:
        made_by = json.loads(file.metadata()["q43nl_numba"])["made_by"]
    assert made_by["tokens"] == 120
    assert made_by["text"] == read_text([text]).digest
    assert made_by["feedback"] is False


def test_less_is_lost_than_without_statistics(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    convert_calibrated(folder, tmp_path / "with", [text], "optimal", tokens=600, window=50)
    convert_model(folder, tmp_path / "without", "optimal")
    other = text_file(tmp_path, name="other.txt", seed=1)
    lost = [
        evaluate(folder, tmp_path / name, [other], tokens=600, window=50).divergence_mean.value
        for name in ("with", "without")
    ]
    assert lost[0] < lost[1]


def test_patterns_and_rules_are_the_converter_s(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    report = convert_calibrated(
        folder, tmp_path / "out", [text], METHOD, exclude=["*embed*", "lm_head*"],
        keep_dtype="float16", **SIZES,
    )  # fmt: skip
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["lm_head.weight"].dtype == stored["model.norm.weight"].dtype == np.float16
    assert len(report.packed) == 14


def test_weights_that_cannot_be_quantized(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    change_tensors(folder, lambda t: t["model.layers.1.mlp.up_proj.weight"].fill(np.inf))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelFileError, match=r"tensor 'model.layers.1.mlp.up_proj.weight'"):
        convert_calibrated(folder, tmp_path / "out", [text], METHOD, **SIZES)
    assert sorted(tmp_path.iterdir()) == before


def test_a_target_that_is_there(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelFileError, match="must be a new or an empty folder"):
        convert_calibrated(folder, tmp_path / "out", [text], METHOD, **SIZES)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_text_shorter_than_a_window(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path, words=5)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CalibrationError, match="at least one window"):
        convert_calibrated(folder, tmp_path / "out", [text])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_without_hessians(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    calibrate(folder, tmp_path / "stats", [text], **SIZES)
    with pytest.raises(CalibrationError, match="must have hessians, found importance alone"):
        convert_with_hessians(folder, tmp_path / "out", tmp_path / "stats")
    assert not (tmp_path / "out").exists()


def test_hessians_of_another_model(tmp_path):
    folder, other, text = (
        model_folder(tmp_path),
        model_folder(tmp_path, "qwen3"),
        text_file(tmp_path),
    )
    calibrate(other, tmp_path / "stats", [text], **SIZES, hessians=True)
    with pytest.raises(CalibrationError, match=r"must be statistics of this model \(Llama"):
        convert_with_hessians(folder, tmp_path / "out", tmp_path / "stats")
    assert not (tmp_path / "out").exists()
