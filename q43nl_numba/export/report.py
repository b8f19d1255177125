"""What export and restore did, and the tables that show it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from q43nl_numba._text import count_text, number, printable, shape_text
from q43nl_numba.convert.report import MOST_ROWS, PackedTensor, snr_db, table_lines

_TITLES = ("tensor", "shape", "bits/weight", "SNR dB")


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
    matrices : tuple of PackedTensor
        The matrices in the order of the file, under the engine's names, with their errors.
    vectors : int
        Number of float32 tensors (norms and biases).
    vector_weights : int
        Number of weights in them.
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
    matrices: tuple[PackedTensor, ...]
    vectors: int
    vector_weights: int
    tokens: int
    tied: bool
    bytes_in: int
    bytes_out: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Number of weights in the file."""
        return sum(tensor.weights for tensor in self.matrices) + self.vector_weights

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole file, tokenizer and all, for each weight."""
        return self.bytes_out * 8 / self.weights if self.weights else math.nan

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio of all matrices together, in decibels."""
        signal = sum(tensor.signal for tensor in self.matrices)
        return snr_db(signal, sum(tensor.noise for tensor in self.matrices))

    def document(self) -> dict[str, Any]:
        """Return the report as nested data, for programs; matrices in the file's order."""
        return {
            "path": self.path,
            "class_name": self.class_name,
            "arch": self.arch,
            "dtype": self.word,
            "tokens": self.tokens,
            "tied": self.tied,
            "matrices": [
                {
                    "name": tensor.name,
                    "shape": list(tensor.shape),
                    "bytes": tensor.nbytes,
                    "bits_per_weight": tensor.bits_per_weight,
                    "snr_db": tensor.snr_db,
                }
                for tensor in self.matrices
            ],
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
        worst_first = sorted(self.matrices, key=lambda tensor: tensor.snr_db)
        tied = "output tied to the embedding" if self.tied else "output of its own"
        return "\n".join(
            [
                *table_lines(_TITLES, worst_first, _cells, None if whole else MOST_ROWS),
                "",
                f"model   {self.class_name} as {self.arch}, {self.tokens:,} tokens, {tied}",
                f"stored  {len(self.matrices):,} matrices in {self.word}, "
                f"SNR {number(self.snr_db)} dB, {count_text(self.vectors, 'vector')} in float32",
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
                f"model   {self.class_name} from {self.word}, {count_text(self.tensors, 'tensor')}, "
                f"{self.weights:,} weights",
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
    )


def note_lines(notes: Sequence[str]) -> list[str]:
    """Return a line for each note."""
    return [f"note    {printable(note)}" for note in notes]
