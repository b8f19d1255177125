"""The commands ``calibrate`` and ``evaluate``."""

from __future__ import annotations

import argparse
import os

from q43nl_numba._parser import integer_from
from q43nl_numba._process import DONE, say
from q43nl_numba._text import json_text
from q43nl_numba.calibrate.collect import DEFAULT_TOKENS as CALIBRATION_TOKENS
from q43nl_numba.calibrate.collect import calibrate
from q43nl_numba.calibrate.evaluate import DEFAULT_TOKENS as EVALUATION_TOKENS
from q43nl_numba.calibrate.evaluate import evaluate
from q43nl_numba.calibrate.plot import matplotlib, save_plot
from q43nl_numba.calibrate.text import DEFAULT_WINDOW

__all__ = ["add_text_arguments", "declare_calibrate", "declare_evaluate", "say_if_built_in"]

_CALIBRATE_EXAMPLES = """\
examples:
  q43nl-numba calibrate SmolLM2-135M stats.safetensors --text book.txt code.txt
  q43nl-numba calibrate SmolLM2-135M stats.safetensors --text book.txt --hessians --tokens 32768
"""

_EVALUATE_EXAMPLES = """\
examples:
  q43nl-numba evaluate SmolLM2-135M SmolLM2-135M-q43nl --text held-out.txt
  q43nl-numba evaluate SmolLM2-135M model-q43nl.safetensors --text held-out.txt --json
  q43nl-numba evaluate SmolLM2-135M SmolLM2-135M-q43nl --text held-out.txt --plot loss.svg
"""


def declare_calibrate(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``calibrate``."""
    parser.description = (
        "Run text through a model and write down what its matrices are multiplied with, so that\n"
        "convert knows which errors matter."
    )
    parser.epilog = _CALIBRATE_EXAMPLES
    parser.add_argument("folder", metavar="FOLDER", help="Hugging Face model folder")
    parser.add_argument(
        "destination",
        metavar="STATS",
        help="safetensors file to write; convert reads it as --importance and --hessians",
    )
    add_text_arguments(parser, CALIBRATION_TOKENS)
    parser.add_argument(
        "--hessians",
        action="store_true",
        help="also keep the full second moments of the inputs, for error feedback",
    )
    parser.set_defaults(run=_run_calibrate, usage_error=parser.error)


def _run_calibrate(args: argparse.Namespace) -> int:
    """Calibrate and print one line about it."""
    say_if_built_in(args)
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
    return DONE


def declare_evaluate(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``evaluate``."""
    parser.description = (
        "Run text through a model and its quantized version and show what was lost: perplexity,\n"
        "KL divergence of the next-token distributions, and every layer's output error."
    )
    parser.epilog = _EVALUATE_EXAMPLES
    parser.add_argument("original", metavar="ORIGINAL", help="Hugging Face model folder")
    parser.add_argument(
        "quantized",
        metavar="QUANTIZED",
        help="the folder or file that convert made of it, or another folder of the same shape",
    )
    add_text_arguments(parser, EVALUATION_TOKENS)
    parser.add_argument("--json", action="store_true", help="print a JSON object, not a table")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw the layers' errors and the divergence (png, svg, pdf)"
    )
    parser.set_defaults(run=_run_evaluate, usage_error=parser.error)


def _run_evaluate(args: argparse.Namespace) -> int:
    """Evaluate, draw and print the figures."""
    if args.plot is not None:
        matplotlib()  # its absence shall not show after minutes of work
        _check_plot_name(args)
    say_if_built_in(args)
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
    print(json_text(report.document()) if args.json else report.table())
    return DONE


def add_text_arguments(parser: argparse.ArgumentParser, tokens: int) -> None:
    """Declare which text is read, and how much of it."""
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="FILE",
        help="text files in UTF-8 (default: a small built-in text)",
    )
    parser.add_argument(
        "--tokens",
        type=integer_from(2),
        default=tokens,
        metavar="N",
        help=f"tokens to take at most, spread evenly over the text (default: {tokens})",
    )
    parser.add_argument(
        "--window",
        type=integer_from(2),
        default=DEFAULT_WINDOW,
        metavar="N",
        help=f"tokens that are run together (default: {DEFAULT_WINDOW})",
    )


def say_if_built_in(args: argparse.Namespace) -> None:
    """Print a line if no text was given."""
    if args.text is None:
        say(
            "no --text was given: a small built-in text is used; "
            "text of the kind that the model will see serves better"
        )


def _check_plot_name(args: argparse.Namespace) -> None:
    """Refuse, before the work, a name that no picture can be written under."""
    folder = os.path.dirname(args.plot) or "."
    if os.path.splitext(args.plot)[1].lower() not in (".png", ".svg", ".pdf"):
        args.usage_error(f"--plot must end in .png, .svg or .pdf, found {args.plot!r}")
    if not os.path.isdir(folder):
        args.usage_error(f"--plot must be in a folder that exists, found {args.plot!r}")
