"""Convert a model with statistics: of the quantized stream, or of a file with hessians.

The packed bytes come from `packing`; the rest, from rules to shards and the report, is the
converter's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..convert import ConvertReport
from ..convert.container import packed_entry
from ..convert.conversion import planned
from ..convert.job import FilePlan, Step
from ..convert.output import check_output_folder
from ..convert.plan import Decision
from ..convert.rules import Rule
from ..convert.run import OnProgress
from ..convert.tensors import StoredTensor
from .collect import DEFAULT_TOKENS
from .copying import CopyPacked
from .packing import CalibrationText, HessianFile, Provider
from .text import DEFAULT_WINDOW

__all__ = ["convert_calibrated", "convert_with_hessians"]

Path = str | os.PathLike[str]


def convert_calibrated(
    source: Path,
    target: Path,
    method: str = "optimal",
    *,
    text: Sequence[Path] | None = None,
    tokens: int = DEFAULT_TOKENS,
    window: int = DEFAULT_WINDOW,
    feedback: bool = True,
    damping: float | None = None,
    sweeps: int | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    rules: Path | Sequence[Rule] = (),
    keep_dtype: str = "as-is",
    single_file: bool = False,
    max_shard_size: int | str | None = None,
    no_clobber: bool = False,
    progress: OnProgress | None = None,
    **options: Any,
) -> ConvertReport:
    """Convert a model folder, each layer with statistics of the stream that is quantized already.

    Parameters
    ----------
    source : path
        A Hugging Face model folder with its tokenizer.
    target : path
        As for `convert_model`.
    method : str
        One of ``q43nl_numba.METHODS``.
    text : sequence of path, optional
        Text files in UTF-8. Without them a small built-in text is used.
    tokens, window : int
        As for `calibrate`.
    feedback : bool
        Give `q43nl` hessians, so that the error of a column is made up for in the next ones.
        Otherwise it gets importance: the mean square of each input column, which takes less time.
    damping, sweeps : float and int, optional
        As for `q43nl`, whose defaults they have; with feedback alone.
    include, exclude, rules, keep_dtype, single_file, max_shard_size, no_clobber, progress
        As for `convert_model`. An importance file in a rule is not used.
    **options
        Keyword arguments of `q43nl`.

    Returns
    -------
    ConvertReport
        As that of `convert_model`.

    Raises
    ------
    OSError, ValueError, TypeError, ModuleNotFoundError
        As `calibrate` and `convert_model` do.
    """
    provider = CalibrationText(
        source, text, tokens=tokens, window=window, feedback=feedback, damping=damping,
        sweeps=sweeps,
    )  # fmt: skip
    return _converted(
        provider, target, method, options, include=include, exclude=exclude, rules=rules,
        keep_dtype=keep_dtype, single_file=single_file, max_shard_size=max_shard_size,
        no_clobber=no_clobber, progress=progress,
    )  # fmt: skip


def convert_with_hessians(
    source: Path,
    target: Path,
    method: str = "optimal",
    *,
    hessians: Path,
    damping: float | None = None,
    sweeps: int | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    rules: Path | Sequence[Rule] = (),
    keep_dtype: str = "as-is",
    single_file: bool = False,
    max_shard_size: int | str | None = None,
    no_clobber: bool = False,
    progress: OnProgress | None = None,
    **options: Any,
) -> ConvertReport:
    """Convert a model folder with error feedback by the hessians of a statistics file.

    Parameters
    ----------
    source, target : path
        As for `convert_model`; `source` is a Hugging Face model folder.
    method : str
        One of ``q43nl_numba.METHODS``.
    hessians : path
        What `calibrate` wrote for this model, with hessians.
    damping, sweeps : float and int, optional
        As for `q43nl`, whose defaults they have.
    include, exclude, rules, keep_dtype, single_file, max_shard_size, no_clobber, progress
        As for `convert_model`.
    **options
        Keyword arguments of `q43nl`.

    Returns
    -------
    ConvertReport
        As that of `convert_model`.

    Raises
    ------
    OSError, ValueError, TypeError, ModuleNotFoundError
        As `convert_model` does, and if the statistics are another model's or have no hessians.
    """
    provider = HessianFile(source, hessians, damping=damping, sweeps=sweeps)
    return _converted(
        provider, target, method, options, include=include, exclude=exclude, rules=rules,
        keep_dtype=keep_dtype, single_file=single_file, max_shard_size=max_shard_size,
        no_clobber=no_clobber, progress=progress,
    )  # fmt: skip


def _converted(
    provider: Provider,
    target: Path,
    method: str,
    options: Mapping[str, Any],
    *,
    no_clobber: bool,
    progress: OnProgress | None,
    **layout: Any,
) -> ConvertReport:
    """Plan a conversion, have its matrices packed in the model's order, and carry it out."""
    job = planned(
        provider.folder, target, method, options, importance=None, allow_empty=False,
        no_clobber=no_clobber, calibration=provider.description, **layout,
    )  # fmt: skip
    if job.is_folder:
        check_output_folder(job.target)  # before minutes of work
    treatments = {
        name: decision.treatment
        for name, decision in job.decisions.items()
        if decision.treatment is not None
    }
    with provider.packed(job.target, treatments, progress=progress is not None) as packed:
        plans = tuple(_with_packed(plan, job.decisions, packed) for plan in job.plans)
        return replace(job, plans=plans).run(no_clobber=no_clobber, progress=progress)


# ---------------------------------------------------------------------------------------------
# The plan that copies them
# ---------------------------------------------------------------------------------------------


def _with_packed(
    plan: FilePlan, decisions: Mapping[str, Decision], packed: Mapping[str, StoredTensor]
) -> FilePlan:
    """Return a plan that copies packed bytes where they are there."""
    steps = []
    for step in plan.steps:
        decision, stored = decisions[step.target.name], packed.get(step.target.name)
        if stored is None or decision.treatment is None:
            steps.append(step)
            continue
        treatment = decision.treatment
        recipe = CopyPacked(decision.tensor, stored, treatment.method, treatment.options)
        steps.append(Step(packed_entry(stored.name, decision.tensor.shape), recipe))
    return replace(plan, steps=tuple(steps))
