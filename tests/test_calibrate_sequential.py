"""Quantizing layer by layer with statistics of the stream that is quantized already."""

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")

from calibrate_folders import (
    NAMES,
    change_tensors,
    decoder_of,
    model_folder,
    quantized,
    text_file,
)
from test_calibrate import inputs_by_hand, matrix, stops_by_hand

from q43nl_numba.calibrate import (
    CalibrationError,
    calibrated_layers,
    cut_windows,
    read_config,
    read_text,
)
from q43nl_numba.calibrate.drift import RIDGE, SHARE
from q43nl_numba.calibrate.statistics import shrunk

KINDS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
LAYERS = [matrix(layer, kind) for layer in range(2) for kind in KINDS]


def windows_for(folder, tmp_path):
    text = read_text([text_file(tmp_path)])
    return cut_windows(folder, text, 120, window=30, vocab_size=288)


class Recorder:
    """A quantizer that keeps what it was given and what it gave back."""

    def __init__(self, quantize):
        self.given, self.results, self._quantize = {}, {}, quantize

    def __call__(self, found):
        self.given.setdefault(found.name, []).append(found)
        result = self._quantize(found)
        if result is not None:
            self.results.setdefault(found.name, []).append(result)
        return result


@pytest.mark.parametrize("name", NAMES)
def test_nothing_quantized_is_the_original_stream(tmp_path, name):
    folder = model_folder(tmp_path, name)
    windows = windows_for(folder, tmp_path)
    recorder = Recorder(lambda found: None)
    calibrated_layers(folder, windows, recorder, hessians=True)
    inputs = inputs_by_hand(folder, windows.ids)
    output = read_config(folder).output_matrix
    inputs[output] = inputs.pop("output")
    assert set(recorder.given) == {"model.embed_tokens.weight", *inputs}
    for key, expected in inputs.items():
        (found,) = recorder.given[key]
        np.testing.assert_allclose(found.importance, (expected**2).mean(axis=0), rtol=1e-4)
        exact = shrunk((expected.T @ expected / len(expected)).astype(np.float32), len(expected))
        np.testing.assert_allclose(found.hessian, exact, rtol=1e-3, atol=1e-4 * np.abs(exact).max())
        assert found.target is found.weights
    if output == "lm_head.weight":
        (embedding,) = recorder.given["model.embed_tokens.weight"]
        assert embedding.importance is embedding.hessian is None


def test_the_order_is_that_of_the_forward_pass(tmp_path):
    folder = model_folder(tmp_path)
    recorder = Recorder(lambda found: None)
    calibrated_layers(folder, windows_for(folder, tmp_path), recorder)
    assert list(recorder.given) == ["model.embed_tokens.weight", *LAYERS, "lm_head.weight"]


def test_statistics_come_from_the_quantized_stream(tmp_path):
    """They are those of the folder that holds the results, up to the matrix itself."""
    folder = model_folder(tmp_path)
    windows = windows_for(folder, tmp_path)
    recorder = Recorder(lambda found: quantized(found.weights, importance=found.importance))
    calibrated_layers(folder, windows, recorder)

    before = inputs_by_hand(folder, windows.ids)
    change_tensors(
        folder,
        lambda t: t.update({n: np.concatenate(r) for n, r in recorder.results.items()}),
    )
    after = inputs_by_hand(folder, windows.ids)
    for name in LAYERS:
        found = recorder.given[name][0].importance
        np.testing.assert_allclose(found, (after[name] ** 2).mean(axis=0), rtol=1e-3)
    moved = [
        np.abs((before[name] ** 2).mean(axis=0) / (after[name] ** 2).mean(axis=0) - 1).max()
        for name in LAYERS[7:]
    ]
    assert max(moved) > 0.01


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "mixtral"])
def test_targets_make_up_for_the_drift(tmp_path, name):
    """They are least squares of the original's outputs, by its inputs and residual streams."""
    folder = model_folder(tmp_path, name)
    windows = windows_for(folder, tmp_path)
    recorder = Recorder(lambda found: quantized(found.target, importance=found.importance))
    calibrated_layers(folder, windows, recorder, hessians=True)

    before = stops_by_hand(folder, windows.ids)
    change_tensors(
        folder,
        lambda t: t.update({n: np.concatenate(r) for n, r in recorder.results.items()}),
    )
    after = stops_by_hand(folder, windows.ids)
    for key, (found,) in recorder.given.items():
        if "embed" in key or "experts" in key:
            assert found.target is found.weights
            continue
        key = "output" if key == "lm_head.weight" else key
        (x, r), (x_drifted, r_drifted) = before[key], after[key]
        moved = (x - x_drifted) @ found.weights.T.astype(np.float64)
        if r is not None:
            moved += r - r_drifted
        hessian = found.hessian.astype(np.float64)
        hessian += RIDGE * np.trace(hessian) / len(hessian) * np.eye(len(hessian))
        wanted = SHARE * np.linalg.solve(hessian, x_drifted.T @ moved / len(x)).T
        assert np.abs(wanted).max() > 1e-3
        np.testing.assert_allclose(
            found.target - found.weights, wanted, atol=2e-3 * np.abs(wanted).max()
        )


def test_there_is_no_target_without_hessians(tmp_path):
    folder = model_folder(tmp_path)
    recorder = Recorder(lambda found: quantized(found.weights))
    calibrated_layers(folder, windows_for(folder, tmp_path), recorder)
    assert all(f.target is f.weights for (f,) in recorder.given.values())


def test_targets_bring_the_output_closer_to_the_original(tmp_path, monkeypatch):
    folder = model_folder(tmp_path)
    windows = windows_for(folder, tmp_path)
    wanted = stops_by_hand(folder, windows.ids)["output"][0]
    errors = []
    for share in (0.3, 0):
        monkeypatch.setattr("q43nl_numba.calibrate.drift.SHARE", np.float32(share))
        recorder = Recorder(lambda found: quantized(found.target, hessian=found.hessian))
        calibrated_layers(folder, windows, recorder, hessians=True)
        copy = model_folder(tmp_path / f"{share}")
        change_tensors(
            copy,
            lambda t, found=recorder.results: t.update(
                {n: np.concatenate(r) for n, r in found.items()}
            ),
        )
        found = stops_by_hand(copy, windows.ids)["output"][0]
        errors.append(np.square(found - wanted).sum())
    assert errors[0] < 0.97 * errors[1]


def test_matrices_that_share_their_input_share_their_hessian(tmp_path):
    folder = model_folder(tmp_path)
    recorder = Recorder(lambda found: None)
    calibrated_layers(folder, windows_for(folder, tmp_path), recorder, hessians=True)
    queries, keys = (recorder.given[matrix(0, kind)][0] for kind in KINDS[:2])
    assert queries.hessian is keys.hessian


def test_a_tied_embedding_has_the_statistics_of_the_output(tmp_path):
    folder = model_folder(tmp_path, "qwen2")
    windows = windows_for(folder, tmp_path)
    recorder = Recorder(lambda found: quantized(found.weights))
    calibrated_layers(folder, windows, recorder)
    assert list(recorder.given) == ["model.embed_tokens.weight", *LAYERS]
    (embedding,) = recorder.given["model.embed_tokens.weight"]
    expected = inputs_by_hand(folder, windows.ids)["output"]
    np.testing.assert_allclose(embedding.importance, (expected**2).mean(axis=0), rtol=1e-4)


def test_the_stream_starts_at_the_quantized_embedding(tmp_path):
    folder = model_folder(tmp_path)
    windows = windows_for(folder, tmp_path)
    recorder = Recorder(lambda found: found.weights * 0 if "embed" in found.name else None)
    calibrated_layers(folder, windows, recorder)
    np.testing.assert_array_equal(recorder.given[LAYERS[0]][0].importance, np.zeros(32))


def test_a_large_matrix_comes_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("q43nl_numba.calibrate.sequential.PIECE_WEIGHTS", 32 * 100)
    folder = model_folder(tmp_path)
    recorder = Recorder(lambda found: None)
    calibrated_layers(folder, windows_for(folder, tmp_path), recorder)
    pieces = recorder.given["lm_head.weight"]
    assert [piece.first_row for piece in pieces] == [0, 100, 200]
    whole = decoder_of(folder, 4).source.tensor("lm_head.weight")
    np.testing.assert_array_equal(np.concatenate([p.weights for p in pieces]), whole)


def test_a_result_of_another_shape(tmp_path):
    folder = model_folder(tmp_path)
    with pytest.raises(CalibrationError, match=r"must have shape \[288, 32\], found \[32, 288\]"):
        calibrated_layers(folder, windows_for(folder, tmp_path), lambda found: found.weights.T)


def test_what_a_quantizer_raises_comes_through(tmp_path):
    folder = model_folder(tmp_path)

    def fail(found):
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        calibrated_layers(folder, windows_for(folder, tmp_path), fail)
