"""What a model is: the keys of ``config.json`` that the forward pass needs, and its tensors.

An architecture is one entry of `ARCHITECTURES`: how it differs from Llama in its defaults and in
which layers attend to a sliding window only. Everything else is in the configuration or in the
tensors that the folder has (biases, normalization of queries and keys).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from q43nl_numba.calibrate.errors import CalibrationError

CONFIG_FILE = "config.json"

#: Matrices of a layer that share their input, in the order in which the forward pass meets them.
Stages = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: the kind of scaling, the base and the scaling's parameters."""

    kind: str
    theta: float
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model of the Llama family.

    Parameters
    ----------
    architecture : str
        Class name in ``config.json``, one of `ARCHITECTURES`.
    layers, hidden_size, intermediate_size, heads, kv_heads, head_dim, vocab_size : int
        Dimensions.
    max_positions : int
        Longest context of the model, tokens.
    norm_eps : float
        What RMS normalization adds to the mean square.
    activation : str
        Name of the MLP's activation.
    tied : bool
        Whether the embedding also serves as the output matrix.
    rope : Rope
        Rotary position embedding.
    sliding_windows : tuple of int or None
        For every layer how many positions a token attends to (itself included), or None for all.
    """

    architecture: str
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    activation: str
    tied: bool
    rope: Rope
    sliding_windows: tuple[int | None, ...]

    @property
    def output_matrix(self) -> str:
        """Name of the matrix that the last hidden states are multiplied with."""
        return "model.embed_tokens.weight" if self.tied else "lm_head.weight"

    def digest(self) -> str:
        """Return the SHA-256 of the configuration and of every matrix' name and shape.

        Files that were trained further have the digest of the model they started from.
        """
        shapes = {name: list(shape) for name, shape in expected_shapes(self).items()}
        text = json.dumps({"config": asdict(self), "shapes": shapes}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def summary(self) -> str:
        """Return one line that tells models apart for a reader.

        Example: ``LlamaForCausalLM, 30 layers, hidden size 576, vocabulary 49152``.
        """
        return (
            f"{self.architecture}, {self.layers} layers, hidden size {self.hidden_size}, "
            f"vocabulary {self.vocab_size}"
        )


#: Matrices of one layer that share an input, without the prefix ``model.layers.N.``.
LAYER_STAGES: Stages = (
    ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    ("self_attn.o_proj.weight",),
    ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    ("mlp.down_proj.weight",),
)


def layer_prefix(index: int) -> str:
    """Return what the names of a layer's tensors begin with.

    >>> layer_prefix(3)
    'model.layers.3.'
    """
    return f"model.layers.{index}."


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the shape of every matrix of a layer, by its name without the prefix."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
        "self_attn.q_proj.weight": (q_rows, hidden),
        "self_attn.k_proj.weight": (kv_rows, hidden),
        "self_attn.v_proj.weight": (kv_rows, hidden),
        "self_attn.o_proj.weight": (hidden, q_rows),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that a folder must have (biases are optional)."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, config.hidden_size)
    }
    for index in range(config.layers):
        prefix = layer_prefix(index)
        shapes |= {prefix + name: shape for name, shape in layer_shapes(config).items()}
        shapes[prefix + "input_layernorm.weight"] = (config.hidden_size,)
        shapes[prefix + "post_attention_layernorm.weight"] = (config.hidden_size,)
        for name in ARCHITECTURES[config.architecture].head_norms:
            shapes[prefix + name] = (config.head_dim,)
    shapes["model.norm.weight"] = (config.hidden_size,)
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return shapes


# ---------------------------------------------------------------------------------------------
# Architectures
# ---------------------------------------------------------------------------------------------


def _no_windows(raw: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    return (None,) * layers


def _mistral_windows(raw: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """Return the same window for every layer; a folder that does not name it means 4096."""
    return (raw.get("sliding_window", 4096),) * layers


def _qwen_windows(raw: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """Return windows for the layers of ``layer_types``, or for those from ``max_window_layers``."""
    if not raw.get("use_sliding_window", False):
        return (None,) * layers
    window = raw.get("sliding_window", 4096)
    kinds = raw.get("layer_types")
    if kinds is None:
        first = raw.get("max_window_layers", 28)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


@dataclass(frozen=True)
class Architecture:
    """How an architecture differs from Llama."""

    sliding_windows: Callable[[Mapping[str, Any], int], tuple[int | None, ...]] = _no_windows
    kv_heads: int | None = None  # where the configuration names none; None: one a query head
    head_dim: int | None = None  # the same; None: hidden size over heads
    head_norms: tuple[str, ...] = ()  # normalization of queries and keys, one head's length


#: The architectures that the forward pass knows, by their class name in ``config.json``.
#: Llama covers Llama 1 to 3.2, TinyLlama and SmolLM 1 and 2; Qwen2 covers Qwen 2.5.
ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": Architecture(),
    "MistralForCausalLM": Architecture(_mistral_windows, kv_heads=8),
    "Qwen2ForCausalLM": Architecture(_qwen_windows, kv_heads=32),
    "Qwen3ForCausalLM": Architecture(
        _qwen_windows,
        kv_heads=32,
        head_dim=128,
        head_norms=("self_attn.q_norm.weight", "self_attn.k_norm.weight"),
    ),
}


# ---------------------------------------------------------------------------------------------
# Reading config.json
# ---------------------------------------------------------------------------------------------


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """Read the configuration of a Hugging Face model folder.

    Raises
    ------
    OSError
        If the folder has no readable ``config.json``.
    CalibrationError
        If it is not JSON, lacks a key, or describes an architecture that is not known.
    """
    path = os.path.join(folder, CONFIG_FILE)
    if not os.path.isdir(folder):
        raise CalibrationError(f"{os.fspath(folder)}: must be a folder with a {CONFIG_FILE}")
    with open(path, encoding="utf-8") as file:
        try:
            raw = json.load(file)
        except ValueError as error:
            raise CalibrationError(f"{path}: must be JSON, found {error}") from error
    if not isinstance(raw, dict):
        raise CalibrationError(f"{path}: must be a JSON object, found {type(raw).__name__}")
    return parse_config(raw, path)


def parse_config(raw: Mapping[str, Any], path: str = CONFIG_FILE) -> ModelConfig:
    """Return the configuration that the content of a ``config.json`` describes.

    Examples
    --------
    >>> config = parse_config({
    ...     "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64,
    ...     "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 300})
    >>> config.head_dim, config.kv_heads, config.rope.theta
    (16, 4, 10000.0)
    """
    known = _Keys(raw, path)
    name = known.architecture()
    architecture = ARCHITECTURES[name]
    layers, hidden = known.count("num_hidden_layers"), known.count("hidden_size")
    heads = known.count("num_attention_heads")
    head_dim = known.count("head_dim", architecture.head_dim or hidden // heads)
    kv_heads = known.count("num_key_value_heads", architecture.kv_heads or heads)
    if heads % kv_heads:
        raise CalibrationError(
            f"{path}: num_attention_heads must be a multiple of num_key_value_heads, "
            f"found {heads} and {kv_heads}"
        )
    windows = architecture.sliding_windows(raw, layers)
    if len(windows) != layers:
        raise CalibrationError(
            f"{path}: layer_types must have {layers} items, found {len(windows)}"
        )
    return ModelConfig(
        architecture=name,
        layers=layers,
        hidden_size=hidden,
        intermediate_size=known.count("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=known.count("vocab_size"),
        max_positions=known.count("max_position_embeddings", 2048),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        activation=str(raw.get("hidden_act") or "silu"),
        tied=bool(raw.get("tie_word_embeddings", False)),
        rope=_rope(raw),
        sliding_windows=windows,
    )


class _Keys:
    """Reads keys of one ``config.json`` and names them in errors."""

    def __init__(self, raw: Mapping[str, Any], path: str) -> None:
        self._raw = raw
        self._path = path

    def architecture(self) -> str:
        """Return the class name of the architecture, which must be known."""
        found = self._raw.get("architectures")
        name = found[0] if isinstance(found, list) and found else found
        if name not in ARCHITECTURES:
            raise CalibrationError(
                f"{self._path}: architecture must be one of {', '.join(ARCHITECTURES)}, "
                f"found {name!r}"
            )
        return str(name)

    def count(self, key: str, default: int | None = None) -> int:
        """Return a positive integer; null counts as missing."""
        value = self._raw.get(key)
        if value is None:
            value = default
        if type(value) is not int or value < 1:
            raise CalibrationError(
                f"{self._path}: {key} must be a positive integer, found {value!r}"
            )
        return value


def _rope(raw: Mapping[str, Any]) -> Rope:
    """Return the rotary embedding, in the spelling of transformers 4 or 5."""
    parameters = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
    theta = raw.get("rope_theta", parameters.pop("rope_theta", None))
    kind = parameters.pop("rope_type", parameters.pop("type", "default"))
    parameters.pop("type", None)
    parameters.pop("rope_theta", None)
    return Rope(str(kind), float(10000.0 if theta is None else theta), parameters)
