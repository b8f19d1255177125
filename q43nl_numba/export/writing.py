"""Writing the planned file: piece by piece, in the order of its data, whole or not at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from q43nl_numba import dequantize, q43nl
from q43nl_numba.convert.container import header_bytes
from q43nl_numba.convert.dtypes import numpy_dtype
from q43nl_numba.convert.errors import optional_package, tensor_error
from q43nl_numba.convert.output import whole_file
from q43nl_numba.convert.report import PackedTensor
from q43nl_numba.export.importance import Importance
from q43nl_numba.export.plan import OutputTensor, Plan
from q43nl_numba.export.tensors import Floats
from q43nl_numba.export.tokenizer import Tokenizer


def write_plan(
    path: str,
    plan: Plan,
    metadata: Mapping[str, str],
    tokenizer: Tokenizer,
    *,
    method: str,
    options: dict[str, Any],
    importance: Importance | None,
    progress: bool,
) -> tuple[tuple[PackedTensor, ...], int]:
    """Write the file; return the matrices with their errors, and the file's size."""
    ready: dict[str, npt.NDArray[Any]] = {
        plan.tokens.name: tokenizer.tokens_tensor(),
        plan.scores.name: tokenizer.scores,
    }
    planned = {item.target.name: item for item in plan.tensors}
    first = header_bytes(path, plan.entries, metadata)
    writer = _Writer(method, options, importance)
    with (
        whole_file(path) as output,
        _bar(sum(item.tensor.size for item in plan.tensors), shown=progress) as bar,
    ):
        output.write(first)
        for entry in sorted(plan.entries, key=lambda entry: (entry.begin, entry.end)):
            if entry.name in ready:
                output.write(ready[entry.name].view(np.uint8).data)
                continue
            bar.set_postfix_str(entry.name, refresh=False)
            for part, weights in writer.stored_pieces(planned[entry.name]):
                output.write(part.view(np.uint8).data)
                bar.update(weights)
    matrices = tuple(writer.done[item.target.name] for item in plan.tensors if item.is_matrix)
    return matrices, len(first) + sum(entry.nbytes for entry in plan.entries)


class _Writer:
    """Turns the engine's values into stored bytes, and keeps what that cost."""

    def __init__(self, method: str, options: dict[str, Any], importance: Importance | None) -> None:
        self.done: dict[str, PackedTensor] = {}
        self._method = method
        self._options = options
        self._importance = importance

    def stored_pieces(self, item: OutputTensor) -> Iterator[tuple[npt.NDArray[Any], int]]:
        """Yield the bytes of a tensor, with the number of weights in them."""
        signal = noise = 0.0
        for values, weighting in zip(item.pieces(), self._weighting(item), strict=False):
            _check_finite(item, values)
            stored, decoded = (
                self._packed(item, values, weighting)
                if item.target.qtype == "Q43NL"
                else _cast(item, values)
            )
            signal += _energy(values)
            noise += _energy(values - decoded)
            yield stored.reshape(-1), values.size
        name, shape = item.target.name, item.tensor.shape
        self.done[name] = PackedTensor(name, shape, item.target.nbytes, signal, noise)

    def _weighting(self, item: OutputTensor) -> Iterator[Floats | None]:
        if self._importance is None or not item.is_matrix:
            return repeat(None)
        return self._importance.pieces_of(item.tensor)

    def _packed(
        self, item: OutputTensor, values: Floats, weighting: Floats | None
    ) -> tuple[npt.NDArray[Any], Floats]:
        try:
            packed = q43nl(values, self._method, importance=weighting, **self._options)
        except ValueError as error:
            raise tensor_error(item.stored.path, item.tensor.source, str(error)) from error
        threads = self._options.get("num_threads")
        return packed, dequantize(packed, values.shape, num_threads=threads)


def _cast(item: OutputTensor, values: Floats) -> tuple[npt.NDArray[Any], Floats]:
    with np.errstate(over="ignore"):
        cast = values.astype(numpy_dtype(item.target.dtype))
    lost = ~np.isfinite(cast.astype(np.float32))
    if lost.any():
        raise tensor_error(
            item.stored.path, item.tensor.source,
            f"its values must fit {item.target.dtype}, found {values[lost][0]}",
        )  # fmt: skip
    return cast, cast.astype(np.float32)


def _check_finite(item: OutputTensor, values: Floats) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        raise tensor_error(
            item.stored.path, item.tensor.source,
            f"its values must be finite, found {values[bad][0]}",
        )  # fmt: skip


def _energy(values: Floats) -> float:
    return float(np.square(values.astype(np.float64)).sum())


def _bar(total: int, *, shown: bool) -> Any:
    """Return a bar on stderr; it stays silent where stderr is no terminal."""
    return optional_package("tqdm").tqdm(
        total=total,
        unit="weights",
        unit_scale=True,
        file=sys.stderr,
        leave=False,
        disable=None if shown else True,
    )
