"""What plans, conversions and comparisons look like as text, as data for programs, as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from .._text import columns, count_text, json_text, number, printable, shape_text
from .errors import ModelFileError
from .results import (
    ConvertPlan,
    ConvertReport,
    KeptTensor,
    PackedTensor,
    PlannedFile,
    PlannedTensor,
    RestoreReport,
    VerifyReport,
)

MOST_ROWS: Final = 40
"""Rows of a table that is printed in part; a language model has hundreds of tensors."""

Row = TypeVar("Row")

_PACKED_TITLES: Final = ("tensor", "shape", "bits/weight", "SNR dB", "MSE ratio", "largest error")
_KEPT_TITLES: Final = ("kept tensor", "shape", "type", "why it is not packed")
_PLAN_TITLES: Final = ("tensor", "shape", "type", "stored as", "bytes", "bits/weight", "why")
_FILE_TITLES: Final = ("file", "bytes")
_NO_IMPORTANCE: Final = "no importance given: all weights of the tensor count the same"


# Text -------------------------------------------------------------------------------------------


def convert_table(report: ConvertReport, *, whole: bool = False) -> str:
    """Return what a conversion did as text: see `ConvertReport.table`."""
    most = None if whole else MOST_ROWS
    return _text(
        _packed_lines(report.packed, most),
        table_lines(_KEPT_TITLES, report.kept, _kept_cells, most, left=4),
        _names("importance not used: the tensor is not packed", report.unused_importance, most),
        _names(_NO_IMPORTANCE, report.missing_importance, most),
        _convert_totals(report),
    )


def plan_table(plan: ConvertPlan) -> str:
    """Return what a conversion is going to do as text: every tensor, the files, the totals."""
    packed = [tensor for tensor in plan.tensors if not tensor.reason]
    return _text(
        table_lines(_PLAN_TITLES, plan.tensors, _plan_cells, None, left=4),
        table_lines(_FILE_TITLES, plan.files, _file_cells, None, left=1),
        _names("copied", plan.copied, None),
        _names("importance not used: the tensor is not packed", plan.unused_importance, None),
        _names(_NO_IMPORTANCE, plan.missing_importance, None),
        [
            f"to pack  {count_text(len(packed), 'tensor')}",
            f"to keep  {count_text(len(plan.tensors) - len(packed), 'tensor')}"
            f"{_reasons(plan.tensors)}",
            f"total    {plan.weights:,} weights, {_sizes(plan.bytes_in, plan.bytes_out)}, "
            f"{number(plan.bits_per_weight)} bits per weight; nothing was written",
        ],
    )


def restore_table(report: RestoreReport) -> str:
    """Return what `restore` did as text."""
    return (
        f"restored {report.unpacked:,} of {count_text(report.tensors, 'tensor')}, "
        f"{_sizes(report.bytes_in, report.bytes_out)}, {report.seconds:.1f} s"
    )


def verify_table(report: VerifyReport, *, whole: bool = False) -> str:
    """Return what comparing two models found as text: packed tensors, worst first; the totals.

    Parameters
    ----------
    report : VerifyReport
        The comparison.
    whole : bool
        Show every tensor, not only the first ones.
    """
    most = None if whole else MOST_ROWS
    packed = sum(tensor.weights for tensor in report.packed)
    snr = f", SNR {report.snr_db:.2f} dB" if report.packed else ""
    return _text(
        _packed_lines(report.packed, most),
        _names("different values", report.different, most),
        _names("missing from the converted model", report.missing, most),
        _names("only in the converted model", report.added, most),
        [
            f"packed  {count_text(len(report.packed), 'tensor')}, {packed:,} weights{snr}",
            f"equal   {count_text(len(report.equal), 'tensor')}",
            f"total   {_sizes(report.bytes_in, report.bytes_out)}, {report.seconds:.1f} s",
        ],
    )


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


def _text(*parts: Sequence[str]) -> str:
    """Return blocks of lines with a blank line between them; empty ones are left out."""
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _names(title: str, names: Sequence[str], most: int | None) -> list[str]:
    """Return the lines of a list of names."""
    return table_lines([title], names, lambda name: [printable(name)], most)


def _packed_lines(packed: Iterable[PackedTensor], most: int | None) -> list[str]:
    """Return the table of packed tensors, worst first."""
    worst_first = sorted(packed, key=lambda tensor: tensor.snr_db)
    return table_lines(_PACKED_TITLES, worst_first, _packed_cells, most)


def _packed_cells(tensor: PackedTensor) -> tuple[str, ...]:
    """Return the cells of a packed tensor."""
    return (
        printable(tensor.name),
        shape_text(tensor.shape),
        number(tensor.bits_per_weight),
        number(tensor.snr_db),
        number(tensor.mse_ratio, 4),
        f"{tensor.max_abs_error:#.3g}",
    )


def _kept_cells(tensor: KeptTensor) -> tuple[str, ...]:
    """Return the cells of a tensor that is not packed."""
    before, after = printable(tensor.dtype), printable(tensor.stored_dtype)
    dtype = before if before == after else f"{before} -> {after}"
    return (printable(tensor.name), shape_text(tensor.shape), dtype, tensor.reason)


def _plan_cells(tensor: PlannedTensor) -> tuple[str, ...]:
    """Return the cells of a tensor of a plan."""
    return (
        printable(tensor.name),
        shape_text(tensor.shape),
        printable(tensor.dtype),
        printable(_stored_as(tensor)),
        f"{tensor.nbytes:,}",
        number(tensor.bits_per_weight),
        tensor.reason,
    )


def _stored_as(tensor: PlannedTensor) -> str:
    """Return the format of a planned tensor: a dtype, or Q43NL with the method's arguments."""
    if tensor.reason:
        return tensor.stored_dtype
    options = [f"{name}={value}" for name, value in tensor.options if name != "num_threads"]
    importance = ["importance"] if tensor.importance else []
    return " ".join(["Q43NL", tensor.method, *options, *importance])


def _file_cells(file: PlannedFile) -> tuple[str, ...]:
    """Return the cells of a file of a plan."""
    return printable(file.name), f"{file.nbytes:,}"


def _convert_totals(report: ConvertReport) -> list[str]:
    """Return the lines of the totals."""
    packed = sum(tensor.weights for tensor in report.packed)
    snr = f", SNR {report.snr_db:.2f} dB" if report.packed else ""
    return [
        f"packed  {count_text(len(report.packed), 'tensor')}, {packed:,} weights{snr}",
        f"kept    {count_text(len(report.kept), 'tensor')}{_reasons(report.kept)}",
        f"total   {report.weights:,} weights, {_sizes(report.bytes_in, report.bytes_out)}, "
        f"{number(report.bits_per_weight)} bits per weight, {report.seconds:.1f} s",
    ]


def _reasons(tensors: Iterable[KeptTensor | PlannedTensor]) -> str:
    """Return why tensors are kept, counted."""
    kept = [tensor for tensor in tensors if tensor.reason]
    counts = Counter(tensor.reason for tensor in kept)
    parts = [f"{count} {reason}" for reason, count in counts.most_common()]
    cast = Counter(t.stored_dtype for t in kept if t.stored_dtype != t.dtype)
    parts += [f"{count} of them cast to {dtype}" for dtype, count in cast.items()]
    return ": " + ", ".join(parts) if parts else ""


def _sizes(bytes_in: int, bytes_out: int) -> str:
    """Return sizes before and after."""
    share = f" ({bytes_out / bytes_in:.1%})" if bytes_in else ""
    return f"{bytes_in:,} -> {bytes_out:,} bytes{share}"


# Data -------------------------------------------------------------------------------------------


def convert_document(report: ConvertReport, *, samples: bool = False) -> dict[str, Any]:
    """Return what a conversion did as nested data.

    Parameters
    ----------
    report : ConvertReport
        The conversion.
    samples : bool
        Add to each packed tensor what was measured on a sample: histograms of curves, codes and
        weights.
    """
    return {
        "packed": [_packed_document(tensor, samples=samples) for tensor in report.packed],
        "kept": [_kept_document(tensor) for tensor in report.kept],
        "unused_importance": list(report.unused_importance),
        "missing_importance": list(report.missing_importance),
        "files": [_file_document(file) for file in report.files],
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


def plan_document(plan: ConvertPlan) -> dict[str, Any]:
    """Return what a conversion is going to do as nested data."""
    return {
        "tensors": [_planned_document(tensor) for tensor in plan.tensors],
        "files": [_file_document(file) for file in plan.files],
        "copied": list(plan.copied),
        "unused_importance": list(plan.unused_importance),
        "missing_importance": list(plan.missing_importance),
        "total": {
            "weights": plan.weights,
            "bytes_in": plan.bytes_in,
            "bytes_out": plan.bytes_out,
            "bits_per_weight": plan.bits_per_weight,
        },
    }


def verify_document(report: VerifyReport) -> dict[str, Any]:
    """Return what comparing two models found as nested data."""
    return {
        "packed": [_packed_document(tensor) for tensor in report.packed],
        "equal": list(report.equal),
        "different": list(report.different),
        "missing": list(report.missing),
        "added": list(report.added),
        "total": {
            "bytes_in": report.bytes_in,
            "bytes_out": report.bytes_out,
            "snr_db": report.snr_db if report.packed else None,
            "seconds": report.seconds,
        },
    }


def _packed_document(tensor: PackedTensor, *, samples: bool = False) -> dict[str, Any]:
    """Return a packed tensor as nested data."""
    document: dict[str, Any] = {
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
    if samples:
        sample = tensor.figures.sample
        document["sample"] = {
            "groups": sample.groups,
            "curve_counts": sample.curves,  # of the curves -128 to 127
            "code_counts": sample.codes,  # of the codes -8 to 7
            "largest_weight": sample.largest,  # where the histograms end, at both sides of 0
            "weights_before": sample.before,
            "weights_after": sample.after,
        }
    return document


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


def _planned_document(tensor: PlannedTensor) -> dict[str, Any]:
    """Return a tensor of a plan as nested data."""
    return {
        "name": tensor.name,
        "file": tensor.file,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "stored_dtype": tensor.stored_dtype,
        "bytes": tensor.nbytes,
        "bits_per_weight": tensor.bits_per_weight,
        "method": tensor.method or None,
        "options": dict(tensor.options),
        "importance": tensor.importance,
        "reason": tensor.reason or None,
    }


def _file_document(file: PlannedFile) -> dict[str, Any]:
    """Return a file as nested data."""
    return {"name": file.name, "bytes": file.nbytes}


# Files ------------------------------------------------------------------------------------------


def report_format(path: str) -> str:
    """Return the format of a report file, json or html, which its name must end in.

    >>> report_format("out/report.html")
    'html'
    """
    suffix = path.lower().rpartition(".")[2]
    if suffix not in ("json", "html"):
        raise ModelFileError(f"{path}: a report must end in .json or .html")
    return suffix


def report_text(report: ConvertReport, form: str, source: str, target: str) -> str:
    """Return a conversion's report in a format that `report_format` knows."""
    if form == "html":
        from .html import html_page

        return html_page(report, source, target)
    return json_text(convert_document(report, samples=True)) + "\n"
