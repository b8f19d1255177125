"""The comparison of methods: its rows, its two outputs, its input files, its errors."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from q43nl_numba import METHODS, cli, dequantize, q43nl
from q43nl_numba import compare as comparison
from q43nl_numba.compare import (
    ALL_VARIANTS,
    DISTRIBUTIONS,
    VARIANTS,
    Sample,
    Variant,
    best_times,
    compare,
    draw,
    read_sample,
    select_variants,
)

GRID = Variant("grid")
COARSE_FINE = Variant("coarse_fine")


def run_command(*arguments: object) -> int:
    return cli.main(["compare", *map(str, arguments)])


def usage_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_command(*arguments) == 2
    return capsys.readouterr().err


def mse(weights: np.ndarray, packed: np.ndarray) -> float:
    return float(((weights.astype(np.float64) - dequantize(packed)) ** 2).mean())


class TestDistributions:
    @pytest.mark.parametrize("name", DISTRIBUTIONS)
    def test_same_seed_gives_the_same_finite_float32(self, name: str) -> None:
        weights = draw(name, 4096, seed=3)
        assert weights.dtype == np.float32
        assert weights.shape == (4096,)
        assert np.isfinite(weights).all()
        np.testing.assert_array_equal(weights, draw(name, 4096, seed=3))
        assert (weights != draw(name, 4096, seed=4)).any()

    def test_names_hold_what_they_promise(self) -> None:
        size = 32_768
        assert abs(draw("normal", size).std() - 1) < 0.02
        assert abs(draw("normal-llm", size).std() - 0.02) < 0.001
        assert 0.99 < np.abs(draw("uniform", size)).max() <= 1
        assert 0.88 < (draw("sparse", size) == 0).mean() < 0.92
        assert np.abs(draw("bimodal", size)).min() > 0.3
        assert abs((draw("lognormal", size) < 0).mean() - 0.5) < 0.02
        assert np.unique(draw("constant", size)).size == 1
        assert np.abs(draw("outliers", size)).max() > 20
        heavy = [np.abs(draw(name, size)).max() / draw(name, size).std() for name in DISTRIBUTIONS]
        peak = dict(zip(DISTRIBUTIONS, heavy, strict=True))
        assert peak["normal"] < peak["laplace"] < peak["student-t"]

    def test_empty(self) -> None:
        assert draw("laplace", 0).shape == (0,)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("gauss", 32), "distribution: unknown name 'gauss'.*normal.*laplace"),
            (("normal", -1), "size: -1"),
            (("normal", 32, -5), "seed: -5"),
        ],
    )
    def test_errors_name_the_argument(self, arguments: tuple[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            draw(*arguments)


class TestVariants:
    def test_cover_every_method_once_and_gradient_at_three_settings(self) -> None:
        assert {variant.method for variant in VARIANTS} == set(METHODS)
        labels = [variant.label for variant in VARIANTS]
        assert len(set(labels)) == len(labels)
        assert [label for label in labels if label.startswith("gradient")] == [
            "gradient-5/0.3",
            "gradient-10/0.1",
            "gradient-20/0.1",
        ]

    def test_select_by_method_and_by_label(self) -> None:
        assert select_variants(None) == VARIANTS
        assert len(select_variants(["gradient"])) == 3
        picked = select_variants(["gradient-10/0.1", "grid"])
        assert [variant.label for variant in picked] == ["grid", "gradient-10/0.1"]

    def test_every_effort_can_be_asked_for(self) -> None:
        efforts = [variant.label for variant in select_variants(["optimal"])]
        assert efforts == [f"optimal-{effort}" for effort in range(1, 10)]
        assert [variant.label for variant in select_variants(["optimal-3"])] == ["optimal-3"]
        assert all(variant in ALL_VARIANTS for variant in VARIANTS)

    def test_unknown_name(self) -> None:
        with pytest.raises(ValueError, match=r"method must be one of grid, .*, found 'grit'"):
            select_variants(["grit"])

    def test_every_variant_is_benchmarked(self) -> None:
        common = Path(__file__).parents[1] / "asv_bench" / "benchmarks" / "common.py"
        if not common.exists():
            pytest.skip("the benchmarks are not part of this tree")
        spec = importlib.util.spec_from_file_location("asv_common", common)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        benchmarked = {label: Variant(*call) for label, call in module.VARIANTS.items()}
        assert {variant.label: variant for variant in VARIANTS}.items() <= benchmarked.items()


class TestCompare:
    def test_a_row_says_what_the_method_does(self) -> None:
        weights = draw("normal", 4096, seed=1)
        row = compare(weights, [COARSE_FINE], repeat=2)[0]
        packed = q43nl(weights, "coarse_fine")
        expected = mse(weights, packed)
        assert (row.label, row.method, row.parameters) == ("coarse_fine", "coarse_fine", {})
        assert row.packed_bytes == packed.nbytes == 4096 // 32 * 19
        assert row.mse == pytest.approx(expected, rel=1e-6)
        assert row.mse_ratio == pytest.approx(expected / mse(weights, q43nl(weights, "grid")))
        energy = float((weights.astype(np.float64) ** 2).mean())
        assert row.snr_db == pytest.approx(10 * np.log10(energy / expected), abs=1e-4)

    def test_speed_and_speedup_follow_from_the_times(self) -> None:
        weights = draw("normal", 4096)
        grid, other = compare(weights, [GRID, COARSE_FINE], repeat=1)
        assert grid.mse_ratio == 1
        assert grid.speedup == 1
        assert other.speedup == pytest.approx(grid.seconds / other.seconds)
        assert other.speed == pytest.approx(4096 / other.seconds / 1e6)

    def test_parameters_reach_the_method(self) -> None:
        weights = draw("normal", 4096)
        coarse = Variant("grid", {"grid_size": 3})
        row = compare(weights, [coarse], repeat=1)[0]
        assert row.label == "grid-3"
        assert row.mse == pytest.approx(mse(weights, q43nl(weights, "grid", grid_size=3)))
        assert row.mse_ratio > 1.001

    def test_takes_any_shape_and_dtype(self) -> None:
        weights = draw("normal", 4096).astype(np.float16).reshape(64, 64).T
        assert compare(weights, [GRID], repeat=1)[0].packed_bytes == 4096 // 32 * 19

    def test_exact_results_are_equally_good(self) -> None:
        row = compare(np.ones(64, np.float32), [COARSE_FINE], repeat=1)[0]
        assert (row.mse, row.mse_ratio, row.snr_db) == (0, 1, np.inf)

    @pytest.mark.parametrize(
        ("weights", "repeat", "message"),
        [
            (np.empty(0, np.float32), 1, "weights must have at least one group of 32, found none"),
            (np.ones(32, np.float32), 0, "repeat must be at least 1, found 0"),
            (np.ones(33, np.float32), 1, "33"),
        ],
    )
    def test_errors(self, weights: np.ndarray, repeat: int, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            compare(weights, [GRID], repeat=repeat)


class TestLargeWeights:
    """Above 65504 "optimal" and "exact" can store weights, on one side of zero."""

    @pytest.fixture
    def weights(self) -> np.ndarray:
        weights = draw("normal", 64)
        weights[5] = 80_000
        return weights

    def test_rows_of_the_methods_that_can_store_them(self, weights: np.ndarray) -> None:
        grid, optimal = compare(weights, [GRID, Variant("optimal", {"effort": 1})], repeat=1)
        assert not grid.measured
        assert (grid.label, grid.packed_bytes) == ("grid", None)
        assert np.isnan([grid.mse, grid.snr_db, grid.seconds, grid.speedup]).all()
        assert optimal.packed_bytes == 38
        assert optimal.mse == pytest.approx(mse(weights, q43nl(weights, "optimal", effort=1)))
        assert np.isnan([optimal.mse_ratio, optimal.speedup]).all()

    def test_weights_that_nothing_compared_can_store(self, weights: np.ndarray) -> None:
        with pytest.raises(ValueError, match="must not exceed 65504"):
            compare(weights, [COARSE_FINE, GRID], repeat=1)
        weights[6] = -80_000
        with pytest.raises(ValueError, match="85556"):
            compare(weights, [Variant("optimal")], repeat=1)

    def test_the_command(
        self, weights: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.save(tmp_path / "w.npy", weights)
        arguments = (tmp_path / "w.npy", "--repeat", "1", "--methods")
        assert run_command(*arguments, "grid", "optimal-1") == 0
        *_, grid, optimal, blank, note = capsys.readouterr().out.splitlines()
        assert grid.split() == ["grid", *["-"] * 6]
        assert optimal.split()[::6] == ["optimal-1", "38"]
        assert (blank, note) == ("", "-: weights above what the method can store")
        assert run_command(*arguments, "grid") == 1
        assert "w.npy: sampled weights must be finite and at most 65504" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["blob-without-suffix", "w.bin", "w.npy", "m.safetensors"])
@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_the_content_of_a_file_counts(tmp_path: Path, name: str, kind: str) -> None:
    weights = draw("normal", 128).reshape(4, 32)
    path = tmp_path / name
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, weights)
    else:
        pytest.importorskip("safetensors.numpy").save_file({"w": weights}, path)
    np.testing.assert_array_equal(read_sample(path).weights, weights.ravel())


def test_best_times_take_turns_and_leave_out_disturbances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, calls = 0.0, []
    lasts = {"a": iter([3.0, 1.0, 2.0]), "b": iter([5.0, 6.0, 4.0])}

    def call(key: str) -> None:
        nonlocal now
        calls.append(key)
        now += next(lasts[key])

    monkeypatch.setattr(comparison.measuring.time, "perf_counter", lambda: now)
    found = best_times({key: lambda key=key: call(key) for key in lasts}, repeat=3)
    assert found == {"a": 1.0, "b": 4.0}
    assert calls == ["a", "b"] * 3
    assert best_times({"c": call}, repeat=0) == {"c": np.inf}


class TestNpy:
    def test_small_file_is_taken_whole(self, tmp_path: Path) -> None:
        weights = draw("normal", 2048).reshape(64, 32)
        path = tmp_path / "w.npy"
        np.save(path, weights)
        sample = read_sample(path)
        np.testing.assert_array_equal(sample.weights, weights.ravel())
        assert (sample.source, sample.available) == (str(path), 2048)

    def test_large_file_gives_whole_groups_from_all_over(self, tmp_path: Path) -> None:
        np.save(tmp_path / "w.npy", np.repeat(np.arange(100), 32))
        sample = read_sample(tmp_path / "w.npy", size=4 * 32 + 31)
        np.testing.assert_array_equal(sample.weights, np.repeat([0, 25, 50, 75], 32))
        assert sample.weights.dtype == np.float32
        assert sample.available == 3200

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_groups_follow_c_order(self, tmp_path: Path, order: str) -> None:
        weights = draw("uniform", 64 * 48).reshape(48, 64)
        np.save(tmp_path / "w.npy", np.asarray(weights, dtype=">f4", order=order))
        np.testing.assert_array_equal(read_sample(tmp_path / "w.npy").weights, weights.ravel())

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.ones(33), "its size must be a positive multiple of 32, found 33"),
            (np.ones((0, 32)), "its size must be a positive multiple of 32, found 0"),
            (np.ones(32, complex), "complex128"),
            (np.array([{}] * 32, object), "must be a whole array of numbers"),
            (np.full(64, np.nan), "must be finite and at most 65504, found 64 of 64"),
            (np.r_[np.ones(63), 1e39], "found 1 of 64 that are not"),
            (np.r_[np.ones(62), 65_505, -np.inf], "found 2 of 64 that are not"),
        ],
    )
    def test_unfit_arrays(self, tmp_path: Path, array: np.ndarray, message: str) -> None:
        path = tmp_path / "w.npy"
        np.save(path, array)
        with pytest.raises(ValueError, match=rf"w\.npy: .*{message}"):
            read_sample(path)

    @pytest.mark.parametrize("damage", ["empty", "garbage", "truncated", "archive"])
    def test_damaged_files(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "w.npy"
        np.save(path, np.ones(320))
        whole = path.read_bytes()
        if damage == "archive":
            with path.open("wb") as file:
                np.savez(file, a=np.ones(32))
        else:
            left = {"empty": b"", "garbage": b"garbage", "truncated": whole[:-8]}
            path.write_bytes(left[damage])
        with pytest.raises(ValueError, match=r"w\.npy: "):
            read_sample(path)

    def test_missing_file_and_small_size(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"none\.npy"):
            read_sample(tmp_path / "none.npy")
        with pytest.raises(ValueError, match="size must be at least one group of 32, found 31"):
            read_sample(tmp_path / "w.npy", size=31)


class TestSafetensors:
    @pytest.fixture
    def save(self, tmp_path: Path):
        numpy_reader = pytest.importorskip("safetensors.numpy")

        def save(**tensors: np.ndarray) -> Path:
            path = tmp_path / "m.safetensors"
            numpy_reader.save_file(tensors, path)
            return path

        return save

    def test_all_floating_matrices_count_as_one(self, save) -> None:
        ml_dtypes = pytest.importorskip("ml_dtypes")
        path = save(
            a=np.full((2, 64), 1, np.float32),
            b=np.full((3, 2, 32), 2, np.float16),
            c=np.full((2, 32), 3, ml_dtypes.bfloat16),
            vector=np.full(64, 4, np.float32),
            narrow=np.full((64, 16), 5, np.float32),
            integer=np.full((2, 32), 6, np.uint8),
        )
        sample = read_sample(path)
        expected = np.repeat([1, 2, 3], [128, 192, 64])
        np.testing.assert_array_equal(sample.weights, expected)
        assert sample.weights.dtype == np.float32

    def test_large_file_is_sampled_over_all_tensors(self, save) -> None:
        tensors = {f"t{i}": np.full((6, 32), i, np.float32) for i in range(8)}
        sample = read_sample(save(**tensors), size=16 * 32)
        np.testing.assert_array_equal(sample.weights, np.repeat(np.arange(8), 64))
        assert sample.available == 8 * 6 * 32
        few = read_sample(save(**tensors), size=2 * 32)
        np.testing.assert_array_equal(few.weights, np.repeat([0, 4], 32))

    def test_nothing_to_quantize(self, save) -> None:
        with pytest.raises(ValueError, match=r"m\.safetensors: no floating matrix"):
            read_sample(save(a=np.ones((32, 31), np.float32), b=np.ones((0, 32), np.float32)))

    def test_unfit_weights_name_their_tensor(self, save) -> None:
        spoiled = np.ones((4, 32), np.float32)
        spoiled[2, 5] = np.nan
        with pytest.raises(ValueError, match=r"m\.safetensors: tensor 'b': .*found 1 of 128"):
            read_sample(save(a=np.ones((4, 32), np.float32), b=spoiled))

    @pytest.mark.parametrize("length", [0, 7, 100, -4])
    def test_truncated_file(self, save, length: int) -> None:
        path = save(a=np.ones((4, 32), np.float32))
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ValueError, match=r"m\.safetensors: is "):
            read_sample(path)

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        pytest.importorskip("safetensors")
        with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
            read_sample(tmp_path / "none.safetensors")
        (tmp_path / "folder.safetensors").mkdir()
        with pytest.raises(ValueError, match=r"folder\.safetensors: "):
            read_sample(tmp_path / "folder.safetensors")

    def test_a_folder_of_several_files(self, save, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        places = {}
        for i in (1, 2):
            name = f"model-0000{i}-of-00002.safetensors"
            save(**{f"t{i}": np.full((4, 32), i, np.float32)}).rename(folder / name)
            places[f"t{i}"] = name
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        np.testing.assert_array_equal(read_sample(folder).weights, np.repeat([1, 2], 128))

    def test_other_files_are_named(self, tmp_path: Path) -> None:
        torch_file = tmp_path / "pytorch_model.bin"
        torch_file.write_bytes(b"\x80\x02ctorch._utils\n" + bytes(100))
        with pytest.raises(ValueError, match=r"pytorch_model\.bin: .*pickle"):
            read_sample(torch_file)

    @pytest.mark.parametrize("package", ["safetensors", "ml_dtypes"])
    def test_missing_package_names_the_extra(
        self, save, monkeypatch: pytest.MonkeyPatch, package: str
    ) -> None:
        bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
        path = save(a=np.ones((2, 32), bfloat16))
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf'{package}.*: pip install "\.\[convert\]"$'):
            read_sample(path)


class TestCommand:
    def test_default_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run_command("--repeat", "1") == 0
        machine, sample, blank, heading, rule, *rows = capsys.readouterr().out.splitlines()
        assert "numba" in machine
        assert "threads" in machine
        assert sample == "normal, seed 0: 32,768 weights"
        assert blank == ""
        assert heading.split()[0] == "method"
        assert [row.split()[0] for row in rows] == [variant.label for variant in VARIANTS]
        assert {len(line) for line in (heading, rule, *rows)} == {len(rule)}  # aligned
        assert rows[0].split()[1] == "1.0000"
        assert all(row.split()[-1] == "19456" for row in rows)

    def test_json_holds_the_same_facts(self, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["--distribution", "laplace", "--seed", "5", "--size", "1024"]
        assert run_command(*arguments, "--num-threads", "1", "--repeat", "1", "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert document["machine"]["threads"] == 1
        assert document["sample"] == {
            "source": "laplace, seed 5",
            "weights": 1024,
            "available": 1024,
        }
        rows = document["rows"]
        assert [row["label"] for row in rows] == [variant.label for variant in VARIANTS]
        weights = draw("laplace", 1024, seed=5)
        assert rows[0]["mse"] == pytest.approx(mse(weights, q43nl(weights, "grid")))

    def test_json_has_no_infinity(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        np.save(tmp_path / "w.npy", np.ones(32))
        run_command(str(tmp_path / "w.npy"), "--methods", "grid", "--json", "--repeat", "1")
        text = capsys.readouterr().out
        assert json.loads(text)["rows"][0]["snr_db"] is None
        assert "Infinity" not in text

    def test_file_before_or_after_options(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "w.npy"
        np.save(path, draw("uniform", 6400))
        for arguments in (
            [str(path), "--methods", "grid", "--repeat", "1", "--size", "3200"],
            ["--size", "3200", "--methods", "grid", "--repeat", "1", str(path)],
            ["--size", "3200", str(path), "--repeat", "1", "--methods", "grid"],
        ):
            run_command(*arguments)
            lines = capsys.readouterr().out.splitlines()
            taken = f"{path}: 3,200 weights, in groups taken evenly from 6,400"
            assert lines[1] == taken
            assert len(lines) == 6

    def test_table_formats_what_it_is_given(self) -> None:
        row = comparison.Row("grid", "grid", {}, 0.25, 1.0, 21.5, 0.002, 16.384, 1.0, 19456)
        facts = comparison.machine_facts(1)
        sample = Sample("here", np.zeros(32768, np.float32), 32768)
        last = comparison.format_table(sample, [row], facts).splitlines()[-1]
        assert last.split() == ["grid", "1.0000", "21.50", "2.000", "16.38", "1.00x", "19456"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["w.npy", "--distribution", "normal"], "not allowed with argument"),
            (["w.npy", "--seed", "1"], "--seed: not allowed with argument FILE"),
            (["--distribution", "gauss"], "invalid choice: 'gauss'"),
            (["--methods", "grit"], "--methods: method must be one of grid"),
            (["--size", "100"], "--size: must be a multiple of 32, found 100"),
            (["--size", "0"], "--size: must be an integer of at least 32, found '0'"),
            (["--repeat", "0"], "--repeat: must be an integer of at least 1, found '0'"),
            (
                ["--num-threads", "two"],
                "--num-threads: must be an integer of at least 1",
            ),
            (["--seed", "-1"], "--seed"),
        ],
    )
    def test_wrong_usage(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        assert message in usage_error(capsys, *arguments)

    def test_a_file_after_methods(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "w").write_bytes(b"")
        message = usage_error(capsys, "--methods", "grid", str(tmp_path / "w"))
        assert "FILE goes before --methods" in message

    def test_help_has_examples(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run_command("--help") == 0
        assert "compare --distribution laplace" in capsys.readouterr().out
