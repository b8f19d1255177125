"""The numbers that give every tensor of a model its shape."""

from __future__ import annotations

from dataclasses import dataclass

from .. import GROUP_SIZE

#: The engine's router has room for so many experts.
MOST_EXPERTS = 256

#: No known model has a tenth of it; it bounds the work of looking for every layer's tensors.
MOST_LAYERS = 10_000


@dataclass(frozen=True)
class Dimensions:
    """The dimensions of a model, under the engine's names for them.

    ``rotary_dim`` is the number of leading rows of a head that RoPE rotates. A dense model has one
    expert, and ``expert_hidden_dim`` equals ``hidden_dim``.
    """

    dim: int
    hidden_dim: int
    expert_hidden_dim: int
    head_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_seq_len: int
    rotary_dim: int
    n_experts: int = 1
    n_experts_active: int = 1

    @property
    def q_rows(self) -> int:
        """Number of rows of the query projection."""
        return self.n_heads * self.head_dim

    @property
    def kv_rows(self) -> int:
        """Number of rows of the key projection, and of the value projection."""
        return self.n_kv_heads * self.head_dim

    def problem(self) -> str:
        """Return what the engine would misread, in one sentence, or nothing.

        >>> sound = Dimensions(64, 96, 96, 16, 2, 4, 2, 448, 256, 16)
        >>> sound.problem()
        ''
        >>> Dimensions(64, 100, 100, 16, 2, 4, 2, 448, 256, 16).problem()
        'intermediate_size must be a multiple of 32, found 100'
        """
        for name, columns in self._columns():
            if columns % GROUP_SIZE:
                return f"{name} must be a multiple of {GROUP_SIZE}, found {columns}"
        if self.n_layers > MOST_LAYERS:
            return f"num_hidden_layers must be at most {MOST_LAYERS}, found {self.n_layers}"
        if self.n_heads % self.n_kv_heads:
            return (
                f"num_attention_heads must be a multiple of num_key_value_heads "
                f"({self.n_kv_heads}), found {self.n_heads}"
            )
        if self.rotary_dim % 2 or not 2 <= self.rotary_dim <= self.head_dim:
            return (
                "head_dim * partial_rotary_factor must be an even number from 2 to head_dim "
                f"({self.head_dim}), found {self.rotary_dim}"
            )
        if not 1 <= self.n_experts <= MOST_EXPERTS:
            return f"the number of experts must be 1 to {MOST_EXPERTS}, found {self.n_experts}"
        if not 1 <= self.n_experts_active <= self.n_experts:
            return (
                f"num_experts_per_tok must be 1 to {self.n_experts}, found {self.n_experts_active}"
            )
        return ""

    def _columns(self) -> list[tuple[str, int]]:
        """Return the lengths that the engine cuts into groups: of rows and of activations."""
        experts = [("moe_intermediate_size", self.expert_hidden_dim)] if self.n_experts > 1 else []
        return [
            ("hidden_size", self.dim),
            ("intermediate_size", self.hidden_dim),
            *experts,
            ("num_attention_heads * head_dim", self.q_rows),
        ]
