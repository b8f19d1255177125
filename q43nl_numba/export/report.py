"""What export and restore did, and the tables that show it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .._text import count_text, number, printable, shape_text
from ..convert.report import MOST_ROWS, table_lines
from ..convert.results import ConvertReport, PackedTensor

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
    tokens : int
        Number of tokens that have a piece.
    tied : bool
        Whether the engine multiplies with the embedding at the output.
    conversion : ConvertReport
        The matrices that the quantizer made, with their errors, and the other tensors; under the
        engine's names, in the order of the file.
    notes : tuple of str
        What the engine will do otherwise than the model, or what was left out.
    """

    path: str
    class_name: str
    arch: str
    word: str
    tokens: int
    tied: bool
    conversion: ConvertReport
    notes: tuple[str, ...] = ()

    @property
    def packed(self) -> tuple[PackedTensor, ...]:
        """The matrices that the quantizer made."""
        return self.conversion.packed

    @property
    def weights(self) -> int:
        """Number of weights in the file."""
        return self.conversion.weights

    @property
    def bytes_in(self) -> int:
        """Size of the folder's files of weights."""
        return self.conversion.bytes_in

    @property
    def bytes_out(self) -> int:
        """Size of the file."""
        return self.conversion.bytes_out

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole file, tokenizer and all, for each weight."""
        return self.conversion.bits_per_weight

    @property
    def seconds(self) -> float:
        """Time that it took."""
        return self.conversion.seconds

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio of all packed matrices together, in decibels; NaN without any."""
        return self.conversion.snr_db if self.packed else math.nan

    def document(self) -> dict[str, Any]:
        """Return the report as nested data, for programs; tensors in the file's order."""
        return {
            "path": self.path,
            "class_name": self.class_name,
            "arch": self.arch,
            "dtype": self.word,
            "tokens": self.tokens,
            "tied": self.tied,
            "notes": list(self.notes),
            **self.conversion.document(),
        }

    def table(self, *, whole: bool = False) -> str:
        """Return the report as text: the packed matrices, worst first, the totals, the notes.

        Parameters
        ----------
        whole : bool
            Show every matrix, not only the first `MOST_ROWS`.
        """
        worst_first = sorted(self.packed, key=lambda tensor: tensor.snr_db)
        table = table_lines(_TITLES, worst_first, _cells, None if whole else MOST_ROWS)
        tied = "output tied to the embedding" if self.tied else "output of its own"
        return "\n".join(
            [
                *table,
                *([""] if table else []),
                f"model   {self.class_name} as {self.arch}, {self.tokens:,} tokens, {tied}",
                f"stored  {self._stored()}",
                f"total   {self.weights:,} weights, {self.bytes_in:,} -> {self.bytes_out:,} bytes, "
                f"{number(self.bits_per_weight)} bits per weight, {self.seconds:.1f} s",
                *note_lines(self.notes),
            ]
        )

    def _stored(self) -> str:
        """Return how many tensors are stored in which way."""
        vectors = sum(len(tensor.shape) == 1 for tensor in self.conversion.kept)
        matrices = len(self.packed) + len(self.conversion.kept) - vectors
        snr = f", SNR {number(self.snr_db)} dB" if self.packed else ""
        return (
            f"{matrices:,} matrices in {self.word}{snr}, {count_text(vectors, 'vector')} in float32"
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
