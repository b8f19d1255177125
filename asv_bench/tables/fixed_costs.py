"""What a call costs whatever its size: one group, and the first call of a process.

For one of the README's tables, which `performance.py` prints.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import timeit

import numpy as np

from q43nl_numba import GROUP_SIZE, METHODS, q43nl
from q43nl_numba.compare import draw

CALLS = 100
ROUNDS = 10
PROCESSES = 3

#: Enough weights for the build that runs in parallel.
FIRST_CALL = """
import time
import numpy
start = time.perf_counter()
from q43nl_numba import q43nl
imported = time.perf_counter()
q43nl(numpy.ones(32768, numpy.float32), {method!r})
print(imported - start, time.perf_counter() - imported)
"""


def one_group(method: str) -> float:
    """Seconds of a call on a single group: best mean of some rounds."""
    weights = draw("normal", GROUP_SIZE)
    q43nl(weights, method)  # compiles
    calls = timeit.repeat(lambda: q43nl(weights, method), number=CALLS, repeat=ROUNDS)
    return min(calls) / CALLS


def first_calls(method: str) -> tuple[float, float, float]:
    """Seconds of the import, and of a process's first call with kernels cached and without."""
    with tempfile.TemporaryDirectory() as folder:
        cold, *warm = (first_call(method, folder) for _ in range(1 + PROCESSES))
    return (*np.min(warm, axis=0).tolist(), cold[1])


def first_call(method: str, cache: str) -> tuple[float, float]:
    """Seconds of import and first call in a new process."""
    found = subprocess.run(
        [sys.executable, "-c", FIRST_CALL.format(method=method)],
        env={**os.environ, "NUMBA_CACHE_DIR": cache},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    imported, called = map(float, found.stdout.split())
    return imported, called


def cost_rows() -> list[list[str]]:
    """Heading and a row for each method."""
    rows = [["method", "one group", "import", "first call, kernels cached", "first call ever"]]
    for method in METHODS:
        imported, warm, cold = first_calls(method)
        group = one_group(method) * 1e6
        rows.append(
            [f"`{method}`", f"{group:.0f} us", *(f"{s:.2f} s" for s in (imported, warm, cold))]
        )
    return rows
