"""How a call is cut: by memory where its input must be converted, and by time.

Python notices an interrupt (Ctrl-C) between two launches of kernels, so a long call is launched in
portions of about half a second.

A method with statistics is cut further; each thread takes one portion all the way, statistics and
kernel. SciPy holds the interpreter's lock for a part of its time, and taking turns with that lock
costs more than waiting: so only some threads compute statistics at once, while the others are in
kernels that do not need it. Measured with two threads on 16M weights: 1.7 times the speed of one
thread without that rule, 1.85 with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from threading import Semaphore
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._layout import GROUP_BYTES, GROUP_SIZE
from ._threads import run_side_by_side, thread_count
from .kernels.tile import LANES, Floats
from .methods import Method

_NANOSECONDS: Final = 5e8
"""Time between two looks for interrupts."""

STATISTICS_PORTION: Final = 1 << 17
"""Most weights of which the statistics are taken at once.

Twice as many need temporaries that the C library hands back to the system after every call, and
new pages for them take as long as the statistics; of half as many, the calls take too large a part.
"""

_PORTIONS_A_THREAD: Final = 2
"""Portions that a thread should have at least, so that all threads end at about the same time."""

_THREADS_A_TURN: Final = 3
"""Threads for each one that computes statistics, which are about a quarter of the work."""


class Call(NamedTuple):
    """What all portions of a call share."""

    method: Method
    parameters: Any
    eps_scale: float
    num_threads: int | None
    """Threads requested, None for Numba's setting."""


def encode(
    call: Call, weights: Floats, importance: Floats | None, packed: NDArray[np.uint8]
) -> bool:
    """Encode float32[32 n] weights to uint8[19 n]; False if some cannot be stored."""
    cost = call.method.cost(call.parameters)
    threads = thread_count(call.num_threads, cost * weights.size)
    if call.method.statistics is not None:
        return _encode_with_statistics(call, weights, importance, packed, threads)
    return all(
        call.method.encoder(
            weights[portion],
            None if importance is None else importance[portion],
            None,
            call.parameters,
            call.eps_scale,
            packed[_bytes_of(portion)],
            num_threads=threads,
        )
        for portion in _portions(weights.size, int(_NANOSECONDS * threads / cost))
    )


def _encode_with_statistics(
    call: Call,
    weights: Floats,
    importance: Floats | None,
    packed: NDArray[np.uint8],
    threads: int,
) -> bool:
    compute = call.method.statistics
    assert compute is not None
    turns = Semaphore(-(-threads // _THREADS_A_TURN))

    def encode_portion(portion: slice) -> bool:
        part = weights[portion]
        with turns, np.errstate(all="ignore"):  # of weights that are refused later
            statistics = compute(part.reshape(-1, GROUP_SIZE))
        return call.method.encoder(
            part,
            None if importance is None else importance[portion],
            statistics,
            call.parameters,
            call.eps_scale,
            packed[_bytes_of(portion)],
            num_threads=1,
        )

    time_limit = int(_NANOSECONDS / call.method.cost(call.parameters))
    share = weights.size if threads == 1 else weights.size // (threads * _PORTIONS_A_THREAD)
    portions = list(_portions(weights.size, min(STATISTICS_PORTION, time_limit, share)))
    if threads == 1 or len(portions) == 1:
        return all(map(encode_portion, portions))
    call.method.encoder.tile_function(importance).compiled  # noqa: B018 - by one thread, not each
    return all(run_side_by_side([partial(encode_portion, p) for p in portions], threads))


def _portions(weights: int, most: int) -> Iterator[slice]:
    """Cut a number of weights into portions of at most about `most`, in whole tiles."""
    tile = LANES * GROUP_SIZE
    step = max(most // tile, 1) * tile
    return (slice(start, min(start + step, weights)) for start in range(0, weights, step))


def _bytes_of(portion: slice) -> slice:
    """Return where the packed bytes of a portion of weights lie."""
    return slice(
        portion.start // GROUP_SIZE * GROUP_BYTES, portion.stop // GROUP_SIZE * GROUP_BYTES
    )
