"""Phi 3: q, k and v are one matrix, gate and up another; perhaps a part of each head rotates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..dimensions import Dimensions
from ..tensors import EngineTensor, Rotary
from .mistral import Mistral


class Phi3(Mistral):
    """Llama's matrices, cut out of the rows of fused ones; a sliding window as Mistral's."""

    class_name = "Phi3ForCausalLM"
    arch = "phi3"
    model_type = "phi3"

    def projections(self, dims: Dimensions, at: str, rotary: Rotary) -> Iterator[EngineTensor]:
        """Yield the four matrices of an attention layer, three of them rows of ``qkv_proj``."""
        q, kv, dim = dims.q_rows, dims.kv_rows, dims.dim
        fused, rows = f"{at}self_attn.qkv_proj.weight", q + 2 * kv
        yield EngineTensor(f"{at}attn.wq.weight", (q, dim), fused, 0, rows, rotary)
        yield EngineTensor(f"{at}attn.wk.weight", (kv, dim), fused, q, rows, rotary)
        yield EngineTensor(f"{at}attn.wv.weight", (kv, dim), fused, q + kv, rows)
        yield EngineTensor(f"{at}attn.wo.weight", (dim, q), f"{at}self_attn.o_proj.weight")

    def mlp(self, dims: Dimensions, at: str) -> Iterator[EngineTensor]:
        """Yield gate, down and up; the rows of gate and up are ``gate_up_proj``."""
        hidden, dim = dims.hidden_dim, dims.dim
        fused, rows = f"{at}mlp.gate_up_proj.weight", 2 * hidden
        yield EngineTensor(f"{at}mlp.w1.weight", (hidden, dim), fused, 0, rows)
        yield EngineTensor(f"{at}mlp.w2.weight", (dim, hidden), f"{at}mlp.down_proj.weight")
        yield EngineTensor(f"{at}mlp.w3.weight", (hidden, dim), fused, hidden, rows)

    def config_keys(self, metadata: dict[str, str], dims: Dimensions) -> dict[str, Any]:
        """Return the share of a head that rotates, and a context length that needs no scaling."""
        return {
            "partial_rotary_factor": dims.rotary_dim / dims.head_dim,
            "original_max_position_embeddings": dims.max_seq_len,
        }
