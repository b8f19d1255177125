"""What converting and restoring share: the file written in data order, copies, casts, the bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from q43nl_numba._text import printable
from q43nl_numba.convert.container import Entry, Header, header_bytes
from q43nl_numba.convert.dtypes import numpy_dtype
from q43nl_numba.convert.errors import optional_package, tensor_error
from q43nl_numba.convert.output import OutputFile, whole_file
from q43nl_numba.convert.plan import Step
from q43nl_numba.convert.reading import PIECE_WEIGHTS, TensorReader

#: Writes pieces of one tensor and counts the source bytes they came from.
Put = Callable[[npt.NDArray[Any], int], None]
Transform = Callable[[TensorReader, Step, Put], None]


def transfer(
    header: Header,
    destination: str,
    steps: Sequence[Step],
    metadata: Mapping[str, str],
    transform: Transform,
    *,
    no_clobber: bool,
    progress: bool,
) -> int:
    """Write a new file from an old one, a tensor at a time, and return its size in bytes.

    Every size is known from the plan, so the header goes first and nothing is held back.
    `transform` does what is neither a copy nor a cast.
    """
    first_bytes = header_bytes(destination, [step.target for step in steps], metadata)
    with (
        TensorReader(header) as reader,
        whole_file(destination, no_clobber=no_clobber) as output,
        _progress_bar(header.data_bytes, shown=progress) as bar,
    ):
        put = _putter(output, bar)
        output.write(first_bytes)
        for step in in_data_order(steps):
            bar.set_postfix_str(printable(step.source.name), refresh=False)
            if step.same_bytes:
                _copy(reader, step.source, put)
            elif not (step.source.is_packed or step.target.is_packed):
                _cast(reader, step, put)
            else:
                transform(reader, step, put)
    return len(first_bytes) + sum(step.target.nbytes for step in steps)


def in_data_order(steps: Iterable[Step]) -> list[Step]:
    """Sort steps by where their result lies in the output file."""
    return sorted(steps, key=lambda step: (step.target.begin, step.target.end))


def _putter(output: OutputFile, bar: Any) -> Put:
    def put(part: npt.NDArray[Any], source_bytes: int) -> None:
        output.write(part.view(np.uint8).data)  # as bytes: bfloat16 has no buffer interface
        bar.update(source_bytes)

    return put


def _copy(reader: TensorReader, entry: Entry, put: Put) -> None:
    for part in reader.bytes_of(entry, PIECE_WEIGHTS):
        put(part, part.nbytes)


def _cast(reader: TensorReader, step: Step, put: Put) -> None:
    dtype = numpy_dtype(step.target.dtype)
    for weights in reader.weights_of(step.source):
        with np.errstate(over="ignore", invalid="ignore"):
            cast = weights.astype(dtype)
        lost = np.isfinite(weights) & ~np.isfinite(cast)
        if lost.any():
            raise tensor_error(
                reader.header.path, step.source.name,
                f"its value {weights[lost][0]} is too large for {dtype.name}",
            )  # fmt: skip
        put(cast, weights.nbytes)


def _progress_bar(total: int, *, shown: bool) -> Any:
    """Return a bar on stderr; it stays silent where stderr is no terminal."""
    return optional_package("tqdm").tqdm(
        total=total,
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        leave=False,
        disable=None if shown else True,
    )
