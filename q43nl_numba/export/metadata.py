"""The engine's metadata: what ``config.json`` says, in the engine's words and as its text.

Every value is Python's ``str`` of the configuration's own: the engine reads decimal text, and
``10000`` and ``10000.0`` stay what they were.
"""

from __future__ import annotations

from typing import Any

from ..convert.errors import ModelFileError
from ..convert.json_file import JsonFile
from .architectures import Architecture
from .architectures.architecture import ACTIVATIONS, SLIDING, window
from .chat import Chat
from .dimensions import Dimensions

_DEFAULT_ROPE_THETA = 10000.0


def read_dimensions(config: JsonFile, architecture: Architecture) -> Dimensions:
    """Return the dimensions that a configuration says.

    Raises
    ------
    ModelFileError
        If a key is missing or no integer, or the engine would misread one.
    """
    dim = config.integer("hidden_size")
    hidden_dim = config.integer("intermediate_size")
    heads = config.integer("num_attention_heads")
    if "head_dim" not in config and dim % heads:
        raise config.error("num_attention_heads", f"a divisor of hidden_size ({dim})")
    head_dim = config.integer("head_dim", default=dim // heads)
    experts = architecture.experts(config)
    dims = Dimensions(
        dim=dim,
        hidden_dim=hidden_dim,
        expert_hidden_dim=(
            hidden_dim if experts is None
            else config.integer("moe_intermediate_size", default=hidden_dim)
        ),
        head_dim=head_dim,
        n_layers=config.integer("num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=config.integer("num_key_value_heads", default=heads),
        vocab_size=config.integer("vocab_size"),
        max_seq_len=config.integer("max_position_embeddings"),
        rotary_dim=_rotary_dim(config, head_dim),
        n_experts=1 if experts is None else experts[0],
        n_experts_active=1 if experts is None else experts[1],
    )  # fmt: skip
    problem = dims.problem()
    if problem:
        raise ModelFileError(f"{config.path}: {problem}")
    return dims


def build_metadata(
    config: JsonFile, architecture: Architecture, dims: Dimensions, chat: Chat, word: str
) -> dict[str, str]:
    """Return the metadata of the engine's file, in the order of its own converter.

    Raises
    ------
    ModelFileError
        If a key of the configuration is missing, or the engine does not know its value.
    """
    moe = architecture.experts(config) is not None
    values: dict[str, Any] = {"palm": "true", "pasllm": "true"}
    values["arch"] = architecture.arch
    values["dtype"] = word
    values["dim"] = dims.dim
    values["hidden_dim"] = dims.hidden_dim
    if moe:
        values["expert_hidden_dim"] = dims.expert_hidden_dim
    values["head_dim"] = dims.head_dim
    values["n_layers"] = dims.n_layers
    values["n_heads"] = dims.n_heads
    values["n_kv_heads"] = dims.n_kv_heads
    values["vocab_size"] = dims.vocab_size
    values["max_seq_len"] = dims.max_seq_len
    values["bos_token_id"] = chat.bos_token_id if architecture.has_bos else -1
    values["eos_token_id"] = chat.eos_token_id
    values["rope_theta"] = _rope_theta(config)
    values["rotary_dim"] = dims.rotary_dim
    values["norm_eps"] = config.positive("rms_norm_eps")
    values["norm_type"] = "rmsnorm"
    if "attention_bias" in config:
        values["attention_bias"] = config.flag("attention_bias")
    if "attention_dropout" in config:
        values["attention_dropout"] = float(config.number("attention_dropout"))
    if "qk_norm" in config:
        values["qk_norm"] = config.flag("qk_norm")
    values["act_type"] = _activation(config)
    kinds = architecture.layer_types(config, dims)
    if kinds is not None:
        size = window(config, dims) or dims.max_seq_len
        values["attention_types"] = kinds
        values["sliding_window_sizes"] = [
            size if kind == SLIDING else dims.max_seq_len for kind in kinds
        ]
    if architecture.has_qk_norm:
        values["qk_rmsnorm"] = "true"
    if moe:
        values["n_experts"] = dims.n_experts
        values["n_experts_active"] = dims.n_experts_active
    values.update(architecture.extra_metadata(config, dims))
    values.update(chat.texts())
    return {key: str(value) for key, value in values.items()}


def rope_scaling(config: JsonFile) -> tuple[str, str]:
    """Return the key and the kind of RoPE scaling that is active, two empty texts for none.

    >>> rope_scaling(JsonFile("c", {"rope_scaling": {"type": "linear", "factor": 2.0}}))
    ('rope_scaling', 'linear')
    >>> rope_scaling(JsonFile("c", {"rope_parameters": {"rope_type": "default"}}))
    ('', '')
    """
    for key in ("rope_scaling", "rope_parameters"):
        scaling = config.part(key)
        if scaling is None:
            continue
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        does_nothing = kind == "linear" and scaling.get("factor") == 1
        if kind != "default" and not does_nothing:
            return key, str(kind)
    return "", ""


def _rope_theta(config: JsonFile) -> float | int:
    if "rope_theta" in config:
        return config.positive("rope_theta")
    parameters = _rope_parameters(config)
    if parameters is None or "rope_theta" not in parameters:
        return _DEFAULT_ROPE_THETA
    return parameters.positive("rope_theta")


def _rotary_dim(config: JsonFile, head_dim: int) -> int:
    parameters = _rope_parameters(config)
    of_rope = parameters is not None and "partial_rotary_factor" in parameters
    source = parameters if parameters is not None and of_rope else config
    return int(head_dim * source.positive("partial_rotary_factor", most=1, default=1))


def _rope_parameters(config: JsonFile) -> JsonFile | None:
    """Return ``rope_parameters``, where transformers 5 keeps what concerns RoPE."""
    parameters = config.part("rope_parameters")
    if parameters is not None and any(isinstance(parameters.get(key), dict) for key in parameters):
        raise config.error("rope_parameters", "one set of parameters for all layers")
    return parameters


def _activation(config: JsonFile) -> str:
    key = "hidden_act" if "hidden_act" in config else "hidden_activation"
    name = config.get(key)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        if key not in config:
            key = "hidden_act"
        raise config.error(key, f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def is_gelu_with_erf(config: JsonFile, architecture: Architecture) -> bool:
    """Tell whether the model computes GELU with erf, for which the engine takes the tanh form."""
    name = config.get("hidden_act") or config.get("hidden_activation")
    return name == "gelu" and not architecture.gelu_is_tanh
