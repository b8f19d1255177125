"""How kernels are launched: on how many threads, one at a time, across forks and interrupts.

An interrupt (Ctrl-C) becomes an exception between two steps of the main thread's Python code. So
whatever must not be left half done is one step: CPython takes and releases a lock in a ``with``
statement, and calls a compiled function, without looking for interrupts in between. (`_jit`
compiles on a thread of its own, where no interrupts arrive.)
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Final, TypeVar

import numba
from numba.core.compiler_lock import global_compiler_lock

from ._jit import Build, apart, call_compiled, compiling

T = TypeVar("T")

_WORTH_A_THREAD: Final = 2e6
"""Nanoseconds of work that pay for one more thread.

Starting one costs some 20 us, but where all cores are busy the others wait for it until the system
gives it a turn, which takes 4 ms and more.
"""


def thread_count(requested: int | None, nanoseconds: float = 1e18) -> int:
    """Return the threads to launch for an amount of work; None requests Numba's setting."""
    worth = int(nanoseconds / _WORTH_A_THREAD)
    if worth <= 1 or requested == 1:
        return 1
    wanted = pool.setting() if requested is None else requested
    available: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return max(1, min(wanted, worth, available))


class _Pool:
    """Numba's thread pool as this process may use it.

    Launches take turns: the workqueue layer ends the process when two meet, and the others gain
    nothing from it.
    """

    def __init__(self) -> None:
        self.lost_in_fork = False
        self._is_started = False
        self._turn = threading.RLock()

    def setting(self) -> int:
        """Return Numba's number of threads for the calling thread, and start the pool.

        Raises
        ------
        RuntimeError
            The threading layer cannot be loaded.
        """
        if not self._is_started:
            self._start()
        _THREADS.prepare()
        return int(_THREADS.compiled())

    def _start(self) -> None:
        """Start the pool, on a thread that no interrupt reaches.

        In Python code, Numba takes a lock between processes for that, and for every look at the
        number of threads. After an interrupt in there it would never be released.
        """
        try:
            apart(numba.get_num_threads)
            self._is_started = True
        except ValueError as error:
            layer = numba.config.THREADING_LAYER  # type: ignore[attr-defined]
            raise RuntimeError(
                "NUMBA_THREADING_LAYER must name a threading layer that is installed, "
                f"found {layer!r}: {error}"
            ) from error

    def is_usable(self) -> bool:
        """Return whether the calling thread may launch: whether the pool can serve it.

        A launch from inside a parallel kernel, which calls Python in an ``objmode`` block, ends the
        process under the workqueue layer. There the block runs on a thread of the layer. Numba does
        not tell its threads from others, but Python knows that it did not start them.
        """
        if self.lost_in_fork:
            return False
        return _was_started_by_python() or _started_layer() != "workqueue"

    def launch(self, kernel: Build, arguments: tuple[Any, ...], threads: int) -> None:
        """Run a parallel kernel on some threads; the caller's setting is as before afterwards."""
        before = self.setting()
        kernel.prepare(*arguments)
        _SET_THREADS.prepare(threads)
        run, set_threads = kernel.compiled, _SET_THREADS.compiled
        with self._turn:
            try:
                set_threads(threads)
                call_compiled(run, arguments)
            finally:
                set_threads(before)

    def before_fork(self) -> None:
        """Wait until no other thread launches or compiles: the child would wait for it for ever."""
        self._turn.acquire()
        compiling.acquire()
        global_compiler_lock.acquire()  # type: ignore[no-untyped-call]

    def after_fork_in_parent(self) -> None:
        """Let the other threads go on."""
        global_compiler_lock.release()  # type: ignore[no-untyped-call]
        compiling.release()
        self._turn.release()

    def after_fork_in_child(self) -> None:
        """Give up the pool if the parent had started it: its threads are gone."""
        self.after_fork_in_parent()
        self.lost_in_fork = self.lost_in_fork or _started_layer() is not None


def _started_layer() -> str | None:
    """Return the name of the threading layer, None if the pool has not been started."""
    try:
        return str(numba.threading_layer())  # type: ignore[attr-defined]
    except ValueError:
        return None


def _was_started_by_python() -> bool:
    """Return whether the calling thread is the main thread or one that `threading` started."""
    return not isinstance(threading.current_thread(), threading._DummyThread)


def _threads() -> int:
    return int(numba.get_num_threads())


_THREADS: Final = Build(_threads, "threads")
"""Numba's number of threads, found in one step of its caller."""


def _set_threads(count: int) -> None:
    numba.set_num_threads(count)


_SET_THREADS: Final = Build(_set_threads, "set_threads")
"""Sets Numba's number of threads in one step of its caller."""

pool: Final = _Pool()
"""The one pool of this process."""


def run_side_by_side(tasks: Iterable[Callable[[], T]], threads: int) -> list[T]:
    """Run tasks on threads of our own, and return their results in order.

    If one fails, or the wait is interrupted, the rest is given up, and what runs is waited for: no
    task writes to its output after the call.
    """
    waiting = list(tasks)
    started: list[Future[T]] = []
    try:
        try:
            started.extend(_workers(threads).submit(task) for task in waiting)
        except RuntimeError:  # the interpreter is ending and starts no more threads
            return [f.result() for f in started] + [task() for task in waiting[len(started) :]]
        return [future.result() for future in started]
    finally:
        for future in started:
            future.cancel()
        wait(started)


@functools.cache
def _workers(count: int) -> ThreadPoolExecutor:
    """Return threads that are kept: a new one would get all its memory from the system."""
    return ThreadPoolExecutor(count, thread_name_prefix="q43nl")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=pool.before_fork,
        after_in_parent=pool.after_fork_in_parent,
        after_in_child=pool.after_fork_in_child,
    )
    os.register_at_fork(after_in_child=_workers.cache_clear)
