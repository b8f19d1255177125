"""Qwen 2 and 2.5: Llama with biases of q, k and v, and perhaps a window in the upper layers."""

from __future__ import annotations

from ...convert.json_file import JsonFile
from ..dimensions import Dimensions
from .architecture import Architecture, window


class Qwen2(Architecture):
    """The engine puts no bos before a Qwen's prompt."""

    class_name = "Qwen2ForCausalLM"
    arch = "qwen2"
    model_type = "qwen2"
    has_bos = False

    def has_biases(self, config: JsonFile) -> bool:
        """Tell whether the projections of q, k and v have biases: always."""
        return True

    def sliding_layers(self, config: JsonFile, dims: Dimensions) -> list[bool]:
        """Tell which layers attend to a window: those from ``max_window_layers`` on, if any."""
        slides = config.flag("use_sliding_window") and window(config, dims) is not None
        if not slides:
            return [False] * dims.n_layers
        first = config.integer("max_window_layers", least=0)
        return [layer >= first for layer in range(dims.n_layers)]
