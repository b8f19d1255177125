"""Pack a model's matrices with statistics, in the model's order, into a file of packed bytes.

A converter writes tensors in the order of the files and a piece at a time. The stream meets them in
the order of the model, and error feedback wants whole matrices. So the packed bytes are made
first, into a file beside the target, and whoever writes the target copies them from there.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from .. import GROUP_SIZE, dequantize, q43nl
from ..convert.container import Entry, header_bytes, packed_entry
from ..convert.errors import tensor_error
from ..convert.output import OutputFile, whole_file
from ..convert.reading import read_tensors
from ..convert.rules import Treatment
from ..convert.tensors import StoredTensor
from ..export.tensors import IDENTITY, Affine
from .collect import DEFAULT_TOKENS, calibration_windows
from .config import ModelConfig, expected_shapes, read_config
from .errors import CalibrationError, check_packages
from .forward import Floats, matrix_pieces
from .progress import progress_bar
from .sequential import PIECE_WEIGHTS, Matrix, calibrated_layers
from .sources import check_tensors, open_weights
from .statistics import Statistics, matrices_by_input, shrunk
from .text import DEFAULT_WINDOW, Windows

__all__ = ["CalibrationText", "HessianFile", "Provider", "feedback_options"]

#: What the file of packed bytes is called, after the target's name.
PACKED_SUFFIX = ".q43nl-packed"

Path = str | os.PathLike[str]


def feedback_options(damping: float | None, sweeps: int | None) -> dict[str, Any]:
    """Return those arguments of `q43nl` for matrices with a hessian that are given.

    Raises
    ------
    ValueError, TypeError
        As `q43nl` does, before any work.
    """
    given = {"damping": damping, "sweeps": sweeps}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    weights, hessian = np.empty((0, GROUP_SIZE), np.float32), np.eye(GROUP_SIZE, dtype=np.float32)
    q43nl(weights, "grid", hessian=hessian, **options)
    return options


class Provider(ABC):
    """Packs matrices with statistics of some kind.

    Parameters
    ----------
    folder : path
        A Hugging Face model folder.
    damping, sweeps : float and int, or None
        As for `q43nl`, for matrices with a hessian; None for its defaults.

    Raises
    ------
    OSError, CalibrationError, ModelFileError, ModuleNotFoundError
        As `calibrate`.
    ValueError, TypeError
        If damping or sweeps are out of range.
    """

    def __init__(
        self, folder: Path, *, damping: float | None = None, sweeps: int | None = None
    ) -> None:
        self._feedback_options = feedback_options(damping, sweeps)
        check_packages()
        self.folder = os.fspath(folder)
        self.config: ModelConfig = read_config(folder)
        self.source = open_weights(folder)
        check_tensors(self.source, self.config)

    @property
    @abstractmethod
    def description(self) -> Mapping[str, Any]:
        """What decides about the bytes beside the treatments, as JSON has it."""

    @contextlib.contextmanager
    def packed(
        self,
        target: Path,
        treatments: Mapping[str, Treatment],
        *,
        affines: Mapping[str, Affine] = MappingProxyType({}),
        progress: bool = False,
    ) -> Iterator[Mapping[str, StoredTensor]]:
        """Return the packed bytes of matrices, which can be read until the block ends.

        Parameters
        ----------
        target : path
            The file with the bytes is put beside it, and removed at the end.
        treatments : mapping of str to Treatment
            How each matrix is packed. Names that have no statistics are left out of the result.
        affines : mapping of str to Affine
            What the packed bytes are to hold of some matrices instead of the weights themselves.
            The model goes on with the weights that the decoded values stand for.
        progress : bool
            Show a progress bar on stderr, if that is a terminal.
        """
        path = os.path.abspath(target) + PACKED_SUFFIX
        shapes = expected_shapes(self.config)
        chosen = [name for name in self._order() if name in treatments]
        entries = _placed(packed_entry(name, shapes[name]) for name in chosen)
        try:
            with whole_file(path) as output:
                output.write(header_bytes(path, entries, {}))
                pack = _Pack(
                    self.folder,
                    output,
                    {name: treatments[name] for name in chosen},
                    affines,
                    self._feedback_options,
                )
                self._fill(pack, progress)
                pack.check_complete(entries)
            yield read_tensors(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    @abstractmethod
    def _order(self) -> Sequence[str]:
        """Return the matrices that are packed, in the order in which they are."""

    @abstractmethod
    def _fill(self, pack: Callable[[Matrix], Floats | None], progress: bool) -> None:
        """Give every matrix to a function that packs it."""


class CalibrationText(Provider):
    """Statistics of the stream of a text that is quantized already.

    Parameters
    ----------
    folder : path
        A Hugging Face model folder with its tokenizer.
    text : sequence of path, optional
        Text files in UTF-8. Without them a small built-in text is used.
    tokens, window : int
        As for `calibrate`.
    feedback : bool
        Whether matrices are packed with hessians; otherwise with importance.
    damping, sweeps : float and int, or None
        As for `Provider`; None without feedback.
    """

    def __init__(
        self,
        folder: Path,
        text: Sequence[Path] | None = None,
        *,
        tokens: int = DEFAULT_TOKENS,
        window: int = DEFAULT_WINDOW,
        feedback: bool = True,
        damping: float | None = None,
        sweeps: int | None = None,
    ) -> None:
        for name, given in (("damping", damping), ("sweeps", sweeps)):
            if given is not None and not feedback:
                raise ValueError(f"{name} must be None without feedback, found {given!r}")
        super().__init__(folder, damping=damping, sweeps=sweeps)
        self._feedback = feedback
        self._windows: Windows = calibration_windows(
            self.folder, self.config, text, tokens=tokens, window=window
        )

    @property
    def description(self) -> Mapping[str, Any]:
        """The text and how much of it."""
        return {
            "tokens": self._windows.tokens,
            "window": self._windows.length,
            "text": self._windows.text.digest,
            "feedback": self._feedback,
            **self._feedback_options,
        }

    def _order(self) -> Sequence[str]:
        """Return the embedding, then the layers, then the output matrix if it is another one."""
        embedding = "model.embed_tokens.weight"
        return [embedding, *(name for name in _ordered(self.config) if name != embedding)]

    def _fill(self, pack: Callable[[Matrix], Floats | None], progress: bool) -> None:
        calibrated_layers(
            self.folder, self._windows, pack, hessians=self._feedback, progress=progress
        )


class HessianFile(Provider):
    """Hessians that `calibrate` wrote.

    Parameters
    ----------
    folder : path
        A Hugging Face model folder.
    path : path
        What `calibrate` wrote for it, with hessians.
    damping, sweeps : float and int, or None
        As for `Provider`.

    Raises
    ------
    CalibrationError
        If the statistics are another model's, or have no hessians.
    """

    def __init__(
        self,
        folder: Path,
        path: Path,
        *,
        damping: float | None = None,
        sweeps: int | None = None,
    ) -> None:
        super().__init__(folder, damping=damping, sweeps=sweeps)
        self._path = os.fspath(path)
        self._statistics = Statistics(path, self.config)
        if not self._statistics.has_hessians:
            raise CalibrationError(
                f"{self._path}: must have hessians, found importance alone; "
                "calibrate --hessians writes them"
            )

    @property
    def description(self) -> Mapping[str, Any]:
        """The file's name."""
        name = os.path.basename(self._path)
        return {"hessians": name, "feedback": True, **self._feedback_options}

    def _order(self) -> Sequence[str]:
        return _ordered(self.config)

    def _fill(self, pack: Callable[[Matrix], Floats | None], progress: bool) -> None:
        groups = matrices_by_input(self.config)
        with progress_bar(len(self._order()), "matrix", shown=progress) as bar:
            for group in groups:
                hessian = self._statistics.hessian(group[0])
                if hessian is not None:
                    hessian = shrunk(hessian, self._statistics.tokens)
                for name in group:
                    importance = self._statistics.importance(name)
                    for begin, rows in matrix_pieces(self.source, name, PIECE_WEIGHTS):
                        pack(Matrix(name, rows, rows, begin, importance, hessian))
                    bar.update()


def _ordered(config: ModelConfig) -> list[str]:
    return [name for group in matrices_by_input(config) for name in group]


def _placed(entries: Iterable[Entry]) -> list[Entry]:
    """Give packed entries their bytes, one after the other."""
    placed, position = [], 0
    for entry in entries:
        placed.append(replace(entry, begin=position, end=position + entry.nbytes))
        position += entry.nbytes
    return placed


class _Pack:
    """Quantizes matrices, appends their bytes to a file, and returns what they decode to."""

    def __init__(
        self,
        folder: str,
        output: OutputFile,
        treatments: Mapping[str, Treatment],
        affines: Mapping[str, Affine],
        feedback_options: Mapping[str, Any],
    ) -> None:
        self._folder = folder
        self._output = output
        self._treatments = treatments
        self._affines = affines
        self._feedback_options = feedback_options
        self._written = dict.fromkeys(treatments, 0)

    def __call__(self, matrix: Matrix) -> Floats | None:
        """Quantize a matrix, or some rows of one; return None for one that is kept."""
        treatment = self._treatments.get(matrix.name)
        if treatment is None:
            return None
        options: dict[str, Any] = dict(treatment.options)
        if matrix.hessian is None:
            options["importance"] = matrix.importance
        else:
            options |= {"hessian": matrix.hessian, **self._feedback_options}
        affine = self._affines.get(matrix.name, IDENTITY)
        try:
            packed = q43nl(affine.to_engine(matrix.target), treatment.method, **options)
        except ValueError as error:
            raise tensor_error(self._folder, matrix.name, str(error)) from error
        self._output.write(packed.data)
        self._written[matrix.name] += packed.nbytes
        return affine.from_engine(dequantize(packed, matrix.weights.shape))

    def check_complete(self, entries: Iterable[Entry]) -> None:
        """Check that all bytes that the header announces were made."""
        for entry in entries:
            if self._written[entry.name] != entry.nbytes:
                raise CalibrationError(
                    f"{entry.name!r} must have {entry.nbytes} packed bytes, "
                    f"found {self._written[entry.name]}"
                )
