"""What is measured: every variant of `q43nl`, the peers that are installed, and a plain copy.

Encoders return new memory, decoders write to an array that is there. A package without threads of
its own gets its rows in as many Python threads (NumPy and the C libraries release the GIL).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from q43nl_numba import dequantize, q43nl
from q43nl_numba.compare import VARIANTS as ALL_VARIANTS
from q43nl_numba.compare import Variant

#: All but the judge of the others, which would take minutes a call.
VARIANTS = tuple(variant for variant in ALL_VARIANTS if variant.method != "exact")

ROW = 4_096  # weights; the peers want rows, of a multiple of 256

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Contender:
    """Something that makes weights smaller and back."""

    label: str
    quantize: Callable[[Rows, int], Any]
    """From weights and a number of threads to what `dequantize` takes."""
    dequantize: Callable[[Any, Rows, int], object]
    """From what `quantize` returned, to an array, with a number of threads."""
    bits: Callable[[Any], int]
    """Stored bits of what `quantize` returned."""
    takes_threads: bool = True
    """Whether it can be told how many; otherwise it uses as many as there are."""
    timed: tuple[str, ...] = ("quantize", "dequantize")


def contenders() -> list[Contender]:
    """The package's variants, then the peers that are installed."""
    found = [package_contender(variant) for variant in VARIANTS]
    for package in PEERS:
        found += peer_contenders(package)
    return found


def peer_contenders(package: str) -> list[Contender]:
    """A peer's formats, or none with a note."""
    try:
        return list(PEERS[package]())
    except ImportError as error:
        print(f"{package} is left out: {error}; it is in the extra [peers]", file=sys.stderr)
        return []


def package_contender(variant: Variant) -> Contender:
    options = dict(variant.parameters)
    return Contender(
        f"`{variant.method}`" + (" " + ", ".join(map(str, options.values())) if options else ""),
        lambda rows, threads: q43nl(rows, variant.method, num_threads=threads, **options),
        lambda packed, out, threads: dequantize(packed, out=out, num_threads=threads),
        lambda packed: 8 * packed.nbytes,
    )


def gguf_contenders() -> Iterator[Contender]:
    """The NumPy quantizers of the gguf package."""
    from gguf import GGMLQuantizationType, quants

    for name in ("Q4_0", "Q5_1"):
        kind = GGMLQuantizationType[name]
        yield Contender(
            f"gguf (NumPy) {name}",
            partial(in_parts, partial(quants.quantize, qtype=kind)),
            partial(back_in_parts, partial(quants.dequantize, qtype=kind)),
            lambda parts: 8 * sum(part.nbytes for part in parts),
        )


def libgguf_contenders() -> Iterator[Contender]:
    """The C quantizers of ggml, as the libgguf package builds them."""
    import libgguf

    for name in ("Q4_0", "IQ4_NL", "Q4_K"):
        kind = libgguf.GGMLQuantizationType[name]
        yield Contender(
            f"libgguf (C) {name}",
            lambda rows, threads, kind=kind: libgguf.quantize_rows(rows, kind),
            lambda packed, out, threads, kind=kind: libgguf.dequantize_rows_into_raw(
                kind, packed, out, *out.shape
            ),
            lambda packed: 8 * packed.nbytes,
            takes_threads=False,
        )


PEERS: Mapping[str, Callable[[], Iterator[Contender]]] = {
    "gguf": gguf_contenders,
    "libgguf": libgguf_contenders,
}


def copy_contender() -> Contender:
    """The memory's own speed, which a decoder can at best come near to."""
    return Contender(
        "`np.copyto`",
        partial(in_parts, np.copy),
        partial(back_in_parts, lambda part: part),
        lambda parts: 8 * sum(part.nbytes for part in parts),
        timed=("dequantize",),
    )


def in_parts(function: Callable[[Rows], Any], rows: Rows, threads: int) -> list[Any]:
    """A function's results on equal shares of the rows, each in a thread."""
    return in_threads(function, np.array_split(rows, threads), threads)


def back_in_parts(
    function: Callable[[Any], Rows], parts: Sequence[Any], out: Rows, threads: int
) -> None:
    """A function's results on parts, written to the rows that they were made from."""
    stops = np.cumsum([0, *map(len, parts)])

    def write(i: int) -> None:
        np.copyto(out[stops[i] : stops[i + 1]], function(parts[i]))

    in_threads(write, range(len(parts)), threads)


def in_threads(function: Callable[[Any], Any], items: Sequence[Any], threads: int) -> list[Any]:
    if threads == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))
