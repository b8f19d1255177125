"""The commands: ``q43nl-numba compare | convert | restore | inspect``.

This is a frame. A command declares its arguments when it is the one that was asked for, so that
nothing heavy is imported for the others, and returns its exit code. What goes wrong anywhere
becomes one line on stderr here, and an exit code: 0 done, 1 the work failed, 2 wrong usage,
128 + n ended by signal n.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

PROGRAM = "q43nl-numba"

_DONE, _FAILED, _WRONG_USAGE, _BY_SIGNAL = 0, 1, 2, 128

#: The keyword arguments of `q43nl` that ``convert`` passes on, and how to read them.
_METHOD_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "grid_size": (int, "candidates that the grid method tries (default: 255)"),
    "gd_iterations": (int, "iterations of the gradient method (default: 5)"),
    "gd_lr": (float, "learning rate of the gradient method (default: 0.3)"),
    "effort": (int, "1 (fast) to 9 (near to exact), of the optimal method (default: 5)"),
    "codes": (str, "full or symmetric: codes of the optimal and exact methods (default: full)"),
    "eps_scale": (
        float,
        "groups whose scale is not above this become zeros (default: 1e-6; 0 for "
        "the optimal and exact methods)",
    ),
    "num_threads": (int, "threads (default: all cores)"),
}

_MAIN_EXAMPLES = """\
examples:
  q43nl-numba compare
  q43nl-numba convert model.safetensors model-q43nl.safetensors
  q43nl-numba inspect model-q43nl.safetensors
  q43nl-numba restore model-q43nl.safetensors restored.safetensors

exit codes: 0 done, 1 the work failed, 2 wrong usage
"""

_CONVERT_EXAMPLES = """\
examples:
  q43nl-numba convert model.safetensors out.safetensors
  q43nl-numba convert model.safetensors out.safetensors --method grid
  q43nl-numba convert model.safetensors out.safetensors --gd-iterations 20 --gd-lr 0.1
  q43nl-numba convert model.safetensors out.safetensors --exclude '*embeddings*' --exclude lm_head.*
  q43nl-numba convert model.safetensors out.safetensors --include 'layers.*' --keep-dtype float16
  q43nl-numba convert model.safetensors out.safetensors --method optimal --importance imatrix.st
"""

_RESTORE_EXAMPLES = """\
examples:
  q43nl-numba restore model-q43nl.safetensors restored.safetensors
"""

_INSPECT_EXAMPLES = """\
examples:
  q43nl-numba inspect model.safetensors
  q43nl-numba inspect model-q43nl.safetensors | less -S
"""


class Ended(BaseException):
    """A signal asked the program to end; like KeyboardInterrupt it is not an error to handle."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose arguments are declared when it is used."""

    def __init__(
        self, declare: Callable[[argparse.ArgumentParser], None] | None = None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self.allow_abbrev = False
        self._declare = declare
        # not given, the options leave alone what was given before the command
        self.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show the traceback of an error",
        )
        self.add_argument(
            "--version",
            action=_ShowVersion,
            nargs=0,
            default=argparse.SUPPRESS,
            help="show the version and exit",
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        declare, self._declare = self._declare, None
        if declare is not None:
            declare(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        _say(f"error: {message} (see {self.prog} --help)")
        raise SystemExit(_WRONG_USAGE)


class _ShowVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from q43nl_numba import __version__

        print(f"{PROGRAM} {__version__}")
        parser.exit()


# ---------------------------------------------------------------------------------------------
# The commands
# ---------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole program."""
    parser = _Parser(
        prog=PROGRAM,
        description="Quantize weights to Q43NL, 4.75 bits per weight, and look at what it costs.",
        epilog=_MAIN_EXAMPLES,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser(
        "compare",
        help="compare the methods on a sample of weights",
        description="Quantize the same weights with every method; show error, speed and size.",
        declare=_declare_compare,
    )
    commands.add_parser(
        "convert",
        help="quantize a safetensors model file",
        description=(
            "Quantize every floating tensor of two and more dimensions whose last dimension is a\n"
            "multiple of 32, copy the rest, and show what it cost, worst tensor first."
        ),
        epilog=_CONVERT_EXAMPLES,
        declare=_declare_convert,
    )
    commands.add_parser(
        "restore",
        help="bring a converted file back to floating tensors",
        description="Bring a file that convert made back to the names, shapes and dtypes it had.",
        epilog=_RESTORE_EXAMPLES,
        declare=_declare_restore,
    )
    commands.add_parser(
        "inspect",
        help="show what is in a safetensors file",
        description=(
            "Show a row for every tensor: shape, type, bytes, bits per weight and, of packed\n"
            "ones, the share of zero groups and the distribution of curves."
        ),
        epilog=_INSPECT_EXAMPLES,
        declare=_declare_inspect,
    )
    return parser


def _declare_compare(parser: argparse.ArgumentParser) -> None:
    from q43nl_numba import compare

    parser.epilog = None  # it brings its own
    compare.add_arguments(parser)
    parser.set_defaults(run=compare.run)


def _declare_convert(parser: argparse.ArgumentParser) -> None:
    from q43nl_numba import METHODS
    from q43nl_numba.convert import KEEP_DTYPES

    _declare_files(parser)
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="GLOB",
        help="quantize only tensors whose name matches; may be given several times",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="do not quantize tensors whose name matches; may be given several times",
    )
    parser.add_argument(
        "--keep-dtype",
        choices=KEEP_DTYPES,
        default="as-is",
        help="what floating tensors that are not quantized are cast to (default: as-is)",
    )
    parser.add_argument(
        "--importance",
        metavar="FILE",
        help="safetensors file of weights of the squared errors by tensor name: of the tensor's "
        "shape, or a number for each column",
    )
    parser.add_argument(
        "--allow-empty",
        action="store_true",
        help="do not fail where no tensor is quantized",
    )
    method = parser.add_argument_group("method")
    method.add_argument(
        "--method", choices=METHODS, default="gradient", help="how (default: gradient)"
    )
    for name, (read, text) in _METHOD_OPTIONS.items():
        method.add_argument(
            f"--{name.replace('_', '-')}",
            type=read,
            metavar="N" if read is int else "X",
            help=text,
        )
    parser.set_defaults(run=_run_convert, usage_error=parser.error)


def _run_convert(args: argparse.Namespace) -> int:
    from q43nl_numba.convert import convert
    from q43nl_numba.convert.packing import check_method

    options = {
        name: value for name in _METHOD_OPTIONS if (value := getattr(args, name)) is not None
    }
    try:
        check_method(args.method, options)
    except (TypeError, ValueError) as error:
        args.usage_error(str(error))
    report = convert(
        args.source,
        args.destination,
        args.method,
        include=args.include,
        exclude=args.exclude,
        keep_dtype=args.keep_dtype,
        importance=args.importance,
        allow_empty=args.allow_empty,
        no_clobber=args.no_clobber,
        progress=True,
        **options,
    )
    print(report.table())
    return _DONE


def _declare_restore(parser: argparse.ArgumentParser) -> None:
    _declare_files(parser)
    read, text = _METHOD_OPTIONS["num_threads"]
    parser.add_argument("--num-threads", type=read, metavar="N", help=text)
    parser.set_defaults(run=_run_restore, usage_error=parser.error)


def _run_restore(args: argparse.Namespace) -> int:
    from q43nl_numba.convert import restore

    if args.num_threads is not None and args.num_threads < 1:
        args.usage_error(f"num_threads must be at least 1, found {args.num_threads}")
    report = restore(
        args.source,
        args.destination,
        no_clobber=args.no_clobber,
        progress=True,
        num_threads=args.num_threads,
    )
    print(report.table())
    return _DONE


def _declare_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FILE", help="safetensors file to look into")
    parser.set_defaults(run=_run_inspect)


def _run_inspect(args: argparse.Namespace) -> int:
    from q43nl_numba.convert import inspect

    print(inspect(args.source).table(sparklines=_can_print("▁█")))
    return _DONE


def _declare_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="safetensors file to read")
    parser.add_argument(
        "destination", metavar="OUT", help="safetensors file to write; replaced when complete"
    )
    parser.add_argument(
        "--no-clobber", action="store_true", help="refuse to replace an existing output"
    )


# ---------------------------------------------------------------------------------------------
# How a run ends
# ---------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    Examples
    --------
    >>> main(["--version"]) # doctest: +ELLIPSIS
    q43nl-numba ...
    0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with _signals_end_it():
        try:
            return _run(arguments)
        except BrokenPipeError:
            _forget_stdout()  # the reader of the table has seen enough
            return _DONE
        except KeyboardInterrupt:
            _say("interrupted")
            return _BY_SIGNAL + signal.SIGINT
        except Ended as ended:
            _say("terminated")
            return _BY_SIGNAL + ended.number
        except Exception as error:
            if "--debug" in arguments:
                traceback.print_exc()
            else:
                _say(f"error: {_one_line(error)}")
            return _FAILED


def _run(arguments: list[str]) -> int:
    """Parse, run and flush, so that a full disk or a closed pipe behind stdout is noticed."""
    _let_stdout_print_anything()
    try:
        try:
            args = build_parser().parse_args(arguments)
            code = int(args.run(args))
        except SystemExit as ended:  # how argparse ends after --help, --version or wrong usage
            code = ended.code if isinstance(ended.code, int) else _DONE
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        _forget_stdout()  # of all files, it alone has no name in its errors
        raise OSError(error.errno, error.strerror, "standard output") from error
    return code


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    """Let a polite request to end unwind the stack, so that no temporary file stays behind."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        raise Ended(number)

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # SIGHUP exists on POSIX only
        # a handler can be set in the main thread only, and nohup wants SIGHUP to stay ignored
        with contextlib.suppress(ValueError):
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _one_line(error: BaseException) -> str:
    """Say what went wrong, in one line that cannot disturb a terminal."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        text = where + error.strerror
    elif isinstance(error, MemoryError):
        text = f"out of memory: {error}" if str(error) else "out of memory"
    else:
        text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _say(line: str) -> None:
    """Print a line on stderr, if there still is one."""
    with contextlib.suppress(OSError, AttributeError):
        sys.stderr.write(f"{PROGRAM}: {line}\n")
        sys.stderr.flush()


def _can_print(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _let_stdout_print_anything() -> None:
    """Escape characters that the terminal's encoding lacks: a tensor may have any name."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _forget_stdout() -> None:
    """Send what is still buffered nowhere, so that it raises nothing when Python exits."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
