"""The forward pass of the known architectures, layer by layer, in NumPy.

A layer's pass is a generator that stops at every matrix' input. Who wants the input takes it
(`collect`), who quantizes changes the layer's weights before going on (`sequential`), and
who wants the output alone runs it to its end (`run_layer`). All arrays are float32; matrix
products, which take nearly all the time, are BLAS's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .config import ModelConfig, expected_shapes, layer_prefix
from .errors import CalibrationError
from .rope import rotate, rotation
from .sources import WeightSource

Floats = npt.NDArray[np.float32]

#: A layer's tensors by their names without the layer's prefix.
LayerWeights = dict[str, Floats]


class Stop(NamedTuple):
    """Where a layer's pass stops: before it multiplies an input with the matrices of a stage."""

    stage: int
    """Its place in `config.layer_stages`."""
    inputs: Floats
    """float32 ``[tokens, columns]``."""
    residual: Floats | None = None
    """What the product is added to, float32 ``[tokens, hidden_size]``; None where it is not."""


#: Stops at every stage in `config.layer_stages`, in order; returns the output.
LayerPass = Generator[Stop, None, Floats]

#: Queries that attend at a time, which bounds the memory of the scores.
_QUERY_BLOCK = 128

#: Weights of the embedding or the output matrix that are read at a time (16 MiB as float32).
PIECE_WEIGHTS = 1 << 22

_OPTIONAL = (
    "self_attn.q_proj.bias",
    "self_attn.k_proj.bias",
    "self_attn.v_proj.bias",
    "self_attn.qkv_proj.bias",
    "self_attn.o_proj.bias",
    "mlp.gate_proj.bias",
    "mlp.up_proj.bias",
    "mlp.down_proj.bias",
)


class Decoder:
    """One model's forward pass over windows of one length.

    Parameters
    ----------
    config : ModelConfig
        What the model is.
    source : WeightSource
        Where its weights are.
    length : int
        Tokens of a window.
    """

    def __init__(self, config: ModelConfig, source: WeightSource, length: int) -> None:
        self.config = config
        self.source = source
        self._rotation = rotation(config, length)
        self._activation = _activation(config.activation)
        self._masks = {
            window: _Mask(length, window) for window in sorted(set(config.sliding_windows), key=str)
        }
        self._layer_names = _layer_names(config)

    def embed(self, ids: npt.NDArray[np.int32]) -> Floats:
        """Return the first layer's inputs for token ids, ``[*ids.shape, hidden_size]``."""
        unique, inverse = np.unique(ids, return_inverse=True)
        table = np.empty((unique.size, self.config.hidden_size), np.float32)
        for run in np.split(np.arange(unique.size), np.flatnonzero(np.diff(unique) != 1) + 1):
            begin, end = int(unique[run[0]]), int(unique[run[-1]]) + 1
            table[run] = self.source.rows("model.embed_tokens.weight", begin, end)
        return self.scaled(table[inverse.reshape(ids.shape)])

    def scaled(self, embedded: Floats) -> Floats:
        """Return the first layer's inputs for rows of the embedding."""
        if not self.config.differences.scaled_embedding:
            return embedded
        return embedded * np.float32(self.config.hidden_size**0.5)

    def load_layer(self, index: int) -> LayerWeights:
        """Read the tensors of one layer."""
        prefix = layer_prefix(index)
        names = [*self._layer_names, *(n for n in _OPTIONAL if self.source.shape(prefix + n))]
        return {name: self.source.tensor(prefix + name) for name in names}

    def layer_pass(self, index: int, weights: LayerWeights, hidden: Floats) -> LayerPass:
        """Run one window, ``[length, hidden_size]``, through a layer, stopping at every input.

        The weights of a stage are looked up after it was yielded, so they may be replaced there.
        Where a pass stops, it holds the stage's input and the residual stream alone: all windows of
        a text may stop there at once.
        """
        normed = self._norm(hidden, weights["input_layernorm.weight"])
        yield Stop(0, normed)
        attended = self._attention(index, weights, normed)
        del normed
        yield Stop(1, attended, hidden)
        hidden = hidden + _project(weights, "self_attn.o_proj", attended)
        del attended
        mlp = self._dense if self.config.differences.experts is None else self._mixture
        return hidden + (yield from mlp(weights, hidden))

    def advance(
        self,
        index: int,
        hidden: Floats,
        see: Callable[[int, Floats], None] | None = None,
        bar: Any = None,
    ) -> None:
        """Run all windows, ``[windows, length, hidden_size]``, through a layer, in place."""
        weights = self.load_layer(index)
        for window, inputs in enumerate(hidden):
            hidden[window] = run_layer(self.layer_pass(index, weights, inputs), see)
            if bar is not None:
                bar.update()

    def final_norm(self, hidden: Floats) -> Floats:
        """Return the input of the output matrix."""
        return self._norm(hidden, self.source.tensor("model.norm.weight"))

    def output_pieces(self) -> Iterator[tuple[int, Floats]]:
        """Yield the first row and the rows of each piece of the output matrix."""
        yield from matrix_pieces(self.source, self.config.output_matrix)

    def _norm(self, values: Floats, weight: Floats) -> Floats:
        offset = np.float32(self.config.differences.norm_offset)
        return rms_norm(values, weight + offset, self.config.norm_eps)

    def _attention(self, index: int, weights: LayerWeights, normed: Floats) -> Floats:
        """Grouped-query attention: the concatenated heads, before the output projection."""
        config = self.config
        length = normed.shape[0]
        queries, keys, values = (
            part.reshape(length, -1, config.head_dim) for part in self._qkv(weights, normed)
        )
        queries, keys = (
            self._placed(index, weights.get(f"self_attn.{which}_norm.weight"), heads)
            for which, heads in (("q", queries), ("k", keys))
        )
        queries = queries * np.float32(config.head_dim**-0.5)
        attended = _attend(
            queries.reshape(length, config.kv_heads, -1, config.head_dim).transpose(1, 2, 0, 3),
            keys.transpose(1, 2, 0),
            values.swapaxes(0, 1),
            self._masks[config.sliding_windows[index]],
        )
        return attended.transpose(2, 0, 1, 3).reshape(length, -1)

    def _qkv(self, weights: LayerWeights, normed: Floats) -> list[Floats]:
        """Return queries, keys and values, each ``[length, heads * head_dim]``."""
        if not self.config.differences.fused:
            return [_project(weights, f"self_attn.{which}_proj", normed) for which in "qkv"]
        rows = self.config.heads * self.config.head_dim
        kv_rows = self.config.kv_heads * self.config.head_dim
        together = _project(weights, "self_attn.qkv_proj", normed)
        return np.split(together, (rows, rows + kv_rows), axis=1)

    def _placed(self, index: int, norm: Floats | None, heads: Floats) -> Floats:
        """Return queries or keys normalized and rotated, where the layer does that."""
        if norm is not None:
            heads = self._norm(heads, norm)
        return rotate(heads, *self._rotation) if self.config.rotated_layers[index] else heads

    def _dense(self, weights: LayerWeights, hidden: Floats) -> LayerPass:
        """Run the MLP."""
        normed = self._norm(hidden, weights["post_attention_layernorm.weight"])
        yield Stop(2, normed)
        inner = self._gated(weights, normed)
        del normed
        yield Stop(3, inner, hidden)
        return _project(weights, "mlp.down_proj", inner)

    def _gated(self, weights: LayerWeights, normed: Floats) -> Floats:
        """Return the input of the down projection."""
        if self.config.differences.fused:
            gate, up = np.split(_project(weights, "mlp.gate_up_proj", normed), 2, axis=1)
        else:
            gate = _project(weights, "mlp.gate_proj", normed)
            up = _project(weights, "mlp.up_proj", normed)
        inner: Floats = self._activation(gate) * up
        return inner

    def _mixture(self, weights: LayerWeights, hidden: Floats) -> LayerPass:
        """Run the experts, each for the tokens that the router sends to it."""
        names = self.config.differences.experts
        assert names is not None
        normed = self._norm(hidden, weights["post_attention_layernorm.weight"])
        yield Stop(2, normed)
        chosen, shares = self._routes(_project(weights, names.router, normed))
        outputs = np.zeros_like(normed)
        for number in range(self.config.experts):
            tokens, places = np.nonzero(chosen == number)
            inputs = normed[tokens]
            yield Stop(3 + 2 * number, inputs)
            gate = _project(weights, names.gate.format(number), inputs)
            inner = self._activation(gate) * _project(weights, names.up.format(number), inputs)
            yield Stop(4 + 2 * number, inner)
            projected = _project(weights, names.down.format(number), inner)
            outputs[tokens] += shares[tokens, places, None] * projected
        return outputs

    def _routes(self, scores: Floats) -> tuple[npt.NDArray[np.intp], Floats]:
        """Return every token's experts and their shares, ``[length, experts_per_token]``."""
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        chosen = np.argsort(-shares, axis=1, kind="stable")[:, : self.config.experts_per_token]
        shares = np.take_along_axis(shares, chosen, axis=1)
        if self.config.normalized_experts:
            shares = shares / shares.sum(axis=1, keepdims=True)
        return chosen, shares


def run_layer(layer_pass: LayerPass, see: Callable[[int, Floats], None] | None = None) -> Floats:
    """Run a layer to its end, show each stage's input to `see`, and return the output."""
    with np.errstate(over="ignore", invalid="ignore"):  # damaged weights: who sees NaN says so
        try:
            while True:
                stop = next(layer_pass)
                if see is not None:
                    see(stop.stage, stop.inputs)
        except StopIteration as end:
            output: Floats = end.value
            return output


def matrix_pieces(
    source: WeightSource, name: str, weights: int | None = None
) -> Iterator[tuple[int, Floats]]:
    """Yield the first row and the rows of each piece of a matrix that is too large to hold."""
    shape = source.shape(name) or (0, 1)
    step = max((weights or PIECE_WEIGHTS) // shape[1], 1)
    for begin in range(0, shape[0], step):
        yield begin, source.rows(name, begin, min(begin + step, shape[0]))


def logits(decoder: Decoder, ids: npt.NDArray[np.int32]) -> Floats:
    """Return the logits of all windows, ``[windows, length, vocab_size]``; for small models.

    Raises
    ------
    CalibrationError
        If the rotary embedding or the activation is not known.
    """
    hidden = decoder.embed(ids)
    for index in range(decoder.config.layers):
        decoder.advance(index, hidden)
    normed = decoder.final_norm(hidden)
    return np.concatenate([normed @ rows.T for _, rows in decoder.output_pieces()], axis=-1)


def rms_norm(values: Floats, weight: Floats, eps: float) -> Floats:
    """Divide by the root mean square of the last axis and multiply with a weight."""
    mean_square = np.square(values).mean(axis=-1, keepdims=True)
    normed: Floats = values * (1 / np.sqrt(mean_square + np.float32(eps))) * weight
    return normed


def _layer_names(config: ModelConfig) -> list[str]:
    """Return the names of the tensors of any layer, without the prefix."""
    prefix = layer_prefix(0)
    return [n.removeprefix(prefix) for n in expected_shapes(config) if n.startswith(prefix)]


def _project(weights: LayerWeights, name: str, inputs: Floats) -> Floats:
    outputs: Floats = inputs @ weights[name + ".weight"].T
    bias = weights.get(name + ".bias")
    if bias is not None:
        outputs += bias
    return outputs


# ---------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------


class _Mask:
    """Which positions a token attends to: itself and those before, in a window if there is one."""

    def __init__(self, length: int, window: int | None) -> None:
        self._window = length if window is None else window
        self._biases: dict[tuple[int, int], Floats] = {}

    def keys(self, begin: int, end: int) -> slice:
        """Return the keys that any of the queries ``begin`` to ``end`` attends to."""
        return slice(max(begin - self._window + 1, 0), end)

    def bias(self, begin: int, end: int) -> Floats:
        """Return what is added to scores, ``[queries, keys]``: -inf where a query must not look."""
        if (begin, end) not in self._biases:
            seen = self.keys(begin, end)
            behind = np.arange(begin, end)[:, None] - np.arange(seen.start, seen.stop)
            seen_at_all = (behind >= 0) & (behind < self._window)
            self._biases[begin, end] = np.where(seen_at_all, np.float32(0), np.float32(-np.inf))
        return self._biases[begin, end]


def _attend(queries: Floats, keys: Floats, values: Floats, mask: _Mask) -> Floats:
    """Return softmax(queries keys) values for a block of queries at a time.

    Parameters
    ----------
    queries : float32 ``[kv_heads, repeats, length, head_dim]``, divided by sqrt(head_dim)
    keys : float32 ``[kv_heads, head_dim, length]``
    values : float32 ``[kv_heads, length, head_dim]``
    """
    kv_heads, repeats, length, head_dim = queries.shape
    attended = np.empty(queries.shape, np.float32)
    for begin in range(0, length, _QUERY_BLOCK):
        end = min(begin + _QUERY_BLOCK, length)
        seen = mask.keys(begin, end)
        block = queries[:, :, begin:end].reshape(kv_heads, -1, head_dim)
        scores = (block @ keys[:, :, seen]).reshape(kv_heads, repeats, end - begin, -1)
        scores += mask.bias(begin, end)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        flat = scores.reshape(kv_heads, -1, scores.shape[-1]) @ values[:, seen]
        attended[:, :, begin:end] = flat.reshape(kv_heads, repeats, end - begin, head_dim)
    return attended


# ---------------------------------------------------------------------------------------------
# Activations
# ---------------------------------------------------------------------------------------------


def _silu(values: Floats) -> Floats:
    with np.errstate(over="ignore"):  # exp of a large number: the result is -0
        activated: Floats = values / (1 + np.exp(-values))
    return activated


def _gelu(values: Floats) -> Floats:
    from scipy.special import ndtr

    product: Floats = values * ndtr(values).astype(np.float32)
    return product


def _gelu_tanh(values: Floats) -> Floats:
    cubic = np.float32(np.sqrt(2 / np.pi)) * (values + np.float32(0.044715) * values**3)
    activated: Floats = np.float32(0.5) * values * (1 + np.tanh(cubic))
    return activated


def _relu(values: Floats) -> Floats:
    return np.maximum(values, np.float32(0))


#: Activations by their name in ``config.json``.
ACTIVATIONS: dict[str, Callable[[Floats], Any]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": _relu,
}


def _activation(name: str) -> Callable[[Floats], Any]:
    if name not in ACTIVATIONS:
        raise CalibrationError(
            f"hidden_act must be one of {', '.join(ACTIVATIONS)}, found {name!r:.80}"
        )
    return ACTIVATIONS[name]
