"""Model folders: every layout in and out, plans, rules, verifying, and hostile names."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q43nl_numba import GROUP_DTYPE, dequantize, q43nl, quality

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")

from model_files import BF16, DTYPES, Tensors, gauss, read_raw, stored, write_model
from safetensors.numpy import load_file

from q43nl_numba.convert import (
    ModelFileError,
    Progress,
    Rule,
    convert_model,
    inspect,
    plan_model,
    read_rules,
    restore,
    verify_model,
)

INDEX = "model.safetensors.index.json"
FILES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

PARTS: tuple[Tensors, Tensors] = (
    {
        "model.embed_tokens.weight": gauss((40, 64), BF16, 1),
        "model.layers.0.mlp.down_proj.weight": gauss((64, 96), BF16, 2),
        "model.layers.0.norm.weight": gauss((64,), BF16, 3),
    },
    {
        "model.layers.1.mlp.down_proj.weight": gauss((64, 96), DTYPES["F16"], 4),
        "model.norm.weight": gauss((64,), DTYPES["F32"], 5),
        "lm_head.weight": gauss((40, 64), DTYPES["F32"], 6),
    },
)
ALL: Tensors = {**PARTS[0], **PARTS[1]}
MATRICES = [name for name in ALL if "norm" not in name]
OTHERS = {"config.json": '{"model_type": "llama"}\n', "1_Pooling/config.json": "{}"}


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    content = {"metadata": {"total_size": 1, "total_parameters": 7}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(content))


def write_folder(folder: Path, *, names: tuple[str, ...] = FILES) -> Path:
    folder.mkdir(parents=True)
    for name, tensors in zip(names, PARTS, strict=True):
        write_model(folder / name, tensors, {"format": "pt"})
    weight_map = {t: n for n, part in zip(names, PARTS, strict=True) for t in part}
    write_index(folder, weight_map)
    for name, text in OTHERS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "pytorch_model.bin").write_bytes(b"other weights")
    (folder / ".gitattributes").write_text("hidden")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "in")


def tree(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def check_model(path: Path, files: list[str]) -> None:
    """Every tensor is what it should be, and the index says the truth."""
    held = {}
    for name in files:
        header, data = read_raw(path / name)
        assert header["__metadata__"]["format"] == "pt"
        load_file(path / name)
        for tensor in header.keys() - {"__metadata__"}:
            held[tensor] = name
            if tensor in MATRICES:
                assert header[tensor]["qtype"] == "Q43NL"
                expected = q43nl(ALL[tensor], "grid")
            else:
                expected = ALL[tensor].view(np.uint8)
            begin, end = header[tensor]["data_offsets"]
            assert data[begin:end] == expected.tobytes()
    assert held.keys() == ALL.keys()
    if (path / INDEX).exists():
        index = json.loads((path / INDEX).read_text())
        assert index["weight_map"] == held
        sizes = [read_raw(path / name)[0] for name in files]
        ends = [e["data_offsets"] for h in sizes for n, e in h.items() if n != "__metadata__"]
        assert index["metadata"] == {
            "total_size": sum(end - begin for begin, end in ends), "total_parameters": 7
        }  # fmt: skip


# Layouts


def test_the_same_files(folder: Path, tmp_path: Path) -> None:
    report = convert_model(folder, tmp_path / "out", "grid")
    assert tree(tmp_path / "out") == sorted([*FILES, INDEX, *OTHERS])
    check_model(tmp_path / "out", list(FILES))
    for name, text in OTHERS.items():
        assert (tmp_path / "out" / name).read_text() == text
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]
    assert [tensor.name for tensor in report.packed] == MATRICES
    assert {t.file for t in report.packed} == set(FILES)
    sizes = {file.name: file.nbytes for file in report.files}
    assert sizes == {n: (tmp_path / "out" / n).stat().st_size for n in (*FILES, INDEX)}
    assert report.copied == tuple(sorted(OTHERS))


@pytest.mark.parametrize("target", ["out", "out.safetensors"])
def test_a_single_file(folder: Path, tmp_path: Path, target: str) -> None:
    convert_model(folder, tmp_path / target, "grid", single_file=True)
    if target == "out":
        assert tree(tmp_path / "out") == sorted(["model.safetensors", *OTHERS])
        check_model(tmp_path / "out", ["model.safetensors"])
    else:
        check_model(tmp_path, [target])


@pytest.mark.parametrize(("limit", "count"), [(3000, 5), ("6kB", 2), ("1GB", 1), (1, 6)])
def test_files_of_a_size(folder: Path, tmp_path: Path, limit: int | str, count: int) -> None:
    convert_model(folder, tmp_path / "out", "grid", max_shard_size=limit)
    names = [name for name in tree(tmp_path / "out") if name.endswith(".safetensors")]
    assert len(names) == count
    assert (INDEX in tree(tmp_path / "out")) == (count > 1)
    check_model(tmp_path / "out", names)


def test_a_file_becomes_a_folder_of_files(tmp_path: Path) -> None:
    path = write_model(tmp_path / "in.st", ALL, {"format": "pt"})
    convert_model(path, tmp_path / "out", "grid", max_shard_size=5000)
    assert INDEX in tree(tmp_path / "out")
    assert not any(name in tree(tmp_path / "out") for name in OTHERS)


@pytest.mark.parametrize("name", ["model.safetensors", "adapter.safetensors"])
def test_a_folder_with_one_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    write_model(tmp_path / "in" / name, ALL, {"format": "pt"})
    convert_model(tmp_path / "in", tmp_path / "out", "grid")
    assert tree(tmp_path / "out") == [name]
    check_model(tmp_path / "out", [name])


@pytest.mark.parametrize("where", ["snapshot", "repository"])
def test_the_hubs_cache(tmp_path: Path, where: str) -> None:
    """Files are links into `blobs`, named by their digests."""
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "0123abcd"
    write_folder(tmp_path / "plain")
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    for number, name in enumerate(tree(tmp_path / "plain")):
        shutil.copy(tmp_path / "plain" / name, repository / "blobs" / f"{number:08x}")
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(repository / "blobs" / f"{number:08x}", link.parent))
    convert_model(snapshot if where == "snapshot" else repository, tmp_path / "out", "grid")
    assert tree(tmp_path / "out") == sorted([*FILES, INDEX, *OTHERS])
    check_model(tmp_path / "out", list(FILES))


def test_an_empty_folder_may_exist_and_another_must_not(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    convert_model(folder, tmp_path / "out", "grid")
    before = tree(tmp_path / "out")
    with pytest.raises(ModelFileError, match="out: must be a new or empty folder"):
        convert_model(folder, tmp_path / "out", "grid")
    assert tree(tmp_path / "out") == before
    for target, problem in [
        (folder / "config.json", "must be a new folder, found a file"),
        (tmp_path / "no" / "out", "there is no folder"),
        (tmp_path / "file.safetensors", "must be a folder for a model of 2 files"),
    ]:
        for work in (convert_model, plan_model):
            with pytest.raises(ModelFileError, match=problem):
                work(folder, target, "grid")
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_restore_and_inspect_folders(folder: Path, tmp_path: Path) -> None:
    convert_model(folder, tmp_path / "out", "grid", keep_dtype="float16")
    contents = inspect(tmp_path / "out")
    assert [tensor.name for tensor in contents.tensors] == list(ALL)
    assert sum(tensor.curves is not None for tensor in contents.tensors) == len(MATRICES)
    report = restore(tmp_path / "out", tmp_path / "back")
    assert (report.unpacked, report.tensors) == (len(MATRICES), len(ALL))
    assert tree(tmp_path / "back") == tree(tmp_path / "out")
    before, after = (json.loads((tmp_path / name / INDEX).read_text()) for name in ("in", "back"))
    assert after["weight_map"] == before["weight_map"]
    for name, part in zip(FILES, PARTS, strict=True):
        header, _ = read_raw(tmp_path / "back" / name)
        assert header["__metadata__"] == {"format": "pt"}
        for tensor, before in part.items():
            after = stored(tmp_path / "back" / name, tensor)
            assert (after.dtype, after.shape) == (before.dtype, before.shape)
            if tensor in MATRICES:
                packed = q43nl(before, "grid")
                np.testing.assert_array_equal(
                    after, dequantize(packed, before.shape, dtype=before.dtype)
                )


def test_merged_scales_leave_the_configuration(tmp_path: Path) -> None:
    """A reader would look for 8-bit floats otherwise."""
    (tmp_path / "in").mkdir()
    tensors = {
        "l.weight": gauss((128, 128)).astype(DTYPES["F8_E4M3"]),
        "l.weight_scale_inv": np.array([[2]], np.float32),
    }
    write_model(tmp_path / "in" / "model.safetensors", tensors)
    config = {"a": [1, "é"], "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    convert_model(tmp_path / "in", tmp_path / "out", "grid")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"a": [1, "é"]}


def test_scales_in_another_file(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    codes = gauss((128, 128)).astype(DTYPES["F8_E4M3"])
    write_model(folder / "a.safetensors", {"l.weight": codes})
    write_model(folder / "b.safetensors", {"l.weight_scale_inv": np.array([[2]], np.float32)})
    write_index(folder, {"l.weight": "a.safetensors", "l.weight_scale_inv": "b.safetensors"})
    convert_model(folder, tmp_path / "out", "grid")
    assert tree(tmp_path / "out") == ["a.safetensors", INDEX]
    expected = q43nl(codes.astype(np.float32) * 2, "grid")
    found = stored(tmp_path / "out" / "a.safetensors", "l.weight")
    np.testing.assert_array_equal(found.ravel(), expected)


# Folders that are not sound


def test_a_shard_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    (folder / FILES[1]).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        convert_model(folder, tmp_path / "out", "grid")
    assert caught.value.filename == str(folder / FILES[1])
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m.update(x=FILES[0]), f"{INDEX}: tensor 'x': must be in '{FILES[0]}'"),
        (lambda m: m.update(x="../other.st"), "'../other.st' must be the name of a file"),
        (lambda m: m.update(x="/etc/passwd"), "'/etc/passwd' must be the name of a file"),
        (lambda m: m.update(x="a\\b"), "must be the name of a file in the folder"),
        (lambda m: m.update(x="a\nb/.."), "must be the name of a file in the folder"),
        (lambda m: m.update(x=5), "'weight_map' must map tensors to files"),
    ],
)
def test_an_index_that_is_wrong(folder: Path, tmp_path: Path, change: Any, problem: str) -> None:
    content = json.loads((folder / INDEX).read_text())
    change(content["weight_map"])
    (folder / INDEX).write_text(json.dumps(content))
    with pytest.raises(ModelFileError) as caught:
        convert_model(folder, tmp_path / "out", "grid")
    assert problem in str(caught.value)
    assert str(caught.value).isprintable()
    assert os.listdir(tmp_path) == ["in"]


def test_a_tensor_in_two_files(folder: Path, tmp_path: Path) -> None:
    write_model(folder / FILES[1], {**PARTS[1], "model.norm.weight": gauss((64,)), **PARTS[0]})
    with pytest.raises(ModelFileError, match=r"tensor 'model.embed_tokens.weight': is in .*0001"):
        convert_model(folder, tmp_path / "out", "grid")


def test_links_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelFileError, match=r"tokenizer.json: must lie in the folder, found a l"):
        convert_model(folder, tmp_path / "out", "grid")
    assert sorted(os.listdir(tmp_path)) == ["in", "secret"]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["a.safetensors", "b.safetensors"], "must have an index"),
        (["pytorch_model.bin"], "found 'pytorch_model.bin', a pickle"),
        ([], "found no file of weights"),
    ],
)
def test_folders_without_a_model(tmp_path: Path, names: list[str], problem: str) -> None:
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ModelFileError, match=problem):
        convert_model(tmp_path / "in", tmp_path / "out", "grid")


# Plans


@pytest.mark.parametrize(
    "options", [{}, {"single_file": True}, {"max_shard_size": 4000}, {"keep_dtype": "float16"}]
)
def test_the_plan_is_what_happens(folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    arguments = {"exclude": "lm_head*", **options}
    plan = plan_model(folder, tmp_path / "out", "grid", **arguments)
    assert os.listdir(tmp_path) == ["in"]
    report = convert_model(folder, tmp_path / "out", "grid", **arguments)
    assert plan.files == report.files
    for file in plan.files:
        assert (tmp_path / "out" / file.name).stat().st_size == file.nbytes
    planned = {tensor.name: tensor for tensor in plan.tensors}
    assert planned.keys() == ALL.keys()
    for tensor in report.packed:
        row = planned[tensor.name]
        assert (row.method, row.nbytes, row.file) == ("grid", tensor.nbytes, tensor.file)
        assert row.bits_per_weight == 4.75
    for kept in report.kept:
        row = planned[kept.name]
        assert (row.method, row.nbytes, row.reason) == ("", kept.nbytes, kept.reason)
        assert row.stored_dtype == kept.stored_dtype
    sizes = {file.name: file.nbytes for file in plan.files}
    assert plan.bytes_out == sum(sizes.values())
    assert report.bytes_out == plan.bytes_out - sizes.get(INDEX, 0)


def test_progress_ends_at_the_total(folder: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    convert_model(folder, tmp_path / "out", "grid", progress=seen.append)
    assert {progress.tensor for progress in seen} == ALL.keys()
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert {progress.total for progress in seen} == {done[-1]}
    assert done[-1] == sum(array.nbytes for array in ALL.values())


# Rules


RULES = """
[[rule]]
pattern = "lm_head.*"
keep = "float16"

[[rule]]
pattern = ["*.0.mlp.*", "*.9.mlp.*", "*down*"]
method = "optimal"
effort = 2
importance = "importance.st"

[[rule]]
pattern = "*embed*"
grid_size = 17
"""


def test_rules(folder: Path, tmp_path: Path) -> None:
    weighting = np.random.default_rng(0).exponential(size=96).astype(np.float32)
    name = "model.layers.0.mlp.down_proj.weight"
    write_model(tmp_path / "importance.st", {name: weighting, "lm_head.weight": gauss((64,))})
    (tmp_path / "rules.toml").write_text(RULES.replace('"*.9.mlp.*", ', ""))
    rules = tmp_path / "rules.toml"
    report = convert_model(folder, tmp_path / "out", "grid", rules=rules, eps_scale=0.0)
    assert {t.name: t.method for t in report.packed} == {
        "model.embed_tokens.weight": "grid",
        name: "optimal",
        name.replace("0", "1"): "optimal",
    }
    assert report.unused_importance == ("lm_head.weight",)
    expected = {
        "model.embed_tokens.weight": {"method": "grid", "grid_size": 17},
        name: {"method": "optimal", "effort": 2, "importance": weighting},
        name.replace("0", "1"): {"method": "optimal", "effort": 2},
    }
    for file, part in zip(FILES, PARTS, strict=True):
        for tensor, weights in part.items():
            if tensor in expected:
                packed = q43nl(weights, **expected[tensor], eps_scale=0.0)  # type: ignore[arg-type]
                found = stored(tmp_path / "out" / file, tensor)
                np.testing.assert_array_equal(found.ravel(), packed)
    assert stored(tmp_path / "out" / FILES[1], "lm_head.weight").dtype == np.float16
    kept = {tensor.name: tensor.reason for tensor in report.kept}
    assert kept["lm_head.weight"] == "kept by a rule"
    record = json.loads(read_raw(tmp_path / "out" / FILES[0])[0]["__metadata__"]["q43nl_numba"])
    assert len(record["made_by"]["rules"]) == 3


def test_rules_of_the_library_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(RULES)
    assert read_rules(str(tmp_path / "rules.toml")) == (
        Rule(("lm_head.*",), keep="float16"),
        Rule(
            ("*.0.mlp.*", "*.9.mlp.*", "*down*"),
            method="optimal",
            options=(("effort", 2),),
            importance=str(tmp_path / "importance.st"),
        ),
        Rule(("*embed*",), options=(("grid_size", 17),)),
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[rule]", "is not TOML"),
        ("[rules]\na = 1", "must hold .*rule.* tables, found 'rules'"),
        ("rule = 1", "must hold .*rule.* tables, found 'rule'"),
        ("[[rule]]\nmethod = 'grid'", "rule 1: pattern must be one or more strings, found None"),
        ("[[rule]]\npattern = []", "rule 1: pattern must be"),
        ("[[rule]]\npattern = '*'\nkeep = 'int8'", "rule 1: keep must be true or one of as-is"),
        ("[[rule]]\npattern = '*'\nkeep = true\nmethod = 'grid'", "rule 1: a rule with keep must"),
        ("[[rule]]\npattern = '*'\nmethod = 'best'", "rule 1: .*'best'"),
        ("[[rule]]\npattern = '*'\nmethod = 'grid'\neffort = 3", "rule 1: .*effort"),
        ("[[rule]]\npattern = '*'\nnum_threads = 3", "rule 1: num_threads is an argument"),
        ("[[rule]]\npattern = '*'\nimportance = 3", "rule 1: method and importance must be str"),
        ("[[rule]]\npattern = '*.mpl.*'\nkeep = true", "'\\*.mpl.*' matches no tensor; near misse"),
        (
            "[[rule]]\npattern = '*'\n[[rule]]\npattern = 'lm*'\nkeep = true",
            "rule 2: pattern 'lm\\*' matches only tensors that an earlier rule matches",
        ),
    ],
)
def test_rules_that_are_refused(folder: Path, tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "rules.toml").write_text(text)
    with pytest.raises(ModelFileError, match=problem):
        convert_model(folder, tmp_path / "out", "grid", rules=tmp_path / "rules.toml")
    assert sorted(os.listdir(tmp_path)) == ["in", "rules.toml"]


# Verify


def test_verify_gives_the_figures_of_the_report(folder: Path, tmp_path: Path) -> None:
    report = convert_model(folder, tmp_path / "out", "coarse_fine", single_file=True)
    found = verify_model(folder, tmp_path / "out")
    before = {tensor.name: tensor for tensor in report.packed}
    assert {tensor.name for tensor in found.packed} == before.keys()
    for tensor in found.packed:
        assert tensor.figures == before[tensor.name].figures
        weights = ALL[tensor.name]
        expected = quality(weights, q43nl(weights, "coarse_fine"))
        assert tensor.snr_db == pytest.approx(expected.snr_db, abs=1e-6)
        assert tensor.max_abs_error == expected.max_abs_error
        assert 0.9 < tensor.mse_ratio < 1.2
    assert found.is_faithful
    assert set(found.equal) == ALL.keys() - before.keys()
    worst = min(tensor.snr_db for tensor in found.packed)
    assert found.below(worst) == ()
    assert [tensor.snr_db for tensor in found.below(worst + 1e-9)] == [worst]


def test_verify_finds_what_is_not_the_same(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert_model(folder, out, "grid", keep_dtype="float16")
    assert verify_model(folder, out).is_faithful
    header, data = read_raw(out / FILES[1])
    at = (out / FILES[1]).stat().st_size - len(data)
    content = bytearray((out / FILES[1]).read_bytes())
    content[at + header["model.norm.weight"]["data_offsets"][0]] ^= 1
    begin = at + header["lm_head.weight"]["data_offsets"][0]
    content[begin + 16 : begin + 18] = np.float16(100).tobytes()  # a scale
    (out / FILES[1]).write_bytes(content)
    found = verify_model(folder, out)
    assert found.different == ("model.norm.weight",)
    assert [tensor.name for tensor in found.below(20)] == ["lm_head.weight"]
    (folder / FILES[0]).unlink()
    write_model(folder / FILES[0], {**PARTS[0], "new": gauss((3,))})
    assert verify_model(folder, out).missing == ("new",)
    assert not found.is_faithful


def test_verify_needs_the_same_shapes(folder: Path, tmp_path: Path) -> None:
    convert_model(folder, tmp_path / "out", "grid")
    other = {**PARTS[0], "model.embed_tokens.weight": gauss((64, 40), BF16)}
    write_model(folder / FILES[0], other)
    with pytest.raises(ModelFileError, match=r"holds weights of shape \[40, 64\], expected \[64"):
        verify_model(folder, tmp_path / "out")


# Figures


@pytest.mark.parametrize("method", ["grid", "coarse_fine", "optimal"])
def test_figures_of_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The sample does not depend on the pieces, and its figures are those of its groups."""
    weights = gauss((96, 96))
    weights[5] = 0
    path = write_model(tmp_path / "in", {"w": weights})
    found = []
    for piece in (1 << 20, 5 * 96, 32):
        monkeypatch.setattr("q43nl_numba.convert.tensors.PIECE_WEIGHTS", piece)
        (tensor,) = convert_model(path, tmp_path / "out", method).packed
        found.append(tensor.figures)
    first = found[0]
    assert {figures.sample for figures in found} == {first.sample}
    for figures in found:
        assert figures.noise == pytest.approx(first.noise)
        assert figures.signal == pytest.approx(float(np.square(weights, dtype=float).sum()))
    stride = 288 // 64
    groups = weights.reshape(-1, 32)[::stride]
    packed = q43nl(groups, method).view(GROUP_DTYPE)
    used = packed[packed["scale"] != 0]
    sample = first.sample
    assert sample.groups == len(groups)
    assert sample.noise == pytest.approx(quality(groups, packed).mse * groups.size)
    grid = quality(groups, q43nl(groups, "grid")).mse * groups.size
    assert first.mse_ratio == pytest.approx(sample.noise / grid)
    curves = used["curve"].astype(int)
    assert sample.curves == tuple(np.bincount(curves + 128, minlength=256).tolist())
    nibbles = np.concatenate([used["codes"] & 15, used["codes"] >> 4], axis=None)
    assert sample.codes == tuple(np.bincount(nibbles, minlength=16).tolist())
    assert sum(sample.before) == sum(sample.after) == groups.size
    decoded = dequantize(packed)
    assert sample.largest == max(np.abs(groups).max(), np.abs(decoded).max())
