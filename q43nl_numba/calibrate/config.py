"""What a model is: the keys of ``config.json`` that the forward pass needs, and its tensors."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..convert.companions import companion, read_object
from .architectures import ARCHITECTURES, Architecture
from .errors import CalibrationError

CONFIG_FILE = "config.json"

#: Bounds of the work that a configuration can ask for; known models have less than a tenth of it.
_MOST_LAYERS, _MOST_EXPERTS = 10_000, 10_000

#: Readers of models keep sizes in 64 bits.
_LARGEST = 2**63 - 1

_Value = TypeVar("_Value")

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
        If that is not JSON, or a link out of the folder.
    CalibrationError
        If it lacks a key, has a value that cannot be, or describes an architecture that is not
        known.
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
    known = _Keys(raw, path)
    name = known.architecture()
    architecture = ARCHITECTURES[name]
    known.check_attention()
    layers, hidden = known.layers(), known.count("hidden_size")
    heads = known.count("num_attention_heads")
    head_dim = known.count("head_dim", architecture.head_dim or hidden // heads)
    kv_heads = known.count("num_key_value_heads", architecture.kv_heads or heads)
    if heads % kv_heads:
        raise CalibrationError(
            f"{path}: num_attention_heads must be a multiple of num_key_value_heads, "
            f"found {heads} and {kv_heads}"
        )
    windows = known.for_each_layer("layer_types", architecture.sliding_windows(raw, layers))
    rotated = known.for_each_layer("no_rope_layers", architecture.rotated_layers(raw, layers))
    rope, rotary_share = _rope(known)
    activation = raw.get("hidden_act") or raw.get("hidden_activation") or architecture.activation
    rotary_dim = int(head_dim * rotary_share)
    if rotary_dim < 2 or rotary_dim % 2:
        raise CalibrationError(
            f"{path}: head_dim * partial_rotary_factor must be an even number from 2 on, "
            f"found {rotary_dim}"
        )
    return ModelConfig(
        architecture=name,
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=known.count("vocab_size"),
        max_positions=known.count("max_position_embeddings", 2048),
        norm_eps=known.number("rms_norm_eps", 1e-6),
        activation=str(activation),
        tied=bool(raw.get("tie_word_embeddings", architecture.tied)),
        rope=rope,
        rotary_dim=rotary_dim,
        sliding_windows=windows,
        rotated_layers=rotated,
        **(
            _experts(known, raw)
            if architecture.experts
            else {"intermediate_size": known.count("intermediate_size")}
        ),
    )


def _experts(known: _Keys, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a mixture of experts needs beside a dense model."""
    if raw.get("mlp_only_layers") or raw.get("decoder_sparse_step", 1) != 1:
        raise CalibrationError(
            f"{known.path}: every layer must have experts, found "
            f"mlp_only_layers {raw.get('mlp_only_layers')!r} and "
            f"decoder_sparse_step {raw.get('decoder_sparse_step')!r}"
        )
    key = "num_local_experts" if "num_local_experts" in raw else "num_experts"
    experts = known.count(key, most=_MOST_EXPERTS)
    return {
        "experts": experts,
        "experts_per_token": known.count("num_experts_per_tok", most=experts),
        "intermediate_size": known.count(
            "moe_intermediate_size" if "moe_intermediate_size" in raw else "intermediate_size"
        ),
        "normalized_experts": bool(raw.get("norm_topk_prob", "num_local_experts" in raw)),
    }


class _Keys:
    """Reads keys of one ``config.json`` and names them in errors."""

    def __init__(self, raw: Mapping[str, Any], path: str) -> None:
        self.raw = raw
        self.path = path

    def architecture(self) -> str:
        """Return the class name of the architecture, which must be known."""
        found = self.raw.get("architectures")
        name = found[0] if isinstance(found, list) and found else found
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise CalibrationError(
                f"{self.path}: architecture must be one of {', '.join(ARCHITECTURES)}, "
                f"found {name!r:.80}"
            )
        return name

    def layers(self) -> int:
        """Return the number of layers."""
        return self.count("num_hidden_layers", most=_MOST_LAYERS)

    def check_attention(self) -> None:
        """Check the types of the keys that tell windows and rotation of each layer."""
        for key in ("sliding_window", "max_window_layers", "no_rope_layer_interval"):
            value = self.raw.get(key)
            if value is not None and (type(value) is not int or not 0 <= value <= _LARGEST):
                raise self.error(key, "null or an integer from 0 on")
        for key in ("layer_types", "no_rope_layers"):
            if not isinstance(self.raw.get(key), list | None):
                raise self.error(key, "null or a list")

    def number(self, key: str, default: float) -> float:
        """Return a finite number; null counts as missing."""
        value = self.raw.get(key)
        if value is None:
            return default
        if not is_finite_number(value):
            raise self.error(key, "a finite number")
        return float(value)

    def error(self, key: str, expected: str) -> CalibrationError:
        """Return the error for a key whose value is not what is expected."""
        return CalibrationError(
            f"{self.path}: {key} must be {expected}, found {self.raw.get(key)!r:.80}"
        )

    def part(self, *keys: str) -> dict[str, Any]:
        """Return the object of the first of some keys that has one, empty where none has."""
        for key in keys:
            value = self.raw.get(key)
            if value:
                if not isinstance(value, dict):
                    raise self.error(key, "an object")
                return dict(value)
        return {}

    def for_each_layer(self, key: str, values: tuple[_Value, ...]) -> tuple[_Value, ...]:
        """Check that there is a value for each layer."""
        layers = self.layers()
        if len(values) != layers:
            raise CalibrationError(
                f"{self.path}: {key} must have {layers} items, found {len(values)}"
            )
        return values

    def count(self, key: str, default: int | None = None, *, most: int = _LARGEST) -> int:
        """Return a positive integer; null counts as missing."""
        value = self.raw.get(key)
        if value is None:
            value = default
        if type(value) is not int or value < 1:
            raise self.error(key, "a positive integer")
        if value > most:
            raise self.error(key, f"at most {most}")
        return value


def is_finite_number(value: object) -> bool:
    """Tell whether a JSON value is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def _rope(known: _Keys) -> tuple[Rope, float]:
    """Return the rotary embedding, in the spelling of transformers 4 or 5, and its share of a head.

    Parameters of the scaling that stand beside it are taken along.
    """
    raw = known.raw
    parameters = known.part("rope_scaling", "rope_parameters")
    theta = parameters.pop("rope_theta", None)
    kinds = [parameters.pop(key, None) for key in ("rope_type", "type")]
    share = parameters.pop("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if "original_max_position_embeddings" in raw:
        parameters.setdefault(
            "original_max_position_embeddings", raw["original_max_position_embeddings"]
        )
    theta = raw.get("rope_theta") or theta or 10000.0
    share = 1 if share is None else share
    for name, value, most in (
        ("rope_theta", theta, math.inf),
        ("partial_rotary_factor", share, 1),
    ):
        if not is_finite_number(value) or not 0 < value <= most:
            limit = "" if most == math.inf else f", at most {most}"
            raise CalibrationError(
                f"{known.path}: {name} must be a number above 0{limit}, found {value!r:.80}"
            )
    kind = next((kind for kind in kinds if kind is not None), "default")
    return Rope(str(kind), float(theta), parameters), float(share)
