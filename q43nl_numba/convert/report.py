"""The tables and documents that show what `convert` and `restore` did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from q43nl_numba._text import columns, count_text, number, printable, shape_text
from q43nl_numba.convert.results import ConvertReport, KeptTensor, PackedTensor, RestoreReport

MOST_ROWS = 40
"""Rows of a table that is printed in part; a model of language has hundreds of tensors."""

Row = TypeVar("Row")

_PACKED_TITLES = ("tensor", "shape", "bits/weight", "SNR dB", "MSE/grid", "max error")
_KEPT_TITLES = ("kept tensor", "shape", "type", "why it is not packed")


def convert_table(report: ConvertReport, *, whole: bool = False) -> str:
    """Return what `convert` did as text: see `ConvertReport.table`."""
    worst_first = sorted(report.packed, key=lambda tensor: tensor.snr_db)
    most = None if whole else MOST_ROWS
    packed = table_lines(_PACKED_TITLES, worst_first, _packed_cells, most)
    kept = table_lines(_KEPT_TITLES, report.kept, _kept_cells, most, left=4)
    unused = table_lines(
        ["importance not used: the tensor is not packed"],
        report.unused_importance,
        lambda name: [printable(name)],
        most,
    )
    missing = table_lines(
        ["no importance given: all weights of the tensor count the same"],
        report.missing_importance,
        lambda name: [printable(name)],
        most,
    )
    parts = [packed, kept, unused, missing, _totals(report)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def convert_document(report: ConvertReport) -> dict[str, Any]:
    """Return what `convert` did as nested data."""
    return {
        "packed": [_packed_document(tensor) for tensor in report.packed],
        "kept": [_kept_document(tensor) for tensor in report.kept],
        "unused_importance": list(report.unused_importance),
        "missing_importance": list(report.missing_importance),
        "files": [{"name": file.name, "bytes": file.nbytes} for file in report.files],
        "copied": list(report.copied),
        "total": {
            "weights": report.weights,
            "bytes_in": report.bytes_in,
            "bytes_out": report.bytes_out,
            "bits_per_weight": report.bits_per_weight,
            "snr_db": report.snr_db if report.packed else None,
            "seconds": report.seconds,
        },
    }


def restore_table(report: RestoreReport) -> str:
    """Return what `restore` did as text."""
    return (
        f"restored {report.unpacked:,} of {count_text(report.tensors, 'tensor')}, "
        f"{_bytes_line(report.bytes_in, report.bytes_out)}, {report.seconds:.1f} s"
    )


def _packed_document(tensor: PackedTensor) -> dict[str, Any]:
    """Return a packed tensor as nested data."""
    return {
        "name": tensor.name,
        "file": tensor.file,
        "shape": list(tensor.shape),
        "bytes": tensor.nbytes,
        "bits_per_weight": tensor.bits_per_weight,
        "method": tensor.method,
        "snr_db": tensor.snr_db,
        "mse_ratio": tensor.mse_ratio,
        "max_abs_error": tensor.max_abs_error,
    }


def _kept_document(tensor: KeptTensor) -> dict[str, Any]:
    """Return a tensor that is not packed as nested data."""
    return {
        "name": tensor.name,
        "file": tensor.file,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "stored_dtype": tensor.stored_dtype,
        "reason": tensor.reason,
    }


def _totals(report: ConvertReport) -> list[str]:
    """Return the lines of the totals."""
    packed = sum(tensor.weights for tensor in report.packed)
    snr = f", SNR {report.snr_db:.2f} dB" if report.packed else ""
    return [
        f"packed  {count_text(len(report.packed), 'tensor')}, {packed:,} weights{snr}",
        f"kept    {count_text(len(report.kept), 'tensor')}{_reasons(report)}",
        f"total   {report.weights:,} weights, {_bytes_line(report.bytes_in, report.bytes_out)}, "
        f"{number(report.bits_per_weight)} bits per weight, {report.seconds:.1f} s",
    ]


def _reasons(report: ConvertReport) -> str:
    """Return why tensors are kept, counted."""
    counts = Counter(tensor.reason for tensor in report.kept)
    parts = [f"{count} {reason}" for reason, count in counts.most_common()]
    cast = Counter(t.stored_dtype for t in report.kept if t.stored_dtype != t.dtype)
    parts += [f"{count} of them cast to {dtype}" for dtype, count in cast.items()]
    return ": " + ", ".join(parts) if parts else ""


def _packed_cells(tensor: PackedTensor) -> tuple[str, ...]:
    """Return the cells of a packed tensor."""
    return (
        printable(tensor.name),
        shape_text(tensor.shape),
        number(tensor.bits_per_weight),
        number(tensor.snr_db),
        number(tensor.mse_ratio, 3),
        f"{tensor.max_abs_error:.3g}",
    )


def _kept_cells(tensor: KeptTensor) -> tuple[str, ...]:
    """Return the cells of a tensor that is not packed."""
    before, after = printable(tensor.dtype), printable(tensor.stored_dtype)
    dtype = before if before == after else f"{before} -> {after}"
    return (printable(tensor.name), shape_text(tensor.shape), dtype, tensor.reason)


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


def _bytes_line(bytes_in: int, bytes_out: int) -> str:
    return f"{bytes_in:,} -> {bytes_out:,} bytes ({bytes_out / bytes_in:.1%})"
