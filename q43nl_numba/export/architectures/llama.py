"""Llama 2 and 3, TinyLlama, SmolLM 1 and 2, and whatever else is saved as a Llama."""

from .architecture import Architecture


class Llama(Architecture):
    """The engine's layout is Llama's."""

    class_name = "LlamaForCausalLM"
    arch = "llama"
    model_type = "llama"
