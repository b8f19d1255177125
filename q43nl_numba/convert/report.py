"""What convert and restore did, and the tables that show it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from q43nl_numba._text import columns, count_text, number, printable, shape_text
from q43nl_numba.convert.plan import Step

MOST_ROWS = 40
"""Rows of a table that is printed in part; a model of language has hundreds of tensors."""

Row = TypeVar("Row")


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

    def table(self, *, whole: bool = False) -> str:
        """Return the report as text: packed tensors, worst first; kept ones and why; the totals.

        Parameters
        ----------
        whole : bool
            Show every tensor, not only the first `MOST_ROWS` packed and as many kept ones.
        """
        worst_first = sorted(self.packed, key=lambda tensor: tensor.snr_db)
        most = None if whole else MOST_ROWS
        packed = table_lines(_PACKED_TITLES, worst_first, _packed_cells, most)
        kept = table_lines(_KEPT_TITLES, self.kept, _kept_cells, most, left=4)
        unused = table_lines(
            ["importance not used: the tensor is not packed"],
            self.unused_importance,
            lambda name: [printable(name)],
            most,
        )
        parts = [packed, kept, unused, self._totals()]
        return "\n\n".join("\n".join(lines) for lines in parts if lines)

    def document(self) -> dict[str, Any]:
        """Return the report as nested data, for programs; tensors in the file's order."""
        return {
            "packed": [
                {
                    "name": tensor.name,
                    "shape": list(tensor.shape),
                    "bytes": tensor.nbytes,
                    "bits_per_weight": tensor.bits_per_weight,
                    "snr_db": tensor.snr_db,
                }
                for tensor in self.packed
            ],
            "kept": [
                {
                    "name": step.source.name,
                    "shape": list(step.source.shape),
                    "dtype": step.source.dtype,
                    "stored_dtype": step.target.dtype,
                    "reason": step.reason,
                }
                for step in self.kept
            ],
            "unused_importance": list(self.unused_importance),
            "total": {
                "weights": self.weights,
                "bytes_in": self.bytes_in,
                "bytes_out": self.bytes_out,
                "bits_per_weight": self.bits_per_weight,
                "snr_db": self.snr_db if self.packed else None,
                "seconds": self.seconds,
            },
        }

    def _totals(self) -> list[str]:
        packed = sum(tensor.weights for tensor in self.packed)
        snr = f", SNR {self.snr_db:.2f} dB" if self.packed else ""
        return [
            f"packed  {count_text(len(self.packed), 'tensor')}, {packed:,} weights{snr}",
            f"kept    {count_text(len(self.kept), 'tensor')}{self._reasons()}",
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

    def document(self) -> dict[str, Any]:
        """Return the report as nested data, for programs."""
        return asdict(self)

    def table(self) -> str:
        """Return the report as text."""
        return (
            f"restored {self.unpacked:,} of {count_text(self.tensors, 'tensor')}, "
            f"{_bytes_line(self.bytes_in, self.bytes_out)}, {self.seconds:.1f} s"
        )


_PACKED_TITLES = ("tensor", "shape", "bits/weight", "SNR dB")
_KEPT_TITLES = ("kept tensor", "shape", "type", "why it is not packed")


def _packed_cells(tensor: PackedTensor) -> tuple[str, ...]:
    """Return the cells of a packed tensor."""
    return (
        printable(tensor.name),
        shape_text(tensor.shape),
        f"{tensor.bits_per_weight:.2f}",
        f"{tensor.snr_db:.2f}",
    )


def _kept_cells(step: Step) -> tuple[str, ...]:
    """Return the cells of a tensor that is not packed."""
    before, after = printable(step.source.dtype), printable(step.target.dtype)
    dtype = before if step.same_bytes else f"{before} -> {after}"
    return (printable(step.source.name), shape_text(step.source.shape), dtype, step.reason)


def table_lines(
    titles: Sequence[str],
    rows: Sequence[Row],
    cells: Callable[[Row], Sequence[str]],
    most: int | None,
    left: int = 2,
) -> list[str]:
    """Return the lines of a table of at most so many rows, and one that counts the others.

    >>> table_lines(["n"], range(1000), lambda n: [str(n)], most=2)
    ['n', '0', '1', '... and 998 more (--all shows them)']
    """
    if not rows:
        return []
    shown = rows[:most]
    lines = columns(titles, [cells(row) for row in shown], left)
    more = len(rows) - len(shown)
    return [*lines, f"... and {more:,} more (--all shows them)"] if more else lines


def snr_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise).

    >>> snr_db(100.0, 1.0), snr_db(1.0, 0.0)
    (20.0, inf)
    """
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _bytes_line(bytes_in: int, bytes_out: int) -> str:
    return f"{bytes_in:,} -> {bytes_out:,} bytes ({bytes_out / bytes_in:.1%})"
