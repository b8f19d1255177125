"""Names of tensors in GGUF files, and the names that Hugging Face gives to the same tensors.

Source: ``gguf-py/gguf/constants.py`` and ``convert_hf_to_gguf.py`` of llama.cpp.
"""

from __future__ import annotations

import re
from typing import Final

_TOP: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FUSED: Final = {
    **_LAYER,
    "attn_qkv": "self_attn.qkv_proj",
    "ffn_up": "mlp.gate_up_proj",
}

#: By architecture, the names of a layer's tensors. Those of other architectures keep their names.
_LAYERS: Final = {
    "llama": _LAYER,
    "smollm3": _LAYER,
    "qwen2": _LAYER,
    "qwen3": _LAYER,
    "phi3": _FUSED,
}

#: The architectures of which llama.cpp permutes the rows of the query and key projections.
_PERMUTED: Final = ("llama", "smollm3")

ARCHITECTURES: Final[tuple[str, ...]] = tuple(_LAYERS)


def hugging_face_name(architecture: str, name: str) -> str:
    """Return Hugging Face's name of a tensor, or its own where there is none.

    >>> hugging_face_name("llama", "blk.3.attn_q.weight"), hugging_face_name("rwkv", "a.weight")
    ('model.layers.3.self_attn.q_proj.weight', 'a.weight')
    """
    layers = _LAYERS.get(architecture)
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if layers is None or match is None:
        return name
    layer, kind, what = match.groups()
    if layer is None:
        return f"{_TOP[kind]}.{what}" if kind in _TOP else name
    return f"model.layers.{layer}.{layers[kind]}.{what}" if kind in layers else name


def permuted_heads(architecture: str, name: str, heads: int, kv_heads: int) -> int | None:
    """Return the number of heads whose rows llama.cpp permuted in a tensor, None for others."""
    match = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)", name)
    if architecture not in _PERMUTED or match is None:
        return None
    return heads if match[1] == "q" else kv_heads


def original_rows(rows: int, heads: int) -> tuple[int, ...]:
    """Return, for each row in Hugging Face's order, the row that llama.cpp moved it to.

    Within a head, llama.cpp interleaves the first half of the rows with the second one.

    >>> original_rows(8, 2)
    (0, 2, 1, 3, 4, 6, 5, 7)
    """
    size = rows // heads
    half = size // 2
    within = [2 * (row % half) + row // half for row in range(size)]
    return tuple(head * size + row for head in range(heads) for row in within)
