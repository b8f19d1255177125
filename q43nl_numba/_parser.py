"""The parser of the commands: errors of one line, arguments declared by the command in use."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from ._process import PROGRAM, WRONG_USAGE, say


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose arguments are declared when it is used.

    Parameters
    ----------
    declare : callable, optional
        Is called with the parser before it parses; declares arguments, description and examples.
        So nothing heavy is imported for the commands that are not used.
    **settings
        As for `argparse.ArgumentParser`.
    """

    def __init__(
        self, declare: Callable[[argparse.ArgumentParser], None] | None = None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self.allow_abbrev = False
        self._declare = declare
        # Where they are not given, the options leave alone what was given before the command.
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
        """Declare the arguments, then parse."""
        declare, self._declare = self._declare, None
        if declare is not None:
            declare(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print one line about wrong usage and exit."""
        say(f"error: {message} (see {self.prog} --help)")
        raise SystemExit(WRONG_USAGE)


class _ShowVersion(argparse.Action):
    """The action of ``--version``; only it imports the version."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from . import __version__

        print(f"{PROGRAM} {__version__}")
        parser.exit()


def integer_from(least: int) -> Callable[[str], int]:
    """Return an argument type: integers of at least `least`."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(
                f"must be an integer of at least {least}, found {text!r}"
            )
        return value

    return integer


def add_num_threads(parser: Any) -> None:
    """Declare ``--num-threads``."""
    parser.add_argument(
        "--num-threads", type=integer_from(1), metavar="N", help="threads (default: all cores)"
    )
