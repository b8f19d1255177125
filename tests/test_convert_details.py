"""Small decisions about models that a mutation run found held by no other test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")

from model_files import gauss, info, read_raw, stored, write_model, write_raw

from q43nl_numba.convert import ModelFileError, convert, convert_model, packing, restore
from q43nl_numba.convert.judging import Figures
from q43nl_numba.convert.reading import read_header
from q43nl_numba.convert.record import Record
from q43nl_numba.convert.rules import Rule, near_misses


def test_a_rule_is_described_by_what_decides() -> None:
    """By this a run that resumes knows whether it is the same."""
    packs = Rule(("a", "b*"), method="grid", options=(("grid_size", 9),), importance="x/file")
    assert packs.description() == {
        "pattern": ["a", "b*"],
        "method": "grid",
        "importance": "file",
        "grid_size": 9,
    }
    assert Rule(("a",)).description() == {"pattern": ["a"]}
    assert Rule(("a",), keep="float16").description() == {"pattern": ["a"], "keep": "float16"}


def test_near_misses_are_few_and_near() -> None:
    names = [f"model.layers.{i}.{kind}_proj.weight" for i in range(9) for kind in "qkvo"]
    assert near_misses("*.q_porj.*", names) == "; near misses: 'model.layers.*.q_proj.weight'" or (
        near_misses("*.q_porj.*", names).count("'") == 2 * 3
    )
    assert near_misses("*.nothing.*", names) == ""
    assert "'lm_head.weight'" in near_misses("lm_haed*", [*names, "lm_head.weight"])


def test_a_file_of_a_model_in_which_tensors_are_only_cast(tmp_path: Path) -> None:
    """It is not marked as packed, and its record says what the tensors were."""
    path = write_model(tmp_path / "in", {"w": gauss((4, 32)), "b": gauss((64,))})
    convert_model(path, tmp_path / "out", "grid", keep_dtype="float16", max_shard_size=100)
    (file,) = (f for f in (tmp_path / "out").glob("*.safetensors") if "b" in read_raw(f)[0])
    assert stored(file, "b").dtype == np.float16
    assert "dtype" not in read_raw(file)[0]["__metadata__"]
    restore(tmp_path / "out", tmp_path / "back")
    restored = list((tmp_path / "back").glob("*.safetensors"))
    assert [stored(f, "b").dtype for f in restored if "b" in read_raw(f)[0]] == [np.float32]


def test_the_record_names_the_method_unless_rules_chose(tmp_path: Path) -> None:
    path = write_model(tmp_path / "in", {"w": gauss((4, 32)), "v": gauss((4, 32))})
    convert(path, tmp_path / "out", "coarse_fine")
    assert Record(read_header(str(tmp_path / "out"))).method == "coarse_fine"
    convert(path, tmp_path / "ruled", "coarse_fine", rules=[Rule(("w",), method="grid")])
    assert Record(read_header(str(tmp_path / "ruled"))).method == ""


@pytest.mark.parametrize(("dtype", "qtype", "what"), [("I8", None, "the F16"), ("U8", "Q43NL", "")])
def test_a_misfit_says_whether_it_was_packed(
    tmp_path: Path, dtype: str, qtype: str | None, what: str
) -> None:
    record = '{"version":2,"made_by":{},"packed_dtype":"F32","dtypes":{"w":"%s"}}'
    kind = "I64" if qtype else "F16"
    header = {
        "__metadata__": {"q43nl_numba": record % kind},
        "w": info(dtype, [1, 19], 0, 19, **({"qtype": qtype} if qtype else {})),
    }
    write_raw(tmp_path / "in", header, bytes(19))
    with pytest.raises(ModelFileError, match=what or "the packed I64"):
        restore(tmp_path / "in", tmp_path / "out")


def test_figures_of_the_parts_of_a_tensor_add_up() -> None:
    parts = [Figures(32, 2.0, 0.25, 0.5), Figures(64, 3.0, 0.5, 0.75), Figures(96, 4.0, 1.0, 0.25)]
    merged = packing.Pack(None, "grid").merged([part.document() for part in parts])  # type: ignore[arg-type]
    assert Figures.from_document(merged) == Figures(192, 9.0, 1.75, 0.75)


def test_a_coarser_grid_is_compared_with_the_usual_one(tmp_path: Path) -> None:
    path = write_model(tmp_path / "in", {"w": gauss((64, 32))})
    (usual,) = convert(path, tmp_path / "usual", "grid").packed
    (coarse,) = convert(path, tmp_path / "coarse", "grid", grid_size=3).packed
    assert usual.figures.mse_ratio == 1
    assert coarse.figures.mse_ratio > 1


def test_an_error_that_is_not_about_weights_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ValueError("something else")

    path = write_model(tmp_path / "in", {"w": gauss((4, 32))})
    monkeypatch.setattr(packing, "q43nl", fail)
    with pytest.raises(ValueError, match="something else"):
        convert(path, tmp_path / "out", "grid")
