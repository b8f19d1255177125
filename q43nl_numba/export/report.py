"""What export and restore did, and the tables that show it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from q43nl_numba._text import count_text, number, printable, shape_text
from q43nl_numba.convert.judging import snr_db
from q43nl_numba.convert.report import MOST_ROWS, table_lines
from q43nl_numba.convert.results import PackedTensor

_TITLES = ("tensor", "shape", "bits/weight", "SNR dB", "MSE ratio")


class ExportWarning(UserWarning):
    """Something of the model that the engine's file cannot carry."""


@dataclass(frozen=True)
class ExportReport:
    """What `export_model` did.

    Attributes
    ----------
    path : str
        The file that was written.
    class_name, arch : str
        The architecture, by transformers' name and by the engine's.
    word : str
        The format of the matrices, as the file's metadata has it.
    packed : tuple of PackedTensor
        The matrices that the quantizer made, in the order of the file, under the engine's names.
    matrices, vectors : int
        Number of matrices, and of float32 tensors (norms and biases).
    weights : int
        Number of weights in all of them.
    tokens : int
        Number of tokens that have a piece.
    tied : bool
        Whether the engine multiplies with the embedding at the output.
    bytes_in, bytes_out : int
        Size of the folder's weight files and of the file.
    seconds : float
        Duration.
    notes : tuple of str
        What the engine will do otherwise than the model, or what was left out.
    """

    path: str
    class_name: str
    arch: str
    word: str
    packed: tuple[PackedTensor, ...]
    matrices: int
    vectors: int
    weights: int
    tokens: int
    tied: bool
    bytes_in: int
    bytes_out: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole file, tokenizer and all, for each weight."""
        return self.bytes_out * 8 / self.weights if self.weights else math.nan

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio of all packed matrices together, in decibels; NaN without any."""
        if not self.packed:
            return math.nan
        signal = sum(tensor.signal for tensor in self.packed)
        return snr_db(signal, sum(tensor.noise for tensor in self.packed))

    def document(self) -> dict[str, Any]:
        """Return the report as nested data, for programs; packed matrices in the file's order."""
        return {
            "path": self.path,
            "class_name": self.class_name,
            "arch": self.arch,
            "dtype": self.word,
            "tokens": self.tokens,
            "tied": self.tied,
            "packed": [
                {
                    "name": tensor.name,
                    "shape": list(tensor.shape),
                    "bytes": tensor.nbytes,
                    "bits_per_weight": tensor.bits_per_weight,
                    "snr_db": tensor.snr_db,
                    "mse_ratio": tensor.mse_ratio,
                    "max_abs_error": tensor.max_abs_error,
                    "method": tensor.method,
                }
                for tensor in self.packed
            ],
            "matrices": self.matrices,
            "vectors": self.vectors,
            "notes": list(self.notes),
            "total": {
                "weights": self.weights,
                "bytes_in": self.bytes_in,
                "bytes_out": self.bytes_out,
                "bits_per_weight": self.bits_per_weight,
                "snr_db": self.snr_db,
                "seconds": self.seconds,
            },
        }

    def table(self, *, whole: bool = False) -> str:
        """Return the report as text: the matrices, worst first, the totals, the notes.

        Parameters
        ----------
        whole : bool
            Show every matrix, not only the first `MOST_ROWS`.
        """
        worst_first = sorted(self.packed, key=lambda tensor: tensor.snr_db)
        table = table_lines(_TITLES, worst_first, _cells, None if whole else MOST_ROWS)
        tied = "output tied to the embedding" if self.tied else "output of its own"
        snr = f", SNR {number(self.snr_db)} dB" if self.packed else ""
        return "\n".join(
            [
                *table,
                *([""] if table else []),
                f"model   {self.class_name} as {self.arch}, {self.tokens:,} tokens, {tied}",
                f"stored  {self.matrices:,} matrices in {self.word}{snr}, "
                f"{count_text(self.vectors, 'vector')} in float32",
                f"total   {self.weights:,} weights, {self.bytes_in:,} -> {self.bytes_out:,} bytes, "
                f"{number(self.bits_per_weight)} bits per weight, {self.seconds:.1f} s",
                *note_lines(self.notes),
            ]
        )


@dataclass(frozen=True)
class FolderReport:
    """What `restore_model` did.

    Attributes
    ----------
    path : str
        The folder that was written.
    class_name, word : str
        The architecture by transformers' name, and the format of the file's matrices.
    tensors, weights : int
        Number of tensors in the folder, and of weights in them.
    files : tuple of str
        Names of the files that were written.
    bytes_in, bytes_out : int
        Size of the file and of the folder's weights.
    seconds : float
        Duration.
    notes : tuple of str
        What the file does not tell, and what stands in its place.
    """

    path: str
    class_name: str
    word: str
    tensors: int
    weights: int
    files: tuple[str, ...]
    bytes_in: int
    bytes_out: int
    seconds: float
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the report as nested data, for programs."""
        return asdict(self)

    def table(self) -> str:
        """Return the report as text."""
        return "\n".join(
            [
                f"model   {self.class_name} from {self.word}, "
                f"{count_text(self.tensors, 'tensor')}, {self.weights:,} weights",
                f"total   {self.bytes_in:,} -> {self.bytes_out:,} bytes, {self.seconds:.1f} s",
                f"files   {', '.join(self.files)}",
                *note_lines(self.notes),
            ]
        )


def _cells(tensor: PackedTensor) -> tuple[str, ...]:
    """Return the cells of a matrix."""
    return (
        printable(tensor.name),
        shape_text(tensor.shape),
        number(tensor.bits_per_weight),
        number(tensor.snr_db),
        number(tensor.mse_ratio, 3),
    )


def note_lines(notes: Sequence[str]) -> list[str]:
    """Return a line for each note."""
    return [f"note    {printable(note)}" for note in notes]
