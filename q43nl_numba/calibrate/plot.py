"""The picture of an evaluation: the layers' errors and the distribution of the divergence."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np

from ..convert.output import whole_file
from .evaluate import EvaluationReport


def matplotlib() -> Any:
    """Import matplotlib, or say how to get it."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the package 'matplotlib' is needed for --plot and is not installed: "
            'pip install ".[plot]" in a clone of the repository',
            name="matplotlib",
        ) from error
    return matplotlib


def save_plot(report: EvaluationReport, path: str | os.PathLike[str]) -> None:
    """Draw a report into a file whose ending says the format (png, svg, pdf)."""
    matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(picture)
    layers, divergence = picture.subplots(1, 2)
    _draw_layers(layers, report)
    _draw_divergence(divergence, report)
    picture.suptitle(f"{report.quantized} against {report.original}")
    drawn = io.BytesIO()
    picture.savefig(drawn, format=os.path.splitext(path)[1].lstrip("."), dpi=150)
    with whole_file(os.fspath(path)) as output:
        output.write(drawn.getvalue())


def _draw_layers(axes: Any, report: EvaluationReport) -> None:
    numbers = [error.layer for error in report.layers]
    for label, figures in (
        ("this layer alone", [error.own for error in report.layers]),
        ("added up", [error.stream for error in report.layers]),
    ):
        axes.errorbar(
            numbers,
            [100 * found.value for found in figures],
            [200 * found.standard_error for found in figures],
            marker=".",
            label=label,
        )
    axes.set(xlabel="layer", ylabel="relative output error, %", ylim=(0, None))
    axes.legend()


def _draw_divergence(axes: Any, report: EvaluationReport) -> None:
    """Draw which share of the positions has at least a certain divergence."""
    highest_first = np.sort(report.divergences)[::-1]
    share = np.arange(1, highest_first.size + 1) / highest_first.size
    positive = highest_first > 0
    if positive.any():
        axes.plot(highest_first[positive], 100 * share[positive])
        axes.set(xscale="log", yscale="log")
    axes.axvline(report.divergence_mean.value, linestyle=":", color="black", label="mean")
    axes.set(xlabel="KL(original, quantized), nats", ylabel="positions with at least this, %")
    axes.legend()
