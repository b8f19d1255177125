"""The forward pass: equal to transformers for every architecture, whatever the folder's layout."""

import json
import tracemalloc

import numpy as np
import pytest

pytest.importorskip("tokenizers")
ml_dtypes = pytest.importorskip("ml_dtypes")
pytest.importorskip("safetensors")

from calibrate_folders import (  # noqa: E402
    MODELS,
    NAMES,
    STRIDE,
    change_tensors,
    decoder_of,
    logits_of,
    model_folder,
)
from safetensors.numpy import load_file, save_file  # noqa: E402

from q43nl_numba.calibrate import CalibrationError, read_config  # noqa: E402
from q43nl_numba.calibrate.config import parse_config  # noqa: E402
from q43nl_numba.calibrate.forward import ACTIVATIONS, logits, run_layer  # noqa: E402
from q43nl_numba.calibrate.rope import rotation  # noqa: E402
from q43nl_numba.calibrate.sources import check_tensors, open_weights  # noqa: E402
from q43nl_numba.convert import ModelFileError, convert  # noqa: E402

VARIANTS = [
    (name, label)
    for name in NAMES
    for label in json.loads((MODELS / name / "variants.json").read_text())
]


def assert_equal_logits(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("name", "label"), VARIANTS)
def test_logits_are_those_of_transformers(tmp_path, name, label):
    expected = load_file(MODELS / name / "expected.safetensors")
    changes = json.loads((MODELS / name / "variants.json").read_text())[label]
    folder = model_folder(tmp_path, name, **changes)
    check_tensors(open_weights(folder), read_config(folder))
    found = logits_of(folder, expected["ids"])[0, STRIDE - 1 :: STRIDE]
    assert_equal_logits(found, expected[label])


def test_variants_differ():
    """So that the test above can fail."""
    for name in NAMES:
        expected = load_file(MODELS / name / "expected.safetensors")
        distinct = {value.tobytes() for label, value in expected.items() if label != "ids"}
        same = ("old spelling", "dynamic within the context")
        assert len(distinct) == len([label for label in expected if label not in same]) - 1


def test_rotary_parameters_of_transformers_5(tmp_path):
    expected = load_file(MODELS / "llama" / "expected.safetensors")
    parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    folder = model_folder(tmp_path, rope_parameters=parameters, rope_theta=None)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    found = logits_of(folder, expected["ids"])[0, STRIDE - 1 :: STRIDE]
    assert_equal_logits(found, expected["linear"])


def rotary(length=2, **changes):
    """Inverse frequencies of a head of 128 elements, and the factor of cosines and sines.

    The tiny models above have four frequencies, which most boundaries of the scalings fall between.
    """
    config = {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "hidden_size": 256,
        "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 9, **changes,
    }  # fmt: skip
    cosines, sines = rotation(parse_config(config), length)
    assert cosines.shape == sines.shape == (length, 64)
    return np.arctan2(sines[1], cosines[1]), np.hypot(cosines[1], sines[1])


def test_yarn_as_of_qwen():
    """With 32768 tokens and a base of 10^6, 32 turns end at frequency 23.60 and one at 39.65."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    plain, _ = rotary(rope_theta=1e6)
    np.testing.assert_allclose(plain, 1e6 ** (-np.arange(64) / 64), rtol=1e-5)
    number = np.arange(64)
    for more, low, high in (({}, 23, 40), ({"truncate": False}, 23.596, 39.651)):
        found, factor = rotary(rope_theta=1e6, rope_scaling=yarn | more)
        divided = np.clip((number - low) / (high - low), 0, 1)
        np.testing.assert_allclose(found, plain * (1 - divided + divided / 4), rtol=2e-4)
        np.testing.assert_allclose(factor, 0.1 * np.log(4) + 1, rtol=1e-6)
    steep, _ = rotary(rope_theta=1e6, rope_scaling=yarn | {"beta_fast": 8, "beta_slow": 2})
    divided = np.clip((number - 30) / (37 - 30), 0, 1)  # 30.02 and 36.44
    np.testing.assert_allclose(steep, plain * (1 - divided + divided / 4), rtol=2e-4)


@pytest.mark.parametrize(
    ("more", "factor"),
    [
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 0.707, "mscale_all_dim": 0.707}, 1.0),  # as DeepSeek-V2 has it
        ({"mscale": 1.0, "mscale_all_dim": 0.5}, (0.1 * np.log(4) + 1) / (0.05 * np.log(4) + 1)),
        ({"mscale": 0.5}, 0.1 * np.log(4) + 1),
        ({"factor": 1.0}, 1.0),
        ({"factor": 0.5}, 1.0),
    ],
)
def test_the_factor_of_yarn(more, factor):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    np.testing.assert_allclose(rotary(rope_scaling=yarn | more)[1], factor, rtol=1e-6)


def test_scaling_as_of_llama_3():
    """By wavelengths, as its authors wrote it: up to 2048 kept, from 8192 on divided by 8."""
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    frequency = 500000.0 ** (-np.arange(64) / 64)
    wavelength = 2 * np.pi / frequency
    smooth = (8192 / wavelength - 1) / (4 - 1)
    between = (1 - smooth) * frequency / 8 + smooth * frequency
    expected = np.where(wavelength < 2048, frequency, between)
    expected = np.where(wavelength > 8192, frequency / 8, expected)
    assert ((wavelength > 2048) & (wavelength < 8192)).sum() == 6
    found, factor = rotary(rope_theta=500000.0, rope_scaling=scaling)
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    np.testing.assert_allclose(factor, 1, rtol=1e-6)


def test_dynamic_scaling_raises_the_base_beyond_the_context():
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    within, _ = rotary(100, max_position_embeddings=100, rope_scaling=scaling)
    np.testing.assert_allclose(within, 1e4 ** (-np.arange(64) / 64), rtol=1e-5)
    beyond, _ = rotary(150, max_position_embeddings=100, rope_scaling=scaling)
    base = 1e4 * (2 * 150 / 100 - 1) ** (128 / 126)
    np.testing.assert_allclose(beyond, base ** (-np.arange(64) / 64), rtol=1e-5)


@pytest.mark.parametrize(
    ("trained", "more", "divisor", "factor"),
    [
        (16, {}, 3, np.sqrt(1 + np.log(64 / 16) / np.log(16))),
        (2, {}, 2, np.sqrt(1 + np.log(64 / 2) / np.log(2))),
        (16, {"factor": 8.0}, 3, np.sqrt(1 + np.log(8) / np.log(16))),
        (16, {"attention_factor": 1.25}, 3, 1.25),
        (64, {}, 3, 1.0),
    ],
)
def test_longrope_of_short_and_long_texts(trained, more, divisor, factor):
    scaling = {
        "rope_type": "longrope", "short_factor": [3.0] * 64, "long_factor": [2.0] * 64,
        "original_max_position_embeddings": trained, **more,
    }  # fmt: skip
    found, scale = rotary(3, max_position_embeddings=64, rope_scaling=scaling)
    np.testing.assert_allclose(found, 1e4 ** (-np.arange(64) / 64) / divisor, rtol=1e-5)
    np.testing.assert_allclose(scale, factor, rtol=1e-6)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 0},
        {"rope_type": "linear", "factor": "four"},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": -5},
    ],
)
def test_scalings_that_give_no_frequencies(scaling):
    with pytest.raises(CalibrationError, match="parameters that give finite frequencies, found"):
        rotary(9000, rope_scaling=scaling)


def test_windows_do_not_see_each_other(tmp_path, rng):
    folder = model_folder(tmp_path)
    ids = rng.integers(2, 288, (3, 20)).astype(np.int32)
    together = logits_of(folder, ids)
    for window in range(3):
        np.testing.assert_allclose(
            together[window], logits_of(folder, ids[window : window + 1])[0], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_token_does_not_see_what_follows(tmp_path, rng, name):
    folder = model_folder(tmp_path, name)
    ids = rng.integers(2, 288, (1, 30)).astype(np.int32)
    changed = ids.copy()
    changed[0, 20:] = rng.integers(2, 288, 10)
    np.testing.assert_allclose(
        logits_of(folder, ids)[0, :20], logits_of(folder, changed)[0, :20], rtol=1e-4, atol=1e-4
    )


def test_blocks_of_queries_change_nothing(tmp_path, rng, monkeypatch):
    folder = model_folder(tmp_path, "mistral")
    ids = rng.integers(2, 288, (1, 50)).astype(np.int32)
    whole = logits_of(folder, ids)
    monkeypatch.setattr("q43nl_numba.calibrate.forward._QUERY_BLOCK", 7)
    np.testing.assert_allclose(logits_of(folder, ids), whole, rtol=1e-4, atol=1e-4)


def test_pieces_of_the_output_matrix_change_nothing(tmp_path, rng, monkeypatch):
    folder = model_folder(tmp_path)
    ids = rng.integers(2, 288, (1, 10)).astype(np.int32)
    whole = logits_of(folder, ids)
    monkeypatch.setattr("q43nl_numba.calibrate.forward.PIECE_WEIGHTS", 32 * 50)
    np.testing.assert_allclose(logits_of(folder, ids), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_dtypes(tmp_path, rng, dtype):
    folder = model_folder(tmp_path)
    ids = rng.integers(2, 288, (1, 10)).astype(np.int32)
    before = logits_of(folder, ids)
    change_tensors(folder, lambda t: t.update({k: v.astype(dtype) for k, v in t.items()}))
    np.testing.assert_allclose(logits_of(folder, ids), before, rtol=1e-3, atol=1e-2)


def test_shards(tmp_path, rng):
    folder = model_folder(tmp_path)
    ids = rng.integers(2, 288, (1, 10)).astype(np.int32)
    before = logits_of(folder, ids)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, folder / shard)
    index = {"weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(logits_of(folder, ids), before)


def test_packed_tensors_are_decoded(tmp_path, rng):
    folder = model_folder(tmp_path)
    ids = rng.integers(2, 288, (1, 30)).astype(np.int32)
    before = logits_of(folder, ids)
    convert(folder / "model.safetensors", tmp_path / "packed", "coarse_fine")
    (tmp_path / "packed").replace(folder / "model.safetensors")
    assert load_file(folder / "model.safetensors")["lm_head.weight"].dtype == np.uint8
    difference = np.abs(logits_of(folder, ids) - before).mean() / np.abs(before).mean()
    assert 0.001 < difference < 0.5


def test_one_layer_is_in_memory_at_a_time(tmp_path, rng):
    """Tensors are read in the order of the layers, each layer once."""
    folder = model_folder(tmp_path)
    decoder = decoder_of(folder, 10)
    read = []
    rows = decoder.source.rows
    decoder.source.rows = lambda name, begin, end: (read.append(name), rows(name, begin, end))[1]
    logits(decoder, rng.integers(2, 288, (4, 10)).astype(np.int32))
    layers = [name.split(".")[2] for name in read if "layers" in name]
    assert layers == sorted(layers)
    assert len(set(read)) == len([name for name in read if "embed" not in name]) + 1


def test_a_pass_that_stops_holds_its_input_and_the_residual_stream(tmp_path):
    decoder = decoder_of(model_folder(tmp_path), 512)
    weights = decoder.load_layer(0)
    hidden = np.random.default_rng(0).standard_normal((512, 32)).astype(np.float32)
    run_layer(decoder.layer_pass(0, weights, hidden))  # makes the masks
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for stop in decoder.layer_pass(0, weights, hidden):
            kept = stop.inputs.nbytes + (0 if stop.stage < 2 else hidden.nbytes)
            held = tracemalloc.get_traced_memory()[0] - before
            assert held < kept + hidden.nbytes / 2, stop.stage
    finally:
        tracemalloc.stop()


def test_a_layer_stops_at_every_input(tmp_path, rng):
    folder = model_folder(tmp_path)
    decoder = decoder_of(folder, 12)
    weights = decoder.load_layer(0)
    hidden = rng.standard_normal((12, 32), dtype=np.float32)
    seen = {}
    output = run_layer(decoder.layer_pass(0, weights, hidden), seen.__setitem__)
    assert {stage: inputs.shape for stage, inputs in seen.items()} == {
        0: (12, 32), 1: (12, 32), 2: (12, 32), 3: (12, 64),
    }  # fmt: skip
    expected = hidden + seen[1] @ weights["self_attn.o_proj.weight"].T
    expected += seen[3] @ weights["mlp.down_proj.weight"].T
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("silu", [-0.2689414, 0.0, 0.7310586, -0.0]),
        ("gelu", [-0.1586553, 0.0, 0.8413447, -0.0]),
        ("gelu_pytorch_tanh", [-0.1588080, 0.0, 0.8411920, -0.0]),
        ("relu", [0.0, 0.0, 1.0, 0.0]),
    ],
)
def test_activations(name, exact):
    found = ACTIVATIONS[name](np.array([-1, 0, 1, -1e4], np.float32))
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": None, "rope_scaling": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_theta": None, "rope_parameters": {"type": "default", "rope_theta": 10000}},
        {"rope_theta": None, "rope_scaling": {}, "rope_parameters": {"partial_rotary_factor": 1}},
    ],
)
def test_the_spelling_of_a_configuration_does_not_count(tmp_path, changes):
    """Statistics of a model are also those of the same one saved by another transformers."""
    plain = read_config(model_folder(tmp_path, rope_theta=10000.0, rope_scaling=None))
    other = read_config(model_folder(tmp_path / "other", **changes))
    assert other == plain
    assert other.digest() == plain.digest()


# ---------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"architectures": ["BertModel"]},
            "must be one of LlamaForCausalLM, .*Qwen3.*, found 'BertModel'",
        ),
        ({"architectures": None}, "architecture must be one of"),
        ({"hidden_size": None}, "key 'hidden_size' must be an integer of at least 1, found None"),
        ({"num_hidden_layers": -2}, "'num_hidden_layers' must be an integer of .* 1, found -2"),
        ({"num_hidden_layers": 10001}, "'num_hidden_layers' must be .* at most 10000, found 10001"),
        ({"tie_word_embeddings": "no"}, "'tie_word_embeddings' must be true or false, found 'no'"),
        ({"use_sliding_window": "no"}, "'use_sliding_window' must be true or false, found 'no'"),
        ({"sliding_window": "512"}, "'sliding_window' must be an integer of at least 0"),
        ({"layer_types": "full_attention"}, "'layer_types' must be a list"),
        ({"hidden_act": ["silu"]}, r"'hidden_act' must be a string, found \['silu'\]"),
        ({"rms_norm_eps": "1e-6"}, "'rms_norm_eps' must be a number"),
        ({"rope_theta": 0}, "'rope_theta' must be a number above 0, found 0"),
        ({"rope_scaling": "linear"}, "'rope_scaling' must be an object, found 'linear'"),
        (
            {"rope_theta": None, "rope_scaling": {"rope_theta": "1"}},
            "key 'rope_scaling': key 'rope_theta' must be a number, found '1'",
        ),
        ({"partial_rotary_factor": 2}, "must be a number above 0, at most 1, found 2"),
        (
            {"architectures": ["MixtralForCausalLM"], "norm_topk_prob": "no", **EXPERTS},
            "'norm_topk_prob' must be true or false, found 'no'",
        ),
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads, found 4 and 3"),
        (
            {"architectures": ["Qwen3MoeForCausalLM"], "mlp_only_layers": [0]},
            r"every layer must have experts, found mlp_only_layers \[0\]",
        ),
        (
            {"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1, 0, 1]},
            "no_rope_layers must have 2 items, found 3",
        ),
    ],
)
def test_a_configuration_that_is_refused(tmp_path, changes, problem):
    folder = model_folder(tmp_path, **changes)
    with pytest.raises((CalibrationError, ModelFileError), match=problem) as caught:
        read_config(folder)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rope_scaling": {"rope_type": "spiral"}}, "one of default, .*, found 'spiral'"),
        (
            {
                "rope_scaling": {
                    "rope_type": "longrope",
                    "long_factor": [1.0],
                    "short_factor": [1.0] * 5,
                    "original_max_position_embeddings": 16,
                }
            },
            "^rope scaling 'longrope' must have 4 factors, found 5",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "must have the parameter 'factor'"),
        ({"hidden_act": "mish"}, "hidden_act must be one of silu, .*, found 'mish'"),
    ],
)
def test_what_the_pass_does_not_know(tmp_path, changes, problem):
    with pytest.raises(CalibrationError, match=problem):
        decoder_of(model_folder(tmp_path, **changes), 10)


def test_a_folder_without_config(tmp_path):
    with pytest.raises(CalibrationError, match="must be a folder with a config"):
        read_config(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"config\.json: must be JSON"):
        read_config(tmp_path)


def test_a_missing_tensor(tmp_path):
    folder = model_folder(tmp_path)
    change_tensors(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelFileError, match=r"'model.layers.1.mlp.up_proj.weight'.*found none"):
        check_tensors(open_weights(folder), read_config(folder))


def test_a_tensor_of_another_shape(tmp_path):
    folder = model_folder(tmp_path, vocab_size=300)
    with pytest.raises(ModelFileError, match=r"shape \[300, 32\], found one of shape \[288, 32\]"):
        check_tensors(open_weights(folder), read_config(folder))


def test_a_tensor_that_is_not_floating(tmp_path):
    folder = model_folder(tmp_path)
    change_tensors(folder, lambda t: t.update({"model.norm.weight": np.ones(32, np.int8)}))
    with pytest.raises(ModelFileError, match=r"'model.norm.weight': dtype must be .*, found I8"):
        open_weights(folder).tensor("model.norm.weight")


def test_a_folder_without_weights(tmp_path):
    folder = model_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match="must be a folder with safetensors files"):
        open_weights(folder)
