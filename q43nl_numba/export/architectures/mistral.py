"""Mistral: Llama's tensors; a sliding window holds for every layer."""

from __future__ import annotations

from ...convert.json_file import JsonFile
from ..dimensions import Dimensions
from .architecture import Architecture, window


class Mistral(Architecture):
    """Llama's tensors with ``sliding_window`` for all layers."""

    class_name = "MistralForCausalLM"
    arch = "mistral"
    model_type = "mistral"
    reads_layer_types = False

    def sliding_layers(self, config: JsonFile, dims: Dimensions) -> list[bool]:
        """Tell which layers attend to a window: all, if there is one."""
        return [window(config, dims) is not None] * dims.n_layers
