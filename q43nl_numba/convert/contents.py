"""Look into a safetensors file: what is packed, at what cost, and with which curves."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import GROUP_DTYPE
from .._text import count_text, number, printable, shape_text
from .container import QTYPE, Entry
from .model import open_model
from .record import RECORD_KEY, Record
from .report import MOST_ROWS, table_lines
from .restoring import Unpack
from .tensors import StoredTensor, Tensor

_LOWEST_CURVE = -128
_BARS = "▁▂▃▄▅▆▇█"
_BINS = 16
_LONGEST_METADATA = 80

_PLAIN_TITLES: tuple[str, ...] = ("tensor", "shape", "type", "bytes", "bits/weight")
_CURVE_TITLES: tuple[str, ...] = ("zero", "curve min", "25%", "50%", "75%", "max")
_SPARKLINE_TITLE = "-128  curves 127"


@dataclass(frozen=True)
class CurveDistribution:
    """The curves of a packed tensor.

    ``counts[curve + 128]`` groups have that curve; zero groups, whose scale is zero and whose
    curve means nothing, are counted in `zero_groups` only.
    """

    counts: tuple[int, ...]
    zero_groups: int

    @property
    def groups(self) -> int:
        """Number of groups, zero groups included."""
        return sum(self.counts) + self.zero_groups

    def quantile(self, share: float) -> int | None:
        """Return the least curve that at least this share of the groups does not exceed.

        >>> CurveDistribution((0,) * 127 + (1, 2, 1) + (0,) * 126, zero_groups=5).quantile(0.5)
        0
        """
        cumulative = np.cumsum(self.counts)
        if not cumulative[-1]:
            return None
        wanted = max(share * int(cumulative[-1]), 1)
        return int(np.searchsorted(cumulative, wanted)) + _LOWEST_CURVE

    def sparkline(self) -> str:
        """Return a small histogram of 16 bars, from curve -128 at the left to 127 at the right."""
        bins = np.asarray(self.counts).reshape(_BINS, -1).sum(axis=1)
        highest = max(int(bins.max()), 1)
        return "".join(
            _BARS[(int(count) * len(_BARS) - 1) // highest] if count else " " for count in bins
        )


@dataclass(frozen=True)
class TensorContents:
    """One tensor of a file. For a packed one, `shape` is that of its weights."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    nbytes: int
    curves: CurveDistribution | None

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each element, NaN where there is none."""
        size = math.prod(self.shape)
        return self.nbytes * 8 / size if size else math.nan


@dataclass(frozen=True)
class FileContents:
    """What a safetensors file holds."""

    path: str
    tensors: tuple[TensorContents, ...]
    metadata: dict[str, str]
    file_bytes: int

    def table(self, *, sparklines: bool = True, whole: bool = False) -> str:
        """Return the contents as text: the metadata, a row a tensor, the totals.

        Parameters
        ----------
        sparklines : bool
            Show the distribution of curves as bars, too.
        whole : bool
            Show every tensor, not only the first `MOST_ROWS`.
        """
        titles = _PLAIN_TITLES
        curves = any(tensor.curves for tensor in self.tensors)
        if curves:
            titles += _CURVE_TITLES + (_SPARKLINE_TITLE,) * sparklines

        def cells(tensor: TensorContents) -> tuple[str, ...]:
            more = _curve_cells(tensor.curves, sparklines) if curves else ()
            return _plain_cells(tensor) + more

        table = table_lines(titles, self.tensors, cells, None if whole else MOST_ROWS)
        parts = [self._metadata_lines(), table, [self._totals()]]
        return "\n\n".join("\n".join(lines) for lines in parts if lines)

    def document(self) -> dict[str, Any]:
        """Return the contents as nested data, for programs."""
        return {
            "path": self.path,
            "bytes": self.file_bytes,
            "metadata": {k: v for k, v in self.metadata.items() if k != RECORD_KEY},
            "tensors": [_tensor_document(tensor) for tensor in self.tensors],
        }

    def _metadata_lines(self) -> list[str]:
        """Return a line for each entry of the metadata but the record, which the table shows."""
        return [
            f"{printable(key)}: {printable(_shortened(value))}"
            for key, value in self.metadata.items()
            if key != RECORD_KEY
        ]

    def _totals(self) -> str:
        """Return the line of the totals."""
        weights = sum(math.prod(tensor.shape) for tensor in self.tensors)
        packed = sum(tensor.curves is not None for tensor in self.tensors)
        bits = self.file_bytes * 8 / weights if weights else math.nan
        return (
            f"{count_text(len(self.tensors), 'tensor')}, {packed:,} packed, {weights:,} weights, "
            f"{self.file_bytes:,} bytes, {number(bits)} bits per weight"
        )


def inspect(source: str | os.PathLike[str]) -> FileContents:
    """Tell what is in a model, converted or not: a file, or a folder of files.

    Parameters
    ----------
    source : path
        The safetensors file, GGUF file or folder to look into.

    Returns
    -------
    FileContents
        A record for every tensor, in the header's order.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        If it is not a sound safetensors file, or a tensor is not what the file says it is.
    ModuleNotFoundError
        If a package of the ``convert`` extra is missing.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from q43nl_numba.convert import inspect
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "small.safetensors")
    >>> save_file({"bias": np.ones(4, np.float32)}, path)
    >>> for tensor in inspect(path).tensors:
    ...     print(tensor.name, tensor.dtype, tensor.shape, tensor.bits_per_weight)
    bias F32 (4,) 32.0
    >>> folder.cleanup()
    """
    model = open_model(source)
    tensors = []
    for file in model.files:
        record = Record(file.header)
        tensors += [
            _tensor_contents(record, entry, model.tensors[entry.name])
            for entry in file.header.entries
        ]
    return FileContents(model.path, tuple(tensors), model.metadata, model.nbytes)


def _tensor_contents(record: Record, entry: Entry, tensor: Tensor) -> TensorContents:
    """Return what one tensor of a file is."""
    original = record.original(entry)
    if not (original.packed and isinstance(tensor, StoredTensor)):
        dtype = entry.dtype if entry.qtype is None else entry.qtype
        return TensorContents(entry.name, dtype, entry.shape, entry.shape, entry.nbytes, None)
    curves = _curve_distribution(tensor)
    return TensorContents(entry.name, QTYPE, original.shape, entry.shape, entry.nbytes, curves)


def _curve_distribution(tensor: StoredTensor) -> CurveDistribution:
    """Return the curves of a packed tensor."""
    counts: npt.NDArray[np.int64] = np.zeros(256, np.int64)
    zero_groups = 0
    recipe = Unpack(tensor, "F32")
    for piece in recipe.pieces():
        groups = recipe.load(piece).view(GROUP_DTYPE)
        nonzero = groups["scale"] != 0
        zero_groups += int(groups.size - np.count_nonzero(nonzero))
        curves = groups["curve"][nonzero].astype(np.int64)
        counts += np.bincount(curves - _LOWEST_CURVE, minlength=counts.size)
    return CurveDistribution(tuple(counts.tolist()), zero_groups)


def _tensor_document(tensor: TensorContents) -> dict[str, Any]:
    """Return one tensor as nested data."""
    document: dict[str, Any] = {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "bytes": tensor.nbytes,
        "bits_per_weight": tensor.bits_per_weight,
    }
    if tensor.curves is not None:
        document["stored_shape"] = list(tensor.stored_shape)
        document["zero_groups"] = tensor.curves.zero_groups
        document["curve_counts"] = list(tensor.curves.counts)  # of the curves -128 to 127
    return document


def _plain_cells(tensor: TensorContents) -> tuple[str, ...]:
    """Return the cells that every tensor has."""
    return (
        printable(tensor.name),
        shape_text(tensor.shape),
        printable(tensor.dtype),
        f"{tensor.nbytes:,}",
        number(tensor.bits_per_weight),
    )


def _curve_cells(curves: CurveDistribution | None, sparklines: bool) -> tuple[str, ...]:
    """Return the cells about curves, empty for a tensor that is not packed."""
    if curves is None:
        return ("",) * (len(_CURVE_TITLES) + sparklines)
    zero_share = f"{curves.zero_groups / curves.groups:.1%}" if curves.groups else "-"
    quantiles = [curves.quantile(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    cells = (zero_share, *("-" if value is None else str(value) for value in quantiles))
    return (*cells, curves.sparkline()) if sparklines else cells


def _shortened(text: str) -> str:
    """Return the begin of a long text."""
    return text if len(text) <= _LONGEST_METADATA else text[: _LONGEST_METADATA - 3] + "..."
