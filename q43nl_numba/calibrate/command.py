"""The commands ``calibrate`` and ``evaluate``, and statistics for ``convert`` and ``export``."""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .. import q43nl
from .._parser import integer_from
from .._process import DONE, say
from .._text import json_text
from ..convert import convert_model
from ..convert.command import declare_convert as _declare_convert
from ..export import DTYPES, export_model
from ..export.command import declare_export as _declare_export
from .collect import DEFAULT_TOKENS as CALIBRATION_TOKENS
from .collect import calibrate
from .converting import convert_calibrated, convert_with_hessians
from .errors import CalibrationError
from .evaluate import DEFAULT_TOKENS as EVALUATION_TOKENS
from .evaluate import evaluate
from .exporting import export_calibrated, export_with_hessians
from .packing import feedback_options
from .plot import matplotlib, save_plot
from .text import DEFAULT_WINDOW

__all__ = [
    "declare_calibrate",
    "declare_convert",
    "declare_evaluate",
    "declare_export",
]

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

_EXPORT_EXAMPLE = """\
  q43nl-numba export SmolLM2-135M smollm2.safetensors --method optimal --calibrate book.txt
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
    _add_text_arguments(parser, CALIBRATION_TOKENS)
    parser.add_argument(
        "--hessians",
        action="store_true",
        help="also keep the full second moments of the inputs, for error feedback",
    )
    parser.set_defaults(run=_run_calibrate, usage_error=parser.error)


def _run_calibrate(args: argparse.Namespace) -> int:
    """Calibrate and print one line about it."""
    _say_if_built_in(args.text)
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
        help="the folder or file that convert made of it, the file that export made of it, or "
        "another folder of the same shape",
    )
    _add_text_arguments(parser, EVALUATION_TOKENS)
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
    _say_if_built_in(args.text)
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


def declare_convert(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``convert``, those for statistics of the model's inputs included."""
    _declare_convert(parser)
    _add_statistics_arguments(parser)
    parser.set_defaults(conversion=_chosen_conversion)


def declare_export(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``export``, those for statistics of the model's inputs included."""
    _declare_export(parser)
    parser.epilog = f"{parser.epilog}{_EXPORT_EXAMPLE}"
    _add_statistics_arguments(parser)
    parser.set_defaults(exporting=_chosen_export)


def _add_statistics_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which statistics ``convert`` and ``export`` can be given beside importance."""
    group = parser.add_argument_group("statistics of the model's inputs")
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--calibrate",
        nargs="*",
        metavar="TEXT",
        help="measure each matrix' inputs on this text (without one, on a small built-in text), "
        "after the matrices before it were quantized",
    )
    source.add_argument(
        "--hessians", metavar="FILE", help="error feedback by what calibrate --hessians wrote"
    )
    group.add_argument(
        "--no-feedback",
        action="store_true",
        help="with --calibrate: importance instead of error feedback, which takes less time",
    )
    _add_size_arguments(group, CALIBRATION_TOKENS)
    defaults = inspect.signature(q43nl).parameters
    group.add_argument(
        "--damping",
        type=float,
        metavar="X",
        help="error feedback: what is added to the diagonal of each hessian, as a share of its "
        f"mean (default: {defaults['damping'].default})",
    )
    group.add_argument(
        "--sweeps",
        type=integer_from(0),
        metavar="N",
        help="error feedback: how often all codes are chosen again "
        f"(default: {defaults['sweeps'].default})",
    )


def _chosen_conversion(args: argparse.Namespace) -> Callable[..., Any]:
    """Return what converts as the arguments ask, called like `convert_model`."""
    if _statistics_option(args) is None:
        return convert_model
    return _with_statistics(args, convert_calibrated, convert_with_hessians)


def _chosen_export(args: argparse.Namespace) -> Callable[..., Any]:
    """Return what exports as the arguments ask, called like `export_model`."""
    option = _statistics_option(args)
    if option is None:
        return export_model
    if args.dtype != DTYPES[0]:
        args.usage_error(f"{option} must be given with --dtype {DTYPES[0]}, found {args.dtype}")
    return _with_statistics(args, export_calibrated, export_with_hessians)


def _statistics_option(args: argparse.Namespace) -> str | None:
    """Return the option that asks for statistics, None without one; check what goes with it."""
    if args.calibrate is None and args.no_feedback:
        args.usage_error("--no-feedback must be given with --calibrate")
    _check_feedback_options(args)
    if args.calibrate is None and args.hessians is None:
        return None
    option = "--hessians" if args.calibrate is None else "--calibrate"
    if args.importance is not None:
        args.usage_error(f"{option} must be given without --importance")
    return option


def _check_feedback_options(args: argparse.Namespace) -> None:
    """Refuse options of error feedback without it, and out of their ranges."""
    for option, given in (("--damping", args.damping), ("--sweeps", args.sweeps)):
        if given is None:
            continue
        if args.calibrate is None and args.hessians is None:
            args.usage_error(f"{option} must be given with --calibrate or --hessians")
        if args.no_feedback:
            args.usage_error(f"{option} must be given without --no-feedback")
    try:
        feedback_options(args.damping, args.sweeps)
    except ValueError as error:
        args.usage_error(str(error))


def _with_statistics(
    args: argparse.Namespace, calibrated: Callable[..., Any], with_hessians: Callable[..., Any]
) -> Callable[..., Any]:
    """Return one of two functions with the statistics that the arguments ask for."""
    if args.calibrate is None:
        return partial(
            _without_importance,
            with_hessians,
            hessians=args.hessians,
            damping=args.damping,
            sweeps=args.sweeps,
        )
    _say_if_built_in(args.calibrate)
    return partial(
        _without_importance,
        calibrated,
        text=args.calibrate or None,
        tokens=args.tokens,
        window=args.window,
        feedback=not args.no_feedback,
        damping=args.damping,
        sweeps=args.sweeps,
    )


def _without_importance(
    function: Callable[..., Any],
    *positional: Any,
    importance: None = None,
    allow_empty: bool = False,
    resume: bool = False,
    scheduler: str | None = None,
    **options: Any,
) -> Any:
    """Call a function that lacks some arguments of `convert_model` or `export_model`."""
    for name, given in (("resume", resume), ("scheduler", scheduler), ("allow-empty", allow_empty)):
        if given:
            raise CalibrationError(f"--{name} must not be given with --calibrate or --hessians")
    return function(*positional, **options)


def _add_text_arguments(parser: argparse.ArgumentParser, tokens: int) -> None:
    """Declare which text is read, and how much of it."""
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="FILE",
        help="text files in UTF-8 (default: a small built-in text)",
    )
    _add_size_arguments(parser, tokens)


def _add_size_arguments(parser: Any, tokens: int) -> None:
    """Declare how much of a text is read."""
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


def _say_if_built_in(text: Sequence[str] | None) -> None:
    """Print a line if no text was given."""
    if not text:
        say(
            "no text was given: a small built-in text is used; "
            "text of the kind that the model will see serves better"
        )


def _check_plot_name(args: argparse.Namespace) -> None:
    """Refuse, before the work, a name that no picture can be written under."""
    folder = os.path.dirname(args.plot) or "."
    if os.path.splitext(args.plot)[1].lower() not in (".png", ".svg", ".pdf"):
        args.usage_error(f"--plot must end in .png, .svg or .pdf, found {args.plot!r}")
    if not os.path.isdir(folder):
        args.usage_error(f"--plot must be in a folder that exists, found {args.plot!r}")
