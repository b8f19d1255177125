"""The architectures that the forward pass knows: how each differs from Llama.

A new one is an entry of `ARCHITECTURES`, as long as its differences are among the fields of
`Architecture`. Facts are from Hugging Face transformers (``models/*/configuration_*.py`` and
``modeling_*.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

#: What ``config.json`` holds.
Raw = Mapping[str, Any]

#: For every layer how many positions a token attends to, or None for all.
Windows = tuple[int | None, ...]


def _no_windows(raw: Raw, layers: int) -> Windows:
    """Return no windows: every token attends to all before it."""
    return (None,) * layers


def _one_window(default: int | None) -> Callable[[Raw, int], Windows]:
    """Return what gives all layers the same window, `default` where the folder names none."""

    def windows(raw: Raw, layers: int) -> Windows:
        return (raw.get("sliding_window", default),) * layers

    return windows


def _qwen_windows(raw: Raw, layers: int) -> Windows:
    """Return windows for the layers of ``layer_types``, or for those from ``max_window_layers``."""
    if not raw.get("use_sliding_window", False):
        return (None,) * layers
    kinds = raw.get("layer_types")
    if kinds is None:
        first = raw.get("max_window_layers", 28)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    return _windows_of(kinds, raw.get("sliding_window", 4096))


def _smollm3_windows(raw: Raw, layers: int) -> Windows:
    """Return windows for the layers of ``layer_types``, or for those without rotation."""
    if not raw.get("use_sliding_window", False):
        return (None,) * layers
    kinds = raw.get("layer_types") or [
        "full_attention" if rotated else "sliding_attention"
        for rotated in _smollm3_rotation(raw, layers)
    ]
    return _windows_of(kinds, raw.get("sliding_window"))


def _windows_of(kinds: list[str], window: int | None) -> Windows:
    """Return a window for the layers of one kind."""
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _all_rotated(raw: Raw, layers: int) -> tuple[bool, ...]:
    """Return that every layer rotates queries and keys."""
    return (True,) * layers


def _smollm3_rotation(raw: Raw, layers: int) -> tuple[bool, ...]:
    """Return which layers rotate: those marked 1 in ``no_rope_layers``, or three of four."""
    marked = raw.get("no_rope_layers")
    if not marked:
        interval = raw.get("no_rope_layer_interval") or 4
        marked = [(layer + 1) % interval != 0 for layer in range(layers)]
    return tuple(bool(mark) for mark in marked)


@dataclass(frozen=True)
class Experts:
    """Names of a mixture's matrices, without ``.weight``; ``{}`` stands for the expert's number."""

    router: str
    gate: str
    up: str
    down: str


@dataclass(frozen=True)
class Architecture:
    """How an architecture differs from Llama.

    Parameters
    ----------
    sliding_windows : callable
        From ``config.json`` and the number of layers to each layer's window.
    rotated_layers : callable
        The same for whether a layer rotates queries and keys.
    kv_heads, head_dim : int, optional
        Where the configuration names none; by default one a query head, and hidden size over heads.
    head_norms : bool
        Whether queries and keys are normalized, head by head.
    fused : bool
        Whether queries, keys and values are one matrix, and gate and up another one.
    experts : Experts, optional
        A mixture of experts instead of the MLP.
    norm_offset : float
        What is added to the weights of all norms.
    scaled_embedding : bool
        Whether the embedding is multiplied with the square root of the hidden size.
    tied : bool
        Whether the embedding is the output matrix, where the configuration does not say so.
    activation : str
        The MLP's activation, where the configuration names none.
    """

    sliding_windows: Callable[[Raw, int], Windows] = _no_windows
    rotated_layers: Callable[[Raw, int], tuple[bool, ...]] = _all_rotated
    kv_heads: int | None = None
    head_dim: int | None = None
    head_norms: bool = False
    fused: bool = False
    experts: Experts | None = None
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    tied: bool = False
    activation: str = "silu"


#: The architectures, by their class name in ``config.json``. Llama covers Llama 1 to 3.2, TinyLlama
#: and SmolLM 1 and 2; Qwen2 covers Qwen 2.5.
ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": Architecture(),
    "MistralForCausalLM": Architecture(_one_window(4096), kv_heads=8),
    "Qwen2ForCausalLM": Architecture(_qwen_windows, kv_heads=32),
    "Qwen3ForCausalLM": Architecture(_qwen_windows, kv_heads=32, head_dim=128, head_norms=True),
    "SmolLM3ForCausalLM": Architecture(_smollm3_windows, _smollm3_rotation, kv_heads=4, tied=True),
    "Phi3ForCausalLM": Architecture(_one_window(None), fused=True),
    "GemmaForCausalLM": Architecture(
        kv_heads=16,
        head_dim=256,
        norm_offset=1.0,
        scaled_embedding=True,
        tied=True,
        activation="gelu_pytorch_tanh",
    ),
    "MixtralForCausalLM": Architecture(
        _one_window(None),
        kv_heads=8,
        experts=Experts(
            "block_sparse_moe.gate",
            "block_sparse_moe.experts.{}.w1",
            "block_sparse_moe.experts.{}.w3",
            "block_sparse_moe.experts.{}.w2",
        ),
    ),
    "Qwen3MoeForCausalLM": Architecture(
        _one_window(4096),
        kv_heads=4,
        head_norms=True,
        experts=Experts(
            "mlp.gate",
            "mlp.experts.{}.gate_proj",
            "mlp.experts.{}.up_proj",
            "mlp.experts.{}.down_proj",
        ),
    ),
}
