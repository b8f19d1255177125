"""How kernels are compiled, cached and launched: the one room that talks to Numba.

Arithmetic is strict IEEE (no fast-math flags), so that the stored bytes are the same on every
machine. Vector code comes from the loops themselves: they run over the groups of a tile, one group
a lane, and so need no reordering of sums.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])

prange = numba.prange
types = numba.types

_OPTIONS: dict[str, Any] = {"error_model": "numpy"}


@functools.cache
def _source_digest() -> str:
    """Digest of the sources that kernels are made from; a part of every cache entry's name.

    Numba's cache looks only at the file of the cached function, not at those of its callees.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        source = path.read_bytes()
        if b"_jit" in source:  # whoever makes kernels imports this module
            digest.update(source)
    return digest.hexdigest()[:16]


# What would let Python call a helper takes a third of the compiler's time.
_HELPER_OPTIONS: dict[str, Any] = {
    **_OPTIONS,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


def helper(function: F) -> F:
    """Compile a function that only kernels call; it is cached inside its callers."""
    return cast(F, numba.njit(**_HELPER_OPTIONS)(function))


def inlined(function: F) -> F:
    """Compile a large helper with one caller as a part of that caller.

    The compiler optimizes each helper with all that it calls, and does so again for its caller. To
    leave out a level of calls saves a tenth of the first call's time, and more where there are two.
    """
    return cast(F, numba.njit(**_HELPER_OPTIONS, inline="always")(function))


class Kernel:
    """A loop over independent items, compiled once for one thread and once for many.

    The serial build runs where the thread pool must not be touched: in a forked child of a process
    that already used it, and for callers that ask for a single thread (who may run several such
    calls at once from threads of their own).
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._serial = _compile(function, "serial", parallel=False)
        self._parallel = _compile(function, "parallel", parallel=True)

    def __call__(self, *arguments: Any, num_threads: int) -> Any:
        if num_threads == 1 or _pool.lost_in_fork:
            return self._serial(*arguments)
        with _pool.threads(num_threads):
            return self._parallel(*arguments)


class KernelBody:
    """What a `Kernel` does with one item, as a function that is handed to it.

    Handed over, it is compiled on its own, once for all builds of the loop. Called by name, it
    would be copied into each of them and optimized there again, which made the first call of a
    method three times as slow. It is compiled when it is first asked for.
    """

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        self._function = function
        self._signature = signature

    @functools.cached_property
    def compiled(self) -> Any:
        """The function as Numba passes it to kernels."""
        copy = specialize(self._function, f"body_{_source_digest()}")
        # Python keeps its frames in chunks of memory. Calls that cross the end of a chunk again and
        # again make the compiler up to a quarter slower; on a new thread's stack they do not.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(_cached(numba.cfunc, self._signature), copy).result()


def specialize(template: Callable[..., Any], name: str, **names: Any) -> Callable[..., Any]:
    """Copy a function with some of its global names bound to other values.

    A closure would do the same, but Numba does not find closures again in its cache.
    """
    scope = {**template.__globals__, **names}
    copy = FunctionType(template.__code__, scope, name)
    copy.__qualname__ = f"{template.__qualname__}_{name}"
    copy.__module__ = template.__module__
    return copy


def thread_count(requested: int | None, items: int) -> int:
    """Threads to launch for a number of independent items; None asks for Numba's setting."""
    wanted = numba.get_num_threads() if requested is None else requested
    available: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return max(1, min(wanted, items, available))


@functools.cache
def workers(count: int) -> ThreadPoolExecutor:
    """Threads of our own, for portions whose work is more than a kernel.

    They are kept, because what a new thread allocates first is new memory from the system.
    """
    return ThreadPoolExecutor(count, thread_name_prefix="q43nl")


def _compile(function: Callable[..., Any], build: str, *, parallel: bool) -> Any:
    # The two builds of one function would otherwise share a cache entry.
    copy = specialize(function, f"{build}_{_source_digest()}")
    return _cached(numba.njit, nogil=True, parallel=parallel)(copy)


def _cached(compiler: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[..., Any]:
    """A compiler that keeps its results on disk, where there is a folder to write to."""

    def compile_function(function: Callable[..., Any]) -> Any:
        try:
            return compiler(*arguments, cache=True, **_OPTIONS, **options)(function)
        except RuntimeError:  # no folder
            return compiler(*arguments, **_OPTIONS, **options)(function)

    return compile_function


class _Pool:
    """Numba's thread pool as this process may use it."""

    def __init__(self) -> None:
        self.lost_in_fork = False
        self._lock = threading.Lock()

    def after_fork(self) -> None:
        """Give up the pool in a child if the parent had started it: its threads are gone."""
        self._lock = threading.Lock()
        self.lost_in_fork = self.lost_in_fork or _pool_started()

    def threads(self, count: int) -> _Launch:
        return _Launch(self._lock, count)


class _Launch:
    """One launch at a time (the workqueue layer aborts on two), with a number of threads."""

    def __init__(self, lock: threading.Lock, count: int) -> None:
        self._lock = lock
        self._count = count

    def __enter__(self) -> None:
        self._lock.acquire()
        self._before = numba.get_num_threads()
        numba.set_num_threads(self._count)

    def __exit__(self, *_: object) -> None:
        numba.set_num_threads(self._before)
        self._lock.release()


def _pool_started() -> bool:
    try:
        numba.threading_layer()  # type: ignore[attr-defined]
    except ValueError:
        return False
    return True


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.after_fork)
    os.register_at_fork(after_in_child=workers.cache_clear)


def _float_intrinsic(build: Callable[..., Any], result: Any, *operands: Any) -> Any:
    """One LLVM instruction as a function that kernels can call."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return build(builder, context.get_value_type(result), *arguments)

    # Numba counts the parameters, so they cannot be *args.
    if len(operands) == 1:
        return intrinsic(lambda typing_context, a: (result(*operands), generate))
    return intrinsic(lambda typing_context, a, b, c: (result(*operands), generate))


_FLOAT, _BITS = numba.types.float32, numba.types.uint32

fma: Callable[[np.float32, np.float32, np.float32], np.float32] = _float_intrinsic(
    lambda builder, result, a, b, c: builder.fma(a, b, c), _FLOAT, _FLOAT, _FLOAT, _FLOAT
)
"""``a * b + c`` with a single rounding."""

_DOUBLE = numba.types.float64

fma64: Callable[[float, float, float], float] = _float_intrinsic(
    lambda builder, result, a, b, c: builder.fma(a, b, c), _DOUBLE, _DOUBLE, _DOUBLE, _DOUBLE
)
"""``a * b + c`` with a single rounding, of float64."""

float_of_bits: Callable[[np.uint32], np.float32] = _float_intrinsic(
    lambda builder, result, bits: builder.bitcast(bits, result), _FLOAT, _BITS
)
"""The float32 with the given bits."""

bits_of_float: Callable[[np.float32], np.uint32] = _float_intrinsic(
    lambda builder, result, value: builder.bitcast(value, result), _BITS, _FLOAT
)
"""The bits of a float32."""
