"""Restore a converted model file: floating tensors, as they were named, shaped and typed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from q43nl_numba import dequantize
from q43nl_numba.convert.container import QTYPE, Entry, Header, plain_entry
from q43nl_numba.convert.dtypes import numpy_dtype
from q43nl_numba.convert.errors import ModelFileError
from q43nl_numba.convert.output import check_output
from q43nl_numba.convert.plan import Step, placed
from q43nl_numba.convert.reading import TensorReader, read_header
from q43nl_numba.convert.record import RECORD_KEY, Original, Record
from q43nl_numba.convert.report import RestoreReport
from q43nl_numba.convert.transfer import Put, transfer


def restore(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    no_clobber: bool = False,
    progress: bool = False,
    num_threads: int | None = None,
) -> RestoreReport:
    """Bring a file with packed tensors back to floating tensors.

    Of a file that `convert` made, names, shapes, dtypes and metadata are those of the file that was
    converted (of 8-bit floats with scales, the products in bfloat16); the values are what the
    packed bytes decode to. In other files, the tensors that the header marks with the ``qtype``
    Q43NL become float32.

    Parameters
    ----------
    source, destination : path
        The file to read and the file to write. An existing `destination` is replaced, when the
        new file is complete.
    no_clobber : bool
        Refuse to replace an existing `destination`.
    progress : bool
        Show a progress bar on stderr, if that is a terminal.
    num_threads : int, optional
        Threads for decoding, as in `dequantize`.

    Returns
    -------
    RestoreReport
        How many tensors were decoded, and the totals.

    Raises
    ------
    OSError
        If a file cannot be read or written.
    ModelFileError
        If `source` is not a sound file, holds no packed tensor, or does not fit its metadata.
    ModuleNotFoundError
        If a package of the ``convert`` extra is missing.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from safetensors.numpy import load_file, save_file
    >>> from q43nl_numba.convert import convert, restore
    >>> folder = tempfile.TemporaryDirectory()
    >>> names = ("before.st", "packed.st", "after.st")
    >>> before, packed, after = (os.path.join(folder.name, name) for name in names)
    >>> save_file({"w": np.ones((4, 64), np.float16)}, before)
    >>> _ = convert(before, packed, "grid")
    >>> restore(packed, after).unpacked
    1
    >>> load_file(after)["w"].dtype, load_file(after)["w"].shape
    (dtype('float16'), (4, 64))
    >>> folder.cleanup()
    """
    started = time.perf_counter()
    source, destination = os.fspath(source), os.fspath(destination)
    header = read_header(source)
    record = Record(header)
    check_output(source, destination, no_clobber=no_clobber)
    steps = _plan_restoring(header, record)
    bytes_out = transfer(
        header,
        destination,
        steps,
        record.metadata_before(),
        _unpacker(num_threads),
        no_clobber=no_clobber,
        progress=progress,
    )
    return RestoreReport(
        unpacked=sum(step.source.is_packed for step in steps),
        tensors=len(steps),
        bytes_in=header.file_bytes,
        bytes_out=bytes_out,
        seconds=time.perf_counter() - started,
    )


def _plan_restoring(header: Header, record: Record) -> tuple[Step, ...]:
    """Return the steps that undo a conversion."""
    record.check_names()
    originals = [(entry, record.original(entry)) for entry in header.entries]
    if not any(original.packed for _, original in originals):
        raise ModelFileError(
            f"{header.path}: no tensor is marked {QTYPE} by a qtype or the {RECORD_KEY!r} "
            "metadata, so there is nothing to restore"
        )
    return placed(_step(entry, original) for entry, original in originals)


def _step(entry: Entry, original: Original) -> Step:
    if original.packed:
        packed = Entry(entry.name, entry.dtype, entry.shape, entry.begin, entry.end, QTYPE)
        return Step(packed, plain_entry(entry.name, original.dtype, original.shape))
    if entry.dtype != original.dtype:
        return Step(entry, plain_entry(entry.name, original.dtype, original.shape))
    return Step(entry, replace(entry, qtype=None))


def _unpacker(num_threads: int | None) -> Callable[[TensorReader, Step, Put], None]:
    return partial(_unpack, num_threads=num_threads)


def _unpack(reader: TensorReader, step: Step, put: Put, *, num_threads: int | None) -> None:
    dtype = numpy_dtype(step.target.dtype)
    for packed in reader.groups_of(step.source):
        put(dequantize(packed, dtype=dtype, num_threads=num_threads), packed.nbytes)
