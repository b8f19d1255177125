"""The commands on models: ``convert``, ``restore``, ``verify`` and ``inspect``."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

from .. import METHODS
from .._parser import add_num_threads
from .._process import DONE, FAILED, can_print, say
from .._text import count_text, json_text
from ..methods import TABLE
from ..methods.method import Option
from . import (
    KEEP_DTYPES,
    ConvertReport,
    ModelFileError,
    convert_model,
    inspect,
    plan_model,
    restore,
    shown_progress,
    unfinished,
    verify_model,
)
from .output import check_output, whole_file
from .report import (
    convert_document,
    plan_document,
    plan_table,
    report_format,
    report_text,
    verify_document,
    verify_table,
)
from .rules import Treatment, check_treatment
from .shards import parse_size

_DEFAULT_METHOD = "gradient"

_CONVERT_EXAMPLES = """\
examples:
  q43nl-numba convert model.safetensors out.safetensors
  q43nl-numba convert model.safetensors out.safetensors --method optimal --importance imatrix.st
  q43nl-numba convert model.safetensors out.safetensors --exclude '*embeddings*' --exclude lm_head.*
  q43nl-numba convert model-folder out-folder --report report.html
  q43nl-numba convert model-folder out-folder --rules rules.toml --dry-run
  q43nl-numba convert model-folder out-folder --max-shard-size 2GB --resume
  q43nl-numba convert model-folder out-folder --scheduler tcp://host:8786
  q43nl-numba convert model.gguf out.safetensors --method predictor

a rule file is TOML; the first rule that matches a tensor decides:
  [[rule]]
  pattern = "lm_head.*"      # or a list of patterns
  keep = true                # or a type to cast to: "float16"
  [[rule]]
  pattern = "*.down_proj.*"
  method = "optimal"
  effort = 9
"""

_RESTORE_EXAMPLES = """\
examples:
  q43nl-numba restore model-q43nl.safetensors restored.safetensors
  q43nl-numba restore out-folder restored-folder
"""

_INSPECT_EXAMPLES = """\
examples:
  q43nl-numba inspect model.safetensors
  q43nl-numba inspect out-folder --all | less -S
"""

_VERIFY_EXAMPLES = """\
examples:
  q43nl-numba verify model.safetensors model-q43nl.safetensors
  q43nl-numba verify model-folder out-folder --min-snr 20 --json
"""


def declare_convert(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``convert``, but for statistics of the model's inputs."""
    parser.description = (
        "Quantize every floating tensor of two and more dimensions whose last dimension is a\n"
        "multiple of 32, copy the rest, and show what it cost, worst tensor first. The input is a\n"
        "safetensors file, a folder as Hugging Face lays it out, or a GGUF file."
    )
    parser.epilog = _CONVERT_EXAMPLES
    _add_models(parser, "model file or folder to read", "file or new folder to write")
    _add_choice(parser.add_argument_group("which tensors, and how"))
    add_method(parser.add_argument_group("method"))
    _add_layout(parser.add_argument_group("output"))
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="let the workers of a Dask cluster do the work, such as tcp://host:8786; they must "
        "see the same files",
    )
    _add_reports(parser.add_argument_group("report"))
    parser.set_defaults(
        run=_run_convert, conversion=lambda args: convert_model, usage_error=parser.error
    )


def _add_choice(group: Any) -> None:
    """Declare what chooses tensors and how they are treated."""
    group.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="GLOB",
        help="quantize only tensors whose name matches; may be given several times",
    )
    group.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="do not quantize tensors whose name matches; may be given several times",
    )
    group.add_argument("--rules", metavar="FILE", help="TOML file of ordered rules, see below")
    group.add_argument(
        "--keep-dtype",
        choices=KEEP_DTYPES,
        default="as-is",
        help="what floating tensors that are not quantized are cast to (default: as-is)",
    )
    group.add_argument(
        "--importance",
        metavar="FILE",
        help="weights of the squared errors: a safetensors file by tensor name (of the tensor's "
        "shape, or a number for each column), as calibrate writes it, or a file of llama-imatrix",
    )
    group.add_argument(
        "--allow-empty", action="store_true", help="do not fail where no tensor is quantized"
    )


def _add_layout(group: Any) -> None:
    """Declare how the output is laid out."""
    group.add_argument(
        "--single-file", action="store_true", help="write one file, however many the input has"
    )
    group.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        type=shard_size,
        help="write files of at most so many bytes of weights, such as 5GB",
    )
    add_no_clobber(group)
    add_resume(group)


def _add_reports(group: Any) -> None:
    """Declare what is printed and which reports are written."""
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="print what becomes of every tensor, and exact sizes; write nothing",
    )
    group.add_argument(
        "--report",
        metavar="FILE",
        action="append",
        default=[],
        help="write a report: report.json for programs, report.html to look at; may be given "
        "several times",
    )
    add_output_format(group, long_tables=True)


def _run_convert(args: argparse.Namespace) -> int:
    """Convert, or plan to, and print."""
    convert = args.conversion(args)
    arguments = {
        "include": args.include,
        "exclude": args.exclude,
        "rules": args.rules or (),
        "keep_dtype": args.keep_dtype,
        "importance": args.importance,
        "allow_empty": args.allow_empty,
        "single_file": args.single_file,
        "max_shard_size": args.max_shard_size,
        "no_clobber": args.no_clobber,
        **_checked_options(args),
    }
    if args.dry_run:
        if args.report:
            args.usage_error("argument --report: not allowed with argument --dry-run")
        plan = plan_model(args.source, args.destination, args.method, **arguments)
        print(json_text(plan_document(plan)) if args.json else plan_table(plan))
        return DONE
    for path in args.report:
        check_report(path, args)
    with unfinished_named(args.destination), shown_progress() as progress:
        report = convert(
            args.source,
            args.destination,
            args.method,
            resume=args.resume,
            scheduler=args.scheduler,
            progress=progress,
            **arguments,
        )
    for path in args.report:
        _write_report(path, report, args)
    print(json_text(convert_document(report)) if args.json else report.table(whole=args.all))
    return DONE


def _checked_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `q43nl` that were given, or end with wrong usage."""
    options = given_options(args)
    try:
        check_treatment(Treatment(args.method, tuple(options.items())))
    except (TypeError, ValueError) as error:
        args.usage_error(str(error))
    return options


def check_report(path: str, args: argparse.Namespace) -> None:
    """Refuse a report that cannot be written, before hours of work."""
    try:
        report_format(path)
    except ModelFileError as error:
        args.usage_error(f"argument --report: {error}")
    name = os.path.basename(path)
    taken = name.endswith(".index.json") or os.path.exists(os.path.join(args.source, name))
    if os.path.realpath(path) == os.path.realpath(args.destination):
        args.usage_error(f"argument --report: {path} is the output")
    if not _is_inside(path, args.destination):  # such a folder does not exist yet
        check_output(args.source, path)
    elif taken:
        args.usage_error(f"argument --report: {path} is a file of the model")


def _is_inside(path: str, folder: str) -> bool:
    """Return whether a file is to lie in a folder directly."""
    return os.path.dirname(os.path.realpath(path)) == os.path.realpath(folder)


def _write_report(path: str, report: ConvertReport, args: argparse.Namespace) -> None:
    """Write a report, whole or not at all."""
    text = report_text(report, report_format(path), args.source, args.destination)
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def unfinished_named(target: str, parts: str = "files") -> Iterator[None]:
    """Say how a run that did not get to its end can be resumed."""
    try:
        yield
    except BaseException:
        left = unfinished(target)
        if left is not None:
            say(f"{left.done} of {left.files} {parts} are done; --resume continues")
        raise


def declare_restore(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``restore``."""
    parser.description = (
        "Bring a model that convert made back to the names, shapes and dtypes it had."
    )
    parser.epilog = _RESTORE_EXAMPLES
    _add_models(parser, "converted file or folder to read", "file or new folder to write")
    add_no_clobber(parser)
    add_resume(parser)
    add_output_format(parser)
    add_num_threads(parser)
    parser.set_defaults(run=_run_restore)


def _run_restore(args: argparse.Namespace) -> int:
    """Restore and print the report."""
    with unfinished_named(args.destination), shown_progress() as progress:
        report = restore(
            args.source,
            args.destination,
            no_clobber=args.no_clobber,
            resume=args.resume,
            progress=progress or False,
            num_threads=args.num_threads,
        )
    print(json_text(report.document()) if args.json else report.table())
    return DONE


def declare_verify(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``verify``."""
    parser.description = (
        "Compare a converted model with the original: decode the packed tensors and show the same\n"
        "figures as convert, from the files alone. The exit code is 1 if a packed tensor misses\n"
        "--min-snr, or another tensor is missing, added or different."
    )
    parser.epilog = _VERIFY_EXAMPLES
    parser.add_argument("source", metavar="ORIGINAL", help="model file or folder")
    parser.add_argument("converted", metavar="CONVERTED", help="what convert made of it")
    parser.add_argument(
        "--min-snr",
        type=float,
        metavar="DB",
        help="the least signal-to-noise ratio that every packed tensor must have",
    )
    add_output_format(parser, long_tables=True)
    add_num_threads(parser)
    parser.set_defaults(run=_run_verify, usage_error=parser.error)


def _run_verify(args: argparse.Namespace) -> int:
    """Compare, print, and judge."""
    if args.min_snr is not None and not math.isfinite(args.min_snr):
        args.usage_error(f"argument --min-snr: must be finite, found {args.min_snr}")
    with shown_progress() as progress:
        report = verify_model(
            args.source, args.converted, num_threads=args.num_threads, progress=progress
        )
    below = () if args.min_snr is None else report.below(args.min_snr)
    if args.json:
        document = verify_document(report)
        print(json_text({**document, "below_min_snr": [tensor.name for tensor in below]}))
    else:
        print(verify_table(report, whole=args.all))
    if below:
        worst = min(below, key=lambda tensor: tensor.snr_db)
        say(
            f"error: {args.converted}: {count_text(len(below), 'tensor')} below {args.min_snr:g} "
            f"dB, the worst {worst.name!r} with {worst.snr_db:.2f} dB"
        )
    if not report.is_faithful:
        say(
            f"error: {args.converted}: tensors that are not packed: {len(report.different):,} "
            f"different, {len(report.missing):,} missing, {len(report.added):,} added"
        )
    return FAILED if below or not report.is_faithful else DONE


def declare_inspect(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``inspect``."""
    parser.description = (
        "Show a row for every tensor: shape, type, bytes, bits per weight and, of packed\n"
        "ones, the share of zero groups and the distribution of curves."
    )
    parser.epilog = _INSPECT_EXAMPLES
    parser.add_argument("source", metavar="MODEL", help="model file or folder to look into")
    add_output_format(parser, long_tables=True)
    parser.set_defaults(run=_run_inspect)


def _run_inspect(args: argparse.Namespace) -> int:
    """Print what is in a model."""
    contents = inspect(args.source)
    if args.json:
        print(json_text(contents.document()))
    else:
        print(contents.table(sparklines=can_print("▁█"), whole=args.all))
    return DONE


def _add_models(parser: argparse.ArgumentParser, source: str, target: str) -> None:
    """Declare the input and the output."""
    parser.add_argument("source", metavar="IN", help=source)
    parser.add_argument("destination", metavar="OUT", help=f"{target}; appears when complete")


def add_no_clobber(parser: Any) -> None:
    """Declare ``--no-clobber``."""
    parser.add_argument(
        "--no-clobber", action="store_true", help="refuse to replace an existing file"
    )


def add_resume(parser: Any) -> None:
    """Declare ``--resume``."""
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with an interrupted run that wrote the same folder with the same arguments",
    )


def add_output_format(parser: Any, *, long_tables: bool = False) -> None:
    """Declare how the report is printed."""
    parser.add_argument("--json", action="store_true", help="print a JSON object, not a table")
    if long_tables:
        parser.add_argument(
            "--all", action="store_true", help="print every row of a table with many rows"
        )


def shard_size(text: str) -> int:
    """Return a number of bytes: an argument type."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_method(parser: Any) -> None:
    """Declare the method and the options of all methods, from their table."""
    parser.add_argument(
        "--method",
        choices=METHODS,
        default=_DEFAULT_METHOD,
        help=f"how (default: {_DEFAULT_METHOD})",
    )
    for option, methods in _method_options():
        kind = type(option.default)
        of = f"method{'s' if len(methods) > 1 else ''} {' and '.join(methods)}"
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            type=kind,
            metavar={int: "N", float: "X"}.get(kind, "WORD"),
            help=f"{option.help}; of the {of} (default: {option.default})",
        )
    parser.add_argument(
        "--eps-scale",
        type=float,
        metavar="X",
        help="groups whose scale is not above this become zeros (default: 1e-6; 0 for the optimal "
        "and exact methods)",
    )
    add_num_threads(parser)


def _method_options() -> Iterator[tuple[Option, list[str]]]:
    """Yield each option in the methods' table, and the names of the methods that take it."""
    options = {option.name: option for method in TABLE.values() for option in method.options}
    for option in options.values():
        yield option, [method.name for method in TABLE.values() if option in method.options]


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `q43nl` that were given."""
    names = [*(option.name for option, _ in _method_options()), "eps_scale", "num_threads"]
    return {name: value for name in names if (value := getattr(args, name)) is not None}
