"""What the conversions return: plain records, for programs and for the reports made of them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from .judging import Figures, snr_db


@dataclass(frozen=True)
class PackedTensor:
    """One packed tensor.

    Attributes
    ----------
    name : str
        Its name.
    shape : tuple of int
        Shape of its weights.
    nbytes : int
        Bytes that it takes in the file.
    figures : Figures
        What packing it cost.
    method : str
        The method that packed it, if that is known.
    file : str
        Name of the output file that holds it.
    """

    name: str
    shape: tuple[int, ...]
    nbytes: int
    figures: Figures
    method: str = ""
    file: str = ""

    @property
    def weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight."""
        return self.nbytes * 8 / self.weights

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio in decibels; infinite where nothing was lost."""
        return self.figures.snr_db

    @property
    def signal(self) -> float:
        """Sum of the squared weights."""
        return self.figures.signal

    @property
    def noise(self) -> float:
        """Sum of the squared errors."""
        return self.figures.noise

    @property
    def max_abs_error(self) -> float:
        """Largest absolute error."""
        return self.figures.max_abs_error

    @property
    def mse_ratio(self) -> float:
        """Mean squared error relative to that of ``grid``, on a sample of the groups."""
        return self.figures.mse_ratio


@dataclass(frozen=True)
class KeptTensor:
    """One tensor that is not packed: its dtype before and after, its bytes after, and why."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored_dtype: str
    nbytes: int
    reason: str
    file: str = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class PlannedTensor:
    """What is going to become of one tensor: `method` and its `options`, or the `reason` not to."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored_dtype: str
    nbytes: int
    file: str
    method: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    importance: bool = False
    reason: str = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each element, NaN where there is none."""
        return self.nbytes * 8 / self.size if self.size else math.nan


@dataclass(frozen=True)
class PlannedFile:
    """One output file: its name, and the bytes that it is going to have."""

    name: str
    nbytes: int


@dataclass(frozen=True)
class ConvertPlan:
    """What a conversion is going to do; nothing has been written.

    Attributes
    ----------
    tensors : tuple of PlannedTensor
        All tensors of the output.
    files : tuple of PlannedFile
        The files of weights, and their index.
    copied : tuple of str
        Names of the other files, which are copied.
    bytes_in : int
        Bytes of the input's files of weights.
    unused_importance : tuple of str
        Tensors that importance was given for and that are not packed.
    missing_importance : tuple of str
        Packed tensors that have no entry in the file of importance.
    """

    tensors: tuple[PlannedTensor, ...]
    files: tuple[PlannedFile, ...]
    copied: tuple[str, ...]
    bytes_in: int
    unused_importance: tuple[str, ...] = ()
    missing_importance: tuple[str, ...] = ()

    @property
    def bytes_out(self) -> int:
        """Number of bytes of all output files but the copied ones."""
        return sum(file.nbytes for file in self.files)

    @property
    def weights(self) -> int:
        """Number of elements of all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the output for each element in it."""
        return self.bytes_out * 8 / self.weights if self.weights else math.nan


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did.

    Attributes
    ----------
    packed : tuple of PackedTensor
        The packed tensors, in the output's order.
    kept : tuple of KeptTensor
        The others.
    bytes_in, bytes_out : int
        Bytes of the files of weights before and after.
    seconds : float
        Time that it took.
    unused_importance : tuple of str
        Tensors that importance was given for and that are not packed.
    files : tuple of PlannedFile
        The files that were written.
    copied : tuple of str
        Names of the other files, which were copied.
    missing_importance : tuple of str
        Packed tensors that have no entry in the file of importance.
    """

    packed: tuple[PackedTensor, ...]
    kept: tuple[KeptTensor, ...]
    bytes_in: int
    bytes_out: int
    seconds: float
    unused_importance: tuple[str, ...] = ()
    files: tuple[PlannedFile, ...] = ()
    copied: tuple[str, ...] = ()
    missing_importance: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Number of elements of all tensors, packed or not."""
        return sum(t.weights for t in self.packed) + sum(t.size for t in self.kept)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the output for each element in it."""
        return self.bytes_out * 8 / self.weights if self.weights else math.nan

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio of all packed tensors together, in decibels."""
        signal = sum(tensor.signal for tensor in self.packed)
        return snr_db(signal, sum(tensor.noise for tensor in self.packed))

    def table(self, *, whole: bool = False) -> str:
        """Return the report as text: packed tensors, worst first; kept ones and why; the totals.

        Parameters
        ----------
        whole : bool
            Show every tensor, not only the first ones.
        """
        from .report import convert_table

        return convert_table(self, whole=whole)

    def document(self) -> dict[str, Any]:
        """Return the report as nested data, for programs; tensors in the output's order."""
        from .report import convert_document

        return convert_document(self)


@dataclass(frozen=True)
class RestoreReport:
    """What `restore` did."""

    unpacked: int
    tensors: int
    bytes_in: int
    bytes_out: int
    seconds: float

    def document(self) -> dict[str, Any]:
        """Return the report as nested data, for programs."""
        return asdict(self)

    def table(self) -> str:
        """Return the report as text."""
        from .report import restore_table

        return restore_table(self)


@dataclass(frozen=True)
class VerifyReport:
    """What comparing a converted model with the original found.

    Attributes
    ----------
    packed : tuple of PackedTensor
        The packed tensors, with the same figures as when they were packed.
    equal : tuple of str
        Tensors that are not packed and have the same values, in whatever dtype.
    different : tuple of str
        Tensors that are not packed and have other values.
    missing, added : tuple of str
        Tensors that only the original has, or only the converted model.
    seconds : float
        Time that it took.
    """

    packed: tuple[PackedTensor, ...]
    equal: tuple[str, ...]
    different: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]
    seconds: float
    bytes_in: int = field(default=0)
    bytes_out: int = field(default=0)

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio of all packed tensors together, in decibels."""
        signal = sum(tensor.signal for tensor in self.packed)
        return snr_db(signal, sum(tensor.noise for tensor in self.packed))

    def below(self, min_snr: float) -> tuple[PackedTensor, ...]:
        """Return the packed tensors whose signal-to-noise ratio is less, in decibels."""
        return tuple(tensor for tensor in self.packed if not tensor.snr_db >= min_snr)

    @property
    def is_faithful(self) -> bool:
        """Whether every tensor of the original is there, and the unpacked ones are equal."""
        return not (self.different or self.missing or self.added)
