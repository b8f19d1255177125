"""A kernel: a loop over independent items, for one thread and for many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._jit import IS_COMPILED, Build
from ._threads import pool


class Kernel:
    """A function with a ``prange`` loop, compiled once for one thread and once for many.

    The serial build runs where Numba's threads must not be touched: in a forked child of a process
    that already used them, inside a parallel kernel of the caller's where that ends the process,
    and for callers that ask for a single thread (who may run several such calls at once from
    threads of their own).

    Parameters
    ----------
    function : callable
        Returns nothing: what a loop on several threads found is in the arrays that it was passed.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        self._serial = Build(function, f"{name}-serial")
        self._parallel = Build(function, f"{name}-parallel", parallel=True)

    def __call__(self, *arguments: Any, num_threads: int) -> None:
        """Run the loop over all items."""
        if num_threads == 1 or not IS_COMPILED or not pool.is_usable():
            self._serial(*arguments)
        else:
            pool.launch(self._parallel, arguments, num_threads)
