"""Convert a model with statistics: of the quantized stream, or of a file with hessians.

``convert`` writes tensors in the order of the files, but the stream meets them in the order of the
model, and error feedback needs whole matrices. So the packed bytes are made first, into a file
beside the target; the converter then copies them where it would have quantized, and removes the
file. The rest, from rules to shards and the report, is the converter's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from q43nl_numba import GROUP_BYTES, GROUP_SIZE, dequantize, q43nl
from q43nl_numba.calibrate.collect import DEFAULT_TOKENS, calibration_windows
from q43nl_numba.calibrate.config import ModelConfig, read_config
from q43nl_numba.calibrate.errors import CalibrationError, check_packages
from q43nl_numba.calibrate.forward import Floats, matrix_pieces
from q43nl_numba.calibrate.progress import progress_bar
from q43nl_numba.calibrate.sequential import PIECE_WEIGHTS, Matrix, calibrated_layers
from q43nl_numba.calibrate.sources import check_tensors, open_weights
from q43nl_numba.calibrate.statistics import Statistics, matrices_by_input
from q43nl_numba.calibrate.text import DEFAULT_WINDOW
from q43nl_numba.convert import ConvertReport
from q43nl_numba.convert.container import Entry, header_bytes, packed_entry
from q43nl_numba.convert.converting import Conversion, planned
from q43nl_numba.convert.job import FilePlan, Maker, Piece, Recipe, Step
from q43nl_numba.convert.judging import Judge
from q43nl_numba.convert.output import (
    OutputFile,
    check_output,
    check_output_folder,
    whole_file,
)
from q43nl_numba.convert.plan import Decision
from q43nl_numba.convert.reading import read_tensors
from q43nl_numba.convert.rules import Rule
from q43nl_numba.convert.run import OnProgress
from q43nl_numba.convert.tensors import StoredTensor, Tensor, piece_bounds

__all__ = ["convert_calibrated", "convert_with_hessians"]

#: What the file of packed bytes is called, after the target's name.
PACKED_SUFFIX = ".q43nl-packed"

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
    check_packages()
    source = os.fspath(source)
    config = _checked_config(source)
    windows = calibration_windows(source, config, text, tokens=tokens, window=window)
    job = planned(
        source, target, method, options, include=include, exclude=exclude, rules=rules,
        keep_dtype=keep_dtype, importance=None, single_file=single_file,
        max_shard_size=max_shard_size, allow_empty=False, no_clobber=no_clobber,
        calibration={
            "tokens": windows.tokens, "window": windows.length, "feedback": feedback,
            "text": windows.text.digest,
        },
    )  # fmt: skip

    def fill(pack: _Pack) -> None:
        calibrated_layers(source, windows, pack, hessians=feedback, progress=progress is not None)

    embedding = [] if config.tied else [("model.embed_tokens.weight",)]
    order = [*embedding, *matrices_by_input(config)]
    if config.tied:
        order.insert(0, order.pop())  # the output matrix is the embedding, which comes first
    return _converted(job, order, fill, no_clobber=no_clobber, progress=progress)


def convert_with_hessians(
    source: Path,
    target: Path,
    method: str = "optimal",
    *,
    hessians: Path,
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
    check_packages()
    source = os.fspath(source)
    config = _checked_config(source)
    statistics = Statistics(hessians, config)
    if not statistics.has_hessians:
        raise CalibrationError(
            f"{os.fspath(hessians)}: must have hessians, found importance alone; "
            "calibrate --hessians writes them"
        )
    job = planned(
        source, target, method, options, include=include, exclude=exclude, rules=rules,
        keep_dtype=keep_dtype, importance=None, single_file=single_file,
        max_shard_size=max_shard_size, allow_empty=False, no_clobber=no_clobber,
        calibration={"feedback": True, "hessians": os.path.basename(hessians)},
    )  # fmt: skip
    order = matrices_by_input(config)

    def fill(pack: _Pack) -> None:
        weights = open_weights(source)
        names = [name for group in order for name in group]
        with progress_bar(len(names), "matrix", shown=progress is not None) as bar:
            for group in order:
                hessian = statistics.hessian(group[0])
                for name in group:
                    for begin, rows in matrix_pieces(weights, name, PIECE_WEIGHTS):
                        pack(Matrix(name, rows, begin, statistics.importance(name), hessian))
                    bar.update()

    return _converted(job, order, fill, no_clobber=no_clobber, progress=progress)


def _checked_config(folder: str) -> ModelConfig:
    """Read the configuration of a folder and check that its tensors fit it."""
    config = read_config(folder)
    check_tensors(open_weights(folder), config)
    return config


# ---------------------------------------------------------------------------------------------
# The packed bytes, made in the model's order
# ---------------------------------------------------------------------------------------------


def _converted(
    job: Conversion,
    order: Iterable[Sequence[str]],
    fill: Callable[[_Pack], None],
    *,
    no_clobber: bool,
    progress: OnProgress | None,
) -> ConvertReport:
    """Pack what a plan packs, in the model's order, and carry out the plan with it."""
    if job.is_folder:
        check_output_folder(job.target)  # before minutes of work
    chosen = [
        job.decisions[name]
        for group in order
        for name in group
        if name in job.decisions and job.decisions[name].treatment is not None
    ]
    with _packed_file(job.target, chosen, fill) as packed:
        plans = tuple(_with_packed(plan, job.decisions, packed) for plan in job.plans)
        return replace(job, plans=plans).run(no_clobber=no_clobber, progress=progress)


@contextlib.contextmanager
def _packed_file(
    target: str, chosen: Sequence[Decision], fill: Callable[[_Pack], None]
) -> Iterator[Mapping[str, StoredTensor]]:
    """Write the packed bytes of some tensors beside the target; remove the file afterwards."""
    path = os.path.abspath(target) + PACKED_SUFFIX
    check_output(chosen[0].tensor.files[0].path if chosen else path, path)
    try:
        with whole_file(path) as output:
            entries = _placed([decision.target for decision in chosen])
            output.write(header_bytes(path, entries, {}))
            pack = _Pack(output, chosen)
            fill(pack)
            pack.check_complete()
        yield read_tensors(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _placed(entries: Iterable[Entry]) -> list[Entry]:
    """Give packed entries their bytes, one after the other."""
    placed, position = [], 0
    for entry in entries:
        placed.append(replace(entry, begin=position, end=position + entry.nbytes))
        position += entry.nbytes
    return placed


class _Pack:
    """Quantizes matrices as a plan says, appends their bytes, and returns what they decode to."""

    def __init__(self, output: OutputFile, chosen: Sequence[Decision]) -> None:
        self._output = output
        self._decisions = {decision.target.name: decision for decision in chosen}
        self._missing = {decision.target.name: decision.target.nbytes for decision in chosen}

    def __call__(self, matrix: Matrix) -> Floats | None:
        """Quantize a matrix, or some rows of one."""
        decision = self._decisions.get(matrix.name)
        if decision is None or decision.treatment is None:
            return None
        options: dict[str, Any] = dict(decision.treatment.options)
        if matrix.hessian is not None:
            options["hessian"] = matrix.hessian
        else:
            options["importance"] = matrix.importance
        try:
            packed = q43nl(matrix.weights, decision.treatment.method, **options)
        except ValueError as error:
            raise decision.tensor.error(str(error)) from error
        self._output.write(packed.data)
        self._missing[matrix.name] -= packed.nbytes
        return dequantize(packed, matrix.weights.shape)

    def check_complete(self) -> None:
        """Check that all bytes that the header announces were made."""
        wrong = [name for name, missing in self._missing.items() if missing]
        if wrong:
            raise CalibrationError(
                f"all rows of {wrong[0]!r} must be quantized, found some missing"
            )


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
        recipe = _Packed(decision.tensor, stored, treatment.method, treatment.options)
        steps.append(Step(packed_entry(stored.name, decision.tensor.shape), recipe))
    return replace(plan, steps=tuple(steps))


@dataclass(frozen=True)
class _Packed(Recipe):
    """Groups that were packed before, judged against the weights as `convert.packing.Pack` does."""

    tensor: Tensor
    packed: StoredTensor
    method: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def source_bytes(self) -> int:
        """Number of bytes of the tensor."""
        return self.tensor.nbytes

    def pieces(self) -> Sequence[Piece]:
        """Return ranges of elements."""
        return piece_bounds(self.tensor.shape)

    def load(self, piece: Piece) -> tuple[Floats, npt.NDArray[np.uint8]]:
        """Read weights and their packed groups."""
        first, last = (element // GROUP_SIZE * GROUP_BYTES for element in piece)
        return self.tensor.floats(*piece), self.packed.stored_bytes(first, last)

    def maker(self) -> Maker:
        """Return a maker that judges and copies."""
        return _Judged(self)


class _Judged(Maker):
    """Copies packed groups and measures what they cost."""

    def __init__(self, recipe: _Packed) -> None:
        options = dict(recipe.options)
        common = {key: options[key] for key in ("eps_scale", "num_threads") if key in options}
        self._judge = Judge(recipe.tensor.size, is_reference=False, **common)

    def make(self, loaded: tuple[Floats, npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        """Return the groups of a piece."""
        weights, packed = loaded
        self._judge.add(weights, packed)
        return packed

    def finding(self) -> dict[str, Any]:
        """Return the figures."""
        return asdict(self._judge.figures())
