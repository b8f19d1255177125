"""How kernels are compiled.

Arithmetic is strict IEEE (no fast-math flags), so that the stored bytes are the same on every
machine. Vector code comes from the loops themselves: they run over the groups of a tile, one group
a lane, and so need no reordering of sums.

With ``NUMBA_DISABLE_JIT=1`` all of this is plain Python, for debuggers and coverage tools.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from fractions import Fraction
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature
from numba.extending import intrinsic, overload

from ._cache import KernelCache

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

prange = numba.prange
types = numba.types
__all__ = [
    "IS_COMPILED",
    "Build",
    "TileFunction",
    "apart",
    "call_compiled",
    "compiling",
    "fma",
    "helper",
    "inlined",
    "overload",
    "prange",
    "types",
]

IS_COMPILED: Final = not numba.config.DISABLE_JIT  # type: ignore[attr-defined]
"""False where ``NUMBA_DISABLE_JIT`` asks for plain Python."""

_OPTIONS: Final[dict[str, Any]] = {"error_model": "numpy"}

# What would let Python call a helper takes a third of the compiler's time.
_HELPER_OPTIONS: Final[dict[str, Any]] = {
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


class Build:
    """A function that Python calls, compiled when it is first called.

    Parameters
    ----------
    function : callable
    name : str
        Unique in the package; the cache knows the build by it.
    parallel : bool
        Whether its ``prange`` loops run on Numba's threads.
    """

    def __init__(self, function: Callable[..., Any], name: str, *, parallel: bool = False) -> None:
        self.compiled: Any = numba.njit(nogil=True, parallel=parallel, **_OPTIONS)(function)
        self._known: set[tuple[Any, ...]] = set()
        if IS_COMPILED:
            self.compiled._cache = KernelCache(name)

    def __call__(self, *arguments: Any) -> None:
        self.prepare(*arguments)
        if IS_COMPILED:
            call_compiled(self.compiled, arguments)
        else:
            with np.errstate(all="ignore"):  # compiled code does not warn either
                self.compiled(*arguments)

    def prepare(self, *arguments: Any) -> None:
        """Compile for the types of such arguments, unless that is done."""
        kinds = tuple([getattr(a, "dtype", type(a)) for a in arguments])
        if IS_COMPILED and kinds not in self._known:
            signature = tuple(map(numba.typeof, arguments))
            apart(lambda: self.compiled.compile(signature))
            self._known.add(kinds)


def call_compiled(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Call a compiled function, and raise what Numba loses or replaces.

    Where a part of a parallel loop raises, Numba returns all the same, which is a SystemError. And
    for a function among the arguments it calls Python code, whose errors it overlooks: then it
    misses the result. In the main thread that is where a signal was handled, in others where there
    was no memory.
    """
    try:
        function(*arguments)
    except SystemError as error:
        raise (error.__cause__ or error) from None
    except TypeError as error:
        if not str(error).startswith(_ADDRESS_LOOKUPS):
            raise
        in_main_thread = threading.current_thread() is threading.main_thread()
        raise (KeyboardInterrupt() if in_main_thread else MemoryError()) from None


_ADDRESS_LOOKUPS: Final = ("_get_wrapper_address()", "_get_jit_address()")
"""How the messages begin that Numba has for a missing argument of its own."""


class TileFunction:
    """What a kernel does with one tile, as a function that is passed to it.

    Passed, it is compiled on its own, once for all builds of the loop. Called by name, it would be
    copied into each of them and optimized there again, which made the first call of a method three
    times as slow.

    Parameters
    ----------
    function : callable
    name : str
        Unique in the package.
    signature : Numba signature
    """

    def __init__(self, function: Callable[..., Any], name: str, signature: Any) -> None:
        self._function = function
        self._name = name
        self._signature = signature
        self._compiled: Any = None if IS_COMPILED else function

    @property
    def compiled(self) -> Any:
        """The function as Numba passes it to kernels."""
        # No functools.cached_property: its lock would be lost in a fork while a thread compiles.
        if self._compiled is None:
            self._compiled = apart(self._compile)
        return self._compiled

    def _compile(self) -> Any:
        signature = normalize_signature(self._signature)  # type: ignore[no-untyped-call]
        compiled: Any = CFunc(self._function, signature, locals={}, options=dict(_OPTIONS))
        compiled._cache = KernelCache(self._name)
        compiled.compile()
        return compiled


def apart(compile_it: Callable[[], T]) -> T:
    """Compile, or do what else takes Numba's locks, on a new thread, and wait.

    No interrupt (Ctrl-C) reaches that thread, which could leave such a lock taken. And
    Python keeps its frames in chunks of memory: calls that cross the end of a chunk again and again
    make the compiler up to a quarter slower, which they do not on a new stack.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            with _quiet_compiler():
                result.set_result(compile_it())
        except BaseException as error:
            result.set_exception(error)

    try:
        threading.Thread(target=run, name="q43nl-compile", daemon=True).start()
    except RuntimeError:  # the interpreter is ending and starts no more threads
        return compile_it()
    return result.result()


compiling: Final = threading.RLock()
"""Held while a kernel is compiled."""


@contextlib.contextmanager
def _quiet_compiler() -> Iterator[None]:
    """Keep the compiler's debug messages, tens of thousands of lines, out of the program's log."""
    logger = logging.getLogger("numba")
    with compiling:
        level = logger.level
        if level == logging.NOTSET:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            logger.setLevel(level)


def _multiply_add(a: Any, b: Any, c: Any) -> Any:
    """Return ``a * b + c`` with a single rounding, in plain Python.

    The product is exact in float64. Rounded to odd, the sum keeps what the rounding to float32 must
    know (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    if isinstance(a, float) and isinstance(b, float) and isinstance(c, float):
        return np.float64(float(Fraction(a) * Fraction(b) + Fraction(c)))
    product, addend = float(a) * float(b), float(c)
    total = product + addend
    rest = total - product
    lost = (product - (total - rest)) + (addend - rest)
    if lost != 0 and np.isfinite(lost) and int(np.float64(total).view(np.int64)) & 1 == 0:
        total = float(np.nextafter(total, np.inf if lost > 0 else -np.inf))
    return np.float32(total)


@intrinsic
def _fma_instruction(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    kind = types.float64 if a == b == c == types.float64 else types.float32
    return kind(kind, kind, kind), generate


fma: Callable[[Any, Any, Any], Any] = cast(
    "Any", _fma_instruction if IS_COMPILED else _multiply_add
)
"""``a * b + c`` with a single rounding, to float64 where all three are, else to float32."""
