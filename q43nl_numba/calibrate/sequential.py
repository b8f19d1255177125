"""Quantize a model layer by layer, with statistics of the stream that is quantized already.

Quantizing the first layer changes what the second one sees. Measured on the stream that has passed
the quantized matrices, the statistics of later layers are those of the model that will run, so
that later layers make up for what earlier ones lost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .collect import output_moments, stage_moments
from .config import (
    ModelConfig,
    layer_prefix,
    layer_stages,
    read_config,
)
from .errors import CalibrationError, check_packages
from .forward import (
    Decoder,
    Floats,
    LayerWeights,
    matrix_pieces,
    run_layer,
)
from .progress import progress_bar
from .sources import WeightSource, check_tensors, open_weights
from .statistics import InputMoments, shrunk
from .text import Windows

__all__ = ["Matrix", "calibrated_layers"]


#: Weights of the embedding or the output matrix that are quantized at a time (256 MiB as float32):
#: less than a layer of a model that has such large ones.
PIECE_WEIGHTS = 1 << 26


@dataclass(frozen=True)
class Matrix:
    """A matrix, or some rows of a large one, that is to be quantized now.

    Parameters
    ----------
    name : str
        Its tensor name in the folder.
    weights : float32 array ``[rows, columns]``
        The weights. Rows of a large matrix come in several pieces, from the first row to the last.
    first_row : int
        Row of the whole matrix at which these begin; 0 for a matrix that comes at once.
    importance : float32 array ``[columns]``, or None
        Mean square of each input column; None for a matrix without inputs (an embedding that is
        not the output matrix).
    hessian : float32 array ``[columns, columns]``, or None
        Mean of x x^T of the inputs, if asked for; what is off the diagonal is shrunk
        (`statistics.shrunk`).
    """

    name: str
    weights: Floats
    first_row: int
    importance: Floats | None
    hessian: Floats | None


#: Quantizes a matrix and returns what its bytes decode to; None where it is kept as it is.
Quantize = Callable[[Matrix], npt.NDArray[np.float32] | None]


def calibrated_layers(
    folder: str | os.PathLike[str],
    windows: Windows,
    quantize: Quantize,
    *,
    hessians: bool = False,
    progress: bool = False,
) -> None:
    """Hand every matrix of a model to a quantizer, with statistics of the quantized stream.

    The order is that of the forward pass: the embedding, then of each layer queries, keys and
    values, the attention's output, gate and up, down, and the output matrix last. Within a layer,
    too, a matrix' inputs have passed the quantized matrices before it. A tied embedding is used
    first but has the statistics of the output: they come from a pass of the original model.

    Memory holds one layer's weights, the activations of all tokens, the inputs of the stage that is
    quantized (at most ``tokens * intermediate_size`` numbers) and its hessian.

    Parameters
    ----------
    folder : path
        A Hugging Face model folder.
    windows : Windows
        The text, as `cut_windows` returns it.
    quantize : callable
        Called with each `Matrix`; returns the float32 weights that the quantized bytes decode to,
        or None for a matrix that stays as it is.
    hessians : bool
        Give the quantizer hessians, too.
    progress : bool
        Show a progress bar on stderr, if that is a terminal.

    Raises
    ------
    CalibrationError
        If the architecture is not known, or `quantize` returns another shape.
    ModelFileError
        If a tensor is missing or damaged.
    """
    check_packages()
    config = read_config(folder)
    source = open_weights(folder)
    check_tensors(source, config)
    passes = 2 if config.tied else 1
    total = passes * (config.layers + 1) * len(windows.ids)
    with progress_bar(total, "window", shown=progress) as bar:
        _Stream(config, source, windows, quantize, hessians, bar).run()


class _Stream:
    """The activations on their way through a model that is being quantized."""

    def __init__(
        self,
        config: ModelConfig,
        source: WeightSource,
        windows: Windows,
        quantize: Quantize,
        hessians: bool,
        bar: Any,
    ) -> None:
        self._config = config
        self._decoder = Decoder(config, source, windows.length)
        self._windows = windows
        self._quantize = quantize
        self._hessians = hessians
        self._bar = bar

    def run(self) -> None:
        """Quantize everything, from the embedding to the output matrix."""
        hidden = self._embed()
        for index in range(self._config.layers):
            self._layer(index, hidden)
        if not self._config.tied:
            moments = self._output_moments(hidden)
            for _ in self._quantized_pieces("lm_head.weight", moments):
                pass

    def _embed(self) -> Floats:
        """Quantize the embedding and return the hidden states that it gives."""
        name = "model.embed_tokens.weight"
        ids = self._windows.ids
        hidden = np.empty((*ids.shape, self._config.hidden_size), np.float32)
        moments = self._moments_before_quantization() if self._config.tied else None
        for begin, rows in self._quantized_pieces(name, moments):
            here = (ids >= begin) & (ids < begin + len(rows))
            hidden[here] = rows[ids[here] - begin]
        return self._decoder.scaled(hidden)

    def _moments_before_quantization(self) -> InputMoments:
        """Return the moments of the output's inputs in the original model."""
        hidden = self._decoder.embed(self._windows.ids)
        for index in range(self._config.layers):
            self._decoder.advance(index, hidden, bar=self._bar)
        return self._output_moments(hidden)

    def _output_moments(self, hidden: Floats) -> InputMoments:
        return output_moments(self._decoder, hidden, hessian=self._hessians, bar=self._bar)

    def _layer(self, index: int, hidden: Floats) -> None:
        """Quantize the matrices of a layer, stage by stage, and move the activations behind it."""
        weights = self._decoder.load_layer(index)
        passes = [self._decoder.layer_pass(index, weights, window) for window in hidden]
        for names in layer_stages(self._config):
            moments = stage_moments(self._config, names, hessian=self._hessians)
            with np.errstate(over="ignore", invalid="ignore"):  # the quantizer refuses NaN
                for layer_pass in passes:
                    moments.add(next(layer_pass)[1])
            self._replace(index, names, weights, moments)
        for window, layer_pass in enumerate(passes):
            hidden[window] = run_layer(layer_pass)
            self._bar.update()

    def _replace(
        self, index: int, names: tuple[str, ...], weights: LayerWeights, moments: InputMoments
    ) -> None:
        """Quantize the matrices that share an input, and let the stream go on with the result."""
        importance, hessian = moments.mean_square(), _hessian(moments)
        for name in names:
            matrix = Matrix(layer_prefix(index) + name, weights[name], 0, importance, hessian)
            weights[name] = self._quantized(matrix)

    def _quantized_pieces(
        self, name: str, moments: InputMoments | None
    ) -> Iterator[tuple[int, Floats]]:
        """Quantize a large matrix piece by piece and yield each one's first row and result."""
        importance = None if moments is None else moments.mean_square()
        hessian = None if moments is None else _hessian(moments)
        for begin, rows in matrix_pieces(self._decoder.source, name, PIECE_WEIGHTS):
            yield begin, self._quantized(Matrix(name, rows, begin, importance, hessian))

    def _quantized(self, matrix: Matrix) -> Floats:
        decoded = self._quantize(matrix)
        if decoded is None:
            return matrix.weights
        if decoded.shape != matrix.weights.shape:
            raise CalibrationError(
                f"{matrix.name}: quantized weights must have shape {list(matrix.weights.shape)}, "
                f"found {list(decoded.shape)}"
            )
        return np.asarray(decoded, np.float32)


def _hessian(moments: InputMoments) -> Floats | None:
    """Return the hessian that a quantizer gets."""
    hessian = moments.hessian()
    return None if hessian is None else shrunk(hessian, moments.count)
