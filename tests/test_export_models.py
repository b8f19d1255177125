"""What export makes of a model's configuration, and what it refuses before anything is written."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")

from engine_models import ENGINE, ModelCopy, read_file, read_tensors
from hypothesis import example, given
from hypothesis import strategies as st
from model_files import BF16, Tensors, read_raw, write_model

from q43nl_numba.convert import ModelFileError
from q43nl_numba.export import (
    CLASS_NAMES,
    ExportWarning,
    architectures,
    export_model,
    inspect_model,
    restore_model,
)
from q43nl_numba.export.architectures import Architecture
from q43nl_numba.export.dimensions import Dimensions
from q43nl_numba.export.tensors import Affine, EngineTensor, Rotary


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str], ModelCopy]:
    return lambda name: ModelCopy(name, tmp_path / name)


def metadata_of(copy: ModelCopy, **options: Any) -> dict[str, str]:
    path = copy.path.parent / "out.st"
    export_model(copy.path, path, dtype="bf16", **options)
    header, _ = read_raw(path)
    return header["__metadata__"]


def refused(copy: ModelCopy, message: str, **options: Any) -> None:
    """Check that the export fails with one line, and leaves nothing."""
    before = sorted(os.listdir(copy.path.parent))
    with pytest.raises(ModelFileError, match=message) as error:
        export_model(copy.path, copy.path.parent / "out.st", **options)
    assert "\n" not in str(error.value)
    assert str(copy.path) in str(error.value)
    assert sorted(os.listdir(copy.path.parent)) == before


# Keys of config.json


CONFIGS = [
    # What the engine would crash on or misread
    ("smollm2", {"hidden_size": 80, "head_dim": 16}, "hidden_size must be a multiple of 32, found"),
    ("smollm2", {"intermediate_size": 90}, "intermediate_size must be a multiple of 32, found 90"),
    ("qwen3moe", {"moe_intermediate_size": 48}, "moe_intermediate_size must be a multiple of 32"),
    ("smollm2", {"head_dim": 17}, "num_attention_heads \\* head_dim must be .* of 32, found 102"),
    ("smollm2", {"head_dim": None, "num_attention_heads": 5}, "divisor of hidden_size"),
    ("smollm2", {"num_key_value_heads": 4}, "multiple of num_key_value_heads \\(4\\), found 6"),
    ("phi3", {"partial_rotary_factor": 0.6}, "even number from 2 to head_dim \\(16\\), found 9"),
    ("phi3", {"partial_rotary_factor": 0.01}, "even number from 2 .* found 0"),
    ("phi3", {"partial_rotary_factor": 1.5}, "'partial_rotary_factor' must be .* found 1.5"),
    ("mixtral", {"num_local_experts": 257}, "experts must be 1 to 256, found 257"),
    ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok must be 1 to 4, found 5"),
    # Missing or of the wrong kind
    *(
        ("smollm2", {key: value}, f"key '{key}' must be an integer of at least 1, found")
        for key in (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "vocab_size", "max_position_embeddings",
        )
        for value in (..., 0, -1, True, "8", 2.5)
    ),
    ("mixtral", {"num_local_experts": ...}, "'num_local_experts' must be an integer"),
    ("qwen3moe", {"num_experts": ...}, "'num_experts' must be an integer .* found nothing"),
    ("smollm2", {"rms_norm_eps": ...}, "'rms_norm_eps' must be a number, found nothing"),
    ("smollm2", {"rms_norm_eps": 0}, "'rms_norm_eps' must be a number above 0, found 0"),
    ("smollm2", {"rope_theta": "1e4"}, "'rope_theta' must be a number, found '1e4'"),
    ("smollm2", {"rope_theta": -1.0}, "'rope_theta' must be a number above 0"),
    ("smollm2", {"attention_bias": "no"}, "'attention_bias' must be true or false"),
    ("smollm2", {"tie_word_embeddings": "no"}, "'tie_word_embeddings' must be true or false"),
    # What the engine does otherwise, or not at all
    ("smollm2", {"hidden_act": "gelu_new"}, "'hidden_act' must be one of silu, .*'gelu_new'"),
    ("smollm2", {"hidden_act": ...}, "'hidden_act' must be one of .* found nothing"),
    ("qwen3moe", {"norm_topk_prob": False}, "'norm_topk_prob' must be true.*found False"),
    ("qwen3moe", {"norm_topk_prob": ...}, "'norm_topk_prob' must be true.*found nothing"),
    ("qwen3moe", {"mlp_only_layers": [1]}, "'mlp_only_layers' must be empty.*found \\[1\\]"),
    ("qwen3moe", {"decoder_sparse_step": 2}, "'decoder_sparse_step' must be 1.*found 2"),
    ("smollm3", {"no_rope_layers": [1, 1, 0]}, "'no_rope_layers' must be a list of 4 zeros"),
    ("smollm3", {"no_rope_layers": [1, 1, 0, 2]}, "'no_rope_layers' must be a list of 4 zeros"),
    ("qwen2", {"layer_types": ["full_attention"]}, "'layer_types' must be a list of 2 words"),
    ("qwen2", {"layer_types": "full_attention"}, "'layer_types' must be a list, found 'full_att"),
    (
        "qwen2",
        {"layer_types": ["full_attention", "chunked_attention"]},
        "'layer_types' must be .*'chunked_attention'",
    ),
    ("gemma", {"final_logit_softcapping": 30.0}, "'final_logit_softcapping' must be absent"),
    ("gemma", {"use_bidirectional_attention": True}, "'use_bidirectional_attention' must be"),
    ("smollm2", {"logits_scaling": 8.0}, "'logits_scaling' must be absent or 1"),
    ("smollm2", {"architectures": ["GPT2LMHeadModel"]}, "'architectures' must be .*'GPT2LMHead"),
    ("smollm2", {"architectures": ...}, "'architectures' must be .* found nothing"),
    # Tokens
    ("smollm2", {"bos_token_id": 448}, "'bos_token_id' must be .* -1 to 447, found 448"),
    ("smollm2", {"bos_token_id": "1"}, "'bos_token_id' must be"),
    ("smollm2", {"eos_token_id": [2, "3"]}, "'eos_token_id' must be"),
    ("smollm2", {"eos_token_id": -1}, "'eos_token_id' must be"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "message"), CONFIGS)
def test_configurations_that_are_refused(
    name: str, changes: dict[str, Any], message: str, model: Any
) -> None:
    refused(model(name).config(**changes), message)


def test_an_unknown_architecture_lists_those_there_are(model: Any) -> None:
    copy = model("smollm2").config(architectures=["Gemma2ForCausalLM"])
    for class_name in CLASS_NAMES:
        refused(copy, f"{class_name}.*found.*Gemma2ForCausalLM")


def test_head_dim_may_be_null_or_absent(model: Any) -> None:
    copy = model("smollm2")
    for value in (None, ...):
        assert metadata_of(copy.config(head_dim=value))["head_dim"] == "16"


def test_keys_of_transformers_5(model: Any) -> None:
    """The frequency in rope_parameters, the number of experts under Mixtral's name."""
    copy = model("qwen3moe")
    before = metadata_of(copy)
    copy.config(
        rope_theta=...,
        rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"},
        num_experts=...,
        num_local_experts=4,
        torch_dtype=...,
        dtype="bfloat16",
    )
    assert metadata_of(copy) == before


def test_rope_theta(model: Any) -> None:
    """As the configuration has it, integer or float; 10000.0 if it is nowhere."""
    copy = model("smollm2")
    assert metadata_of(copy.config(rope_theta=100000))["rope_theta"] == "100000"
    assert metadata_of(copy.config(rope_theta=1e6))["rope_theta"] == "1000000.0"
    assert metadata_of(copy.config(rope_theta=...))["rope_theta"] == "10000.0"
    assert metadata_of(copy.config(rope_parameters={}))["rope_theta"] == "10000.0"
    for_layers = {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e3}}
    refused(copy.config(rope_parameters=for_layers), "'rope_parameters' must be one set")


def test_optional_keys(model: Any) -> None:
    """Left out where they are null or absent, Python's text of them else."""
    copy = model("smollm2")
    changes = {"attention_dropout": 0, "qk_norm": True, "attention_bias": None}
    metadata = metadata_of(copy.config(**changes))
    assert metadata["attention_dropout"] == "0.0"
    assert metadata["qk_norm"] == "True"
    assert "attention_bias" not in metadata


def test_activation(model: Any) -> None:
    copy = model("gemma")
    for act, activation in (("gelu", None), (None, "gelu_pytorch_tanh"), ("gelu_tanh", "x")):
        copy.config(hidden_act=act, hidden_activation=activation)
        assert metadata_of(copy)["act_type"] == "gelu"
    assert metadata_of(model("smollm2").config(hidden_act="relu"))["act_type"] == "relu"


def test_gelu_by_erf_is_noted(model: Any) -> None:
    with pytest.warns(ExportWarning, match="tanh form"):
        assert metadata_of(model("smollm2").config(hidden_act="gelu"))["act_type"] == "gelu"


# RoPE


SCALINGS = [
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
    {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e5}},
]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rope_scaling_is_refused_unless_allowed(scaling: dict[str, Any], model: Any) -> None:
    copy = model("smollm2").config(**scaling)
    (key,) = scaling
    kind = next(scaling[key][name] for name in ("rope_type", "type") if name in scaling[key])
    refused(copy, f"'{key}' must be absent.*found '{kind}'.*allow_rope_scaling")
    with pytest.warns(ExportWarning, match=f"{key} .* is '{kind}', .*NOT the model's"):
        metadata_of(copy, allow_rope_scaling=True)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "default"},
        {"type": "linear", "factor": 1.0},
        {"rope_type": "default", "rope_theta": 1e5},
    ],
)
def test_rope_scaling_that_does_nothing(scaling: Any, model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metadata_of(model("smollm2").config(rope_scaling=scaling))


def by_hand(matrix: np.ndarray, head_dim: int, rotary_dim: int) -> np.ndarray:
    """Permute rows by the rule's words: new row 2i = old i, new row 2i + 1 = old r / 2 + i."""
    permuted = matrix.copy()
    for head in range(len(matrix) // head_dim):
        at = head * head_dim
        for index in range(rotary_dim // 2):
            permuted[at + 2 * index] = matrix[at + index]
            permuted[at + 2 * index + 1] = matrix[at + rotary_dim // 2 + index]
    return permuted


def test_partial_rotary_permutes_a_part_of_each_head(model: Any) -> None:
    """The original permutes the whole head, although 8 of 16 rows rotate."""
    copy = model("phi3").config(partial_rotary_factor=0.5)
    assert metadata_of(copy)["rotary_dim"] == "8"
    made = read_file(copy.path.parent / "out.st")
    fused = read_tensors(copy.path)["model.layers.0.self_attn.qkv_proj.weight"]
    for name, rows in (("wq", fused[:64]), ("wk", fused[64:128])):
        wanted = by_hand(rows, 16, 8)
        np.testing.assert_array_equal(made[f"model.layers.0.attn.{name}.weight"], wanted)
        assert not np.array_equal(wanted, by_hand(rows, 16, 16))
    np.testing.assert_array_equal(made["model.layers.0.attn.wv.weight"], fused[128:])


@given(st.integers(1, 12), st.integers(0, 5), st.integers(1, 4), st.integers(1, 3))
def test_rotary_order(half: int, rest: int, heads: int, columns: int) -> None:
    head_dim, rotary_dim = 2 * half + rest, 2 * half
    rotary = Rotary(head_dim, rotary_dim)
    rows = np.arange(heads * head_dim * columns, dtype=np.float32).reshape(-1, columns)
    permuted = rotary.to_engine(rows)
    np.testing.assert_array_equal(permuted, by_hand(rows, head_dim, rotary_dim))
    np.testing.assert_array_equal(rotary.from_engine(permuted), rows)


FLOATS = st.floats(-100, 100, width=32)


@given(st.lists(FLOATS, min_size=1, max_size=20), st.sampled_from([64, 96, 2048, 3072]))
@example([-16.336851119995117], 3072)
def test_affine_back_and_forth(values: list[float], dim: int) -> None:
    """What comes back from the engine's values goes to the same values again."""
    weights = np.array(values, np.float32)
    for affine in (
        Affine(add=1.0),
        Affine(multiply=dim**0.5),
        Affine(add=1.0, multiply=dim**-0.5),
    ):
        engine = affine.to_engine(weights)
        back = affine.from_engine(engine)
        np.testing.assert_array_equal(affine.to_engine(back), engine)


# Sliding windows


def windows_of(copy: ModelCopy) -> tuple[Any, Any]:
    metadata = metadata_of(copy)
    return metadata.get("attention_types"), metadata.get("sliding_window_sizes")


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize("name", ["mistral", "mixtral", "phi3"])
def test_a_window_of_all_layers_is_written(name: str, model: Any) -> None:
    """The original leaves it out, and the engine attends to everything."""
    copy = model(name)
    assert windows_of(copy) == (None, None)
    assert windows_of(copy.config(sliding_window=64)) == (str([SLIDING] * 2), "[64, 64]")
    assert windows_of(copy.config(sliding_window=256)) == (None, None)
    assert windows_of(copy.config(sliding_window=4096)) == (None, None)


def test_windows_of_qwen(model: Any) -> None:
    copy = model("qwen2")
    assert windows_of(copy) == (str([FULL] * 2), "[256, 256]")
    copy.config(layer_types=[FULL, SLIDING], use_sliding_window=True)
    assert windows_of(copy) == (str([FULL, SLIDING]), "[256, 64]")
    copy.config(layer_types=..., max_window_layers=1)
    assert windows_of(copy) == (str([FULL, SLIDING]), "[256, 64]")
    assert windows_of(copy.config(use_sliding_window=False)) == (None, None)
    refused(copy.config(use_sliding_window=True, max_window_layers=...), "'max_window_layers'")
    moe = model("qwen3moe")
    assert windows_of(moe.config(sliding_window=32)) == (None, None)
    assert windows_of(moe.config(use_sliding_window=True)) == (str([SLIDING] * 2), "[32, 32]")


def test_windows_of_smollm3(model: Any) -> None:
    """Only the layers without RoPE slide."""
    copy = model("smollm3").config(layer_types=..., use_sliding_window=True, sliding_window=32)
    assert windows_of(copy) == (str([FULL, FULL, FULL, SLIDING]), "[256, 256, 256, 32]")


@pytest.mark.parametrize(
    ("given_layers", "interval", "written"),
    [
        (None, ..., [1, 1, 1, 0]),
        (..., 2, [1, 0, 1, 0]),
        ([], 3, [1, 1, 0, 1]),
        ([0, 1, 0, 1], 2, [0, 1, 0, 1]),
        ([True, True, False, True], 4, [1, 1, 0, 1]),
    ],
)
def test_layers_without_rope(
    given_layers: Any, interval: Any, written: list[int], model: Any
) -> None:
    copy = model("smollm3")
    copy.config(no_rope_layers=given_layers, no_rope_layer_interval=interval)
    assert metadata_of(copy)["no_rope_layers"] == str(written)


# Tensors


Q_BIAS = "model.layers.0.self_attn.q_proj.bias"


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("smollm2", "model.embed_tokens.weight"),
        ("smollm2", "model.layers.1.self_attn.o_proj.weight"),
        ("tinyllama", "lm_head.weight"),
        ("phi3", "model.layers.1.mlp.gate_up_proj.weight"),
        ("qwen2", "model.layers.0.self_attn.k_proj.bias"),
        ("qwen3", "model.layers.0.self_attn.q_norm.weight"),
        ("qwen3moe", "model.layers.1.mlp.gate.weight"),
        ("qwen3moe", "model.layers.1.mlp.experts.3.down_proj.weight"),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.3.w2.weight"),
        ("gemma", "model.norm.weight"),
    ],
)
def test_a_missing_tensor(name: str, tensor: str, model: Any) -> None:
    copy = model(name).tensors(lambda tensors: tensors.pop(tensor))
    refused(copy, f"must have 1 more tensor, found no '{re.escape(tensor)}'")


def test_many_missing_tensors_are_counted(model: Any) -> None:
    copy = model("smollm2").config(num_hidden_layers=3)
    refused(copy, r"must have 9 more tensors, found no 'model\.layers\.2\..* and 4 more")


@pytest.mark.parametrize(
    ("name", "tensor", "shape"),
    [
        ("smollm2", "model.embed_tokens.weight", (450, 96)),
        ("smollm2", "model.layers.1.self_attn.k_proj.weight", (64, 96)),
        ("smollm2", "model.norm.weight", (64,)),
        ("phi3", "model.layers.1.self_attn.qkv_proj.weight", (128, 64)),
        ("qwen3", "model.layers.0.self_attn.q_norm.weight", (16,)),
        ("qwen2", Q_BIAS, (32,)),
        ("smollm2", "model.layers.0.mlp.up_proj.weight", (96, 96, 1)),
    ],
)
def test_a_tensor_of_another_shape(
    name: str, tensor: str, shape: tuple[int, ...], model: Any
) -> None:
    before = read_tensors(ENGINE / name)[tensor].shape
    copy = model(name)
    copy.tensors(lambda tensors: tensors.update({tensor: np.ones(shape, np.float32)}))
    message = f"'{tensor}': its shape must be {list(before)} .* found {list(shape)}"
    refused(copy, re.escape(message).replace(r"\.\*", ".*"))


def test_a_tensor_that_is_not_floating(model: Any) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    copy = model("smollm2")
    copy.tensors(lambda tensors: tensors.update({name: np.ones((96, 96), np.int8)}))
    refused(copy, f"'{name}': its dtype must be one of .* found I8")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.shared_expert.up_proj.weight",
        "model.layers.2.mlp.up_proj.weight",
        "something.else",
    ],
)
def test_a_tensor_that_has_no_place(name: str, model: Any) -> None:
    copy = model("smollm2").tensors(lambda tensors: tensors.update({name: np.zeros(4, np.float32)}))
    refused(copy, f"no other tensors than the engine has a place for, found '{re.escape(name)}'")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.o_proj.bias",
        "model.layers.1.mlp.down_proj.bias",
        "model.norm.bias",
        "lm_head.bias",
        Q_BIAS,
    ],
)
def test_biases_without_a_place_must_be_zero(name: str, model: Any) -> None:
    """Those of q, k and v have a place, but transformers uses them with attention_bias only."""
    bias = np.zeros(96, BF16)
    copy = model("smollm2").tensors(lambda tensors: tensors.update({name: bias}))
    export_model(copy.path, copy.path.parent / "out.st", dtype="bf16")
    assert not any("bias" in tensor for tensor in read_file(copy.path.parent / "out.st"))
    (copy.path.parent / "out.st").unlink()
    bias[95] = -0.5
    copy.tensors(lambda tensors: tensors.update({name: bias}))
    refused(copy, f"has a place for, found '{re.escape(name)}'")


def test_biases_of_a_llama(model: Any) -> None:
    """With attention_bias they are written and permuted; that of o must be zero."""
    rng = np.random.default_rng(1)
    biases = {
        f"model.layers.{layer}.self_attn.{letter}_proj.bias": rng.standard_normal(rows).astype(BF16)
        for layer in (0, 1)
        for letter, rows in (("q", 96), ("k", 32), ("v", 32))
    }
    copy = model("smollm2").config(attention_bias=True)
    refused(copy, r"must have 6 more tensors, found no 'model\.layers\.0\.self_attn\.q_proj\.bias'")
    copy.tensors(lambda tensors: tensors.update(biases))
    assert metadata_of(copy)["attention_bias"] == "True"
    made = read_file(copy.path.parent / "out.st")
    key = biases["model.layers.1.self_attn.k_proj.bias"].astype(np.float32)
    np.testing.assert_array_equal(made["model.layers.1.attn.wk.bias"], by_hand(key, 16, 16))
    value = biases["model.layers.1.self_attn.v_proj.bias"].astype(np.float32)
    np.testing.assert_array_equal(made["model.layers.1.attn.wv.bias"], value)


def test_frequencies_in_the_file_are_ignored(model: Any) -> None:
    copy = model("smollm2")
    before = metadata_of(copy)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    copy.tensors(lambda tensors: tensors.update({name: np.ones(8, np.float32)}))
    assert metadata_of(copy) == before


def test_output(model: Any) -> None:
    """tie_word_embeddings decides; where it is absent, whether the folder has an output."""
    output = np.full((448, 96), 0.5, BF16)
    copy = model("smollm2")

    def is_tied() -> bool:
        metadata_of(copy)
        return "model.output.weight" not in read_file(copy.path.parent / "out.st")

    assert is_tied()
    copy.tensors(lambda tensors: tensors.update({"lm_head.weight": output}))
    assert is_tied()
    assert not (copy.config(tie_word_embeddings=...) and is_tied())
    assert not (copy.config(tie_word_embeddings=False) and is_tied())
    copy.tensors(lambda tensors: tensors.pop("lm_head.weight"))
    (copy.path.parent / "out.st").unlink()
    refused(copy, "found no 'lm_head.weight'")
    copy.config(tie_word_embeddings=...)
    assert is_tied()


# The folder


def test_folders_that_are_none(tmp_path: Path, model: Any) -> None:
    with pytest.raises(ModelFileError, match="must be a model folder, found no folder"):
        export_model(tmp_path / "nothing", tmp_path / "out.st")
    copy = model("smollm2")
    with pytest.raises(ModelFileError, match="must be a model folder, found no folder"):
        export_model(copy.path / "model.safetensors", tmp_path / "out.st")
    (copy.path / "model.safetensors").rename(copy.path / "other.safetensors")
    export_model(copy.path, tmp_path / "out.st", dtype="bf16")  # the only file of weights
    (tmp_path / "out.st").unlink()
    (copy.path / "other.safetensors").unlink()
    refused(copy, "must be a folder with safetensors files, found no file of weights")
    copy = ModelCopy("smollm2", tmp_path / "again")
    (copy.path / "config.json").unlink()
    refused(copy, "must hold config.json, found none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"weight_map": {}}', "must have 21 more tensors"),
        ('{"weight_map": {"a": 3}}', "'weight_map' must map tensors to files"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "must be the name of a file in the folder"),
    ],
)
def test_a_wrong_index(content: str, message: str, model: Any) -> None:
    copy = model("llama3")
    (copy.path / "model.safetensors.index.json").write_text(content)
    refused(copy, message, allow_rope_scaling=True)


def test_a_shard_that_is_not_there(model: Any) -> None:
    copy = model("llama3")
    (copy.path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(OSError, match="model-00002-of-00002"):
        export_model(copy.path, copy.path.parent / "out.st", allow_rope_scaling=True)


def test_a_tensor_in_two_shards(model: Any) -> None:
    copy = model("llama3")
    second = copy.path / "model-00002-of-00002.safetensors"
    first = read_file(copy.path / "model-00001-of-00002.safetensors")
    name, array = next(iter(first.items()))
    write_model(second, {**read_file(second), name: array})
    refused(copy, f"'{name}': is in .*00001-of-00002", allow_rope_scaling=True)


def test_the_index_may_name_files_in_any_order(model: Any, tmp_path: Path) -> None:
    copy = model("llama3")

    def turn(index: dict[str, Any]) -> None:
        index["weight_map"] = dict(reversed(index["weight_map"].items()))

    outputs = []
    for _ in range(2):
        with pytest.warns(ExportWarning):
            export_model(copy.path, tmp_path / "out.st", dtype="bf16", allow_rope_scaling=True)
        outputs.append((tmp_path / "out.st").read_bytes())
        copy.json("model.safetensors.index.json", turn)
    assert outputs[0] == outputs[1]


def test_a_file_that_is_not_json(model: Any) -> None:
    copy = model("smollm2")
    (copy.path / "generation_config.json").write_text("not json")
    refused(copy, "generation_config.json: must be JSON")
    (copy.path / "config.json").write_text(json.dumps([1]))
    refused(copy, "config.json: must hold a JSON object")


def test_a_new_architecture_is_one_class(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes its place in the table; export, restore and inspect know it then."""

    class Reversed(Architecture):
        """Llama with other names, and the two matrices of a gated MLP as one."""

        class_name = "ReversedForCausalLM"
        arch = "reversed"
        model_type = "reversed"

        def mlp(self, dims: Dimensions, at: str) -> Iterator[EngineTensor]:
            fused, rows = f"{at}mlp.up_gate.weight", 2 * dims.hidden_dim
            shape = (dims.hidden_dim, dims.dim)
            yield EngineTensor(f"{at}mlp.w1.weight", shape, fused, dims.hidden_dim, rows)
            yield EngineTensor(
                f"{at}mlp.w2.weight", (dims.dim, dims.hidden_dim), f"{at}mlp.down.weight"
            )
            yield EngineTensor(f"{at}mlp.w3.weight", shape, fused, 0, rows)

    def rename(tensors: Tensors) -> None:
        for layer in (0, 1):
            at = f"model.layers.{layer}.mlp."
            gate, up = (tensors.pop(f"{at}{name}_proj.weight") for name in ("gate", "up"))
            tensors[f"{at}up_gate.weight"] = np.concatenate([up, gate])
            tensors[f"{at}down.weight"] = tensors.pop(f"{at}down_proj.weight")

    monkeypatch.setattr(architectures, "TABLE", (*architectures.TABLE, Reversed()))
    plain = model("smollm2")
    metadata = metadata_of(plain)
    path = plain.path.parent / "out.st"
    tensors = read_file(path)
    other = ModelCopy("smollm2", plain.path.parent / "other")
    other.config(architectures=["ReversedForCausalLM"]).tensors(rename)
    assert metadata_of(other) == {**metadata, "arch": "reversed"}
    for name, array in read_file(path).items():
        np.testing.assert_array_equal(array, tensors[name], err_msg=name)
    restore_model(path, plain.path.parent / "back", dtype="bfloat16")
    back = read_tensors(plain.path.parent / "back")
    for name, array in read_tensors(other.path).items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
    assert inspect_model(path).class_name == "ReversedForCausalLM"
