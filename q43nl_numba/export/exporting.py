"""`export_model`: from a Hugging Face folder to the one file that the engine runs."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import __version__
from ..convert.companions import companion
from ..convert.container import QTYPE
from ..convert.errors import ModelFileError
from ..convert.job import FilePlan, WrittenFile
from ..convert.json_file import JsonFile, read_json
from ..convert.judging import Figures
from ..convert.model import CONFIG_NAME, Model, open_model
from ..convert.output import check_output
from ..convert.plan import Decision, ImportanceFiles, Wishes, decide
from ..convert.results import ConvertReport, KeptTensor, PackedTensor, PlannedFile
from ..convert.rules import Rule, Treatment, check_treatment, patterns, read_rules
from ..convert.run import OnProgress
from ..convert.sections import write_resumable_file
from ..convert.tensors import SourceFile
from .architectures import Architecture, architecture_of
from .chat import read_chat
from .checks import OUTPUT, check_config, resolve_tensors
from .metadata import build_metadata, read_dimensions
from .plan import FORMATS, Format, plan_steps
from .report import ExportReport, ExportWarning
from .tensors import EngineTensor
from .tokenizer import Tokenizer, read_tokenizer

#: The choices of ``dtype``.
DTYPES: tuple[str, ...] = tuple(FORMATS)

Path = str | os.PathLike[str]


def export_model(
    folder: Path,
    path: Path,
    *,
    dtype: str = "q43nl",
    method: str = "gradient",
    importance: Path | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    rules: Path | Sequence[Rule] = (),
    allow_rope_scaling: bool = False,
    no_clobber: bool = False,
    resume: bool = False,
    progress: OnProgress | None = None,
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
        A folder with ``config.json``, ``tokenizer.json`` and safetensors files, or one of the
        hub's cache; float32, float16, bfloat16, float64, or 8-bit floats with scales.
    path : path
        The file to write. An existing one is replaced.
    dtype : {"q43nl", "bf16", "fp16", "fp32"}
        The format of all matrices.
    method : str
        For "q43nl": one of ``q43nl_numba.METHODS``.
    importance : path, optional
        For "q43nl": a safetensors file of weights of the squared errors, under the folder's tensor
        names: of their shape, or a number for each input column.
    include, exclude : str or sequence of str
        Name patterns (``*``, ``?``, ``[...]``) of the folder's tensors. A file has one format for
        all matrices, so a choice that leaves one out is an error.
    rules : path or sequence of Rule
        A rule file, or its rules, as in `convert_model`: the first one that matches a matrix
        decides how it is packed. A rule that keeps a matrix is an error.
    allow_rope_scaling : bool
        Export a model with RoPE scaling, which the engine does not have: its logits are not the
        model's then. By default this is an error.
    no_clobber : bool
        Refuse to replace an existing file.
    resume : bool
        Go on with an interrupted run that wrote the same file, if there is one; the bytes are
        those of an uninterrupted run. It must have had the same input, arguments and version.
    progress : callable, optional
        Called with a `Progress` (bytes read, bytes to read, name of the tensor) after each piece.
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
        a key or has no place for a tensor, a value cannot be stored, `path` cannot be a file, or
        the interrupted run was another one.
    ValueError, TypeError
        If an argument is out of range or belongs to another method or format.
    ModuleNotFoundError
        If a package of the ``convert`` extra is missing.

    See Also
    --------
    inspect_model : What is in such a file.
    restore_model : The way back.

    Examples
    --------
    >>> from q43nl_numba.export import export_model
    >>> report = export_model("SmolLM2-135M", "smollm2.safetensors")  # doctest: +SKIP
    >>> report.arch, report.word, report.tokens  # doctest: +SKIP
    ('llama', 'Q43NL', 49152)
    """
    started = time.perf_counter()
    path = os.fspath(path)
    export = planned_export(
        folder, path, dtype, method, options, importance=importance, include=include,
        exclude=exclude, rules=rules, allow_rope_scaling=allow_rope_scaling,
        no_clobber=no_clobber,
    )  # fmt: skip
    export.warn(stacklevel=3)
    written = write_resumable_file(
        export.plan,
        path,
        export.description(),
        no_clobber=no_clobber,
        resume=resume,
        progress=progress,
    )
    return export.report(path, written, time.perf_counter() - started)


@dataclass(frozen=True)
class Export:
    """An export that was planned: no weights have been read, but for biases without a place."""

    model: Model
    architecture: Architecture
    chosen: Format
    wishes: Wishes
    resolved: tuple[tuple[EngineTensor, Decision], ...]
    tokenizer: Tokenizer
    plan: FilePlan
    importance: ImportanceFiles
    notes: tuple[str, ...]

    def inputs(self) -> tuple[SourceFile, ...]:
        """Return the files that are read."""
        files = [file.file for file in self.model.files]
        return (*files, *(SourceFile.at(path) for path in self.importance.opened))

    def companions(self) -> tuple[str, ...]:
        """Return the paths of the folder's other files, which must not be replaced either."""
        return tuple(os.path.join(self.model.path, name) for name in self.model.other_files)

    def warn(self, stacklevel: int) -> None:
        """Warn of each note; `stacklevel` is counted from here, as that of `warnings.warn`."""
        for note in self.notes:
            warnings.warn(note, ExportWarning, stacklevel=stacklevel)

    def description(self) -> dict[str, Any]:
        """Return what decides about the bytes."""
        return {
            "version": __version__,
            "input": [
                {"path": file.path, "bytes": file.nbytes, "modified_ns": file.modified_ns}
                for file in self.inputs()
            ],
            "arguments": {
                "command": "export",
                "dtype": self.chosen.word,
                **self.wishes.default.description(),
                "rules": [rule.description() for rule in self.wishes.rules],
            },
            "metadata": dict(self.plan.metadata),
        }

    def report(self, path: str, written: WrittenFile, seconds: float) -> ExportReport:
        """Return what was done."""
        findings = dict(written.findings)
        packed: list[PackedTensor] = []
        kept: list[KeptTensor] = []
        for (tensor, decision), step in zip(self.resolved, self.plan.steps, strict=False):
            name, nbytes, treatment = step.target.name, step.target.nbytes, decision.treatment
            if step.target.qtype == QTYPE and treatment is not None:
                figures, method = Figures.from_document(findings[name]), treatment.method
                packed.append(
                    PackedTensor(name, tensor.shape, nbytes, figures, method, written.name)
                )
            else:
                reason = f"dtype {self.chosen.word}" if tensor.is_matrix else "norm or bias"
                dtype, stored = decision.tensor.dtype, step.target.dtype
                kept.append(
                    KeptTensor(name, tensor.shape, dtype, stored, nbytes, reason, written.name)
                )
        conversion = ConvertReport(
            tuple(packed),
            tuple(kept),
            self.model.nbytes,
            written.nbytes,
            seconds,
            self.importance.unused(),
            (PlannedFile(written.name, written.nbytes),),
        )
        return ExportReport(
            path=path,
            class_name=self.architecture.class_name,
            arch=self.architecture.arch,
            word=self.chosen.word,
            tokens=self.tokenizer.count,
            tied=all(tensor.source != OUTPUT for tensor, _ in self.resolved),
            conversion=conversion,
            notes=self.notes,
        )


def planned_export(
    folder: Path,
    path: Path,
    dtype: str,
    method: str,
    options: Mapping[str, Any],
    *,
    importance: Path | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    rules: Path | Sequence[Rule] = (),
    allow_rope_scaling: bool = False,
    no_clobber: bool = False,
    other_inputs: Sequence[Path] = (),
) -> Export:
    """Plan an export, with the arguments of `export_model`, and check that it can be written.

    `other_inputs` are files that the caller reads, which must not be replaced.

    Raises
    ------
    OSError, ModelFileError, ValueError, TypeError
        As `export_model`.
    """
    chosen = find_format(dtype)
    treatment = Treatment(
        method, tuple(options.items()), None if importance is None else os.fspath(importance)
    )
    check_arguments(chosen, treatment)
    wishes = Wishes(
        treatment,
        patterns("include", include),
        patterns("exclude", exclude),
        read_rules(os.fspath(rules)) if isinstance(rules, str | os.PathLike) else tuple(rules),
    )
    export = plan_export(os.fspath(folder), chosen, wishes, allow_rope_scaling=allow_rope_scaling)
    inputs = [*(file.path for file in export.inputs()), *export.companions()]
    inputs += [os.fspath(other) for other in other_inputs]
    for source in inputs:
        check_output(source, os.fspath(path), no_clobber=no_clobber)
    return export


def plan_export(
    folder: str, chosen: Format, wishes: Wishes, *, allow_rope_scaling: bool = False
) -> Export:
    """Read and check everything but the weights, and plan the output.

    Raises
    ------
    OSError, ModelFileError
        As `export_model`.
    """
    model, config = _open_folder(folder)
    architecture = architecture_of(config)
    notes = list(check_config(config, architecture, allow_rope_scaling=allow_rope_scaling))
    dims = read_dimensions(config, architecture)
    decisions = {decision.tensor.name: decision for decision in decide(model, wishes)}
    resolved = resolve_tensors(model.path, decisions, config, architecture, dims)
    tokenizer = read_tokenizer(model.path, dims.vocab_size)
    chat = read_chat(model.path, config, dims.vocab_size)
    metadata = build_metadata(config, architecture, dims, chat, chosen.word)
    importance = ImportanceFiles([decision for _, decision in resolved])
    notes += [*tokenizer.notes, *chat.notes, *_importance_notes(importance)]
    steps = plan_steps(resolved, tokenizer, chosen, importance.of)
    plan = FilePlan("", steps, tuple(metadata.items()))
    return Export(
        model, architecture, chosen, wishes, resolved, tokenizer, plan, importance, tuple(notes)
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


def check_arguments(chosen: Format, treatment: Treatment) -> None:
    """Check the arguments of the quantizer, which other formats have no use for.

    Raises
    ------
    ValueError, TypeError
        As `export_model`.
    """
    check_treatment(treatment)
    useless = [name for name, _ in treatment.options if name != "num_threads"]
    if treatment.importance is not None:
        useless.append("importance")
    if useless and not chosen.is_packed:
        raise ValueError(f"dtype must be 'q43nl' for {useless[0]}, found {chosen.word!r}")


def _open_folder(path: str) -> tuple[Model, JsonFile]:
    """Open a model folder and its configuration."""
    if not os.path.isdir(path):
        raise ModelFileError(f"{path}: must be a model folder, found no folder")
    model = open_model(path)
    config = companion(model.path, CONFIG_NAME)
    if config is None:
        raise ModelFileError(f"{model.path}: a model folder must hold {CONFIG_NAME}, found none")
    return model, read_json(config)


def _importance_notes(importance: ImportanceFiles) -> list[str]:
    """Return a note about the entries that nothing uses."""
    names = importance.unused()
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"importance is not used for {names[0]!r}{more}: no matrix of the model"]
