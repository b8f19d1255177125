"""What convert and restore did, and the tables that show it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from q43nl_numba.convert.plan import Step


@dataclass(frozen=True)
class PackedTensor:
    """One packed tensor: its shape, its bytes, and the energies of its weights and their errors."""

    name: str
    shape: tuple[int, ...]
    nbytes: int
    signal: float
    noise: float

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
        return snr_db(self.signal, self.noise)


@dataclass(frozen=True)
class ConvertReport:
    """What `convert` did: the packed tensors, the steps of the kept ones, and the totals.

    `unused_importance` names the tensors that importance was given for and that are not packed.
    """

    packed: tuple[PackedTensor, ...]
    kept: tuple[Step, ...]
    bytes_in: int
    bytes_out: int
    seconds: float
    unused_importance: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """Number of elements of all tensors, packed or not."""
        kept = sum(step.source.size for step in self.kept)
        return sum(tensor.weights for tensor in self.packed) + kept

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole output file for each element in it."""
        return self.bytes_out * 8 / self.weights if self.weights else math.nan

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio of all packed tensors together, in decibels."""
        signal = sum(tensor.signal for tensor in self.packed)
        return snr_db(signal, sum(tensor.noise for tensor in self.packed))

    def table(self) -> str:
        """Return the report as text: the packed tensors, worst first, then the totals."""
        worst_first = sorted(self.packed, key=lambda tensor: tensor.snr_db)
        rows = [
            (
                printable(tensor.name),
                shape_text(tensor.shape),
                f"{tensor.bits_per_weight:.2f}",
                f"{tensor.snr_db:.2f}",
            )
            for tensor in worst_first
        ]
        lines = columns(("tensor", "shape", "bits/weight", "SNR dB"), rows) if rows else []
        return "\n".join([*lines, *([""] if lines else []), *self._totals()])

    def _totals(self) -> list[str]:
        packed = sum(tensor.weights for tensor in self.packed)
        snr = f", SNR {self.snr_db:.2f} dB" if self.packed else ""
        return [
            f"packed  {_tensors(len(self.packed))}, {packed:,} weights{snr}",
            f"kept    {_tensors(len(self.kept))}{self._reasons()}",
            f"total   {self.weights:,} weights, {_bytes_line(self.bytes_in, self.bytes_out)}, "
            f"{number(self.bits_per_weight)} bits per weight, {self.seconds:.1f} s",
        ]

    def _reasons(self) -> str:
        counts = Counter(step.reason for step in self.kept)
        parts = [f"{count} {reason}" for reason, count in counts.most_common()]
        cast = Counter(step.target.dtype for step in self.kept if not step.same_bytes)
        parts += [f"{count} of them cast to {dtype}" for dtype, count in cast.items()]
        return ": " + ", ".join(parts) if parts else ""


@dataclass(frozen=True)
class RestoreReport:
    """What `restore` did."""

    unpacked: int
    tensors: int
    bytes_in: int
    bytes_out: int
    seconds: float

    def table(self) -> str:
        """Return the report as text."""
        return (
            f"restored {self.unpacked} of {_tensors(self.tensors)}, "
            f"{_bytes_line(self.bytes_in, self.bytes_out)}, {self.seconds:.1f} s"
        )


def snr_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise).

    >>> snr_db(100.0, 1.0), snr_db(1.0, 0.0)
    (20.0, inf)
    """
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out a table: the first two columns to the left, numbers to the right.

    >>> columns(("tensor", "shape", "bytes"), [("a", "4x64", "152")])
    ['tensor  shape  bytes', 'a       4x64     152']
    """
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in (titles, *rows)
    ]


def printable(text: str) -> str:
    r"""Escape what would disturb a terminal or break a line.

    >>> printable("layer\x1b[2J")
    'layer\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as people write it.

    >>> shape_text((8, 4, 64)), shape_text(())
    ('8x4x64', 'scalar')
    """
    return "x".join(map(str, shape)) or "scalar"


def number(value: float) -> str:
    """Return a number with two decimals, or a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.2f}"


def _tensors(count: int) -> str:
    return f"{count} tensor" if count == 1 else f"{count} tensors"


def _bytes_line(bytes_in: int, bytes_out: int) -> str:
    return f"{bytes_in:,} -> {bytes_out:,} bytes ({bytes_out / bytes_in:.1%})"
