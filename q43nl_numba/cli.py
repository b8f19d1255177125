"""The program ``q43nl-numba``: finds the command that is asked for and runs it.

Each command is a row of `COMMANDS`. It declares its own arguments in the module that the row
names, which is imported when the command is used, and returns its exit code. Exit codes: 0 done,
1 the work failed, 2 wrong usage, 128 + n ended by signal n (`q43nl_numba._process`).
"""

from __future__ import annotations

import sys

from . import _process

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes longer to import than this module
    import argparse
    from collections.abc import Callable, Sequence

#: A command's name -> its line in the help, and the function (module:name) that declares it.
COMMANDS: dict[str, tuple[str, str]] = {
    "compare": (
        "compare the methods on a sample of weights",
        "q43nl_numba.compare.command:declare_compare",
    ),
    "convert": (
        "quantize a model: a file or a folder",
        "q43nl_numba.calibrate.command:declare_convert",
    ),
    "export": (
        "write a model folder as the one file that the PasLLM engine runs",
        "q43nl_numba.calibrate.command:declare_export",
    ),
    "restore": (
        "bring a converted model back to floating tensors",
        "q43nl_numba.export.command:declare_restore",
    ),
    "verify": (
        "compare a converted model with the original",
        "q43nl_numba.convert.command:declare_verify",
    ),
    "inspect": (
        "show what is in a model",
        "q43nl_numba.export.command:declare_inspect",
    ),
    "calibrate": (
        "measure what a model's matrices are multiplied with",
        "q43nl_numba.calibrate.command:declare_calibrate",
    ),
    "evaluate": (
        "measure what a model lost by quantization",
        "q43nl_numba.calibrate.command:declare_evaluate",
    ),
}

_EXAMPLES = """\
examples:
  q43nl-numba compare
  q43nl-numba convert model.safetensors model-q43nl.safetensors
  q43nl-numba verify model.safetensors model-q43nl.safetensors --min-snr 20
  q43nl-numba restore model-q43nl.safetensors restored.safetensors

exit codes: 0 done, 1 the work failed, 2 wrong usage
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, by default those of the process.

    Examples
    --------
    >>> main(["--version"]) # doctest: +ELLIPSIS
    q43nl-numba ...
    0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _process.run(lambda: _run(arguments), debug="--debug" in arguments)


def _run(arguments: list[str]) -> int:
    """Parse the arguments and run the command that they name."""
    args = build_parser().parse_args(arguments)
    return int(args.run(args))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole program."""
    from ._parser import Parser

    parser = Parser(
        prog=_process.PROGRAM,
        description="Quantize weights to Q43NL, 4.75 bits per weight, and look at what it costs.",
        epilog=_EXAMPLES,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (line, function) in COMMANDS.items():
        commands.add_parser(name, help=line, declare=_imported_when_called(function))
    return parser


def _imported_when_called(
    reference: str,
) -> Callable[[argparse.ArgumentParser], None]:
    """Return a function that imports the one that a reference (module:name) means and calls it."""

    def declare(parser: argparse.ArgumentParser) -> None:
        from importlib import import_module

        module, name = reference.split(":")
        getattr(import_module(module), name)(parser)

    return declare
