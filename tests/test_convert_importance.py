"""Importance of a model's weights: read beside them, minimized with, refused where it is none."""

import json

import numpy as np
import oracle
import pytest

from q43nl_numba import q43nl

pytest.importorskip("safetensors")
ml_dtypes = pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")

from safetensors.numpy import load_file, save_file  # noqa: E402

from q43nl_numba import cli  # noqa: E402
from q43nl_numba.convert import ModelFileError, convert  # noqa: E402

METHOD = "coarse_fine"


@pytest.fixture
def tensors(rng):
    return {
        "columns": rng.standard_normal((40, 96), dtype=np.float32),
        "shape": rng.standard_normal((3, 5, 64)).astype(np.float16),
        "plain": rng.standard_normal((8, 32), dtype=np.float32),
        "kept": rng.standard_normal(7, dtype=np.float32),
    }


@pytest.fixture
def importance(rng):
    return {
        "columns": rng.exponential(size=96).astype(ml_dtypes.bfloat16),
        "shape": rng.exponential(size=(3, 5, 64)).astype(np.float32),
    }


@pytest.fixture
def model(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.st")
    return tmp_path / "model.st"


def written(tmp_path, importance):
    save_file(importance, tmp_path / "importance.st")
    return tmp_path / "importance.st"


@pytest.mark.parametrize("piece", [64, 1 << 19])
def test_every_tensor_gets_its_own(tmp_path, monkeypatch, tensors, importance, model, piece):
    """Also where pieces and columns are out of step."""
    monkeypatch.setattr("q43nl_numba.convert.tensors.PIECE_WEIGHTS", piece)
    told = written(tmp_path, importance)
    convert(model, tmp_path / "out", METHOD, importance=told)
    stored = load_file(tmp_path / "out")
    for name in ("columns", "shape", "plain"):
        expected = q43nl(tensors[name], METHOD, importance=importance.get(name))
        np.testing.assert_array_equal(stored[name].reshape(-1), expected)
    np.testing.assert_array_equal(stored["kept"], tensors["kept"])


def test_the_weighted_error_is_less(tmp_path, tensors, importance, model):
    convert(model, tmp_path / "told", "optimal", importance=written(tmp_path, importance))
    convert(model, tmp_path / "untold", "optimal")
    weighting = np.broadcast_to(importance["columns"].astype(np.float64), (40, 96)).reshape(-1, 32)
    told, untold = (
        oracle.errors(
            tensors["columns"].reshape(-1, 32), load_file(path)["columns"].reshape(-1), weighting
        ).sum()
        for path in (tmp_path / "told", tmp_path / "untold")
    )
    assert told < 0.93 * untold


def test_the_file_says_what_it_was_made_with(tmp_path, importance, model):
    convert(model, tmp_path / "out", METHOD, importance=written(tmp_path, importance))
    with (tmp_path / "out").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    record = json.loads(header["__metadata__"]["q43nl_numba"])
    assert record["made_by"]["importance"] == "importance.st"


def test_the_command(tmp_path, importance, model, capsys):
    told = written(tmp_path, importance)
    arguments = ["convert", str(model), str(tmp_path / "out"), "--method", METHOD]
    assert cli.main([*arguments, "--importance", str(told)]) == 0
    convert(model, tmp_path / "same", METHOD, importance=told)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "same").read_bytes()
    assert cli.main([*arguments, "--importance", str(tmp_path / "missing")]) == 1
    assert "missing: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("unknown", np.ones(32, np.float32), "the model has no such tensor"),
        ("kept", np.ones(7, np.float32), "the model has no such tensor that is quantized"),
        ("shape", np.ones((5, 64), np.float32), r"expected \[3, 5, 64\] or \[64\] or \[3, 64\]"),
        ("plain", np.ones(31, np.float32), r"shape \[31\], expected \[8, 32\] or \[32\]"),
        ("plain", np.ones((32, 8), np.float32), r"shape \[32, 8\], expected"),
        ("plain", np.ones(32, np.int32), "dtype I32, expected floats"),
        ("plain", np.full(32, np.nan, np.float32), "importance nan, expected finite"),
        ("plain", np.full((8, 32), np.inf, np.float32), "importance inf, expected finite"),
        ("plain", np.full(32, -1.5, np.float16), "importance -1.5, expected finite"),
        ("plain", np.full(32, 1e300), r"importance 1e\+300, expected finite"),
    ],
)
def test_what_is_refused(tmp_path, model, name, value, problem):
    told = written(tmp_path, {name: value})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelFileError, match=rf"importance\.st: tensor '{name}': .*{problem}"):
        convert(model, tmp_path / "out", METHOD, importance=told)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("piece", [64, 1 << 19])
def test_experts_have_columns_of_their_own(tmp_path, monkeypatch, rng, tensors, model, piece):
    monkeypatch.setattr("q43nl_numba.convert.tensors.PIECE_WEIGHTS", piece)
    experts = rng.exponential(size=(3, 64)).astype(np.float32)
    convert(model, tmp_path / "out", METHOD, importance=written(tmp_path, {"shape": experts}))
    full = np.broadcast_to(experts[:, None], (3, 5, 64))
    expected = q43nl(tensors["shape"], METHOD, importance=full)
    np.testing.assert_array_equal(load_file(tmp_path / "out")["shape"].reshape(-1), expected)


def test_entries_of_tensors_that_are_not_packed_are_listed(tmp_path, importance, model):
    """A file may be more than a run needs: patterns change, the file does not."""
    unused = {"kept": np.ones(7, np.int32), "of another shard": np.ones(3, np.float32)}
    everything = written(tmp_path, {**importance, **unused})
    report = convert(model, tmp_path / "a", METHOD, exclude="shape", importance=everything)
    assert set(report.unused_importance) == {"shape", "kept", "of another shard"}
    del importance["shape"]
    convert(
        model, tmp_path / "b", METHOD, exclude="shape", importance=written(tmp_path, importance)
    )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_output_is_not_the_importance(tmp_path, importance, model):
    told = written(tmp_path, importance)
    before = told.read_bytes()
    with pytest.raises(ModelFileError, match="the output is the input file"):
        convert(model, told, METHOD, importance=told)
    assert told.read_bytes() == before


def test_a_damaged_file(tmp_path, importance, model):
    told = written(tmp_path, importance)
    told.write_bytes(told.read_bytes()[:-3])
    with pytest.raises(ModelFileError, match=r"importance\.st"):
        convert(model, tmp_path / "out", METHOD, importance=told)
    assert not (tmp_path / "out").exists()
