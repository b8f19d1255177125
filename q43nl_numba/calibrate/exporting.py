"""Export a model with statistics: of the quantized stream, or of a file with hessians.

The packed bytes come from `packing`, under the names and in the row order of the folder. The
engine's file has rows of them in another order; the rest is the exporter's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..convert.rules import Rule
from ..convert.run import OnProgress, write_one_file
from ..convert.tensors import StoredTensor
from ..export import DTYPES, ExportReport
from ..export.exporting import Export, find_format, planned_export
from ..export.tensors import IDENTITY
from ..export.values import EngineRows, EngineValues
from .collect import DEFAULT_TOKENS
from .copying import CopyPacked
from .packing import CalibrationText, HessianFile, Provider
from .text import DEFAULT_WINDOW

__all__ = ["export_calibrated", "export_with_hessians"]

Path = str | os.PathLike[str]


def export_calibrated(
    folder: Path,
    path: Path,
    method: str = "optimal",
    *,
    text: Sequence[Path] | None = None,
    tokens: int = DEFAULT_TOKENS,
    window: int = DEFAULT_WINDOW,
    feedback: bool = True,
    damping: float | None = None,
    sweeps: int | None = None,
    dtype: str = "q43nl",
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    rules: Path | Sequence[Rule] = (),
    allow_rope_scaling: bool = False,
    no_clobber: bool = False,
    progress: OnProgress | None = None,
    **options: Any,
) -> ExportReport:
    """Export a model folder, each layer with statistics of the stream that is quantized already.

    The packed groups are those of `convert_calibrated`, with the rows in the engine's order.
    Gemma's embedding is quantized anew, because the engine's is scaled.

    Parameters
    ----------
    folder, path : path
        As for `export_model`.
    method : str
        One of ``q43nl_numba.METHODS``.
    text, tokens, window, feedback, damping, sweeps
        As for `convert_calibrated`.
    dtype : {"q43nl"}
        The format of all matrices; no other one uses statistics.
    include, exclude, rules, allow_rope_scaling, no_clobber, progress
        As for `export_model`. An importance file in a rule is not used.
    **options
        Keyword arguments of `q43nl`.

    Returns
    -------
    ExportReport
        As that of `export_model`.

    Warns
    -----
    ExportWarning
        As `export_model` does.

    Raises
    ------
    OSError, ValueError, TypeError, ModuleNotFoundError
        As `calibrate` and `export_model` do.
    """
    _check_dtype(dtype)
    provider = CalibrationText(
        folder, text, tokens=tokens, window=window, feedback=feedback, damping=damping,
        sweeps=sweeps,
    )  # fmt: skip
    return _exported(
        provider, path, method, options, include=include, exclude=exclude, rules=rules,
        allow_rope_scaling=allow_rope_scaling, no_clobber=no_clobber, other_inputs=text or (),
        progress=progress,
    )  # fmt: skip


def export_with_hessians(
    folder: Path,
    path: Path,
    method: str = "optimal",
    *,
    hessians: Path,
    damping: float | None = None,
    sweeps: int | None = None,
    dtype: str = "q43nl",
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    rules: Path | Sequence[Rule] = (),
    allow_rope_scaling: bool = False,
    no_clobber: bool = False,
    progress: OnProgress | None = None,
    **options: Any,
) -> ExportReport:
    """Export a model folder with error feedback by the hessians of a statistics file.

    The packed groups are those of `convert_with_hessians`, with the rows in the engine's order.
    Gemma's embedding is quantized anew, because the engine's is scaled.

    Parameters
    ----------
    folder, path : path
        As for `export_model`.
    method : str
        One of ``q43nl_numba.METHODS``.
    hessians : path
        What `calibrate` wrote for this model, with hessians.
    damping, sweeps
        As for `convert_with_hessians`.
    dtype : {"q43nl"}
        The format of all matrices; no other one uses statistics.
    include, exclude, rules, allow_rope_scaling, no_clobber, progress
        As for `export_model`.
    **options
        Keyword arguments of `q43nl`.

    Returns
    -------
    ExportReport
        As that of `export_model`.

    Warns
    -----
    ExportWarning
        As `export_model` does.

    Raises
    ------
    OSError, ValueError, TypeError, ModuleNotFoundError
        As `export_model` does, and if the statistics are another model's or have no hessians.
    """
    _check_dtype(dtype)
    provider = HessianFile(folder, hessians, damping=damping, sweeps=sweeps)
    return _exported(
        provider, path, method, options, include=include, exclude=exclude, rules=rules,
        allow_rope_scaling=allow_rope_scaling, no_clobber=no_clobber, other_inputs=[hessians],
        progress=progress,
    )  # fmt: skip


def _check_dtype(dtype: str) -> None:
    """Refuse a format that is not quantized."""
    if not find_format(dtype).is_packed:
        raise ValueError(f"dtype must be {DTYPES[0]!r} for statistics, found {dtype!r}")


def _exported(
    provider: Provider,
    path: Path,
    method: str,
    options: Mapping[str, Any],
    *,
    no_clobber: bool,
    progress: OnProgress | None,
    **choice: Any,
) -> ExportReport:
    """Plan an export, have its matrices packed in the model's order, and carry it out."""
    started = time.perf_counter()
    path = os.fspath(path)
    export = planned_export(
        provider.folder, path, DTYPES[0], method, options, no_clobber=no_clobber, **choice
    )
    export.warn(stacklevel=4)
    matrices = [(tensor, decision) for tensor, decision in export.resolved if tensor.is_matrix]
    treatments = {
        tensor.source: decision.treatment
        for tensor, decision in matrices
        if decision.treatment is not None
    }
    affines = {tensor.source: tensor.affine for tensor, _ in matrices if tensor.affine != IDENTITY}
    with provider.packed(
        path, treatments, affines=affines, progress=progress is not None
    ) as packed:
        export = _with_packed(export, packed)
        written = write_one_file(export.plan, path, no_clobber=no_clobber, progress=progress)
    return export.report(path, written, time.perf_counter() - started)


def _with_packed(export: Export, packed: Mapping[str, StoredTensor]) -> Export:
    """Return an export that copies packed bytes where they are there."""
    steps = list(export.plan.steps)
    for number, (tensor, decision) in enumerate(export.resolved):
        stored, treatment = packed.get(tensor.source), decision.treatment
        if not tensor.is_matrix or stored is None or treatment is None:
            continue
        weights = EngineValues.of(decision.tensor, tensor)
        groups = EngineRows.packed(stored, tensor)
        recipe = CopyPacked(weights, groups, treatment.method, treatment.options)
        steps[number] = replace(steps[number], recipe=recipe)
    return replace(export, plan=replace(export.plan, steps=tuple(steps)))
