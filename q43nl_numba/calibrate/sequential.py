"""Quantize a model layer by layer, with statistics of the stream that is quantized already.

Quantizing the first layer changes what the second one sees. Measured on the stream that has passed
the quantized matrices, the statistics of later layers are those of the model that will run. Beside
it goes the stream of the original model, so that later layers make up for what earlier ones lost:
what they quantize is not their weights, but targets whose output is next to the original's
(`drift`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .config import (
    ROUTER_STAGE,
    ModelConfig,
    layer_prefix,
    layer_shapes,
    layer_stages,
    read_config,
)
from .drift import Correction, Drift
from .errors import CalibrationError, check_packages
from .forward import (
    Decoder,
    Floats,
    Stop,
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
    target : float32 array ``[rows, columns]``
        What should be quantized: weights that make up for the drift of the stream, if hessians were
        asked for; else, and where there is no drift, the weights themselves.
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
    target: Floats
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
    quantized (at most ``tokens * intermediate_size`` numbers) and its hessian. With hessians, there
    are activations and inputs of the original model, too, and three more matrices of the
    hessian's size.

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
        Give the quantizer hessians, and targets instead of weights. The stream of the original
        model goes along for that, which takes half as much time again for the forward pass.
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


class _Given(NamedTuple):
    """What the quantizer is given for the matrices that share an input."""

    importance: Floats | None = None
    hessian: Floats | None = None
    correction: Correction | None = None

    def matrix(self, name: str, weights: Floats, first_row: int = 0) -> Matrix:
        """Return a matrix, or some rows of it, as the quantizer gets it."""
        target = weights if self.correction is None else self.correction.target(weights)
        return Matrix(name, weights, target, first_row, self.importance, self.hessian)


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
        # What the original model makes of the same windows; of none where nothing is corrected.
        original = self._decoder.embed(self._windows.ids) if self._hessians else hidden[:0]
        for index in range(self._config.layers):
            self._layer(index, hidden, original)
        if not self._config.tied:
            for _ in self._quantized_pieces("lm_head.weight", self._output(hidden, original)):
                pass

    def _embed(self) -> Floats:
        """Quantize the embedding and return the hidden states that it gives."""
        name = "model.embed_tokens.weight"
        ids = self._windows.ids
        hidden = np.empty((*ids.shape, self._config.hidden_size), np.float32)
        given = self._output_before_quantization() if self._config.tied else _Given()
        for begin, rows in self._quantized_pieces(name, given):
            here = (ids >= begin) & (ids < begin + len(rows))
            hidden[here] = rows[ids[here] - begin]
        return self._decoder.scaled(hidden)

    def _output_before_quantization(self) -> _Given:
        """Return the statistics of the output's inputs in the original model."""
        hidden = self._decoder.embed(self._windows.ids)
        for index in range(self._config.layers):
            self._decoder.advance(index, hidden, bar=self._bar)
        return self._output(hidden, hidden[:0])

    def _output(self, hidden: Floats, original: Floats) -> _Given:
        """Return the statistics of the output's inputs, given what the last layers put out."""
        others = self._output_stops(original) if len(original) else None
        given = self._measured(self._config.hidden_size, self._output_stops(hidden), others)
        self._bar.update(len(hidden))
        return given

    def _output_stops(self, activations: Floats) -> Iterator[Stop]:
        """Yield where the windows of a stream stop for the output matrix."""
        for window in activations:
            yield Stop(0, self._decoder.final_norm(window))

    def _layer(self, index: int, hidden: Floats, original: Floats) -> None:
        """Quantize the matrices of a layer, stage by stage, and move the activations behind it."""
        weights = self._decoder.load_layer(index)
        passes = [self._decoder.layer_pass(index, weights, window) for window in hidden]
        unchanged = dict(weights)
        others = [self._decoder.layer_pass(index, unchanged, window) for window in original]
        for stage, names in enumerate(layer_stages(self._config)):
            columns = layer_shapes(self._config)[names[0]][1]
            # To an expert, the original model may send other tokens.
            compared = bool(others) and not (self._config.experts and stage > ROUTER_STAGE)
            given = self._measured(
                columns, map(next, passes), map(next, others) if compared else None
            )
            for name in names:
                matrix = given.matrix(layer_prefix(index) + name, weights[name])
                weights[name] = self._quantized(matrix)
        for activations, ends in ((hidden, passes), (original, others)):
            for window, layer_pass in enumerate(ends):
                activations[window] = run_layer(layer_pass)
        self._bar.update(len(hidden))

    def _measured(
        self, columns: int, stops: Iterable[Stop], others: Iterator[Stop] | None
    ) -> _Given:
        """Return the statistics of a stage's inputs, given where the windows stop for it.

        `others` are where the original model stops, if the drift is to be corrected.
        """
        moments = InputMoments(columns, hessian=self._hessians)
        drift = Drift()
        with np.errstate(over="ignore", invalid="ignore"):  # the quantizer refuses NaN
            for stop in stops:
                moments.add(stop.inputs)
                if others is not None:
                    drift.add(stop, next(others))
        hessian = moments.hessian()
        if hessian is None:
            return _Given(moments.mean_square())
        hessian = shrunk(hessian, moments.count)
        return _Given(moments.mean_square(), hessian, drift.correction(hessian))

    def _quantized_pieces(self, name: str, given: _Given) -> Iterator[tuple[int, Floats]]:
        """Quantize a large matrix piece by piece and yield each one's first row and result."""
        for begin, rows in matrix_pieces(self._decoder.source, name, PIECE_WEIGHTS):
            yield begin, self._quantized(given.matrix(name, rows, begin))

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
