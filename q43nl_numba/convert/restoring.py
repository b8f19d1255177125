"""Restore converted models: floating tensors, as they were named, shaped and typed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import GROUP_BYTES, GROUP_SIZE, __version__, dequantize
from .container import QTYPE, plain_entry
from .dtypes import numpy_dtype
from .errors import ModelFileError
from .folders import check_inside, copy_files
from .job import Cast, Copy, FilePlan, Maker, Piece, Recipe, Step
from .model import INDEX_NAME, Model, ModelFile, open_model
from .output import check_output, whole_file
from .progress import shown_progress
from .record import RECORD_KEY, Original, Record
from .results import RestoreReport
from .run import OnProgress, write_folder, write_one_file
from .shards import index_text
from .tensors import StoredTensor, ranges


@dataclass(frozen=True)
class Unpack(Recipe):
    """The decoded weights of a packed tensor; its pieces count groups.

    Attributes
    ----------
    tensor : StoredTensor
        The packed groups.
    dtype : str
        Safetensors' name of the dtype to decode to.
    num_threads : int, optional
        Threads for decoding.
    """

    tensor: StoredTensor
    dtype: str
    num_threads: int | None = None

    @property
    def source_bytes(self) -> int:
        """Number of packed bytes."""
        return self.tensor.nbytes

    def pieces(self) -> Sequence[Piece]:
        """Return ranges of groups."""
        return ranges(self.tensor.nbytes // GROUP_BYTES, GROUP_SIZE)

    def load(self, piece: Piece) -> npt.NDArray[np.uint8]:
        """Read groups."""
        start, stop = piece
        return self.tensor.stored_bytes(start * GROUP_BYTES, stop * GROUP_BYTES)

    def maker(self) -> Maker:
        """Return a maker that decodes."""
        return _Unpacker(self)


class _Unpacker(Maker):
    """Decodes the pieces of one tensor."""

    def __init__(self, recipe: Unpack) -> None:
        self._dtype = numpy_dtype(recipe.dtype)
        self._num_threads = recipe.num_threads

    def make(self, loaded: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Return the weights of a piece."""
        return dequantize(loaded, dtype=self._dtype, num_threads=self._num_threads)


def restore(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    no_clobber: bool = False,
    resume: bool = False,
    progress: bool | OnProgress = False,
    num_threads: int | None = None,
) -> RestoreReport:
    """Bring a model with packed tensors back to floating tensors.

    Of a model that `convert_model` made, names, shapes, dtypes and metadata are those of the model
    that was converted (of 8-bit floats with scales, the products in bfloat16); the values are what
    the packed bytes decode to. In other files, the tensors that the header marks with the ``qtype``
    Q43NL become float32.

    Parameters
    ----------
    source, destination : path
        The file to read and the file to write, which is replaced when the new one is complete; or
        the folder to read and the new folder to write.
    no_clobber : bool
        Refuse to replace an existing file.
    resume : bool
        Go on with an interrupted run that wrote the same folder, if there is one.
    progress : bool or callable
        Show a progress bar on stderr, or be called with a `Progress` after each piece.
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
        If `source` is not a sound model, holds no packed tensor, or does not fit its metadata.
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
    dequantize(np.empty(0, np.uint8), num_threads=num_threads)  # checks the argument
    model = open_model(source)
    destination = os.fspath(destination)
    plans = [_file_plan(model, file, num_threads) for file in model.files]
    unpacked = sum(isinstance(step.recipe, Unpack) for plan in plans for step in plan.steps)
    if not unpacked:
        raise ModelFileError(
            f"{model.path}: no tensor is marked {QTYPE} by a qtype or the {RECORD_KEY!r} "
            "metadata, so there is nothing to restore"
        )
    for name in model.other_files:
        check_inside(model.path, name)
    with _callback(progress) as on_progress:
        if model.is_folder:
            written = write_folder(
                plans,
                destination,
                _description(model),
                lambda folder: _finish(model, plans, folder),
                resume=resume,
                progress=on_progress,
            )
        else:
            check_output(model.path, destination, no_clobber=no_clobber)
            written = (
                write_one_file(plans[0], destination, no_clobber=no_clobber, progress=on_progress),
            )
    return RestoreReport(
        unpacked=unpacked,
        tensors=sum(len(plan.steps) for plan in plans),
        bytes_in=model.nbytes,
        bytes_out=sum(file.nbytes for file in written),
        seconds=time.perf_counter() - started,
    )


def _callback(progress: bool | OnProgress) -> Any:
    """Return the context of a progress argument."""
    if callable(progress):
        from contextlib import nullcontext

        return nullcontext(progress)
    return shown_progress(shown=progress)


def _file_plan(model: Model, file: ModelFile, num_threads: int | None) -> FilePlan:
    """Return the plan that undoes the conversion of one file."""
    record = Record(file.header)
    record.check_names()
    steps = []
    for entry in file.header.entries:
        tensor = model.tensors[entry.name]
        if not isinstance(tensor, StoredTensor):
            raise tensor.error(f"must be {QTYPE} in a safetensors file to be restored")
        steps.append(_step(tensor, record.original(entry), num_threads))
    return FilePlan(file.name, tuple(steps), tuple(record.metadata_before().items()))


def _step(tensor: StoredTensor, original: Original, num_threads: int | None) -> Step:
    """Return the step that brings back one tensor."""
    if original.packed:
        target = plain_entry(tensor.name, original.dtype, original.shape)
        return Step(target, Unpack(tensor, original.dtype, num_threads))
    if tensor.dtype != original.dtype:
        target = plain_entry(tensor.name, original.dtype, original.shape)
        return Step(target, Cast(tensor, original.dtype))
    return Step(replace(tensor.entry, qtype=None), Copy(tensor))


def _description(model: Model) -> Mapping[str, Any]:
    """Return what decides about the bytes."""
    files = [file.file for file in model.files]
    return {
        "version": __version__,
        "input": [
            {"path": file.path, "bytes": file.nbytes, "modified_ns": file.modified_ns}
            for file in files
        ],
        "arguments": {"command": "restore"},
    }


def _finish(model: Model, plans: Sequence[FilePlan], folder: str) -> None:
    """Write the index, and copy the other files."""
    if model.index_metadata is not None:
        with whole_file(os.path.join(folder, INDEX_NAME)) as file:
            file.write(index_text(plans, model.index_metadata).encode())
    copy_files(model.path, model.other_files, folder)
