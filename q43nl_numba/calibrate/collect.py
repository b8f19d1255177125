"""Run text through a model and keep statistics of every matrix' inputs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .._text import printable
from ..convert.container import header_bytes
from ..convert.output import check_output, whole_file
from .config import (
    ModelConfig,
    layer_prefix,
    layer_shapes,
    layer_stages,
    read_config,
)
from .errors import check_packages
from .forward import Decoder, Floats
from .progress import progress_bar
from .sources import check_tensors, open_weights
from .statistics import (
    InputMoments,
    statistics_entries,
    statistics_metadata,
    write_moments,
)
from .text import (
    DEFAULT_WINDOW,
    Windows,
    built_in_text,
    cut_windows,
    read_text,
)

__all__ = ["DEFAULT_TOKENS", "CalibrationReport", "calibrate", "calibration_windows"]

#: Tokens that calibration takes at most, where nothing else is said.
DEFAULT_TOKENS = 16_384

#: Takes the matrices that share an input, and the moments of that input.
Take = Callable[[Sequence[str], InputMoments], None]


@dataclass(frozen=True)
class CalibrationReport:
    """What `calibrate` did: tokens in windows, tensors and bytes written, seconds."""

    tokens: int
    window: int
    matrices: int
    nbytes: int
    seconds: float
    sources: tuple[str, ...]

    def table(self) -> str:
        """Return the report as one line of text."""
        return (
            f"statistics of {self.matrices} matrices from {self.tokens:,} tokens of "
            f"{printable(', '.join(self.sources))} in windows of {self.window}, "
            f"{self.nbytes:,} bytes, {self.seconds:.1f} s"
        )


def calibrate(
    folder: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    text: Sequence[str | os.PathLike[str]] | None = None,
    *,
    tokens: int = DEFAULT_TOKENS,
    window: int = DEFAULT_WINDOW,
    hessians: bool = False,
    progress: bool = False,
) -> CalibrationReport:
    """Measure what the matrices of a model are multiplied with, and write it to a file.

    Text is run through the model, one layer at a time: memory holds one layer's weights and
    statistics and the activations of all tokens, not the model. The file appears under its name
    only when it is complete; see `q43nl_numba.calibrate.statistics` for its layout.

    Parameters
    ----------
    folder : path
        A Hugging Face model folder: ``config.json``, ``tokenizer.json`` and safetensors files.
    destination : path
        The safetensors file to write; an existing one is replaced.
    text : sequence of path, optional
        Text files in UTF-8. Without them a small built-in text is used.
    tokens : int
        Tokens to take from the text, at most.
    window : int
        Tokens that are run together; the model sees no context beyond them.
    hessians : bool
        Also keep the full second moments, for error feedback.
    progress : bool
        Show a progress bar on stderr, if that is a terminal.

    Returns
    -------
    CalibrationReport
        What was measured.

    Raises
    ------
    OSError
        If a file cannot be read or written.
    CalibrationError
        If the architecture is not known, the folder has no tokenizer, or the text is empty or
        shorter than a window.
    ModelFileError
        If a tensor is missing or damaged, or `destination` cannot be a file.
    ModuleNotFoundError
        If a package of the ``calibrate`` extra is missing.
    """
    check_packages()
    started = time.perf_counter()
    folder, destination = os.fspath(folder), os.fspath(destination)
    config = read_config(folder)
    source = open_weights(folder)
    check_tensors(source, config)
    check_output(os.path.join(folder, "config.json"), destination)
    windows = calibration_windows(folder, config, text, tokens=tokens, window=window)
    decoder = Decoder(config, source, windows.length)
    entries = statistics_entries(config, hessians=hessians)
    metadata = statistics_metadata(config, windows, hessians=hessians)
    first_bytes = header_bytes(destination, entries, metadata)
    with (
        whole_file(destination) as output,
        progress_bar((config.layers + 1) * len(windows.ids), "window", shown=progress) as bar,
    ):
        output.write(first_bytes)

        def take(names: Sequence[str], moments: InputMoments) -> None:
            write_moments(output, names, moments)

        collect(decoder, windows, take, hessians=hessians, bar=bar)
    return CalibrationReport(
        tokens=windows.tokens,
        window=windows.length,
        matrices=sum(len(entry.shape) == 1 for entry in entries),
        nbytes=len(first_bytes) + sum(entry.nbytes for entry in entries),
        seconds=time.perf_counter() - started,
        sources=windows.text.sources,
    )


def calibration_windows(
    folder: str,
    config: ModelConfig,
    text: Sequence[str | os.PathLike[str]] | None,
    *,
    tokens: int,
    window: int,
) -> Windows:
    """Cut the given text, or the built-in one, into windows."""
    content = built_in_text() if text is None else read_text(text)
    return cut_windows(folder, content, tokens, window=window, vocab_size=config.vocab_size)


def collect(decoder: Decoder, windows: Windows, take: Take, *, hessians: bool, bar: Any) -> None:
    """Run the windows through the model and hand over the moments of each input when complete."""
    config = decoder.config
    stages = layer_stages(config)
    hidden = decoder.embed(windows.ids)
    for index in range(config.layers):
        moments = [stage_moments(config, names, hessian=hessians) for names in stages]
        decoder.advance(index, hidden, partial(_add, moments), bar)
        for names, found in zip(stages, moments, strict=True):
            take([layer_prefix(index) + name for name in names], found)
    take([config.output_matrix], output_moments(decoder, hidden, hessian=hessians, bar=bar))


def _add(moments: Sequence[InputMoments], stage: int, inputs: Floats) -> None:
    moments[stage].add(inputs)


def stage_moments(config: ModelConfig, names: Sequence[str], *, hessian: bool) -> InputMoments:
    """Return empty moments for the input that some matrices of a layer share."""
    return InputMoments(layer_shapes(config)[names[0]][1], hessian=hessian)


def output_moments(decoder: Decoder, hidden: Floats, *, hessian: bool, bar: Any) -> InputMoments:
    """Return the moments of the output matrix' input, from the last layer's output."""
    moments = InputMoments(decoder.config.hidden_size, hessian=hessian)
    for window in hidden:
        moments.add(decoder.final_norm(window))
        bar.update()
    return moments
