"""Statistics of inputs: what they are, the file that keeps them, and what is refused."""

import json

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")

from calibrate_folders import (
    NAMES,
    change_config,
    change_tensors,
    decoder_of,
    model_folder,
    text_file,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from q43nl_numba.calibrate import (
    CalibrationError,
    Statistics,
    Text,
    built_in_text,
    calibrate,
    cut_windows,
    read_config,
    read_text,
)
from q43nl_numba.calibrate.config import layer_stages
from q43nl_numba.calibrate.forward import run_layer
from q43nl_numba.calibrate.statistics import InputMoments, shrunk
from q43nl_numba.convert import ModelFileError, convert

Q, K, V, OUT, GATE, UP, DOWN = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


def matrix(layer, kind):
    return f"model.layers.{layer}.{kind}.weight"


def stops_by_hand(folder, ids):
    """The input of every matrix and the residual stream there, each ``[tokens, columns]``."""
    decoder = decoder_of(folder, ids.shape[1])
    hidden = decoder.embed(ids)
    found = {}
    for layer in range(2):
        weights = decoder.load_layer(layer)
        passes = [decoder.layer_pass(layer, weights, window) for window in hidden]
        for names in layer_stages(decoder.config):
            stops = [next(layer_pass) for layer_pass in passes]
            inputs = np.concatenate([stop.inputs for stop in stops])
            residual = None
            if stops[0].residual is not None:
                residual = np.concatenate([stop.residual for stop in stops])
            found |= {f"model.layers.{layer}.{name}": (inputs, residual) for name in names}
        hidden = np.array([run_layer(layer_pass) for layer_pass in passes])
    found["output"] = decoder.final_norm(hidden).reshape(-1, 32), None
    return found


def inputs_by_hand(folder, ids):
    """The inputs of every matrix, each ``[tokens, columns]``."""
    found = stops_by_hand(folder, ids)
    return {name: inputs.astype(np.float64) for name, (inputs, _) in found.items()}


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_those_of_the_inputs(tmp_path, name):
    folder, text = model_folder(tmp_path, name), text_file(tmp_path)
    stats = tmp_path / "stats.st"
    calibrate(folder, stats, [text], tokens=200, window=40, hessians=True)
    windows = cut_windows(folder, read_text([text]), 200, window=40, vocab_size=288)
    expected = inputs_by_hand(folder, windows.ids)
    output = read_config(folder).output_matrix
    expected[output] = expected.pop("output")
    found = Statistics(stats, read_config(folder))
    assert sorted(found.names()) == sorted(expected)
    for matrix_name, inputs in expected.items():
        importance, hessian = found.importance(matrix_name), found.hessian(matrix_name)
        np.testing.assert_allclose(importance, (inputs**2).mean(axis=0), rtol=1e-5)
        exact = inputs.T @ inputs / len(inputs)
        np.testing.assert_allclose(hessian, exact, rtol=1e-3, atol=1e-5 * np.abs(exact).max())
        np.testing.assert_array_equal(hessian, hessian.T)
        assert (np.linalg.eigvalsh(hessian.astype(float)) > -1e-4 * hessian.max()).all()


def test_the_file_s_layout(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    report = calibrate(folder, tmp_path / "h", [text], tokens=100, window=20, hessians=True)
    stored = load_file(tmp_path / "h")
    hessians = {name for name in stored if name.endswith(".hessian")}
    assert hessians == {
        *(matrix(n, kind) + ".hessian" for n in range(2) for kind in (Q, OUT, GATE, DOWN)),
        "lm_head.weight.hessian",
    }
    assert stored[matrix(0, DOWN) + ".hessian"].shape == (64, 64)
    with safe_open(tmp_path / "h", "np") as file:
        record = json.loads(file.metadata()["q43nl_statistics"])
    assert record["hessians"][matrix(1, V)] == matrix(1, Q) + ".hessian"
    assert record["text"]["sources"] == ["text.txt"]
    assert record["text"]["sha256"] == read_text([text]).digest
    assert (record["tokens"], record["window"]) == (100, 20)
    assert record["model"]["sha256"] == read_config(folder).digest()
    assert report.matrices == len(stored) - len(hessians) == 15
    assert report.nbytes == (tmp_path / "h").stat().st_size


def test_without_hessians_the_file_is_importance_for_convert(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    calibrate(folder, tmp_path / "stats", [text], tokens=100, window=20)
    assert not Statistics(tmp_path / "stats").has_hessians
    assert Statistics(tmp_path / "stats").hessian(matrix(0, Q)) is None
    model = folder / "model.safetensors"
    convert(model, tmp_path / "with", "coarse_fine", importance=tmp_path / "stats")
    convert(model, tmp_path / "without", "coarse_fine")
    packed = [load_file(tmp_path / name)[matrix(0, DOWN)] for name in ("with", "without")]
    assert (packed[0] != packed[1]).any()


def test_the_same_bytes_every_time(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    for name in ("a", "b"):
        calibrate(folder, tmp_path / name, [text], tokens=100, window=20, hessians=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_without_text_the_built_in_one_is_read(tmp_path):
    folder = model_folder(tmp_path)
    report = calibrate(folder, tmp_path / "stats", tokens=100, window=20)
    assert report.sources == ("built-in text",)
    assert "built-in text" in report.table()
    assert len(built_in_text().content) > 10_000


def test_moments_of_nothing():
    """An expert that no token met."""
    moments = InputMoments(4, hessian=True)
    moments.add(np.empty((0, 4), np.float32))
    np.testing.assert_array_equal(moments.mean_square(), np.ones(4))
    np.testing.assert_array_equal(moments.hessian(), np.eye(4))


def test_a_hessian_is_shrunk_towards_its_diagonal(rng):
    inputs = rng.standard_normal((400, 32)).astype(np.float32)
    hessian = inputs.T @ inputs / 400
    found = shrunk(hessian, tokens=192)
    off_diagonal = ~np.eye(32, dtype=bool)
    np.testing.assert_array_equal(found.diagonal(), hessian.diagonal())
    np.testing.assert_allclose(found[off_diagonal], hessian[off_diagonal] / 2, rtol=1e-6)
    np.testing.assert_allclose(shrunk(hessian, 10**9), hessian, rtol=1e-5)
    assert np.linalg.eigvalsh(found).min() > 0


# ---------------------------------------------------------------------------------------------
# Windows
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("model"))


def windows_of(folder, content, tokens, window):
    text = Text(content, ("x",))
    return cut_windows(folder, text, tokens, window=window, vocab_size=288)


def test_every_window_begins_as_the_tokenizer_begins_a_text(folder):
    ids = windows_of(folder, "the model " * 100, 80, 20).ids
    assert ids.shape == (4, 20)
    assert ids.dtype == np.int32
    assert (ids[:, 0] == 0).all()  # <s>
    assert (ids[:, 1:] > 1).all()


def test_windows_are_spread_over_the_text(folder):
    begin, end = "a" * 3000, "b" * 3000
    ids = windows_of(folder, f"{begin} {end}", 40, 20).ids
    first, second = (set(window[1:].tolist()) for window in ids)
    assert not first & second


def test_a_long_text_is_read_at_as_many_places_as_there_are_windows(folder):
    content = "".join(letter * 2000 for letter in "abcde")
    assert len(content) > 16 * 100
    ids = windows_of(folder, content, 100, 20).ids
    assert len({frozenset(window[1:].tolist()) for window in ids}) == 5


@given(words=st.integers(10, 300), tokens=st.integers(5, 200), window=st.integers(2, 30))
def test_any_lengths(folder, words, tokens, window):
    content = "def return " * words
    if tokens < window:
        with pytest.raises(CalibrationError, match="at least one window"):
            windows_of(folder, content, tokens, window)
        return
    windows = windows_of(folder, content, tokens, window)
    assert windows.length == window
    assert window <= windows.tokens <= tokens


# ---------------------------------------------------------------------------------------------
# What is refused: one line, and nothing left behind
# ---------------------------------------------------------------------------------------------


def refused(tmp_path, folder, problem, *texts, error=CalibrationError, **options):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=problem) as caught:
        calibrate(folder, tmp_path / "stats", texts or None, **options)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_text(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n ")
    refused(
        tmp_path, model_folder(tmp_path), "must not be empty, .* in empty.txt",
        tmp_path / "empty.txt",
    )  # fmt: skip


def test_a_text_shorter_than_a_window(tmp_path):
    text = text_file(tmp_path, words=20)
    problem = r"at least one window of 511 tokens, found [1-9]\d* in text.txt"
    refused(tmp_path, model_folder(tmp_path), problem, text)


def test_a_text_that_is_not_utf_8(tmp_path):
    (tmp_path / "latin.txt").write_bytes("déjà vu".encode("latin-1"))
    folder = model_folder(tmp_path)
    refused(tmp_path, folder, r"latin.txt: must be text in UTF-8", tmp_path / "latin.txt")


def test_a_text_that_is_not_there(tmp_path):
    refused(
        tmp_path, model_folder(tmp_path), "No such file", tmp_path / "x", error=FileNotFoundError
    )


def test_fewer_tokens_than_a_window(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    refused(tmp_path, folder, "tokens must be at least one window of 64, found 8", text,
            tokens=8, window=64)  # fmt: skip
    refused(tmp_path, folder, "window must be at least 2 tokens, found 1", text, window=1)


def test_a_folder_without_tokenizer(tmp_path):
    folder = model_folder(tmp_path)
    (folder / "tokenizer.json").unlink()
    refused(tmp_path, folder, r"llama: must have a tokenizer.json, found none")


def test_a_damaged_tokenizer(tmp_path):
    folder = model_folder(tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    refused(tmp_path, folder, r"tokenizer.json: must be a tokenizer, found")


def test_a_tokenizer_of_another_model(tmp_path):
    folder = model_folder(tmp_path, vocab_size=40)
    change_tensors(
        folder,
        lambda t: t.update({n: t[n][:40] for n in ("model.embed_tokens.weight", "lm_head.weight")}),
    )
    refused(tmp_path, folder, r"token ids must be below the model's vocabulary size 40, found")


def test_an_unknown_architecture(tmp_path):
    folder = model_folder(tmp_path, architectures=["MambaForCausalLM"])
    refused(tmp_path, folder, "LlamaForCausalLM.*found 'MambaForCausalLM'")


def test_damaged_weights(tmp_path):
    folder = model_folder(tmp_path)

    def spoil(tensors):
        tensors["model.layers.1.input_layernorm.weight"][3] = np.nan

    change_tensors(folder, spoil)
    problem = r"tensor 'model.layers.1.input_layernorm.weight'.*must be finite, found nan at \[3\]"
    refused(tmp_path, folder, problem, tokens=40, window=20, error=ModelFileError)


def test_weights_so_large_that_activations_overflow(tmp_path):
    folder = model_folder(tmp_path)

    def spoil(tensors):
        tensors["model.layers.1.input_layernorm.weight"][:] = np.float32(3e38)

    change_tensors(folder, spoil)
    problem = r"inputs of 'model.layers.1.self_attn.q_proj.weight' must be finite"
    refused(tmp_path, folder, problem, tokens=40, window=20)


def test_an_output_that_is_a_folder(tmp_path):
    (tmp_path / "stats").mkdir()
    folder = model_folder(tmp_path)
    refused(tmp_path, folder, "is a folder", tokens=40, window=20, error=ModelFileError)


def test_statistics_of_another_model(tmp_path):
    folder, text = model_folder(tmp_path), text_file(tmp_path)
    calibrate(folder, tmp_path / "stats", [text], tokens=40, window=20)
    other = model_folder(tmp_path, "qwen3")
    with pytest.raises(CalibrationError, match=r"of this model \(Qwen3.*of another \(Llama"):
        Statistics(tmp_path / "stats", read_config(other))
    change_config(folder, rope_theta=5.0)
    with pytest.raises(CalibrationError, match="another configuration or other shapes"):
        Statistics(tmp_path / "stats", read_config(folder))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"version": 1}'])
def test_files_that_hold_no_statistics(tmp_path, content):
    metadata = None if content is None else {"q43nl_statistics": content}
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "x", metadata)
    with pytest.raises(ModelFileError, match=r"x: must have the metadata 'q43nl_statistics'"):
        Statistics(tmp_path / "x")


def test_statistics_of_a_later_version(tmp_path):
    model = {"sha256": "", "summary": ""}
    record = {"version": 9, "model": model, "tokens": 1, "hessians": {}}
    metadata = {"q43nl_statistics": json.dumps(record)}
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "x", metadata)
    with pytest.raises(ModelFileError, match="must be 1, found 9"):
        Statistics(tmp_path / "x")


@pytest.mark.parametrize("missing", ["tokenizers", "tqdm"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, missing):
    import importlib

    def without(name):
        if name == missing:
            raise ModuleNotFoundError(name=name)
        return importlib.__import__(name)

    monkeypatch.setattr("q43nl_numba.calibrate.errors.importlib.import_module", without)
    problem = rf"'{missing}' is needed .*pip install \"\.\[calibrate\]\""
    refused(tmp_path, model_folder(tmp_path), problem, error=ModuleNotFoundError)
