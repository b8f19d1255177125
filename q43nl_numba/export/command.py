"""The command ``export``, and what ``restore`` and ``inspect`` do with the engine's files."""

from __future__ import annotations

import argparse
import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

from .._process import DONE, can_print, say
from .._text import json_text
from ..convert import command as convert_command
from ..convert.errors import ModelFileError
from ..convert.html import html_page
from ..convert.output import whole_file
from ..convert.progress import shown_progress
from ..convert.reading import read_header
from ..convert.report import report_format
from ..convert.rules import Treatment
from .architectures import CLASS_NAMES
from .engine_file import is_engine_file
from .exporting import DTYPES, check_arguments, export_model, find_format
from .inspecting import inspect_model
from .report import ExportReport, ExportWarning
from .restoring import RESTORE_DTYPES, restore_model

_EXAMPLES = """\
examples:
  q43nl-numba export SmolLM2-135M-Instruct smollm2.safetensors
  q43nl-numba export SmolLM2-135M-Instruct smollm2.safetensors --method optimal
  q43nl-numba export SmolLM2-135M-Instruct smollm2.safetensors --importance importance.safetensors
  q43nl-numba export SmolLM2-135M-Instruct smollm2-bf16.safetensors --dtype bf16
"""


def declare_export(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``export``."""
    parser.description = (
        "Write a Hugging Face model folder as the one file that the PasLLM engine runs: weights,\n"
        "model description, tokenizer and chat template. Architectures:\n"
        + "".join(f"  {name}\n" for name in CLASS_NAMES)
    )
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "source",
        metavar="MODEL_FOLDER",
        help="folder with config.json, tokenizer.json and safetensors files",
    )
    parser.add_argument("destination", metavar="OUT", help="file to write; appears when complete")
    convert_command.add_no_clobber(parser)
    convert_command.add_resume(parser)
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help=f"format of all matrices (default: {DTYPES[0]})",
    )
    for option in ("include", "exclude"):
        parser.add_argument(
            f"--{option}",
            action="append",
            default=[],
            metavar="GLOB",
            help=f"matrices to {option}, by the folder's names; a file has one format for all "
            "matrices, so leaving one out is an error",
        )
    parser.add_argument(
        "--rules",
        metavar="FILE",
        help="TOML file of rules, as of convert: the first one that matches decides how a matrix "
        "is packed",
    )
    parser.add_argument(
        "--importance",
        metavar="FILE",
        help="safetensors file of weights of the squared errors by the folder's tensor names: of "
        "the tensor's shape, or a number for each column",
    )
    parser.add_argument(
        "--allow-rope-scaling",
        action="store_true",
        help="export a model with RoPE scaling, which the engine ignores: its answers are not the "
        "model's",
    )
    parser.add_argument(
        "--report",
        metavar="FILE",
        action="append",
        default=[],
        help="write a report: report.json for programs, report.html to look at; may be given "
        "several times",
    )
    convert_command.add_output_format(parser, long_tables=True)
    convert_command.add_method(parser.add_argument_group("method"))
    parser.set_defaults(
        run=run_export, exporting=lambda args: export_model, usage_error=parser.error
    )


def run_export(args: argparse.Namespace) -> int:
    """Export as the parsed arguments say, print the report, and return the exit code."""
    options = convert_command.given_options(args)
    try:
        treatment = Treatment(args.method, tuple(options.items()), args.importance)
        check_arguments(find_format(args.dtype), treatment)
    except (TypeError, ValueError) as error:
        args.usage_error(str(error))
    for path in args.report:
        convert_command.check_report(path, args)
        if report_format(path) == "html" and args.dtype != DTYPES[0]:
            args.usage_error(f"argument --report: {path} is of what --dtype {DTYPES[0]} costs")
    export = args.exporting(args)
    with (
        _warnings_are_said(),
        convert_command.unfinished_named(args.destination, "sections"),
        shown_progress() as progress,
    ):
        report = export(
            args.source,
            args.destination,
            dtype=args.dtype,
            method=args.method,
            importance=args.importance,
            include=args.include,
            exclude=args.exclude,
            rules=args.rules or (),
            allow_rope_scaling=args.allow_rope_scaling,
            no_clobber=args.no_clobber,
            resume=args.resume,
            progress=progress,
            **options,
        )
    for path in args.report:
        _write_report(path, report, args.source)
    print(json_text(report.document()) if args.json else report.table(whole=args.all))
    return DONE


def _write_report(path: str, report: ExportReport, source: str) -> None:
    """Write a report, whole or not at all."""
    if report_format(path) == "json":
        text = json_text(report.document()) + "\n"
    else:
        text = html_page(report.conversion, source, report.path)
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))


def declare_restore(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``restore``, with those that only an engine file has."""
    convert_command.declare_restore(parser)
    of_engine = parser.add_argument_group("of an engine file (OUT is a new folder then)")
    of_engine.add_argument(
        "--dtype",
        choices=RESTORE_DTYPES,
        help=f"dtype of all tensors (default: {RESTORE_DTYPES[0]})",
    )
    of_engine.add_argument(
        "--like",
        metavar="MODEL_FOLDER",
        help="the folder it was exported from: its configuration and tokenizer are copied",
    )
    of_engine.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        type=convert_command.shard_size,
        help="write files of at most so many bytes of weights, such as 5GB",
    )
    parser.set_defaults(
        run=_run_restore, usage_error=parser.error, run_other=parser.get_default("run")
    )


def _run_restore(args: argparse.Namespace) -> int:
    """Restore a file of either kind."""
    if not _is_engine_file(args.source):
        if args.dtype is not None or args.like is not None or args.max_shard_size is not None:
            args.usage_error("--dtype, --like and --max-shard-size are for engine files")
        return int(args.run_other(args))
    with convert_command.unfinished_named(args.destination), shown_progress() as progress:
        report = restore_model(
            args.source,
            args.destination,
            dtype=args.dtype or RESTORE_DTYPES[0],
            like=args.like,
            max_shard_size=args.max_shard_size,
            resume=args.resume,
            progress=progress,
            num_threads=args.num_threads,
        )
    print(json_text(report.document()) if args.json else report.table())
    return DONE


def declare_inspect(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``inspect``."""
    convert_command.declare_inspect(parser)
    parser.set_defaults(run=_run_inspect, run_other=parser.get_default("run"))


def _run_inspect(args: argparse.Namespace) -> int:
    """Show a file of either kind."""
    if not _is_engine_file(args.source):
        return int(args.run_other(args))
    contents = inspect_model(args.source)
    if args.json:
        print(json_text(contents.document()))
    else:
        print(contents.table(sparklines=can_print("▁█"), whole=args.all))
    return DONE


def _is_engine_file(path: str) -> bool:
    """Tell whether a command is given an engine file; what is wrong with others, others say."""
    if not os.path.isfile(path):
        return False
    try:
        return is_engine_file(read_header(path))
    except (OSError, ModelFileError):
        return False


@contextlib.contextmanager
def _warnings_are_said() -> Iterator[None]:
    """Print notes about the model on stderr as they come, before hours of work."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if issubclass(category, ExportWarning):
                say(f"warning: {message}")
            else:
                shown(message, category, *rest)

        warnings.simplefilter("always", ExportWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield
