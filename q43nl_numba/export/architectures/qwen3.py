"""Qwen 3: Qwen 2 with norms of every head's query and key."""

from __future__ import annotations

from ...convert.json_file import JsonFile
from .qwen2 import Qwen2


class Qwen3(Qwen2):
    """The norms' weights follow the order of the rows of a head."""

    class_name = "Qwen3ForCausalLM"
    arch = "qwen3"
    model_type = "qwen3"
    has_qk_norm = True

    def has_biases(self, config: JsonFile) -> bool:
        """Tell whether the projections of q, k and v have biases: as the configuration says."""
        return config.flag("attention_bias")
