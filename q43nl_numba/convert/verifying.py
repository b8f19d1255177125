"""Verify converted models: decode them and compare with the original, from the files alone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .. import GROUP_BYTES, GROUP_SIZE
from .container import Entry
from .dtypes import FLOATING
from .job import Copy, Progress
from .judging import Figures, Judge
from .model import Model, open_model
from .quantized import find_scales
from .record import Original, Record
from .results import PackedTensor, VerifyReport
from .run import OnProgress
from .tensors import ScaledTensor, StoredTensor, Tensor, piece_bounds


def verify_model(
    original: str | os.PathLike[str],
    converted: str | os.PathLike[str],
    *,
    num_threads: int | None = None,
    progress: OnProgress | None = None,
) -> VerifyReport:
    """Compare a converted model with the model that it was made from.

    Parameters
    ----------
    original, converted : path
        Files or folders. They may be laid out differently; tensors are compared by their names.
    num_threads : int, optional
        Threads for the comparison with ``grid``.
    progress : callable, optional
        Called with a `Progress` after each tensor.

    Returns
    -------
    VerifyReport
        Of packed tensors the figures that `convert_model` reported; whether the others are equal.

    Raises
    ------
    OSError
        If a file cannot be read.
    ModelFileError
        If a model is not sound, or a packed tensor does not have the original's shape.
    ModuleNotFoundError
        If a package of the ``convert`` extra is missing.
    """
    started = time.perf_counter()
    pairs = _Pairs(open_model(original), open_model(converted))
    total = sum(pair.after.nbytes for pair in pairs.found)
    packed: list[PackedTensor] = []
    equal: list[str] = []
    different: list[str] = []
    done = 0
    for pair in pairs.found:
        name = pair.after.name
        if pair.original.packed:
            packed.append(_packed_tensor(pair, num_threads))
        else:
            (equal if _are_equal(pair) else different).append(name)
        done += pair.after.nbytes
        if progress is not None:
            progress(Progress(done, total, name))
    return VerifyReport(
        tuple(packed),
        tuple(equal),
        tuple(different),
        pairs.missing,
        pairs.added,
        time.perf_counter() - started,
        pairs.before.nbytes,
        pairs.after.nbytes,
    )


@dataclass(frozen=True)
class _Pair:
    """One tensor in both models, and what the converted one's record says that it was."""

    before: Tensor
    after: StoredTensor
    original: Original
    file: str
    method: str


class _Pairs:
    """The tensors of two models, by name."""

    def __init__(self, before: Model, after: Model) -> None:
        self.before = before
        self.after = after
        scales = find_scales(before.tensors)
        merged = {scale.name for scale in scales.values()} - after.tensors.keys()
        self.found = tuple(self._pairs(scales))
        names = before.tensors.keys() - merged
        self.missing = tuple(
            name for name in before.tensors if name in names - after.tensors.keys()
        )
        self.added = tuple(name for name in after.tensors if name not in before.tensors)

    def _pairs(self, scales: dict[str, StoredTensor]) -> Iterator[_Pair]:
        """Yield the tensors that both models have."""
        for file in self.after.files:
            record = Record(file.header)
            for entry in file.header.entries:
                before = self.before.tensors.get(entry.name)
                after = self.after.tensors[entry.name]
                if before is None or not isinstance(after, StoredTensor):
                    continue
                original = record.original(entry)
                if original.packed and entry.name in scales and isinstance(before, StoredTensor):
                    before = ScaledTensor.of(before, scales[entry.name])
                _check_shape(before, after, original, entry)
                yield _Pair(before, after, original, file.name, record.method)


def _check_shape(before: Tensor, after: Tensor, original: Original, entry: Entry) -> None:
    """Check that a packed tensor can be compared with the original."""
    fits = before.dtype in FLOATING and (
        before.shape == original.shape or (len(entry.shape) == 1 and before.size == after.size)
    )
    if original.packed and not fits:
        raise after.error(
            f"holds weights of shape {list(original.shape)}, expected {list(before.shape)} of "
            f"{before.dtype} as in {before.files[0].path}"
        )


def _packed_tensor(pair: _Pair, num_threads: int | None) -> PackedTensor:
    """Return the figures of a packed tensor."""
    judge = Judge(pair.before.size, is_reference=pair.method == "grid", num_threads=num_threads)
    for start, stop in piece_bounds(pair.before.shape):
        begin, end = (at // GROUP_SIZE * GROUP_BYTES for at in (start, stop))
        judge.add(pair.before.floats(start, stop), pair.after.stored_bytes(begin, end))
    figures: Figures = judge.figures()
    return PackedTensor(
        pair.after.name, pair.before.shape, pair.after.nbytes, figures, pair.method, pair.file
    )


def _are_equal(pair: _Pair) -> bool:
    """Tell whether a tensor that is not packed has the original's values, cast at most."""
    before, after = pair.before, pair.after
    if before.shape != after.shape:
        return False
    if before.dtype == after.dtype and isinstance(before, StoredTensor):
        return all(
            np.array_equal(before.stored_bytes(*piece), after.stored_bytes(*piece))
            for piece in Copy(after).pieces()
        )
    if not (before.dtype in FLOATING and after.dtype in FLOATING):
        return False
    for piece in piece_bounds(after.shape):
        found = after.values(*piece)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = before.values(*piece).astype(found.dtype)
        if not np.array_equal(found.view(np.uint8), expected.view(np.uint8)):
            return False
    return True
