"""What a model is: the keys of ``config.json`` that the forward pass needs, and its tensors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..convert.companions import companion, read_object
from ..convert.json_file import JsonFile
from .architectures import ARCHITECTURES, Architecture
from .errors import CalibrationError

CONFIG_FILE = "config.json"

#: Bounds of the work that a configuration can ask for; known models have less than a tenth of it.
_MOST_LAYERS, _MOST_EXPERTS = 10_000, 10_000

#: Matrices of a layer that share their input, in the order in which the forward pass meets them.
Stages = tuple[tuple[str, ...], ...]

#: Of a mixture of experts, the stage of the router. What follows, each expert does for its tokens.
ROUTER_STAGE = 2


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: the kind of scaling, the base and the scaling's parameters."""

    kind: str
    theta: float
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model.

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
    rotary_dim : int
        Elements of a head that are rotated, the first ones.
    sliding_windows : tuple of int or None
        For every layer how many positions a token attends to (itself included), or None for all.
    rotated_layers : tuple of bool
        For every layer whether it rotates queries and keys.
    experts, experts_per_token : int
        Of a mixture of experts, whose `intermediate_size` is that of an expert; else 0.
    normalized_experts : bool
        Whether the shares of a token's experts add up to 1.
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
    rotary_dim: int
    sliding_windows: tuple[int | None, ...]
    rotated_layers: tuple[bool, ...]
    experts: int = 0
    experts_per_token: int = 0
    normalized_experts: bool = True

    @property
    def differences(self) -> Architecture:
        """How its architecture differs from Llama."""
        return ARCHITECTURES[self.architecture]

    @property
    def output_matrix(self) -> str:
        """Name of the matrix that the last hidden states are multiplied with."""
        return "model.embed_tokens.weight" if self.tied else "lm_head.weight"

    def digest(self) -> str:
        """Return the SHA-256 of the configuration and of every matrix' name and shape.

        Files that were trained further have the digest of the model they started from.
        """
        facts = {
            "architecture": self.architecture,
            "shapes": {name: list(shape) for name, shape in expected_shapes(self).items()},
            "heads": [self.heads, self.kv_heads],
            "activation": self.activation,
            "norm_eps": self.norm_eps,
            "rope": [self.rope.kind, self.rope.theta, self.rope.parameters, self.rotary_dim],
            "sliding_windows": self.sliding_windows,
            "rotated_layers": self.rotated_layers,
            "experts_per_token": self.experts_per_token,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def summary(self) -> str:
        """Return one line that tells models apart for a reader.

        Example: ``LlamaForCausalLM, 30 layers, hidden size 576, vocabulary 49152``.
        """
        return (
            f"{self.architecture}, {self.layers} layers, hidden size {self.hidden_size}, "
            f"vocabulary {self.vocab_size}"
        )


def layer_prefix(index: int) -> str:
    """Return what the names of a layer's tensors begin with.

    >>> layer_prefix(3)
    'model.layers.3.'
    """
    return f"model.layers.{index}."


def layer_stages(config: ModelConfig) -> Stages:
    """Return a layer's matrices by their inputs, in the forward pass' order, without the prefix."""
    experts = config.differences.experts
    attention: tuple[str, ...] = tuple(f"self_attn.{which}_proj.weight" for which in "qkv")
    mlp: tuple[str, ...] = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
    if config.differences.fused:
        attention, mlp = ("self_attn.qkv_proj.weight",), ("mlp.gate_up_proj.weight",)
    stages: list[tuple[str, ...]] = [attention, ("self_attn.o_proj.weight",)]
    if experts is None:
        return (*stages, mlp, ("mlp.down_proj.weight",))
    stages.append((f"{experts.router}.weight",))
    for number in range(config.experts):
        gate, up, down = (
            f"{name.format(number)}.weight" for name in (experts.gate, experts.up, experts.down)
        )
        stages += [(gate, up), (down,)]
    return tuple(stages)


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the shape of every matrix of a layer, by its name without the prefix."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
    first, output, *mlp = layer_stages(config)
    rows = (q_rows + 2 * kv_rows,) if len(first) == 1 else (q_rows, kv_rows, kv_rows)
    shapes = {name: (count, hidden) for name, count in zip(first, rows, strict=True)}
    shapes[output[0]] = (hidden, q_rows)
    if config.experts:
        shapes[mlp.pop(0)[0]] = (config.experts, hidden)
    for into, out_of in zip(mlp[::2], mlp[1::2], strict=True):
        shapes |= dict.fromkeys(into, (2 * inner // len(into), hidden))
        shapes[out_of[0]] = (hidden, inner)
    return shapes


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
        if config.differences.head_norms:
            shapes[prefix + "self_attn.q_norm.weight"] = (config.head_dim,)
            shapes[prefix + "self_attn.k_norm.weight"] = (config.head_dim,)
    shapes["model.norm.weight"] = (config.hidden_size,)
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return shapes


# ---------------------------------------------------------------------------------------------
# Reading config.json
# ---------------------------------------------------------------------------------------------


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """Read the configuration of a Hugging Face model folder.

    Raises
    ------
    OSError
        If the folder has no readable ``config.json``.
    ModelFileError
        If that is not JSON, or a link out of the folder, lacks a key, or has a value of another
        type.
    CalibrationError
        If it describes a model that cannot be, or an architecture that is not known.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise CalibrationError(f"{folder}: must be a folder with a {CONFIG_FILE}")
    path = companion(folder, CONFIG_FILE) or os.path.join(folder, CONFIG_FILE)
    return parse_config(read_object(path), path)


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
    config = JsonFile(path, raw)
    name = _architecture(config)
    architecture = ARCHITECTURES[name]
    _check_attention(config)
    layers = config.integer("num_hidden_layers", most=_MOST_LAYERS)
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", default=architecture.head_dim or hidden // heads)
    kv_heads = config.integer("num_key_value_heads", default=architecture.kv_heads or heads)
    if heads % kv_heads:
        raise CalibrationError(
            f"{path}: num_attention_heads must be a multiple of num_key_value_heads, "
            f"found {heads} and {kv_heads}"
        )
    windows = architecture.sliding_windows(raw, layers)
    rotated = architecture.rotated_layers(raw, layers)
    for key, values in (("layer_types", windows), ("no_rope_layers", rotated)):
        if len(values) != layers:
            raise CalibrationError(f"{path}: {key} must have {layers} items, found {len(values)}")
    rope, rotary_share = _rope(config)
    rotary_dim = int(head_dim * rotary_share)
    if rotary_dim < 2 or rotary_dim % 2:
        raise CalibrationError(
            f"{path}: head_dim * partial_rotary_factor must be an even number from 2 on, "
            f"found {rotary_dim}"
        )
    activation = config.text("hidden_activation", default=architecture.activation)
    return ModelConfig(
        architecture=name,
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=config.integer("vocab_size"),
        max_positions=config.integer("max_position_embeddings", default=2048),
        norm_eps=float(config.number("rms_norm_eps", default=1e-6)),
        activation=config.text("hidden_act", default=activation),
        tied=config.flag("tie_word_embeddings", default=architecture.tied),
        rope=rope,
        rotary_dim=rotary_dim,
        sliding_windows=windows,
        rotated_layers=rotated,
        **(
            _experts(config)
            if architecture.experts
            else {"intermediate_size": config.integer("intermediate_size")}
        ),
    )


def _architecture(config: JsonFile) -> str:
    """Return the class name of the architecture, which must be known."""
    found = config.get("architectures")
    name = found[0] if isinstance(found, list) and found else found
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CalibrationError(
            f"{config.path}: architecture must be one of {', '.join(ARCHITECTURES)}, "
            f"found {name!r:.80}"
        )
    return name


def _check_attention(config: JsonFile) -> None:
    """Check the types of the keys that tell windows and rotation of each layer."""
    config.flag("use_sliding_window")
    for key in ("sliding_window", "max_window_layers", "no_rope_layer_interval"):
        config.integer(key, least=0, default=0)
    for key in ("layer_types", "no_rope_layers"):
        config.items(key)


def _experts(config: JsonFile) -> dict[str, Any]:
    """Return what a mixture of experts needs beside a dense model."""
    dense, step = config.items("mlp_only_layers"), config.integer("decoder_sparse_step", default=1)
    if dense or step != 1:
        raise CalibrationError(
            f"{config.path}: every layer must have experts, found mlp_only_layers {dense!r:.80} "
            f"and decoder_sparse_step {step}"
        )
    is_mixtral = "num_local_experts" in config
    experts = config.integer(
        "num_local_experts" if is_mixtral else "num_experts", most=_MOST_EXPERTS
    )
    own_size = "moe_intermediate_size" in config
    return {
        "experts": experts,
        "experts_per_token": config.integer("num_experts_per_tok", most=experts),
        "intermediate_size": config.integer(
            "moe_intermediate_size" if own_size else "intermediate_size"
        ),
        "normalized_experts": config.flag("norm_topk_prob", default=is_mixtral),
    }


def _rope(config: JsonFile) -> tuple[Rope, float]:
    """Return the rotary embedding, in the spelling of transformers 4 or 5, and its share of a head.

    Parameters of the scaling that stand beside it are taken along.
    """
    parts = [config.part(key) for key in ("rope_scaling", "rope_parameters")]
    scaling = next((part for part in parts if part is not None and list(part)), JsonFile("", {}))
    theta, share = "rope_theta", "partial_rotary_factor"
    own = (theta, share, "rope_type", "type")
    parameters = {key: scaling.get(key) for key in scaling if key not in own}
    original = "original_max_position_embeddings"
    if original in config:
        parameters.setdefault(original, config.get(original))
    rope = Rope(
        scaling.text("rope_type", default=scaling.text("type", default="default")),
        float((config if theta in config else scaling).positive(theta, default=10000.0)),
        parameters,
    )
    return rope, float((scaling if share in scaling else config).positive(share, most=1, default=1))
