"""Files of llama.cpp's llama-imatrix: both forms, the names, and what is refused."""

import struct

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from q43nl_numba import q43nl  # noqa: E402
from q43nl_numba.convert import ModelFileError, convert_model  # noqa: E402
from q43nl_numba.convert.imatrix import is_imatrix, read_imatrix  # noqa: E402

DENSE = {
    "model.embed_tokens.weight": (300, 32),
    "model.layers.0.self_attn.q_proj.weight": (64, 32),
    "model.layers.0.self_attn.k_proj.weight": (32, 32),
    "model.layers.0.self_attn.v_proj.weight": (32, 32),
    "model.layers.0.self_attn.o_proj.weight": (32, 64),
    "model.layers.1.mlp.gate_proj.weight": (96, 32),
    "model.layers.1.mlp.up_proj.weight": (96, 32),
    "model.layers.1.mlp.down_proj.weight": (32, 96),
    "lm_head.weight": (300, 32),
}

LLAMA_CPP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
    "model.layers.0.self_attn.k_proj.weight": "blk.0.attn_k.weight",
    "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
    "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
    "model.layers.1.mlp.gate_proj.weight": "blk.1.ffn_gate.weight",
    "model.layers.1.mlp.up_proj.weight": "blk.1.ffn_up.weight",
    "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
    "lm_head.weight": "output.weight",
}

EXPERTS = 3
MIXED = {
    "model.layers.0.mlp.gate.weight": ("blk.0.ffn_gate_inp.weight", (EXPERTS, 32)),
    **{
        f"model.layers.0.mlp.experts.{e}.{k}_proj.weight": (f"blk.0.ffn_{k}_exps.weight", shape)
        for e in range(EXPERTS)
        for k, shape in (("gate", (64, 32)), ("up", (64, 32)), ("down", (32, 64)))
    },
}  # fmt: skip

COUNT = 24


def write_gguf(path, entries, counts=None):
    """As llama-imatrix writes it: sums, and counts a row."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_uint32("imatrix.chunk_count", 2)
    for name, means in entries.items():
        rows = np.atleast_2d(means).astype(np.float32)
        count = np.full((len(rows), 1), COUNT, np.float32) if counts is None else counts[name]
        writer.add_tensor(name + ".in_sum2", rows * count)
        writer.add_tensor(name + ".counts", count)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_dat(path, entries, calls=5):
    """As older releases write it: means times calls, experts in one list."""
    content = struct.pack("<i", len(entries))
    for name, means in entries.items():
        values = (np.ravel(means) * calls).astype("<f4")
        content += struct.pack("<i", len(name)) + name.encode()
        content += struct.pack("<ii", calls, values.size) + values.tobytes()
    content += struct.pack("<ii", 2, 8) + b"text.txt"
    path.write_bytes(content)
    return path


WRITERS = pytest.mark.parametrize("write", [write_gguf, write_dat])


def means_of(rng, shapes):
    return {
        LLAMA_CPP[name]: rng.exponential(size=shape[-1]).astype(np.float32)
        for name, shape in shapes.items()
    }


@WRITERS
def test_every_matrix_gets_its_entry(tmp_path, rng, write):
    means = means_of(rng, DENSE)
    found = read_imatrix(write(tmp_path / "imatrix", means), DENSE)
    assert found.missing == found.unused == ()
    assert set(found.importance) == set(DENSE)
    for name, columns in found.importance.items():
        np.testing.assert_allclose(columns, means[LLAMA_CPP[name]], rtol=1e-6)
        assert columns.dtype == np.float32


@WRITERS
def test_experts(tmp_path, rng, write):
    means = {
        entry: rng.exponential(size=(EXPERTS if "exps" in entry else 1, shape[1]))
        for entry, shape in MIXED.values()
    }
    shapes = {name: shape for name, (_, shape) in MIXED.items()}
    found = read_imatrix(write(tmp_path / "imatrix", means), shapes)
    assert found.missing == found.unused == ()
    for name, (entry, _) in MIXED.items():
        expert = int(name.split("experts.")[1][0]) if "experts" in name else 0
        np.testing.assert_allclose(found.importance[name], means[entry][expert], rtol=1e-6)


def test_other_spellings_of_experts(tmp_path, rng):
    means = {"blk.0.ffn_gate_exps.weight": rng.exponential(size=(2, 32))}
    name = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    found = read_imatrix(write_gguf(tmp_path / "imatrix", means), {name: (64, 32)})
    np.testing.assert_allclose(found.importance[name], means["blk.0.ffn_gate_exps.weight"][1], 1e-6)


def test_an_expert_without_tokens_counts_all_columns_the_same(tmp_path):
    entry = "blk.0.ffn_gate_exps.weight"
    counts = {entry: np.array([[4], [0]], np.float32)}
    path = write_gguf(tmp_path / "imatrix", {entry: np.full((2, 32), 3.0)}, counts)
    names = [f"model.layers.0.mlp.experts.{e}.gate_proj.weight" for e in range(2)]
    found = read_imatrix(path, dict.fromkeys(names, (64, 32))).importance
    np.testing.assert_array_equal(found[names[0]], np.full(32, 3, np.float32))
    np.testing.assert_array_equal(found[names[1]], np.ones(32, np.float32))


@WRITERS
def test_what_is_missing_and_left_over_is_listed(tmp_path, rng, write):
    means = means_of(rng, DENSE)
    del means["blk.0.attn_k.weight"]
    means["blk.7.attn_q.weight"] = np.ones(32)
    found = read_imatrix(write(tmp_path / "imatrix", means), DENSE)
    assert found.missing == ("model.layers.0.self_attn.k_proj.weight",)
    assert found.unused == ("blk.7.attn_q.weight",)


def test_a_tied_embedding_takes_the_output_s(tmp_path):
    path = write_gguf(tmp_path / "imatrix", {"output.weight": np.arange(32.0)})
    name = "model.embed_tokens.weight"
    found = read_imatrix(path, {name: (300, 32)}).importance
    np.testing.assert_array_equal(found[name], np.arange(32, dtype=np.float32))
    assert read_imatrix(path, {name: (300, 32), "lm_head.weight": (300, 32)}).missing == (name,)


@WRITERS
def test_another_number_of_columns(tmp_path, write):
    name = "model.layers.0.self_attn.q_proj.weight"
    path = write(tmp_path / "imatrix", {"blk.0.attn_q.weight": np.ones(48)})
    problem = rf"imatrix: 'blk.0.attn_q.weight' must have 32 columns as '{name}' has, found 48"
    with pytest.raises(ModelFileError, match=problem):
        read_imatrix(path, {name: (64, 32)})


@WRITERS
def test_too_few_experts(tmp_path, write):
    name = "model.layers.0.mlp.experts.5.gate_proj.weight"
    path = write(tmp_path / "imatrix", {"blk.0.ffn_gate_exps.weight": np.ones((2, 32))})
    with pytest.raises(ModelFileError, match="found 2 experts"):
        read_imatrix(path, {name: (64, 32)})


@WRITERS
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_numbers_that_are_no_importance(tmp_path, write, value):
    path = write(tmp_path / "imatrix", {"output.weight": np.full(32, value)})
    with pytest.raises(ModelFileError, match="finite numbers from 0 on"):
        read_imatrix(path, {"lm_head.weight": (300, 32)})


def test_files_are_told_apart(tmp_path, rng):
    from safetensors.numpy import save_file

    means = means_of(rng, DENSE)
    assert is_imatrix(write_gguf(tmp_path / "a", means))
    assert is_imatrix(write_dat(tmp_path / "b", means))
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "c")
    assert not is_imatrix(tmp_path / "c")
    (tmp_path / "d").write_bytes(b"")
    assert not is_imatrix(tmp_path / "d")


@pytest.mark.parametrize("kept", [0, 3, 10, 30, -30])
def test_a_truncated_dat(tmp_path, rng, kept):
    path = write_dat(tmp_path / "imatrix", means_of(rng, DENSE))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelFileError, match="imatrix: must be a file of llama-imatrix"):
        read_imatrix(path, DENSE)


def test_a_truncated_gguf(tmp_path, rng):
    path = write_gguf(tmp_path / "imatrix", means_of(rng, DENSE))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelFileError, match="imatrix: must be a sound GGUF file"):
        read_imatrix(path, DENSE)


def test_a_gguf_of_another_kind(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match=r"tensors '\*.in_sum2', found none"):
        read_imatrix(tmp_path / "model.gguf", DENSE)


def test_sums_without_counts(tmp_path):
    entry = "blk.0.ffn_gate_exps.weight"
    counts = {entry: np.ones((3, 1), np.float32)}
    writer = gguf.GGUFWriter(tmp_path / "imatrix", "imatrix")
    writer.add_tensor(entry + ".in_sum2", np.ones((2, 32), np.float32))
    writer.add_tensor(entry + ".counts", counts[entry])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match="a count for each row, found 3 counts"):
        read_imatrix(tmp_path / "imatrix", DENSE)


# ---------------------------------------------------------------------------------------------
# In the converter
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path, rng):
    from safetensors.numpy import save_file

    tensors = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in DENSE.items()}
    save_file(tensors, tmp_path / "model.st")
    return tmp_path / "model.st", tensors


@WRITERS
def test_the_converter_reads_it(tmp_path, rng, model, write):
    from safetensors.numpy import load_file

    path, tensors = model
    means = means_of(rng, DENSE)
    del means["blk.0.attn_v.weight"]
    means["blk.9.attn_q.weight"] = np.ones(32)
    imatrix = write(tmp_path / "imatrix", means)
    report = convert_model(path, tmp_path / "out.st", "coarse_fine", importance=imatrix)
    stored = load_file(tmp_path / "out.st")
    for name, weights in tensors.items():
        importance = means.get(LLAMA_CPP[name])
        expected = q43nl(weights, "coarse_fine", importance=importance)
        if write is write_gguf or importance is None:  # .dat divides by calls: other rounding
            np.testing.assert_array_equal(stored[name].reshape(-1), expected)
    assert report.missing_importance == ("model.layers.0.self_attn.v_proj.weight",)
    assert report.unused_importance == ("blk.9.attn_q.weight",)
    assert "self_attn.v_proj" in report.table().split("no importance given")[1]


def test_an_imatrix_of_another_model(tmp_path, model):
    imatrix = write_dat(tmp_path / "imatrix", {"blk.40.attn_q.weight": np.ones(32)})
    with pytest.raises(ModelFileError, match="imatrix: must have an entry for a tensor"):
        convert_model(model[0], tmp_path / "out.st", "coarse_fine", importance=imatrix)
    assert not (tmp_path / "out.st").exists()


def test_hessians_beside_importance_are_passed_over(tmp_path, model):
    from safetensors.numpy import save_file

    name = "lm_head.weight"
    save_file(
        {name: np.ones(32, np.float32), f"{name}.hessian": np.eye(32, dtype=np.float32)},
        tmp_path / "stats",
    )
    report = convert_model(model[0], tmp_path / "out", "coarse_fine", importance=tmp_path / "stats")
    assert report.unused_importance == ()
