"""The commands ``convert``, ``restore`` and ``inspect``: their arguments, and what they print."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from q43nl_numba import METHODS
from q43nl_numba._parser import add_num_threads
from q43nl_numba._process import DONE, can_print
from q43nl_numba._text import json_text
from q43nl_numba.convert import KEEP_DTYPES
from q43nl_numba.methods import TABLE

_DEFAULT_METHOD = "gradient"

#: What each option of the methods is, for the help.
OPTION_HELP = {
    "grid_size": "candidates that are tried",
    "gd_iterations": "iterations of Adam",
    "gd_lr": "learning rate",
    "effort": "1 (fast) to 9 (near to exact)",
    "codes": "full, or symmetric for readers of codes -7 to 7 and positive scales alone",
}

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
  q43nl-numba inspect model-q43nl.safetensors --all | less -S
"""


def declare_convert(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``convert``."""
    parser.description = (
        "Quantize every floating tensor of two and more dimensions whose last dimension is a\n"
        "multiple of 32, copy the rest, and show what it cost, worst tensor first."
    )
    parser.epilog = _CONVERT_EXAMPLES
    _add_files(parser)
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
        help="weights of the squared errors: a safetensors file by tensor name (of the tensor's "
        "shape, or a number for each column), as calibrate writes it, or a file of llama-imatrix",
    )
    parser.add_argument(
        "--allow-empty",
        action="store_true",
        help="do not fail where no tensor is quantized",
    )
    _add_output_format(parser, long_tables=True)
    _add_method(parser.add_argument_group("method"))
    parser.set_defaults(run=_run_convert, usage_error=parser.error)


def _run_convert(args: argparse.Namespace) -> int:
    """Convert and print the report."""
    from q43nl_numba.convert import convert
    from q43nl_numba.convert.rules import Treatment, check_treatment

    options = _given_options(args)
    try:
        check_treatment(Treatment(args.method, tuple(options.items())))
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
    print(json_text(report.document()) if args.json else report.table(whole=args.all))
    return DONE


def declare_restore(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``restore``."""
    parser.description = (
        "Bring a file that convert made back to the names, shapes and dtypes it had."
    )
    parser.epilog = _RESTORE_EXAMPLES
    _add_files(parser)
    _add_output_format(parser)
    add_num_threads(parser)
    parser.set_defaults(run=_run_restore)


def _run_restore(args: argparse.Namespace) -> int:
    """Restore and print the report."""
    from q43nl_numba.convert import restore

    report = restore(
        args.source,
        args.destination,
        no_clobber=args.no_clobber,
        progress=True,
        num_threads=args.num_threads,
    )
    print(json_text(report.document()) if args.json else report.table())
    return DONE


def declare_inspect(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``inspect``."""
    parser.description = (
        "Show a row for every tensor: shape, type, bytes, bits per weight and, of packed\n"
        "ones, the share of zero groups and the distribution of curves."
    )
    parser.epilog = _INSPECT_EXAMPLES
    parser.add_argument("source", metavar="FILE", help="safetensors file to look into")
    _add_output_format(parser, long_tables=True)
    parser.set_defaults(run=_run_inspect)


def _run_inspect(args: argparse.Namespace) -> int:
    """Print what is in a file."""
    from q43nl_numba.convert import inspect

    contents = inspect(args.source)
    if args.json:
        print(json_text(contents.document()))
    else:
        print(contents.table(sparklines=can_print("▁█"), whole=args.all))
    return DONE


def _add_files(parser: argparse.ArgumentParser) -> None:
    """Declare the input and the output."""
    parser.add_argument("source", metavar="IN", help="safetensors file to read")
    parser.add_argument(
        "destination", metavar="OUT", help="safetensors file to write; replaced when complete"
    )
    parser.add_argument(
        "--no-clobber", action="store_true", help="refuse to replace an existing output"
    )


def _add_output_format(parser: argparse.ArgumentParser, *, long_tables: bool = False) -> None:
    """Declare how the report is printed."""
    parser.add_argument("--json", action="store_true", help="print a JSON object, not a table")
    if long_tables:
        parser.add_argument(
            "--all", action="store_true", help="print every row of a table with many rows"
        )


def _add_method(parser: Any) -> None:
    """Declare the method and the options of all methods, from their table."""
    parser.add_argument(
        "--method",
        choices=METHODS,
        default=_DEFAULT_METHOD,
        help=f"how (default: {_DEFAULT_METHOD})",
    )
    for name, default, methods in _method_options():
        of = f"method{'s' if len(methods) > 1 else ''} {' and '.join(methods)}"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            metavar={int: "N", float: "X"}.get(type(default), "WORD"),
            help=f"{OPTION_HELP.get(name, name)}, of the {of} (default: {default})",
        )
    parser.add_argument(
        "--eps-scale",
        type=float,
        metavar="X",
        help="groups whose scale is not above this become zeros (default: 1e-6; 0 for the optimal "
        "and exact methods)",
    )
    add_num_threads(parser)


def _method_options() -> Iterator[tuple[str, int | float | str, list[str]]]:
    """Yield the name, the default and the methods of each option in the methods' table."""
    options = {option.name: option for method in TABLE.values() for option in method.options}
    for name, option in options.items():
        takers = [
            method.name
            for method in TABLE.values()
            if any(option.name == name for option in method.options)
        ]
        yield name, option.default, takers


def _given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `q43nl` that were given."""
    names = [*(name for name, _, _ in _method_options()), "eps_scale", "num_threads"]
    return {name: value for name in names if (value := getattr(args, name)) is not None}
