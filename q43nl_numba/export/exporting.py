"""`export_model`: from a Hugging Face folder to the one file that the engine runs."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from q43nl_numba.convert.output import check_output
from q43nl_numba.convert.packing import check_method
from q43nl_numba.export.architectures import Architecture, architecture_of
from q43nl_numba.export.chat import read_chat
from q43nl_numba.export.checks import OUTPUT, check_config, check_patterns, resolve_tensors
from q43nl_numba.export.dimensions import Dimensions
from q43nl_numba.export.folder import ModelFolder, open_folder
from q43nl_numba.export.importance import Importance
from q43nl_numba.export.metadata import build_metadata, read_dimensions
from q43nl_numba.export.plan import FORMATS, Format, Plan, plan_output
from q43nl_numba.export.report import ExportReport, ExportWarning
from q43nl_numba.export.tokenizer import Tokenizer, read_tokenizer
from q43nl_numba.export.writing import write_plan

#: The choices of ``dtype``.
DTYPES: tuple[str, ...] = tuple(FORMATS)


@dataclass(frozen=True)
class Prepared:
    """All that is decided before the first byte is written."""

    architecture: Architecture
    dims: Dimensions
    tokenizer: Tokenizer
    metadata: dict[str, str]
    plan: Plan
    notes: tuple[str, ...]


def export_model(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    dtype: str = "q43nl",
    method: str = "gradient",
    importance: str | os.PathLike[str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_rope_scaling: bool = False,
    progress: bool = False,
    **options: Any,
) -> ExportReport:
    """Write a Hugging Face model folder as the one file that the PasLLM engine runs.

    The file is complete: the model's description, its tokenizer and chat template, the projections
    permuted for the engine's RoPE, matrices in the chosen format, norms and biases in float32. It
    appears under its name only when it is whole, and stock safetensors readers open it.

    The engine checks next to nothing, so all that it would misread is an error here, before
    anything is written.

    Parameters
    ----------
    folder : path
        A folder with ``config.json``, ``tokenizer.json`` and ``model.safetensors``, or the index
        and its shards; float32, float16, bfloat16 or float64.
    path : path
        The file to write. An existing one is replaced.
    dtype : {"q43nl", "bf16", "fp16", "fp32"}
        The format of all matrices.
    method : str
        For "q43nl": one of ``q43nl_numba.METHODS``.
    importance : path, optional
        For "q43nl": a safetensors file of weights of the squared errors, under the folder's tensor
        names: of their shape, or a number for each input column.
    include, exclude : sequence of str
        Name patterns (``*``, ``?``, ``[...]``) of tensors, by the folder's names or the engine's.
        A file has one format for all matrices, so a choice that leaves one out is an error.
    allow_rope_scaling : bool
        Export a model with RoPE scaling, which the engine does not have: its logits are not the
        model's then. By default this is an error.
    progress : bool
        Show a progress bar on stderr, if that is a terminal.
    **options
        Keyword arguments of `q43nl`: the method's parameters, ``eps_scale``, ``num_threads``.

    Returns
    -------
    ExportReport
        What was written, with its quality, and the totals.

    Warns
    -----
    ExportWarning
        For each of the report's notes, before the work begins.

    Raises
    ------
    OSError
        If a file cannot be read or written.
    ModelFileError
        If the folder is no sound model folder, the engine has no such architecture, would misread
        a key or has no place for a tensor, a value cannot be stored, or `path` cannot be a file.
    ValueError, TypeError
        If an argument is out of range or belongs to another method or format.
    ModuleNotFoundError
        If a package of the ``convert`` extra is missing.

    Examples
    --------
    >>> from q43nl_numba.export import export_model
    >>> report = export_model("SmolLM2-135M", "smollm2.safetensors")  # doctest: +SKIP
    >>> report.arch, report.word, report.tokens  # doctest: +SKIP
    ('llama', 'Q43NL', 49152)
    """
    started = time.perf_counter()
    chosen = find_format(dtype)
    _check_method(chosen, method, importance, options)
    folder, path = os.fspath(folder), os.fspath(path)
    with open_folder(folder) as model:
        ready = prepare(
            model,
            chosen,
            include=include,
            exclude=exclude,
            allow_rope_scaling=allow_rope_scaling,
        )
        for source in {stored.path for stored in model.tensors.values()}:
            check_output(source, path)
        weighting = (
            None if importance is None else Importance(os.fspath(importance), ready.plan.tensors)
        )
        notes = ready.notes + (() if weighting is None else weighting.notes)
        for note in notes:
            warnings.warn(note, ExportWarning, stacklevel=2)
        with weighting or nullcontext():
            matrices, bytes_out = write_plan(
                path, ready.plan, ready.metadata, ready.tokenizer,
                method=method, options=options, importance=weighting, progress=progress,
            )  # fmt: skip
        return _report(path, model, ready, chosen, matrices, bytes_out, started, notes)


def prepare(
    folder: ModelFolder,
    chosen: Format,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_rope_scaling: bool = False,
) -> Prepared:
    """Read and check everything but the weights, and plan the output.

    Raises
    ------
    OSError, ModelFileError
        As `export_model`.
    """
    config = folder.config
    architecture = architecture_of(config)
    notes = list(check_config(config, architecture, allow_rope_scaling=allow_rope_scaling))
    dims = read_dimensions(config, architecture)
    resolved = resolve_tensors(folder, architecture, dims)
    check_patterns(folder, (tensor for tensor, _ in resolved), include, exclude)
    tokenizer = read_tokenizer(folder.path, dims.vocab_size)
    chat = read_chat(folder.path, config, dims.vocab_size)
    metadata = build_metadata(config, architecture, dims, chat, chosen.word)
    plan = plan_output(resolved, tokenizer, chosen)
    return Prepared(
        architecture, dims, tokenizer, metadata, plan, (*notes, *tokenizer.notes, *chat.notes)
    )


def find_format(dtype: str) -> Format:
    """Return the format of this name.

    Raises
    ------
    ValueError
        If there is none.
    """
    if dtype not in FORMATS:
        raise ValueError(f"dtype must be one of {', '.join(FORMATS)}, found {dtype!r}")
    return FORMATS[dtype]


def _check_method(chosen: Format, method: str, importance: object, options: dict[str, Any]) -> None:
    """Check the arguments of the quantizer, which other formats have no use for."""
    check_method(method, options)
    if chosen.is_packed:
        return
    useless = ["importance"] if importance is not None else []
    useless += [name for name in options if name != "num_threads"]
    if useless:
        raise ValueError(f"dtype must be 'q43nl' for {useless[0]}, found {chosen.word!r}")


def _report(
    path: str,
    folder: ModelFolder,
    ready: Prepared,
    chosen: Format,
    matrices: tuple[Any, ...],
    bytes_out: int,
    started: float,
    notes: tuple[str, ...],
) -> ExportReport:
    vectors = [item.tensor for item in ready.plan.tensors if not item.tensor.is_matrix]
    return ExportReport(
        path=path,
        class_name=ready.architecture.class_name,
        arch=ready.architecture.arch,
        word=chosen.word,
        matrices=matrices,
        vectors=len(vectors),
        vector_weights=sum(tensor.shape[0] for tensor in vectors),
        tokens=ready.tokenizer.count,
        tied=all(item.tensor.source != OUTPUT for item in ready.plan.tensors),
        bytes_in=folder.nbytes,
        bytes_out=bytes_out,
        seconds=time.perf_counter() - started,
        notes=notes,
    )
