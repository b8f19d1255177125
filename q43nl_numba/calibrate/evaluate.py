"""Measure what a model lost by quantization: perplexity, divergence and the layers' errors."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._text import printable
from .collect import calibration_windows
from .config import ModelConfig, read_config
from .divergence import TokenFigures, compare_outputs
from .errors import CalibrationError, check_packages
from .forward import Decoder, Floats, run_layer
from .progress import progress_bar
from .sources import check_tensors, config_of, open_weights
from .text import DEFAULT_WINDOW, Windows

__all__ = [
    "DEFAULT_TOKENS",
    "EvaluationReport",
    "Figure",
    "LayerError",
    "evaluate",
]

#: Tokens that evaluation takes at most, where nothing else is said.
DEFAULT_TOKENS = 8_192

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """A measured number and its standard error."""

    value: float
    standard_error: float

    def text(self, digits: int = 4, unit: float = 1.0) -> str:
        """Return both as people write them.

        >>> Figure(0.05281, 0.0012).text()
        '0.0528 ± 0.0012'
        """
        return f"{self.value * unit:.{digits}f} ± {self.standard_error * unit:.{digits}f}"


@dataclass(frozen=True)
class LayerError:
    """How far a layer's output is off, relative to its length.

    Parameters
    ----------
    layer : int
        Its number, from 0.
    own : Figure
        With the original's activations as input: what this layer's quantization alone does.
    stream : Figure
        With the quantized model's activations: what has added up from the embedding to here.
    """

    layer: int
    own: Figure
    stream: Figure


@dataclass(frozen=True)
class EvaluationReport:
    """What `evaluate` measured.

    Parameters
    ----------
    original, quantized : str
        The two models' paths.
    sources : tuple of str
        The text files.
    tokens : int
        Number of predicted tokens: every one of a window but the first.
    window : int
        Tokens of a window.
    perplexity, quantized_perplexity : Figure
        exp of the mean negative log probability of the text.
    log_perplexity_ratio : Figure
        Mean difference of the two in nats; its standard error is that of pairs, and so much
        smaller than those of the perplexities.
    divergence_mean, divergence_median, divergence_99 : Figure
        KL(original, quantized) of the next-token distributions, nats: mean, median, 99 % quantile.
    same_top : Figure
        Share of positions at which both models have the same most probable token.
    layers : tuple of LayerError
        The layers' relative output errors.
    divergences : float64 array
        The divergence at every position, for the plot.
    seconds : float
        Time taken.
    """

    original: str
    quantized: str
    sources: tuple[str, ...]
    tokens: int
    window: int
    perplexity: Figure
    quantized_perplexity: Figure
    log_perplexity_ratio: Figure
    divergence_mean: Figure
    divergence_median: Figure
    divergence_99: Figure
    same_top: Figure
    layers: tuple[LayerError, ...]
    divergences: Doubles
    seconds: float

    def table(self) -> str:
        """Return the report as text."""
        lines = [
            f"{self.tokens:,} predicted tokens of {printable(', '.join(self.sources))} "
            f"in windows of {self.window}, {self.seconds:.1f} s",
            "",
            f"perplexity, original        {self.perplexity.text()}",
            f"perplexity, quantized       {self.quantized_perplexity.text()}",
            f"log of their ratio          {self.log_perplexity_ratio.text()}",
            f"KL(original, quantized)     {self.divergence_mean.text()} mean",
            f"                            {self.divergence_median.text()} median",
            f"                            {self.divergence_99.text()} 99 %",
            f"same top token              {self.same_top.text(1, 100)} %",
            "",
            "relative output error, %:",
            f"{'layer':>5}  {'own':>15}  {'stream':>15}",
        ]
        lines += [
            f"{error.layer:>5}  {error.own.text(2, 100):>15}  {error.stream.text(2, 100):>15}"
            for error in self.layers
        ]
        return "\n".join(lines)

    def document(self) -> dict[str, Any]:
        """Return the report as JSON has it; without the divergence at every position."""
        document = asdict(self)
        del document["divergences"]
        return document


def evaluate(
    original: str | os.PathLike[str],
    quantized: str | os.PathLike[str],
    text: Sequence[str | os.PathLike[str]] | None = None,
    *,
    tokens: int = DEFAULT_TOKENS,
    window: int = DEFAULT_WINDOW,
    progress: bool = False,
) -> EvaluationReport:
    """Run a text through a model and its quantized version and compare what they predict.

    Both go layer by layer: memory holds a layer of each and the activations of both. Standard
    errors come from a bootstrap over blocks of consecutive tokens (circular block bootstrap,
    Politis and Romano 1992), because neighbouring tokens are not independent.

    Parameters
    ----------
    original : path
        A Hugging Face model folder, with the tokenizer.
    quantized : path
        A folder or file that ``convert`` made of it, the engine's file that ``export`` made of it,
        or any folder with a model of the same shape.
    text : sequence of path, optional
        Text files in UTF-8, best of a kind that calibration did not see. Without them a small
        built-in text is used.
    tokens, window : int
        As for `calibrate`.
    progress : bool
        Show a progress bar on stderr, if that is a terminal.

    Returns
    -------
    EvaluationReport
        What was measured.

    Raises
    ------
    OSError
        If a file cannot be read.
    CalibrationError
        As for `calibrate`, and if the two models do not have the same shape.
    ModelFileError
        If a tensor is missing or damaged.
    ModuleNotFoundError
        If a package of the ``calibrate`` extra is missing.
    """
    check_packages()
    started = time.perf_counter()
    original, quantized = os.fspath(original), os.fspath(quantized)
    config = read_config(original)
    other_config = config_of(quantized, otherwise=config)
    _check_same_shape(quantized, config, other_config)
    source, other_source = open_weights(original), open_weights(quantized)
    check_tensors(source, config)
    check_tensors(other_source, other_config)
    windows = calibration_windows(original, config, text, tokens=tokens, window=window)
    decoder = Decoder(config, source, windows.length)
    other = Decoder(other_config, other_source, windows.length)
    with progress_bar((config.layers + 1) * len(windows.ids), "window", shown=progress) as bar:
        figures, own, stream = _compare(decoder, other, windows, bar)
    return _report(original, quantized, windows, figures, own, stream, started)


def _check_same_shape(path: str, config: ModelConfig, other: ModelConfig) -> None:
    same = all(
        getattr(config, key) == getattr(other, key)
        for key in ("layers", "hidden_size", "vocab_size")
    )
    if not same:
        raise CalibrationError(
            f"{path}: must be a quantized version of the original ({config.summary()}), "
            f"found {other.summary()}"
        )


# ---------------------------------------------------------------------------------------------
# Running both models
# ---------------------------------------------------------------------------------------------


def _compare(
    decoder: Decoder, other: Decoder, windows: Windows, bar: Any
) -> tuple[TokenFigures, Doubles, Doubles]:
    """Return what is known of every predicted token, and the layers' errors at every token."""
    hidden, other_hidden = decoder.embed(windows.ids), other.embed(windows.ids)
    own, stream = np.empty((2, decoder.config.layers, *windows.ids.shape))
    for layer in range(decoder.config.layers):
        weights, other_weights = decoder.load_layer(layer), other.load_layer(layer)
        for window in range(len(hidden)):
            inputs, other_inputs = hidden[window], other_hidden[window]
            output = run_layer(decoder.layer_pass(layer, weights, inputs))
            own_output = run_layer(other.layer_pass(layer, other_weights, inputs))
            other_output = run_layer(other.layer_pass(layer, other_weights, other_inputs))
            own[layer, window] = _relative_squared_error(output, own_output)
            stream[layer, window] = _relative_squared_error(output, other_output)
            hidden[window], other_hidden[window] = output, other_output
            bar.update()
    figures = compare_outputs(
        _predicting(decoder, hidden),
        _predicting(other, other_hidden),
        decoder.output_pieces(),
        other.output_pieces(),
        windows.ids[:, 1:].reshape(-1),
    )
    bar.update(len(hidden))
    return figures, own.reshape(len(own), -1), stream.reshape(len(stream), -1)


def _predicting(decoder: Decoder, hidden: Floats) -> Floats:
    """Return the output matrix' inputs at every position that has a successor."""
    inputs: Floats = decoder.final_norm(hidden)[:, :-1].reshape(-1, hidden.shape[-1])
    return inputs


def _relative_squared_error(exact: Floats, found: Floats) -> Doubles:
    """Return the squared distance over the squared length, for every token."""
    error = np.square(found - exact, dtype=np.float64).sum(axis=-1)
    length = np.square(exact, dtype=np.float64).sum(axis=-1)
    relative: Doubles = np.divide(error, length, out=np.zeros_like(error), where=length > 0)
    return relative


# ---------------------------------------------------------------------------------------------
# Figures and their standard errors
# ---------------------------------------------------------------------------------------------

_BLOCK = 64  # consecutive tokens that are drawn together
_RESAMPLES = 200
_SEED = 0


def figure(values: Doubles, statistic: Callable[[Doubles], float]) -> Figure:
    """Return a statistic of values in the text's order, with its standard error.

    Examples
    --------
    >>> coin = np.tile([0.0, 1.0], 800)[np.random.default_rng(0).permutation(1600)]
    >>> found = figure(coin, np.mean)
    >>> found.value, abs(found.standard_error - 0.5 / 40) < 0.004
    (0.5, True)
    """
    rng = np.random.default_rng(_SEED)
    block = max(min(_BLOCK, values.size // 8), 1)
    count = -(-values.size // block)
    resampled = []
    for _ in range(_RESAMPLES):
        begins = rng.integers(values.size, size=(count, 1))
        drawn = ((begins + np.arange(block)) % values.size).reshape(-1)[: values.size]
        resampled.append(statistic(values[drawn]))
    return Figure(float(statistic(values)), float(np.std(resampled)))


def _perplexity(nll: Doubles) -> float:
    return math.exp(min(float(np.mean(nll)), 700.0))  # beyond that exp is infinite


def _root_mean(values: Doubles) -> float:
    return math.sqrt(float(np.mean(values)))


def _highest_percent(values: Doubles) -> float:
    return float(np.quantile(values, 0.99))


def _report(
    original: str,
    quantized: str,
    windows: Windows,
    figures: TokenFigures,
    own: Doubles,
    stream: Doubles,
    started: float,
) -> EvaluationReport:
    layers = tuple(
        LayerError(layer, figure(own[layer], _root_mean), figure(stream[layer], _root_mean))
        for layer in range(len(own))
    )
    return EvaluationReport(
        original=original,
        quantized=quantized,
        sources=windows.text.sources,
        tokens=figures.nll.size,
        window=windows.length,
        perplexity=figure(figures.nll, _perplexity),
        quantized_perplexity=figure(figures.other_nll, _perplexity),
        log_perplexity_ratio=figure(figures.other_nll - figures.nll, np.mean),
        divergence_mean=figure(figures.divergence, np.mean),
        divergence_median=figure(figures.divergence, np.median),
        divergence_99=figure(figures.divergence, _highest_percent),
        same_top=figure(figures.same_top.astype(np.float64), np.mean),
        layers=layers,
        divergences=figures.divergence,
        seconds=time.perf_counter() - started,
    )
