"""Whole conversions with statistics: of the quantized stream, and of a file with hessians."""

import argparse
import inspect
import json
import re

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")

from calibrate_folders import change_tensors, model_folder, text_file
from safetensors import safe_open
from safetensors.numpy import load_file

from q43nl_numba import cli, dequantize, q43nl
from q43nl_numba.calibrate import (
    CalibrationError,
    Statistics,
    calibrate,
    calibrated_layers,
    convert_calibrated,
    convert_with_hessians,
    cut_windows,
    evaluate,
    read_text,
)
from q43nl_numba.calibrate.command import declare_convert
from q43nl_numba.calibrate.statistics import shrunk
from q43nl_numba.convert import ModelFileError, convert_model

SIZES = {"tokens": 120, "window": 30}
IMPORTANCE = {**SIZES, "feedback": False}
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
    report = convert_calibrated(folder, target, METHOD, text=[text], **IMPORTANCE)
    stored = load_file(target / "model.safetensors")
    expected = expected_bytes(folder, text)
    assert len(report.packed) == len(expected) == (15 if name == "qwen2" else 16)
    for tensor, packed in expected.items():
        np.testing.assert_array_equal(stored[tensor].reshape(-1), packed)
    assert report.packed[0].snr_db > 10
    assert (target / "tokenizer.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out", "text.txt"])


def test_the_record_says_how_it_was_made(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    convert_calibrated(folder, tmp_path / "out.safetensors", METHOD, text=[text], **IMPORTANCE)
    with safe_open(tmp_path / "out.safetensors", "np") as file:
        made_by = json.loads(file.metadata()["q43nl_numba"])["made_by"]
    assert made_by["tokens"] == 120
    assert made_by["text"] == read_text([text]).digest
    assert made_by["feedback"] is False


def test_less_is_lost_than_without_statistics(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    convert_calibrated(folder, tmp_path / "with", "optimal", text=[text], tokens=600, window=50,
                       feedback=False)  # fmt: skip
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
        folder, tmp_path / "out", METHOD, text=[text], exclude=["*embed*", "lm_head*"],
        keep_dtype="float16", **IMPORTANCE,
    )  # fmt: skip
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["lm_head.weight"].dtype == stored["model.norm.weight"].dtype == np.float16
    assert len(report.packed) == 14


def test_weights_that_cannot_be_quantized(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    change_tensors(folder, lambda t: t["model.layers.1.mlp.up_proj.weight"].fill(np.inf))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelFileError, match=r"tensor 'model.layers.1.mlp.up_proj.weight'"):
        convert_calibrated(folder, tmp_path / "out", METHOD, text=[text], **IMPORTANCE)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize(
    "damaged",
    ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight",
     "model.layers.1.self_attn.o_proj.weight", "model.layers.0.input_layernorm.weight"],
)  # fmt: skip
def test_the_damaged_tensor_is_named(tmp_path, damaged, value, feedback):
    """A tied embedding is packed first, with statistics that all others have a part in."""
    folder, text = model_folder(tmp_path, "qwen2"), text_file(tmp_path)
    change_tensors(folder, lambda tensors: np.put(tensors[damaged], 5, value))
    before = sorted(tmp_path.iterdir())
    problem = rf"tensor '{re.escape(damaged)}'.*must be finite, found {value}"
    with pytest.raises(ModelFileError, match=problem):
        convert_calibrated(
            folder, tmp_path / "out", METHOD, text=[text], feedback=feedback, **SIZES
        )  # fmt: skip
    with pytest.raises(ModelFileError, match=problem):
        evaluate(folder, folder, [text], tokens=40, window=20)
    with pytest.raises(ModelFileError, match=problem):
        calibrate(folder, tmp_path / "stats", [text], tokens=40, window=20, hessians=feedback)
    assert sorted(tmp_path.iterdir()) == before


def test_a_target_that_is_there(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelFileError, match="must be a new or empty folder"):
        convert_calibrated(folder, tmp_path / "out", METHOD, text=[text], **IMPORTANCE)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_text_shorter_than_a_window(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path, words=5)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CalibrationError, match="at least one window"):
        convert_calibrated(folder, tmp_path / "out", text=[text])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_without_hessians(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    calibrate(folder, tmp_path / "stats", [text], **SIZES)
    with pytest.raises(CalibrationError, match="must have hessians, found importance alone"):
        convert_with_hessians(folder, tmp_path / "out", hessians=tmp_path / "stats")
    assert not (tmp_path / "out").exists()


def test_hessians_of_another_model(tmp_path):
    folder, other, text = (
        model_folder(tmp_path),
        model_folder(tmp_path, "qwen3"),
        text_file(tmp_path),
    )
    calibrate(other, tmp_path / "stats", [text], **SIZES, hessians=True)
    with pytest.raises(CalibrationError, match=r"must be statistics of this model \(Llama"):
        convert_with_hessians(folder, tmp_path / "out", hessians=tmp_path / "stats")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------
# On the command line
# ---------------------------------------------------------------------------------------------


def chosen(*arguments, importance=None):
    parser = argparse.ArgumentParser()
    declare_convert(parser)
    given = [] if importance is None else ["--importance", importance]
    args = parser.parse_args(["in", "out", *map(str, [*arguments, *given])])
    return args.conversion(args)


def test_arguments_of_the_converter(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    assert chosen() is convert_model
    convert = chosen("--calibrate", text, "--no-feedback", "--tokens", 120, "--window", 30)
    convert(folder, tmp_path / "a", METHOD, importance=None, allow_empty=False, resume=False)
    convert_calibrated(folder, tmp_path / "b", METHOD, text=[text], **IMPORTANCE)
    name = "model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_command(tmp_path, capsys):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    sizes = ["--tokens", "120", "--window", "30", "--no-feedback"]
    arguments = ["convert", str(folder), str(tmp_path / "a"), "--method", METHOD]
    assert cli.main([*arguments, "--calibrate", str(text), *sizes]) == 0
    assert "SNR" in capsys.readouterr().out
    convert_calibrated(folder, tmp_path / "b", METHOD, text=[text], **IMPORTANCE)
    name = "model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    arguments[2] = str(tmp_path / "c")
    assert cli.main([*arguments, "--calibrate", str(text), "--resume"]) == 1
    assert "--resume must not be given with --calibrate" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_the_built_in_text_of_the_converter(tmp_path, capsys):
    folder = model_folder(tmp_path)
    chosen("--calibrate", "--no-feedback", "--tokens", 64, "--window", 32)(folder, tmp_path / "a")
    assert "built-in text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "importance", "problem"),
    [
        (["--calibrate", "a", "--hessians", "b"], None, "not allowed with argument"),
        (["--calibrate", "a"], "c", "--calibrate must be given without --importance"),
        (["--hessians", "a"], "c", "--hessians must be given without --importance"),
        (["--no-feedback"], None, "--no-feedback must be given with --calibrate"),
        (["--damping", 0.1], None, "--damping must be given with --calibrate or --hessians"),
        (["--sweeps", 2], "c", "--sweeps must be given with --calibrate or --hessians"),
        (["--calibrate", "a", "--no-feedback", "--sweeps", 0], None, "without --no-feedback"),
        (["--hessians", "a", "--damping", "nan"], None, "damping must be a number from 0 to"),
        (["--hessians", "a", "--sweeps", -1], None, "--sweeps: must be an integer of at least 0"),
    ],
)
def test_arguments_that_do_not_go_together(arguments, importance, problem, capsys):
    with pytest.raises(SystemExit):
        chosen(*arguments, importance=importance)
    assert problem in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------
# Error feedback
# ---------------------------------------------------------------------------------------------

needs_feedback = pytest.mark.skipif(
    "hessian" not in inspect.signature(q43nl).parameters, reason="q43nl takes no hessian"
)


@needs_feedback
def test_hessians_of_a_file(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    calibrate(folder, tmp_path / "stats", [text], tokens=600, window=30, hessians=True)
    convert_with_hessians(folder, tmp_path / "out", METHOD, hessians=tmp_path / "stats")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    weights = load_file(folder / "model.safetensors")
    statistics = Statistics(tmp_path / "stats")
    for name in statistics.names():
        exact = weights[name].astype(np.float32)
        hessian = shrunk(statistics.hessian(name), statistics.tokens)
        expected = q43nl(exact, METHOD, hessian=hessian)
        np.testing.assert_array_equal(stored[name].reshape(-1), expected)
    embedding = q43nl(weights["model.embed_tokens.weight"].astype(np.float32), METHOD)
    np.testing.assert_array_equal(stored["model.embed_tokens.weight"].reshape(-1), embedding)


@needs_feedback
def test_damping_and_sweeps(tmp_path, capsys):
    """As `q43nl` has them, by the call and by the command; the record says so."""
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    stats = tmp_path / "stats"
    calibrate(folder, stats, [text], tokens=600, window=30, hessians=True)
    options = {"damping": 0.3, "sweeps": 0}
    convert_with_hessians(folder, tmp_path / "a", METHOD, hessians=stats, **options)
    arguments = ["convert", str(folder), str(tmp_path / "b"), "--method", METHOD]
    arguments += ["--hessians", str(stats), "--damping", "0.3", "--sweeps", "0"]
    assert cli.main(arguments) == 0
    stored, again = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    weights, statistics = load_file(folder / "model.safetensors"), Statistics(stats)
    for name in statistics.names():
        hessian = shrunk(statistics.hessian(name), statistics.tokens)
        expected = q43nl(weights[name].astype(np.float32), METHOD, hessian=hessian, **options)
        np.testing.assert_array_equal(stored[name].reshape(-1), expected)
        np.testing.assert_array_equal(again[name], stored[name])
    with safe_open(tmp_path / "a" / "model.safetensors", "np") as file:
        made_by = json.loads(file.metadata()["q43nl_numba"])["made_by"]
    assert (made_by["damping"], made_by["sweeps"]) == (0.3, 0)


@needs_feedback
def test_options_of_feedback_without_it(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="sweeps must be None without feedback, found 2"):
        convert_calibrated(folder, tmp_path / "out", METHOD, text=[text], sweeps=2, **IMPORTANCE)
    with pytest.raises(ValueError, match="damping must be a number from 0 to"):
        convert_calibrated(folder, tmp_path / "out", METHOD, text=[text], damping=-1, **SIZES)
    assert sorted(tmp_path.iterdir()) == before


@needs_feedback
def test_feedback_loses_less_than_importance(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    other = text_file(tmp_path, name="other.txt", seed=1)
    lost = []
    for feedback in (False, True):
        target = tmp_path / f"out-{feedback}"
        convert_calibrated(
            folder, target, text=[text], tokens=1200, window=50, feedback=feedback
        )  # fmt: skip
        report = evaluate(folder, target, [other], tokens=600, window=50)
        lost.append(report.divergence_mean.value)
    assert lost[1] < lost[0]
