"""Qwen 3 with a mixture of experts in every layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...convert.json_file import JsonFile
from ..dimensions import Dimensions
from ..tensors import EngineTensor
from .architecture import feed_forward, router, window
from .qwen3 import Qwen3


class Qwen3Moe(Qwen3):
    """The engine renormalizes the chosen experts always, and every layer has experts."""

    class_name = "Qwen3MoeForCausalLM"
    arch = "qwen3moe"
    model_type = "qwen3_moe"
    reads_layer_types = False

    def check(self, config: JsonFile) -> None:
        """Refuse what the engine's router does not do."""
        super().check(config)
        if config.get("norm_topk_prob") is not True:
            raise config.error(
                "norm_topk_prob", "true: the engine renormalizes the chosen experts always"
            )
        if config.get("mlp_only_layers"):
            raise config.error("mlp_only_layers", "empty: in the engine every layer has experts")
        if config.integer("decoder_sparse_step", default=1) != 1:
            raise config.error("decoder_sparse_step", "1: in the engine every layer has experts")

    def experts(self, config: JsonFile) -> tuple[int, int]:
        """Return the numbers of experts and of active ones; transformers 5 renamed the first."""
        key = "num_experts" if "num_experts" in config else "num_local_experts"
        if key not in config:
            raise config.error("num_experts", "an integer of at least 1")
        return config.integer(key), config.integer("num_experts_per_tok")

    def sliding_layers(self, config: JsonFile, dims: Dimensions) -> list[bool]:
        """Tell which layers attend to a window: all, if there is one that is used."""
        used = config.flag("use_sliding_window") and window(config, dims) is not None
        return [used] * dims.n_layers

    def mlp(self, dims: Dimensions, at: str) -> Iterator[EngineTensor]:
        """Yield the router, then every expert's matrices."""
        yield router(dims, at, f"{at}mlp.gate.weight")
        for expert in range(dims.n_experts):
            source = f"{at}mlp.experts.{expert}."
            yield from feed_forward(
                f"{at}mlp.experts.{expert}.w",
                (f"{source}gate_proj", f"{source}down_proj", f"{source}up_proj"),
                dims.dim, dims.expert_hidden_dim,
            )  # fmt: skip

    def config_keys(self, metadata: dict[str, str], dims: Dimensions) -> dict[str, Any]:
        """Return the numbers of experts, and what the engine takes for granted."""
        return {
            "num_experts": dims.n_experts,
            "num_experts_per_tok": dims.n_experts_active,
            "moe_intermediate_size": dims.expert_hidden_dim,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
