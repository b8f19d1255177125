"""Convert a model file: every matrix that can be packed is, the rest is kept."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from q43nl_numba import __version__, dequantize, q43nl
from q43nl_numba.convert.container import Header
from q43nl_numba.convert.dtypes import numpy_dtype
from q43nl_numba.convert.errors import ModelFileError, tensor_error
from q43nl_numba.convert.importance import ImportanceReader
from q43nl_numba.convert.output import check_output
from q43nl_numba.convert.plan import Step, patterns, plan_conversion
from q43nl_numba.convert.reading import TensorReader, read_header
from q43nl_numba.convert.record import Original, is_converted, metadata_with_record
from q43nl_numba.convert.report import ConvertReport, PackedTensor
from q43nl_numba.convert.transfer import Put, transfer
from q43nl_numba.layout import MAX_SCALE
from q43nl_numba.quantize import farthest_weight, is_too_large


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    method: str = "gradient",
    *,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    keep_dtype: str = "as-is",
    importance: str | os.PathLike[str] | None = None,
    allow_empty: bool = False,
    no_clobber: bool = False,
    progress: bool = False,
    **options: Any,
) -> ConvertReport:
    """Quantize a safetensors model file to Q43NL.

    Every floating tensor (float64, float32, float16, bfloat16) of two and more dimensions whose
    last dimension is a multiple of 32 is packed; the rest is copied. 8-bit floats with scales
    (``weight_scale_inv``, ``weight_scale``) are packed as the products of both. The output is an
    ordinary safetensors file, in which packed tensors are ``U8`` of shape
    ``[..., cols / 32 * 19]``. It appears under its name only when it is complete.

    Parameters
    ----------
    source, destination : path
        The file to read and the file to write. An existing `destination` is replaced.
    method : str
        One of ``q43nl_numba.METHODS``.
    include, exclude : str or sequence of str
        Name patterns (``*``, ``?``, ``[...]``); a string is one pattern. With `include` only
        tensors that match one of its patterns are packed, and never those that match one of
        `exclude`.
    keep_dtype : {"as-is", "float32", "float16", "bfloat16"}
        What floating tensors that are not packed are cast to.
    importance : path, optional
        A safetensors file of weights of the squared errors, under the names of the tensors: of
        their shape, or a number for each input column, or ``[experts, cols]`` for a tensor
        ``[experts, rows, cols]``. Other tensors count all weights the same.
    allow_empty : bool
        Do not fail where no tensor is packed. The output is not marked as Q43NL then.
    no_clobber : bool
        Refuse to replace an existing `destination`.
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
        If `source` is not a sound model file or is quantized already (in Q43NL or another format),
        a tensor holds values that cannot be quantized, a pattern matches nothing, no tensor is
        packed, `importance` does not fit the model, or `destination` cannot be a file.
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
    check_output(source, destination, no_clobber=no_clobber)
    if importance is not None:
        check_output(os.fspath(importance), destination)
    steps = plan_conversion(
        header, patterns("include", include), patterns("exclude", exclude), keep_dtype
    )
    if not allow_empty:
        _check_not_empty(source, steps)
    made_by = {"version": __version__, "method": method, **_recordable(options)}
    if importance is not None:
        made_by["importance"] = os.path.basename(importance)
    metadata = _metadata(header, steps, made_by)

    with _importance_reader(importance, steps) as told:
        packer = _Packer(method, options, told)
        bytes_out = transfer(
            header, destination, steps, metadata, packer.pack,
            no_clobber=no_clobber, progress=progress,
        )  # fmt: skip
    return ConvertReport(
        packed=tuple(packer.done),
        kept=tuple(step for step in steps if step.reason),
        unused_importance=() if told is None else told.unused,
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


def _metadata(header: Header, steps: Sequence[Step], made_by: dict[str, Any]) -> dict[str, str]:
    """Return the output's metadata; without a packed tensor it is that of the input."""
    if not any(step.target.is_packed for step in steps):
        return header.metadata
    tensors = [(step.target, _original(step)) for step in steps]
    return metadata_with_record(header.metadata, tensors, made_by)


def _original(step: Step) -> Original:
    """Return what a tensor was; 8-bit floats with a scale were rounded from bfloat16."""
    dtype = step.source.dtype if step.scale is None else "BF16"
    return Original(dtype, step.source.shape, packed=step.target.is_packed)


def _check_not_empty(path: str, steps: Sequence[Step]) -> None:
    """Refuse a run that packs nothing: most likely it is not what the user meant."""
    if any(step.target.is_packed for step in steps):
        return
    reasons = Counter(step.reason for step in steps).most_common()
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons) or "it has none"
    raise ModelFileError(
        f"{path}: no tensor is to be quantized ({listed}); allow_empty permits that"
    )


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
        source_bytes = numpy_dtype(step.source.dtype).itemsize
        told = repeat(None) if self._importance is None else self._importance.pieces_of(step.source)
        parts = reader.weights_of(step.source, step.scale)
        for weights, importance in zip(parts, told, strict=False):
            try:
                packed = q43nl(weights, self._method, importance=importance, **self._options)
            except ValueError as error:
                farthest = farthest_weight(self._method, **self._options)
                problem = _unquantizable(reader, step, farthest)
                if not problem:  # the tensor's values are not the cause
                    raise
                raise tensor_error(reader.header.path, step.source.name, problem) from error
            put(packed, weights.size * source_bytes)
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


def _unquantizable(reader: TensorReader, step: Step, farthest: float) -> str:
    """Say which weights of a whole tensor cannot be quantized: `q43nl` saw only a piece of it."""
    first = math.nan
    first_index = count = read = 0
    for weights in reader.weights_of(step.source, step.scale):
        with np.errstate(over="ignore"):
            as_quantized = weights.astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(as_quantized) | is_too_large(as_quantized, farthest))
        if bad.size and not count:
            first_index, first = read + int(bad[0]), float(weights[bad[0]])
        count += bad.size
        read += weights.size
    if not count:
        return ""
    where = [int(index) for index in np.unravel_index(first_index, step.source.shape)]
    return (
        f"{count} of its {step.source.size} values cannot be quantized, the first is {first} "
        f"at {where}; expected finite values up to {MAX_SCALE:.0f}"
        + (f" ({farthest:.0f} on one side of zero)" if farthest > MAX_SCALE else "")
    )
