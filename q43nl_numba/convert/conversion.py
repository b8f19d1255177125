"""A conversion that was planned: which tensor becomes what, in which files, and carrying it out."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from .. import __version__
from .companions import read_object
from .errors import ModelFileError
from .folders import check_inside, copy_files
from .importance import ImportanceFile
from .job import FilePlan, Step, WrittenFile
from .judging import Figures
from .model import CONFIG_NAME, INDEX_NAME, Model, open_model
from .output import check_output, check_output_folder, whole_file
from .packing import Pack
from .plan import Decision, ImportanceFiles, Wishes, check_not_empty, decide, kept_recipe
from .record import Original, is_converted, metadata_with_record
from .results import (
    ConvertPlan,
    ConvertReport,
    KeptTensor,
    PackedTensor,
    PlannedFile,
    PlannedTensor,
)
from .rules import (
    CAST_TO,
    KEEP_DTYPES,
    Rule,
    Treatment,
    check_treatment,
    patterns,
    read_rules,
)
from .run import OnProgress, WriteFiles, write_folder, write_one_file
from .shards import index_text, parse_size, shard_names, split_by_size
from .tensors import ScaledTensor, SourceFile

_WEIGHTS_SUFFIX: Final = ".safetensors"
_QUANTIZATION_KEY: Final = "quantization_config"

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Conversion:
    """A conversion that was planned: nothing but headers has been read."""

    model: Model
    target: str
    is_folder: bool
    wishes: Wishes
    decisions: Mapping[str, Decision]
    plans: tuple[FilePlan, ...]
    layout: Mapping[str, Any]
    importance_files: Mapping[str, ImportanceFile]
    unused_importance: tuple[str, ...]
    missing_importance: tuple[str, ...]
    calibration: Mapping[str, Any]

    def run(
        self,
        *,
        no_clobber: bool,
        resume: bool = False,
        scheduler: str | None = None,
        progress: OnProgress | None = None,
    ) -> ConvertReport:
        """Do what was planned."""
        started = time.perf_counter()
        with _writer(scheduler) as write_files:
            if self.is_folder:
                written = write_folder(
                    self.plans,
                    self.target,
                    self.description(),
                    self.finish,
                    resume=resume,
                    progress=progress,
                    write_files=write_files,
                )
            else:
                (plan,) = self.plans
                file = write_one_file(
                    plan,
                    self.target,
                    no_clobber=no_clobber,
                    progress=progress,
                    write_files=write_files,
                )
                written = (file,)
        return self.report(written, time.perf_counter() - started)

    def plan(self) -> ConvertPlan:
        """Return the plan, for people."""
        return ConvertPlan(
            tuple(self._planned_tensor(plan, step) for plan in self.plans for step in plan.steps),
            tuple(PlannedFile(*file) for file in self._files()),
            self._copied(),
            self.model.nbytes,
            self.unused_importance,
            self.missing_importance,
        )

    def report(self, written: Sequence[WrittenFile], seconds: float) -> ConvertReport:
        """Return what was done."""
        packed: list[PackedTensor] = []
        kept: list[KeptTensor] = []
        for plan, file in zip(self.plans, written, strict=True):
            findings = dict(file.findings)
            for step in plan.steps:
                decision = self.decisions[step.target.name]
                if decision.treatment is None:
                    kept.append(_kept_tensor(decision, file.name))
                else:
                    figures = Figures.from_document(findings[step.target.name])
                    packed.append(_packed_tensor(decision, figures, file.name))
        return ConvertReport(
            tuple(packed),
            tuple(kept),
            self.model.nbytes,
            sum(file.nbytes for file in written),
            seconds,
            self.unused_importance,
            tuple(PlannedFile(*file) for file in self._files()),
            self._copied(),
            self.missing_importance,
        )

    def description(self) -> dict[str, Any]:
        """Return what decides about the bytes."""
        inputs = [file.file for file in self.model.files]
        inputs += [SourceFile.at(path) for path in self.importance_files]
        return {
            "version": __version__,
            "input": [
                {"path": file.path, "bytes": file.nbytes, "modified_ns": file.modified_ns}
                for file in inputs
            ],
            "arguments": {
                **self.wishes.default.description(),
                "include": list(self.wishes.include),
                "exclude": list(self.wishes.exclude),
                "rules": [rule.description() for rule in self.wishes.rules],
                "keep_dtype": self.wishes.keep_dtype,
                **self.layout,
                **self.calibration,
            },
        }

    def finish(self, folder: str) -> None:
        """Write the index, and copy the other files."""
        text = self._index()
        if text is not None:
            with whole_file(os.path.join(folder, INDEX_NAME)) as file:
                file.write(text.encode())
        copy_files(self.model.path, self._copied(), folder)
        if CONFIG_NAME in self._copied() and self._has_merged_scales():
            _remove_quantization(os.path.join(folder, CONFIG_NAME))

    def _index(self) -> str | None:
        """Return the text of the index, None where there is none."""
        if not self.is_folder or (len(self.plans) == 1 and self.model.index_metadata is None):
            return None
        if len(self.plans) == 1 and self.plans[0].name == shard_names(1)[0]:
            return None
        return index_text(self.plans, self.model.index_metadata or {})

    def _files(self) -> list[tuple[str, int]]:
        """Return the names and sizes of the files of weights, and of their index."""
        files = [(plan.name, plan.nbytes) for plan in self.plans]
        text = self._index()
        return files if text is None else [*files, (INDEX_NAME, len(text.encode()))]

    def _copied(self) -> tuple[str, ...]:
        """Return the names of the files that are copied."""
        return self.model.other_files if self.is_folder else ()

    def _has_merged_scales(self) -> bool:
        """Tell whether 8-bit floats were packed: the model's configuration is another one then."""
        return any(isinstance(d.tensor, ScaledTensor) for d in self.decisions.values())

    def _planned_tensor(self, plan: FilePlan, step: Step) -> PlannedTensor:
        """Return what is going to become of a tensor."""
        decision = self.decisions[step.target.name]
        treatment = decision.treatment
        recipe = step.recipe
        return PlannedTensor(
            step.target.name,
            decision.tensor.shape,
            decision.tensor.dtype,
            step.target.qtype or step.target.dtype,
            step.target.nbytes,
            plan.name if self.is_folder else os.path.basename(self.target),
            treatment.method if treatment else "",
            treatment.options if treatment else (),
            isinstance(recipe, Pack) and recipe.importance is not None,
            decision.reason,
        )


def planned(
    source: Path,
    target: Path,
    method: str,
    options: Mapping[str, Any],
    *,
    include: str | Sequence[str],
    exclude: str | Sequence[str],
    rules: Path | Sequence[Rule],
    keep_dtype: str,
    importance: Path | None,
    single_file: bool,
    max_shard_size: int | str | None,
    allow_empty: bool,
    no_clobber: bool,
    calibration: Mapping[str, Any] = MappingProxyType({}),
) -> Conversion:
    """Check all arguments and plan the conversion.

    `calibration` is what decides about the bytes beside the wishes, as JSON has it; it is recorded.
    """
    default = Treatment(
        method, tuple(options.items()), None if importance is None else os.fspath(importance)
    )
    check_treatment(default)
    if keep_dtype not in CAST_TO:
        raise ValueError(
            f"keep_dtype must be one of {', '.join(KEEP_DTYPES)}, found {keep_dtype!r}"
        )
    limit = None if max_shard_size is None else parse_size(max_shard_size)
    if single_file and limit is not None:
        raise ValueError("max_shard_size must not be given with single_file, found both")
    wishes = Wishes(
        default,
        patterns("include", include),
        patterns("exclude", exclude),
        read_rules(os.fspath(rules)) if isinstance(rules, (str, os.PathLike)) else tuple(rules),
        keep_dtype,
    )
    model = open_model(source)
    if any(is_converted(file.header) for file in model.files):
        raise ModelFileError(f"{model.path}: is quantized already, restore it before converting it")
    target = os.fspath(target)
    is_folder = _is_folder_target(model, target, single_file, limit)
    decisions = decide(model, wishes)
    files = ImportanceFiles(decisions)
    if not is_folder:
        for path in (*(file.file.path for file in model.files), *files.opened):
            check_output(path, target, no_clobber=no_clobber)
    else:
        check_output_folder(target)
        for name in model.other_files:
            check_inside(model.path, name)
    if not allow_empty:
        check_not_empty(model.path, decisions)
    made_by = {**_made_by(wishes), **calibration}
    plans = tuple(
        _file_plan(name, group, metadata, made_by, files, is_marked=_packs(decisions))
        for name, group, metadata in _layout(model, decisions, single_file, limit)
    )
    return Conversion(
        model,
        target,
        is_folder,
        wishes,
        {decision.tensor.name: decision for decision in decisions},
        plans,
        {"single_file": single_file, "max_shard_size": limit},
        files.opened,
        files.unused(),
        files.missing(),
        calibration,
    )


def _is_folder_target(model: Model, target: str, single_file: bool, limit: int | None) -> bool:
    """Tell whether the output is a folder."""
    if limit is not None:
        return True
    if not model.is_folder:
        return False
    if not target.endswith(_WEIGHTS_SUFFIX):
        return True
    if len(model.files) > 1 and not single_file:
        raise ModelFileError(
            f"{target}: must be a folder for a model of {len(model.files)} files, unless "
            "single_file joins them"
        )
    return False


def _layout(
    model: Model, decisions: Sequence[Decision], single_file: bool, limit: int | None
) -> list[tuple[str, list[Decision], dict[str, str]]]:
    """Return the output files: their names, what they hold, and the metadata they inherit."""
    if limit is not None:
        by_name = {decision.target.name: decision for decision in decisions}
        groups = split_by_size([decision.target for decision in decisions], limit) or [[]]
        return [
            (name, [by_name[entry.name] for entry in group], model.metadata)
            for name, group in zip(shard_names(len(groups)), groups, strict=True)
        ]
    if single_file or len(model.files) == 1:
        name = shard_names(1)[0] if single_file else model.files[0].name
        if not name.endswith(_WEIGHTS_SUFFIX):
            name = shard_names(1)[0]
        return [(name, list(decisions), model.metadata)]
    held: dict[str, list[Decision]] = {file.file.path: [] for file in model.files}
    for decision in decisions:
        held[decision.tensor.files[0].path].append(decision)
    files = {file.file.path: file for file in model.files}
    return [
        (files[path].name, group, files[path].header.metadata)
        for path, group in held.items()
        if group
    ]


def _packs(decisions: Sequence[Decision]) -> bool:
    """Tell whether a tensor is packed."""
    return any(decision.treatment for decision in decisions)


def _file_plan(
    name: str,
    decisions: Sequence[Decision],
    metadata: Mapping[str, str],
    made_by: Mapping[str, Any],
    importance: ImportanceFiles,
    *,
    is_marked: bool,
) -> FilePlan:
    """Return the plan of one output file."""
    steps = []
    for decision in decisions:
        treatment = decision.treatment
        if treatment is None:
            recipe = kept_recipe(decision)
        else:
            recipe = Pack(
                decision.tensor, treatment.method, treatment.options, importance.of(decision)
            )
        steps.append(Step(decision.target, recipe))
    if is_marked:
        originals = [
            (
                decision.target,
                Original(decision.tensor.dtype, decision.tensor.shape, decision.target.is_packed),
            )
            for decision in decisions
        ]
        metadata = metadata_with_record(metadata, originals, made_by)
    return FilePlan(name, tuple(steps), tuple(metadata.items()))


def _made_by(wishes: Wishes) -> dict[str, Any]:
    """Return what the record says about how the bytes were made."""
    made_by = {"version": __version__, **wishes.default.description()}
    if wishes.rules:
        made_by["rules"] = [rule.description() for rule in wishes.rules]
    return made_by


def _packed_tensor(decision: Decision, figures: Figures, file: str) -> PackedTensor:
    """Return the record of a packed tensor."""
    method = decision.treatment.method if decision.treatment else ""
    target = decision.target
    return PackedTensor(target.name, decision.tensor.shape, target.nbytes, figures, method, file)


def _kept_tensor(decision: Decision, file: str) -> KeptTensor:
    """Return the record of a tensor that is not packed."""
    tensor, target = decision.tensor, decision.target
    return KeptTensor(
        tensor.name, tensor.shape, tensor.dtype, target.dtype, target.nbytes, decision.reason, file
    )


def _remove_quantization(path: str) -> None:
    """Remove from a model's configuration the quantization that its weights no longer have."""
    config = read_object(path)
    if config.pop(_QUANTIZATION_KEY, None) is not None:
        with whole_file(path) as file:
            file.write((json.dumps(config, indent=2) + "\n").encode())


@contextlib.contextmanager
def _writer(scheduler: str | None) -> Iterator[WriteFiles | None]:
    """Return what writes files on a cluster, or None without one."""
    if scheduler is None:
        yield None
        return
    from .cluster import Cluster

    with Cluster(scheduler) as cluster:
        yield cluster.write_files
