"""What an architecture is: the contract of every module beside this one.

An architecture names a class of transformers models and says, in four places, how the engine wants
one: which values of ``config.json`` the engine can compute with (`check`), what else the metadata
tells it (`layer_types`, `experts`, `extra_metadata`), which tensors there are and where each comes
from (`tensors`), and which keys of ``config.json`` bring it back (`config_keys`). The base class is
Llama's layout; a new architecture overrides what differs, and takes its place in the table of
`q43nl_numba.export.architectures`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...convert.json_file import JsonFile, is_integer
from ..dimensions import Dimensions
from ..tensors import IDENTITY, Affine, EngineTensor, Rotary

FULL, SLIDING, NONE = "full_attention", "sliding_attention", "no_attention"

#: Names of activations in transformers -> in the engine.
ACTIVATIONS = {
    "silu": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_pytorch": "gelu",
    "gelu_tanh": "gelu",
}

#: Keys that change what a model computes and that the engine does not know, with the values that
#: change nothing.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "final_logit_softcapping": (),
    "attn_logit_softcapping": (),
    "logit_scale": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "attention_multiplier": (),
    "clip_qkv": (),
    "use_bidirectional_attention": (False,),
    "is_encoder_decoder": (False,),
}


class Architecture:
    """A model of Llama's layout; the base of the others.

    Attributes
    ----------
    class_name : str
        The entry of ``architectures`` in ``config.json``.
    arch : str
        The engine's word for it.
    model_type : str
        The value of ``model_type`` in ``config.json``.
    has_bos : bool
        Whether the engine is given the configuration's bos_token_id; -1 otherwise.
    has_qk_norm : bool
        Whether queries and keys are normalized head by head, with weights.
    reads_layer_types : bool
        Whether transformers reads ``layer_types``; a window holds for all layers otherwise.
    gelu_is_tanh : bool
        Whether transformers computes ``gelu`` in the tanh form too, as the engine does.
    """

    class_name = ""
    arch = ""
    model_type = ""
    has_bos = True
    has_qk_norm = False
    reads_layer_types = True
    gelu_is_tanh = False

    # What the configuration says

    def check(self, config: JsonFile) -> None:
        """Refuse a configuration that the engine would compute something else for."""
        for key, harmless in _WITHOUT_EFFECT.items():
            if key in config and config.get(key) not in harmless:
                expected = " or ".join(["absent", *map(str, harmless[:1])])
                raise config.error(key, f"{expected}: the engine does not know it")

    def has_biases(self, config: JsonFile) -> bool:
        """Tell whether the projections of q, k and v have biases; transformers ignores others."""
        return config.flag("attention_bias")

    def experts(self, config: JsonFile) -> tuple[int, int] | None:
        """Return the numbers of experts and of active ones; None for a dense model."""
        return None

    def layer_types(self, config: JsonFile, dims: Dimensions) -> list[str] | None:
        """Return the kind of attention of each layer, None where all layers attend to all."""
        if "layer_types" not in config:
            kinds = [SLIDING if slides else FULL for slides in self.sliding_layers(config, dims)]
            return kinds if SLIDING in kinds else None
        known, given = (FULL, SLIDING, NONE), config.items("layer_types")
        if len(given) != dims.n_layers or any(kind not in known for kind in given):
            raise config.error(
                "layer_types", f"a list of {dims.n_layers} words among {', '.join(known)}"
            )
        return list(given)

    def sliding_layers(self, config: JsonFile, dims: Dimensions) -> list[bool]:
        """Tell which layers attend to a window, in a configuration without ``layer_types``."""
        return [False] * dims.n_layers

    def extra_metadata(self, config: JsonFile, dims: Dimensions) -> dict[str, str]:
        """Return the metadata that only this architecture has."""
        return {}

    def config_keys(self, metadata: dict[str, str], dims: Dimensions) -> dict[str, Any]:
        """Return the keys of ``config.json`` that only this architecture has, from the metadata."""
        return {}

    # The tensors

    def tensors(self, dims: Dimensions) -> Iterator[EngineTensor]:
        """Yield the engine's tensors in the order of its own converter."""
        yield self.embedding(dims)
        for layer in range(dims.n_layers):
            yield from self.layer(dims, f"model.layers.{layer}.")
        yield self.final_norm(dims)
        yield EngineTensor(
            "model.output.weight", (dims.vocab_size, dims.dim), "lm_head.weight", optional=True
        )

    def embedding(self, dims: Dimensions) -> EngineTensor:
        """Return the embedding, with which the engine multiplies too if there is no output."""
        return EngineTensor(
            "model.embed.weight", (dims.vocab_size, dims.dim), "model.embed_tokens.weight"
        )

    def final_norm(self, dims: Dimensions) -> EngineTensor:
        """Return the norm before the output."""
        return EngineTensor("model.norm.weight", (dims.dim,), "model.norm.weight")

    def layer(self, dims: Dimensions, at: str) -> Iterator[EngineTensor]:
        """Yield the tensors of one layer; `at` is the beginning of their names in both worlds."""
        yield self.layer_norm(dims, f"{at}attn.norm.weight", f"{at}input_layernorm.weight")
        yield from self.attention(dims, at)
        yield self.layer_norm(dims, f"{at}mlp.norm.weight", f"{at}post_attention_layernorm.weight")
        yield from self.mlp(dims, at)

    def layer_norm(self, dims: Dimensions, name: str, source: str) -> EngineTensor:
        """Return one of a layer's norms."""
        return EngineTensor(name, (dims.dim,), source, affine=self.norm_affine(dims))

    def norm_affine(self, dims: Dimensions) -> Affine:
        """Return what becomes of the weights of a layer's norms."""
        return IDENTITY

    def attention(self, dims: Dimensions, at: str) -> Iterator[EngineTensor]:
        """Yield the projections, their biases where the folder has them, and the head norms."""
        rotary = Rotary(dims.head_dim, dims.rotary_dim)
        yield from self.projections(dims, at, rotary)
        for letter, rows in (("q", dims.q_rows), ("k", dims.kv_rows), ("v", dims.kv_rows)):
            yield EngineTensor(
                f"{at}attn.w{letter}.bias",
                (rows,),
                f"{at}self_attn.{letter}_proj.bias",
                rotary=None if letter == "v" else rotary,
                optional=True,
            )
        if self.has_qk_norm:
            for letter in "qk":
                yield EngineTensor(
                    f"{at}attn.w{letter}_norm.weight",
                    (dims.head_dim,),
                    f"{at}self_attn.{letter}_norm.weight",
                    rotary=rotary,
                )

    def projections(self, dims: Dimensions, at: str, rotary: Rotary) -> Iterator[EngineTensor]:
        """Yield the four matrices of an attention layer."""
        dim, source = dims.dim, f"{at}self_attn."
        q, kv = dims.q_rows, dims.kv_rows
        yield EngineTensor(f"{at}attn.wq.weight", (q, dim), f"{source}q_proj.weight", rotary=rotary)
        yield EngineTensor(
            f"{at}attn.wk.weight", (kv, dim), f"{source}k_proj.weight", rotary=rotary
        )
        yield EngineTensor(f"{at}attn.wv.weight", (kv, dim), f"{source}v_proj.weight")
        yield EngineTensor(f"{at}attn.wo.weight", (dim, q), f"{source}o_proj.weight")

    def mlp(self, dims: Dimensions, at: str) -> Iterator[EngineTensor]:
        """Yield the matrices between the two norms of a layer and the next."""
        yield from feed_forward(
            f"{at}mlp.w", (f"{at}mlp.gate_proj", f"{at}mlp.down_proj", f"{at}mlp.up_proj"),
            dims.dim, dims.hidden_dim,
        )  # fmt: skip


def feed_forward(
    engine: str, sources: tuple[str, str, str], dim: int, hidden: int
) -> Iterator[EngineTensor]:
    """Yield the three matrices of a gated MLP: gate, down and up."""
    shapes = ((hidden, dim), (dim, hidden), (hidden, dim))
    for number, (source, shape) in enumerate(zip(sources, shapes, strict=True), start=1):
        yield EngineTensor(f"{engine}{number}.weight", shape, f"{source}.weight")


def router(dims: Dimensions, at: str, source: str) -> EngineTensor:
    """Return the matrix that chooses the experts of a layer."""
    return EngineTensor(f"{at}moegate.weight", (dims.n_experts, dims.dim), source)


def window(config: JsonFile, dims: Dimensions) -> int | None:
    """Return ``sliding_window`` where it is shorter than the context, else None."""
    size = config.get("sliding_window")
    return int(size) if is_integer(size) and 1 <= size < dims.max_seq_len else None
