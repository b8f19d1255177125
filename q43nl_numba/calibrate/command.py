"""The commands ``calibrate`` and ``evaluate``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from q43nl_numba.calibrate.collect import DEFAULT_TOKENS as CALIBRATION_TOKENS
from q43nl_numba.calibrate.collect import calibrate
from q43nl_numba.calibrate.evaluate import DEFAULT_TOKENS as EVALUATION_TOKENS
from q43nl_numba.calibrate.evaluate import evaluate
from q43nl_numba.calibrate.plot import matplotlib, save_plot
from q43nl_numba.calibrate.text import DEFAULT_WINDOW

__all__ = [
    "CALIBRATE_EXAMPLES",
    "EVALUATE_EXAMPLES",
    "add_calibrate_arguments",
    "add_evaluate_arguments",
    "run_calibrate",
    "run_evaluate",
]

CALIBRATE_EXAMPLES = """\
examples:
  q43nl-numba calibrate SmolLM2-135M stats.safetensors --text book.txt code.txt
  q43nl-numba calibrate SmolLM2-135M stats.safetensors --text book.txt --hessians --tokens 32768
"""

EVALUATE_EXAMPLES = """\
examples:
  q43nl-numba evaluate SmolLM2-135M SmolLM2-135M-q43nl --text held-out.txt
  q43nl-numba evaluate SmolLM2-135M model-q43nl.safetensors --text held-out.txt --json
  q43nl-numba evaluate SmolLM2-135M SmolLM2-135M-q43nl --text held-out.txt --plot loss.svg
"""


def add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``calibrate`` on its parser."""
    parser.add_argument("folder", metavar="FOLDER", help="Hugging Face model folder")
    parser.add_argument(
        "destination",
        metavar="STATS",
        help="safetensors file to write; convert reads it as --importance and --hessians",
    )
    _add_text_arguments(parser, CALIBRATION_TOKENS)
    parser.add_argument(
        "--hessians",
        action="store_true",
        help="also keep the full second moments of the inputs, for error feedback",
    )
    parser.set_defaults(usage_error=parser.error)


def run_calibrate(args: argparse.Namespace) -> int:
    """Calibrate as the parsed arguments say, print one line, and return the exit code."""
    _say_what_is_read(args)
    report = calibrate(
        args.folder,
        args.destination,
        args.text,
        tokens=args.tokens,
        window=args.window,
        hessians=args.hessians,
        progress=True,
    )
    print(report.table())
    return 0


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``evaluate`` on its parser."""
    parser.add_argument("original", metavar="ORIGINAL", help="Hugging Face model folder")
    parser.add_argument(
        "quantized",
        metavar="QUANTIZED",
        help="the folder or file that convert made of it, or another folder of the same shape",
    )
    _add_text_arguments(parser, EVALUATION_TOKENS)
    parser.add_argument("--json", action="store_true", help="print a JSON object, not a table")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw the layers' errors and the divergence (png, svg, pdf)"
    )
    parser.set_defaults(usage_error=parser.error)


def run_evaluate(args: argparse.Namespace) -> int:
    """Evaluate as the parsed arguments say, print, draw, and return the exit code."""
    if args.plot is not None:
        matplotlib()  # its absence shall not show after minutes of work
        _check_plot_name(args)
    _say_what_is_read(args)
    report = evaluate(
        args.original,
        args.quantized,
        args.text,
        tokens=args.tokens,
        window=args.window,
        progress=True,
    )
    if args.plot is not None:
        save_plot(report, args.plot)
    print(report.json() if args.json else report.table())
    return 0


def _add_text_arguments(parser: argparse.ArgumentParser, tokens: int) -> None:
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="FILE",
        help="text files in UTF-8 (default: a small built-in text)",
    )
    parser.add_argument(
        "--tokens",
        type=_at_least(2),
        default=tokens,
        metavar="N",
        help=f"tokens to take at most, spread evenly over the text (default: {tokens})",
    )
    parser.add_argument(
        "--window",
        type=_at_least(2),
        default=DEFAULT_WINDOW,
        metavar="N",
        help=f"tokens that are run together (default: {DEFAULT_WINDOW})",
    )


def _say_what_is_read(args: argparse.Namespace) -> None:
    if args.text is None:
        sys.stderr.write(
            "no --text was given: a small built-in text is used; "
            "text of the kind that the model will see serves better\n"
        )


def _check_plot_name(args: argparse.Namespace) -> None:
    """Refuse, before the work, a name that no picture can be written under."""
    folder = os.path.dirname(args.plot) or "."
    if os.path.splitext(args.plot)[1].lower() not in (".png", ".svg", ".pdf"):
        args.usage_error(f"--plot must end in .png, .svg or .pdf, found {args.plot!r}")
    if not os.path.isdir(folder):
        args.usage_error(f"--plot must be in a folder that exists, found {args.plot!r}")


def _at_least(least: int) -> Callable[[str], int]:
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
