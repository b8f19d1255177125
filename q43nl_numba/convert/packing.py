"""Convert a model file: every matrix that can be packed is, the rest is kept."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from q43nl_numba import __version__, dequantize, q43nl
from q43nl_numba.convert.container import Entry
from q43nl_numba.convert.errors import ModelFileError, tensor_error
from q43nl_numba.convert.importance import ImportanceReader
from q43nl_numba.convert.output import check_output
from q43nl_numba.convert.plan import Step, plan_conversion
from q43nl_numba.convert.reading import TensorReader, read_header
from q43nl_numba.convert.record import Original, is_converted, metadata_with_record
from q43nl_numba.convert.report import ConvertReport, PackedTensor
from q43nl_numba.convert.transfer import Put, transfer
from q43nl_numba._layout import MAX_SCALE
from q43nl_numba._quantize import is_too_large, largest_storable_weight


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    method: str = "gradient",
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep_dtype: str = "as-is",
    importance: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **options: Any,
) -> ConvertReport:
    """Quantize a safetensors model file to Q43NL.

    Every floating tensor (float64, float32, float16, bfloat16) of two and more dimensions whose
    last dimension is a multiple of 32 is packed; the rest is copied. The output is an ordinary
    safetensors file, in which packed tensors are ``U8`` of shape ``[..., cols / 32 * 19]``.
    It appears under its name only when it is complete.

    Parameters
    ----------
    source, destination : path
        The file to read and the file to write. An existing `destination` is replaced.
    method : str
        One of ``q43nl_numba.METHODS``.
    include, exclude : sequence of str
        Name patterns (``*``, ``?``, ``[...]``). With `include` only tensors that match one of its
        patterns are packed, and never those that match one of `exclude`.
    keep_dtype : {"as-is", "float32", "float16", "bfloat16"}
        What floating tensors that are not packed are cast to.
    importance : path, optional
        A safetensors file of weights of the squared errors, under the names of the tensors: of
        their shape, or a number for each input column. Other tensors count all weights the same.
    progress : bool
        Show a progress bar on stderr, if that is a terminal.
    **options
        Keyword arguments of `q43nl`: the method's parameters, ``eps_scale``, ``num_threads``.

    Returns
    -------
    ConvertReport
        What was packed, with its quality, and the totals.

    Raises
    ------
    OSError
        If a file cannot be read or written.
    ModelFileError
        If `source` is not a sound model file or is converted already, a tensor holds values that
        cannot be quantized, a pattern matches nothing, `importance` does not fit the model, or
        `destination` cannot be a file.
    ValueError, TypeError
        If an argument is out of range or belongs to another method.
    ModuleNotFoundError
        If a package of the ``convert`` extra is missing.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from safetensors.numpy import load_file, save_file
    >>> from q43nl_numba.convert import convert
    >>> folder = tempfile.TemporaryDirectory()
    >>> small, packed = (os.path.join(folder.name, name) for name in ("a.st", "b.st"))
    >>> save_file({"w": np.ones((4, 64), np.float32), "b": np.ones(4, np.float32)}, small)
    >>> report = convert(small, packed, "grid")
    >>> [(tensor.name, tensor.shape, tensor.bits_per_weight) for tensor in report.packed]
    [('w', (4, 64), 4.75)]
    >>> {name: (str(a.dtype), a.shape) for name, a in sorted(load_file(packed).items())}
    {'b': ('float32', (4,)), 'w': ('uint8', (4, 38))}
    >>> folder.cleanup()
    """
    started = time.perf_counter()
    check_method(method, options)
    source, destination = os.fspath(source), os.fspath(destination)
    header = read_header(source)
    if is_converted(header):
        raise ModelFileError(f"{source}: is quantized already, restore it before converting it")
    check_output(source, destination)
    if importance is not None:
        check_output(os.fspath(importance), destination)
    steps = plan_conversion(header, include, exclude, keep_dtype)
    made_by = {"version": __version__, "method": method, **_recordable(options)}
    if importance is not None:
        made_by["importance"] = os.path.basename(importance)
    metadata = metadata_with_record(header.metadata, _originals(steps), made_by)

    with _importance_reader(importance, steps) as told:
        packer = _Packer(method, options, told)
        bytes_out = transfer(header, destination, steps, metadata, packer.pack, progress=progress)
    return ConvertReport(
        packed=tuple(packer.done),
        kept=tuple(step for step in steps if step.reason),
        bytes_in=header.file_bytes,
        bytes_out=bytes_out,
        seconds=time.perf_counter() - started,
    )


def check_method(method: str, options: dict[str, Any]) -> None:
    """Raise what `q43nl` raises about its arguments, before any file is touched."""
    q43nl(np.empty(0, np.float32), method, **options)


def _recordable(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that decide about the bytes; the number of threads does not."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in options.items()
        if name != "num_threads"
    }


def _originals(steps: Sequence[Step]) -> dict[str, Original]:
    return {
        step.source.name: Original(
            step.source.dtype, step.source.shape, packed=step.target.qtype is not None
        )
        for step in steps
    }


def _importance_reader(
    path: str | os.PathLike[str] | None, steps: Sequence[Step]
) -> AbstractContextManager[ImportanceReader | None]:
    return nullcontext() if path is None else ImportanceReader(os.fspath(path), steps)


class _Packer:
    """Packs one tensor after another and keeps what became of each."""

    def __init__(
        self, method: str, options: dict[str, Any], importance: ImportanceReader | None
    ) -> None:
        self.done: list[PackedTensor] = []
        self._method = method
        self._options = options
        self._importance = importance

    def pack(self, reader: TensorReader, step: Step, put: Put) -> None:
        signal = noise = 0.0
        told = repeat(None) if self._importance is None else self._importance.pieces_of(step.source)
        for weights, importance in zip(reader.weights_of(step.source), told, strict=False):
            try:
                packed = q43nl(weights, self._method, importance=importance, **self._options)
            except ValueError as error:
                farthest = largest_storable_weight(self._method, **self._options)
                problem = _unquantizable(reader, step.source, farthest) or str(error)
                raise tensor_error(reader.header.path, step.source.name, problem) from error
            put(packed, weights.nbytes)
            exact = weights.astype(np.float64)
            decoded = dequantize(packed, num_threads=self._options.get("num_threads"))
            signal += _energy(exact)
            noise += _energy(exact - decoded)
        self.done.append(
            PackedTensor(step.source.name, step.source.shape, step.target.nbytes, signal, noise)
        )


def _energy(values: npt.NDArray[np.float64]) -> float:
    """Return the sum of squares; without BLAS, whose waiting threads would slow the kernels."""
    return float(np.square(values).sum())


def _unquantizable(reader: TensorReader, entry: Entry, farthest: float) -> str:
    """Say which weights of a whole tensor cannot be quantized: `q43nl` saw only a piece of it."""
    first = math.nan
    first_index = count = read = 0
    for weights in reader.weights_of(entry):
        with np.errstate(over="ignore"):
            as_quantized = weights.astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(as_quantized) | is_too_large(as_quantized, farthest))
        if bad.size and not count:
            first_index, first = read + int(bad[0]), float(weights[bad[0]])
        count += bad.size
        read += weights.size
    if not count:
        return ""
    where = [int(index) for index in np.unravel_index(first_index, entry.shape)]
    return (
        f"{count} of its {entry.size} values cannot be quantized, the first is {first} "
        f"at {where}; expected finite values up to {MAX_SCALE:.0f}"
        + (f" ({farthest:.0f} on one side of zero)" if farthest > MAX_SCALE else "")
    )
