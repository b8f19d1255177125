"""Mixtral: Mistral with a mixture of experts in every layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...convert.json_file import JsonFile
from ..dimensions import Dimensions
from ..tensors import EngineTensor
from .architecture import feed_forward, router
from .mistral import Mistral


class Mixtral(Mistral):
    """The experts' matrices have the engine's numbers already."""

    class_name = "MixtralForCausalLM"
    arch = "mixtral"
    model_type = "mixtral"

    def experts(self, config: JsonFile) -> tuple[int, int]:
        """Return the numbers of experts and of active ones."""
        return config.integer("num_local_experts"), config.integer("num_experts_per_tok")

    def mlp(self, dims: Dimensions, at: str) -> Iterator[EngineTensor]:
        """Yield the router, then every expert's matrices."""
        yield router(dims, at, f"{at}block_sparse_moe.gate.weight")
        for expert in range(dims.n_experts):
            source = f"{at}block_sparse_moe.experts.{expert}.w"
            yield from feed_forward(
                f"{at}mlp.experts.{expert}.w", (f"{source}1", f"{source}2", f"{source}3"),
                dims.dim, dims.expert_hidden_dim,
            )  # fmt: skip

    def config_keys(self, metadata: dict[str, str], dims: Dimensions) -> dict[str, Any]:
        """Return the numbers of experts."""
        return {
            "num_local_experts": dims.n_experts,
            "num_experts_per_tok": dims.n_experts_active,
        }
