"""SmolLM 3: Llama with layers that do not rotate."""

from __future__ import annotations

import ast
from typing import Any

from ...convert.json_file import JsonFile
from ..dimensions import Dimensions
from .architecture import Architecture, window


class SmolLM3(Architecture):
    """The rows of layers without RoPE are permuted like the others, which changes nothing."""

    class_name = "SmolLM3ForCausalLM"
    arch = "smollm3"
    model_type = "smollm3"

    def sliding_layers(self, config: JsonFile, dims: Dimensions) -> list[bool]:
        """Tell which layers attend to a window: those without RoPE, if there is one."""
        used = config.flag("use_sliding_window") and window(config, dims) is not None
        return [used and not rotates for rotates in _rotating_layers(config, dims)]

    def extra_metadata(self, config: JsonFile, dims: Dimensions) -> dict[str, str]:
        """Return the list of layers that rotate (1) and that do not (0)."""
        return {"no_rope_layers": str(_rotating_layers(config, dims))}

    def config_keys(self, metadata: dict[str, str], dims: Dimensions) -> dict[str, Any]:
        """Return the same list under transformers' name for it."""
        return {"no_rope_layers": ast.literal_eval(metadata["no_rope_layers"])}


def _rotating_layers(config: JsonFile, dims: Dimensions) -> list[int]:
    """Return 1 for every layer with RoPE and 0 for the others."""
    given = config.get("no_rope_layers")
    if given:
        if not isinstance(given, list) or len(given) != dims.n_layers or set(given) - {0, 1}:
            raise config.error("no_rope_layers", f"a list of {dims.n_layers} zeros and ones")
        return [int(rotates) for rotates in given]
    interval = config.integer("no_rope_layer_interval", default=4)
    return [int((layer + 1) % interval != 0) for layer in range(dims.n_layers)]
