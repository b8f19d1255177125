"""How a command ends: exit codes, signals, one line about an error, streams that are closed.

This module imports next to nothing, so that signals are handled before anything slow is imported.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes longer to import than all of this
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import NoReturn

PROGRAM = "q43nl-numba"

DONE, FAILED, WRONG_USAGE, BY_SIGNAL = 0, 1, 2, 128


class Ended(BaseException):
    """A signal asked the program to end; like KeyboardInterrupt it is not an error to handle."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Signals:
    """Turns signals that ask for an end into exceptions, so that temporary files are removed."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> _Signals:
        for name, usual in (
            ("SIGINT", signal.default_int_handler),
            ("SIGTERM", signal.SIG_DFL),
            ("SIGHUP", signal.SIG_DFL),  # exists on POSIX only
        ):
            number = getattr(signal, name, None)
            # A handler can be set in the main thread only, and nohup wants SIGHUP to stay ignored.
            with contextlib.suppress(ValueError):
                if number is not None and signal.getsignal(number) == usual:
                    self._before[number] = signal.signal(number, self._end)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._raise_again
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        sys.unraisablehook = self._unraisable

    def sees_interrupts(self) -> bool:
        """Return whether every interrupt is received here.

        Where Numba loses an error of its own in the main thread, `_jit.call_compiled` takes it for
        an interrupt. If there was none, it was a lack of memory.
        """
        return signal.SIGINT in self._before

    def _end(self, number: int, _frame: FrameType | None) -> NoReturn:
        """Handle a signal."""
        self.received = number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Ended(number)

    def _raise_again(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Repeat a signal whose exception Python has ignored.

        It does so in callbacks of the garbage collector and of weak references, which the import
        system runs for every module. The other thread gets its turn when the callback is over.
        """
        if isinstance(unraisable.exc_value, (KeyboardInterrupt, Ended)):
            _thread.start_new_thread(_signal_thread, (_thread.get_ident(), self.received))
        else:
            self._unraisable(unraisable)


def _signal_thread(thread: int, number: int) -> None:
    """Send a signal to a thread of this process; one that waits in the system wakes up."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(thread, number)
    else:  # Windows
        _thread.interrupt_main(signal.Signals(number))


def run(work: Callable[[], int], *, debug: bool = False) -> int:
    """Run a command's work and return the exit code of the process.

    An exception becomes one line on stderr.

    Parameters
    ----------
    work : callable
        Returns an exit code, or raises. SystemExit counts as returning its code.
    debug : bool
        Show the traceback of an error instead of the line.
    """
    with _closed_streams_replaced(), _Signals() as signals:
        try:
            return _flushed(work)
        except BrokenPipeError:
            _forget_stdout()  # the reader of the output has seen enough
            return DONE
        except (KeyboardInterrupt, Ended) as ended:
            if signals.sees_interrupts() and not signals.received:
                return _failed(MemoryError(), debug)
            number = ended.number if isinstance(ended, Ended) else signal.SIGINT
            return _ended_by(signals.received or number)
        except Exception as error:
            if signals.received:  # an import may turn the interrupt into an error of its own
                return _ended_by(signals.received)
            return _failed(error, debug)


def _failed(error: BaseException, debug: bool) -> int:
    """Say what went wrong, and return the exit code."""
    if debug:
        _show_traceback(error)
    else:
        say(f"error: {one_line(error)}")
    return FAILED


def _flushed(work: Callable[[], int]) -> int:
    """Run the work and flush, so that a full disk or a closed pipe behind stdout is noticed."""
    try:
        try:
            code = work()
        except SystemExit as ended:  # how argparse ends after --help, --version or wrong usage
            code = ended.code if isinstance(ended.code, int) else DONE
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        _forget_stdout()  # of all files, it alone has no name in its errors
        raise OSError(error.errno, error.strerror, "standard output") from error
    return code


def _ended_by(number: int) -> int:
    """Say that a signal ended the run, and return the exit code that shells use for it."""
    say("interrupted" if number == signal.SIGINT else "terminated")
    return BY_SIGNAL + number


def say(line: str) -> None:
    """Print one line on stderr, if there still is one."""
    from ._text import printable

    with contextlib.suppress(OSError, AttributeError, ValueError):
        sys.stderr.write(f"{PROGRAM}: {printable(line)}\n")
        sys.stderr.flush()


def one_line(error: BaseException) -> str:
    """Return what went wrong, without line breaks."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        return where + error.strerror
    if isinstance(error, MemoryError):
        return f"out of memory: {error}" if str(error) else "out of memory"
    return " ".join(str(error).split()) or type(error).__name__


def _show_traceback(error: BaseException) -> None:
    """Print a traceback, in which a name from a file may not disturb the terminal either."""
    import traceback

    from ._text import printable

    lines = "".join(traceback.format_exception(error)).split("\n")
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write("\n".join(map(printable, lines)))
        sys.stderr.flush()


def can_print(text: str) -> bool:
    """Return whether the encoding of stdout has all characters of a text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def _closed_streams_replaced() -> Iterator[None]:
    """Let the null device stand in for standard streams that the caller closed (``>&-``).

    Otherwise the next file that is opened gets the descriptor of stdout, and whatever a library
    prints lands in it.
    """
    for descriptor in range(3):
        if not _is_open(descriptor):
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor: this one
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout, sys.stderr = before[0] or nowhere, before[1] or nowhere
        # A tensor may have any name: escape the characters that the terminal's encoding lacks.
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def _is_open(descriptor: int) -> bool:
    """Return whether a descriptor stands for a file."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _forget_stdout() -> None:
    """Send what is still buffered nowhere, so that it raises nothing when Python exits."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
