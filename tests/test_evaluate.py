"""What a model lost: figures against brute force, standard errors, and the commands."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")

from calibrate_folders import (
    change_config,
    change_tensors,
    logits_of,
    model_folder,
    quantized,
    text_file,
)
from engine_models import ENGINE
from hypothesis import given
from hypothesis import strategies as st
from model_files import read_raw
from safetensors.numpy import load_file
from scipy.special import log_softmax
from test_calibrate import inputs_by_hand

from q43nl_numba import cli
from q43nl_numba.calibrate import (
    CalibrationError,
    Figure,
    Statistics,
    cut_windows,
    evaluate,
    read_text,
)
from q43nl_numba.calibrate.divergence import compare_outputs
from q43nl_numba.calibrate.evaluate import figure
from q43nl_numba.convert import ModelFileError, convert
from q43nl_numba.export import export_model, restore_model


@pytest.fixture
def models(tmp_path):
    """A model, and a folder with its matrices quantized and restored."""
    folder = model_folder(tmp_path)
    other = tmp_path / "quantized"
    shutil.copytree(folder, other)

    def quantize(tensors):
        for name, weights in tensors.items():
            if weights.ndim == 2:
                tensors[name] = quantized(weights.astype(np.float32))

    change_tensors(other, quantize)
    return folder, other


def test_figures_by_brute_force(tmp_path, models):
    folder, other = models
    text = text_file(tmp_path)
    report = evaluate(folder, other, [text], tokens=300, window=50)
    windows = cut_windows(folder, read_text([text]), 300, window=50, vocab_size=288)
    p, q = (
        log_softmax(logits_of(model, windows.ids)[:, :-1].astype(np.float64), axis=-1)
        for model in models
    )
    targets = windows.ids[:, 1:, None].astype(np.int64)
    nll, other_nll = (-np.take_along_axis(x, targets, -1) for x in (p, q))
    divergence = (np.exp(p) * (p - q)).sum(-1)
    assert report.tokens == targets.size == 6 * 49
    for found, expected in [
        (report.perplexity, np.exp(nll.mean())),
        (report.quantized_perplexity, np.exp(other_nll.mean())),
        (report.log_perplexity_ratio, (other_nll - nll).mean()),
        (report.divergence_mean, divergence.mean()),
        (report.divergence_median, np.median(divergence)),
        (report.divergence_99, np.quantile(divergence, 0.99)),
        (report.same_top, (p.argmax(-1) == q.argmax(-1)).mean()),
    ]:
        np.testing.assert_allclose(found.value, expected, rtol=2e-3, atol=1e-6)
        assert found.standard_error > 0


def test_the_layers_errors(tmp_path, models):
    folder, other = models
    report = evaluate(folder, other, [text_file(tmp_path)], tokens=300, window=50)
    assert [error.layer for error in report.layers] == [0, 1]
    for error in report.layers:
        assert 0.001 < error.own.value < 0.5
        assert 0.001 < error.stream.value < 0.8
    windows = cut_windows(
        folder, read_text([tmp_path / "text.txt"]), 300, window=50, vocab_size=288
    )
    # what goes into the second layer is the first one's output, but for the norm's weights
    exact, found = (inputs_by_hand(model, windows.ids)["output"] for model in models)
    norm = np.linalg.norm
    rough = np.sqrt(np.mean((norm(found - exact, axis=1) / norm(exact, axis=1)) ** 2))
    assert 0.5 * rough < report.layers[1].stream.value < 2 * rough


def test_a_model_against_itself_loses_nothing(tmp_path):
    folder = model_folder(tmp_path)
    report = evaluate(folder, folder, [text_file(tmp_path)], tokens=100, window=50)
    assert report.divergence_mean == Figure(0.0, 0.0)
    assert report.same_top == Figure(1.0, 0.0)
    assert report.perplexity == report.quantized_perplexity
    assert all(error.own.value == error.stream.value == 0 for error in report.layers)


def test_a_converted_file_and_a_converted_folder(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    packed = tmp_path / "packed.safetensors"
    convert(folder / "model.safetensors", packed, "coarse_fine")
    converted = tmp_path / "converted"
    shutil.copytree(folder, converted)
    shutil.copy(packed, converted / "model.safetensors")
    options = {"tokens": 100, "window": 50}
    of_file = evaluate(folder, packed, [text], **options)
    of_folder = evaluate(folder, converted, [text], **options)
    assert of_file.divergence_mean == of_folder.divergence_mean
    assert of_file.divergence_mean.value > 0


def test_a_gguf_file(tmp_path):
    """Under llama.cpp's names, and with the rows of queries and keys permuted as it does."""
    gguf = pytest.importorskip("gguf")
    folder = model_folder(tmp_path)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    for name, weights in load_file(folder / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        values = weights.astype(np.float32)
        for which, heads in (("q", 4), ("k", 2)):
            if stem.endswith(f"{which}_proj"):
                halves = values.reshape(heads, 2, -1, values.shape[1])
                values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
        writer.add_tensor(names.get_name(stem) + ".weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    report = evaluate(
        folder, tmp_path / "model.gguf", [text_file(tmp_path)], tokens=100, window=50
    )  # fmt: skip
    assert report.divergence_mean == Figure(0.0, 0.0)


@pytest.mark.parametrize("model", ["smollm2", "qwen2", "qwen3", "mistral", "phi3", "gemma"])
def test_an_engine_file(tmp_path, model):
    """Names, row order, fused matrices and scaled values come back as `restore_model` has them."""
    text = [text_file(tmp_path)]
    export_model(ENGINE / model, tmp_path / "engine.st", method="coarse_fine")
    restore_model(tmp_path / "engine.st", tmp_path / "restored")
    options = {"tokens": 100, "window": 50}
    of_file = evaluate(ENGINE / model, tmp_path / "engine.st", text, **options)
    of_folder = evaluate(ENGINE / model, tmp_path / "restored", text, **options)
    assert of_file.divergence_mean == of_folder.divergence_mean
    assert of_file.layers == of_folder.layers
    assert 0 < of_file.divergence_mean.value < 1


def test_an_engine_file_in_float32_is_the_original(tmp_path):
    export_model(ENGINE / "tinyllama", tmp_path / "engine.st", dtype="fp32")
    report = evaluate(
        ENGINE / "tinyllama", tmp_path / "engine.st", [text_file(tmp_path)], tokens=100, window=50
    )  # fmt: skip
    assert report.divergence_mean == Figure(0.0, 0.0)


def test_an_engine_file_of_another_model(tmp_path):
    export_model(ENGINE / "qwen2", tmp_path / "engine.st", method="coarse_fine")
    with pytest.raises(ModelFileError, match=r"engine.st: must have a tensor .*, found"):
        evaluate(ENGINE / "smollm2", tmp_path / "engine.st", [text_file(tmp_path)], tokens=100,
                 window=50)  # fmt: skip


def test_a_damaged_engine_file(tmp_path):
    """A scale that is infinite; the tensor is named."""
    path = tmp_path / "engine.st"
    export_model(ENGINE / "smollm2", path, method="coarse_fine")
    header, data = read_raw(path)
    begin = min(entry["data_offsets"][0] for entry in header.values()
                if entry.get("dtype") == "U8" and entry["shape"][-1] % 19 == 0)  # fmt: skip
    damaged = bytearray(path.read_bytes())
    start = len(damaged) - len(data) + begin
    damaged[start + 16 : start + 18] = np.float16(np.inf).tobytes()
    path.write_bytes(damaged)
    with pytest.raises(ModelFileError, match=r"tensor 'model\..*must be finite, found"):
        evaluate(ENGINE / "smollm2", path, [text_file(tmp_path)], tokens=100, window=50)


def test_importance_from_calibration_helps(tmp_path):
    """The whole chain: calibrate, convert, evaluate."""
    from q43nl_numba.calibrate import calibrate

    folder, text = model_folder(tmp_path), text_file(tmp_path, seed=1)
    calibrate(folder, tmp_path / "stats", [text], tokens=600, window=50)
    losses = []
    for importance in (None, tmp_path / "stats"):
        convert(folder / "model.safetensors", tmp_path / "out", "optimal", importance=importance)
        report = evaluate(folder, tmp_path / "out", [text_file(tmp_path)], tokens=600, window=50)
        losses.append(report.divergence_mean.value)
    assert losses[1] < losses[0]


# ---------------------------------------------------------------------------------------------
# Comparing distributions in pieces
# ---------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 1000),
    tokens=st.integers(1, 12),
    vocabulary=st.integers(2, 40),
    piece=st.integers(1, 40),
    size=st.sampled_from([0.1, 3.0, 60.0]),
)
def test_pieces_change_nothing(seed, tokens, vocabulary, piece, size):
    rng = np.random.default_rng(seed)
    hidden, other = rng.normal(0, size, (2, tokens, 4)).astype(np.float32)
    head, other_head = rng.normal(0, 1, (2, vocabulary, 4)).astype(np.float32)
    targets = rng.integers(vocabulary, size=tokens)

    def pieces(matrix):
        return [(i, matrix[i : i + piece]) for i in range(0, vocabulary, piece)]

    found = compare_outputs(hidden, other, pieces(head), pieces(other_head), targets)
    p = log_softmax((hidden @ head.T).astype(np.float64), axis=1)
    q = log_softmax((other @ other_head.T).astype(np.float64), axis=1)
    here = np.arange(tokens)
    tolerance = {"rtol": 1e-4, "atol": 1e-4 * size}
    np.testing.assert_allclose(found.nll, -p[here, targets], **tolerance)
    np.testing.assert_allclose(found.other_nll, -q[here, targets], **tolerance)
    np.testing.assert_allclose(found.divergence, (np.exp(p) * (p - q)).sum(1), **tolerance)
    np.testing.assert_array_equal(found.same_top, p.argmax(1) == q.argmax(1))
    assert (found.divergence >= 0).all()


# ---------------------------------------------------------------------------------------------
# Standard errors
# ---------------------------------------------------------------------------------------------


def test_the_standard_error_of_independent_values(rng):
    values = rng.standard_normal(8000)
    assert abs(figure(values, np.mean).standard_error * np.sqrt(8000) - 1) < 0.2


def test_dependent_values_have_a_larger_standard_error(rng):
    """Runs of 16 equal values are 500 observations, not 8000."""
    values = np.repeat(rng.standard_normal(500), 16)
    assert abs(figure(values, np.mean).standard_error * np.sqrt(500) - 1) < 0.3


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_few_values(size):
    found = figure(np.arange(size, dtype=float), np.mean)
    assert found.value == (size - 1) / 2
    assert np.isfinite(found.standard_error)


# ---------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------


def test_another_model(tmp_path):
    folder, other = model_folder(tmp_path), model_folder(tmp_path, "qwen3", num_hidden_layers=1)
    with pytest.raises(CalibrationError, match=r"qwen3: must be a quantized version .* 1 layers"):
        evaluate(folder, other, tokens=40, window=20)


def test_a_file_of_another_model(tmp_path):
    folder, other = model_folder(tmp_path), model_folder(tmp_path, "llama-biased")
    with pytest.raises(ModelFileError, match=r"must have a tensor .* of shape .*, found"):
        evaluate(folder, other / "model.safetensors", tokens=40, window=20)


def test_a_quantized_model_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        evaluate(model_folder(tmp_path), tmp_path / "missing", tokens=40, window=20)


def test_an_empty_text(tmp_path):
    (tmp_path / "empty").write_text("")
    folder = model_folder(tmp_path)
    with pytest.raises(CalibrationError, match="must not be empty"):
        evaluate(folder, folder, [tmp_path / "empty"])


# ---------------------------------------------------------------------------------------------
# The commands
# ---------------------------------------------------------------------------------------------


def run_calibrate(*arguments):
    return cli.main(["calibrate", *map(str, arguments)])


def run_evaluate(*arguments):
    return cli.main(["evaluate", *map(str, arguments)])


def test_calibrate_from_the_command_line(tmp_path, capsys):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    stats = tmp_path / "stats.st"
    sizes = ["--tokens", 100, "--window", 20]
    assert run_calibrate(folder, stats, "--text", text, "--hessians", *sizes) == 0
    shown = capsys.readouterr()
    assert "statistics of 15 matrices from 100 tokens of text.txt" in shown.out
    assert "built-in" not in shown.err
    assert Statistics(stats).has_hessians
    assert run_calibrate(folder, stats, *sizes) == 0
    assert "no text was given: a small built-in text is used" in capsys.readouterr().err
    assert not Statistics(stats).has_hessians


def test_evaluate_from_the_command_line(tmp_path, models, capsys):
    text = text_file(tmp_path)
    arguments = [*models, "--text", text, "--tokens", 100, "--window", 50]
    assert run_evaluate(*arguments) == 0
    table = capsys.readouterr().out
    assert "98 predicted tokens of text.txt in windows of 50" in table
    assert "KL(original, quantized)" in table
    assert run_evaluate(*arguments, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["divergence_mean"]["value"] > 0
    assert len(document["layers"]) == 2
    assert "divergences" not in document


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_plot(tmp_path, models, ending):
    pytest.importorskip("matplotlib")
    plot = tmp_path / f"plot.{ending}"
    assert run_evaluate(*models, "--tokens", 100, "--window", 50, "--plot", plot) == 0
    assert plot.stat().st_size > 5000


def test_a_plot_of_a_model_against_itself(tmp_path):
    pytest.importorskip("matplotlib")
    folder, plot = model_folder(tmp_path), tmp_path / "plot.svg"
    assert run_evaluate(folder, folder, "--tokens", 100, "--window", 50, "--plot", plot) == 0
    assert plot.exists()


@pytest.mark.parametrize(
    "arguments",
    [["--tokens", "0"], ["--window", "1"], ["--tokens", "x"], ["--plot", "a.txt"],
     ["--plot", "missing/a.png"]],
)  # fmt: skip
def test_wrong_usage(tmp_path, arguments, capsys):
    assert run_evaluate(tmp_path, tmp_path, *arguments) == 2
    assert "must " in capsys.readouterr().err


def test_a_change_of_configuration_alone_is_judged_too(tmp_path, models):
    folder, other = models
    change_config(other, rope_theta=100.0)
    report = evaluate(folder, other, [text_file(tmp_path)], tokens=100, window=50)
    assert report.divergence_mean.value > 0


def test_errors_are_one_line(tmp_path, capsys):
    folder = model_folder(tmp_path, architectures=["GPT2LMHeadModel"])
    assert run_calibrate(folder, tmp_path / "stats") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("q43nl-numba: error: ")
    assert "LlamaForCausalLM" in lines[-1]
    assert not (tmp_path / "stats").exists()


COMMANDS = {
    "calibrate": ("FOLDER", "OUT", "--text", "TEXT"),
    "evaluate": ("FOLDER", "FOLDER", "--text", "TEXT"),
    "convert": ("FOLDER", "OUT", "--calibrate", "TEXT"),
    "export": ("FOLDER", "OUT", "--calibrate", "TEXT"),
}


def empty_text(folder, text):
    text.write_text("")
    return "must not be empty"


def short_text(folder, text):
    text.write_text("the model")
    return "must have at least"


def no_tokenizer(folder, text):
    (folder / "tokenizer.json").unlink()
    return "tokenizer.json"


def unknown_architecture(folder, text):
    change_config(folder, architectures=["MambaForCausalLM"])
    return "MambaForCausalLM"


def damaged_weights(folder, text):
    change_tensors(folder, lambda t: t["model.layers.0.mlp.up_proj.weight"].fill(np.nan))
    return "tensor 'model.layers.0.mlp.up_proj.weight'"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "spoil", [empty_text, short_text, no_tokenizer, unknown_architecture, damaged_weights]
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, command, spoil):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    problem = spoil(folder, text)
    before = sorted(tmp_path.rglob("*"))
    paths = {"FOLDER": str(folder), "OUT": str(tmp_path / "out"), "TEXT": str(text)}
    arguments = [paths.get(argument, argument) for argument in COMMANDS[command]]
    assert cli.main([command, *arguments, "--tokens", "100", "--window", "50"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line
    assert sorted(tmp_path.rglob("*")) == before
