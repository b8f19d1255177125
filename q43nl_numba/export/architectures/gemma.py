"""Gemma 1: norms count from one, and the embedding is scaled by the root of its length."""

from __future__ import annotations

import math

from ..dimensions import Dimensions
from ..tensors import Affine, EngineTensor
from .architecture import Architecture


class Gemma(Architecture):
    """Llama's tensors with the arithmetic of Gemma done beforehand.

    The embedding is multiplied by sqrt(dim). The engine multiplies with the same matrix at the
    output, so the norm before it is divided by sqrt(dim).
    """

    class_name = "GemmaForCausalLM"
    arch = "gemma"
    model_type = "gemma"
    gelu_is_tanh = True

    def embedding(self, dims: Dimensions) -> EngineTensor:
        """Return the scaled embedding."""
        return EngineTensor(
            "model.embed.weight",
            (dims.vocab_size, dims.dim),
            "model.embed_tokens.weight",
            affine=Affine(multiply=math.sqrt(dims.dim)),
        )

    def norm_affine(self, dims: Dimensions) -> Affine:
        """Return what becomes of the weights of a layer's norms."""
        return Affine(add=1.0)

    def final_norm(self, dims: Dimensions) -> EngineTensor:
        """Return the norm before the output, with the embedding's scale taken out."""
        return EngineTensor(
            "model.norm.weight",
            (dims.dim,),
            "model.norm.weight",
            affine=Affine(add=1.0, multiply=1.0 / math.sqrt(dims.dim)),
        )
