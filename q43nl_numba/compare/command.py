"""The command ``compare``: its arguments, and the way from them to the rows."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import GROUP_SIZE
from .._parser import add_num_threads, integer_from
from .._process import DONE
from .distributions import DISTRIBUTIONS, draw
from .measuring import LEAST_ROUNDS, SHORTEST_TIMING, compare
from .printing import format_json, format_table, machine_facts
from .samples import DEFAULT_FILE_SIZE, Sample, read_sample
from .variants import (
    VARIANTS,
    Variant,
    check_variant_name,
    select_variants,
)

DEFAULT_DISTRIBUTION = "normal"
DEFAULT_SIZE = 32_768
DEFAULT_SEED = 0

_EXAMPLES = """\
examples:
  q43nl-numba compare
  q43nl-numba compare --distribution laplace --size 1048576
  q43nl-numba compare weights.npy --methods grid gradient-5/0.3
  q43nl-numba compare model.safetensors --num-threads 1 --json
"""


def declare_compare(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``compare``."""
    parser.description = "Quantize the same weights with every method; show error, speed and size."
    parser.epilog = _EXAMPLES
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="weights to compare on: an array (.npy) or the floating matrices of a model "
        "(safetensors file, folder, GGUF); without it, synthetic weights",
    )
    source.add_argument(
        "--distribution",
        choices=tuple(DISTRIBUTIONS),
        metavar="NAME",
        help=f"synthetic weights: {', '.join(DISTRIBUTIONS)} (default: {DEFAULT_DISTRIBUTION})",
    )
    parser.add_argument(
        "--size",
        type=_size,
        metavar="N",
        help=f"number of weights, a multiple of {GROUP_SIZE}; of a file the most to take, in "
        f"groups spread evenly over it (default: {DEFAULT_SIZE}, for a file {DEFAULT_FILE_SIZE})",
    )
    parser.add_argument(
        "--seed",
        type=integer_from(0),
        metavar="N",
        help=f"seed of the synthetic weights (default: {DEFAULT_SEED})",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        type=_variant_name,
        metavar="METHOD",
        help="methods, or single settings of them: "
        f"{', '.join(v.label for v in VARIANTS)} (default: these); "
        "every effort of optimal has such a name, too",
    )
    add_num_threads(parser)
    parser.add_argument(
        "--repeat",
        type=integer_from(1),
        metavar="N",
        help="timed calls of each method, of which the best counts (default: as many as take "
        f"{SHORTEST_TIMING} s in all, at least {LEAST_ROUNDS})",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object, not a table")
    parser.set_defaults(run=_run, usage_error=parser.error)


def _run(args: argparse.Namespace) -> int:
    """Compare as the arguments say, and print."""
    variants = select_variants(args.methods)
    sample = _sample(args, variants)
    rows = compare(sample.weights, variants, num_threads=args.num_threads, repeat=args.repeat)
    show = format_json if args.json else format_table
    print(show(sample, rows, machine_facts(args.num_threads)))
    return DONE


def _sample(args: argparse.Namespace, variants: tuple[Variant, ...]) -> Sample:
    """Return the weights that the arguments name."""
    if args.file is not None:
        if args.seed is not None:
            args.usage_error("argument --seed: not allowed with argument FILE")
        largest = max(variant.largest_storable for variant in variants)
        return read_sample(args.file, args.size or DEFAULT_FILE_SIZE, largest)
    distribution = args.distribution or DEFAULT_DISTRIBUTION
    size = args.size or DEFAULT_SIZE
    seed = DEFAULT_SEED if args.seed is None else args.seed
    return Sample(f"{distribution}, seed {seed}", draw(distribution, size, seed), size)


def _variant_name(text: str) -> str:
    """Return the name of a method or variant: an argument type."""
    try:
        return check_variant_name(text)
    except ValueError as error:
        swallowed = Path(text).exists()  # --methods takes all it gets
        hint = "; FILE goes before --methods" if swallowed else ""
        raise argparse.ArgumentTypeError(f"{error}{hint}") from None


def _size(text: str) -> int:
    """Return a positive multiple of the group size: an argument type."""
    value = integer_from(GROUP_SIZE)(text)
    if value % GROUP_SIZE:
        raise argparse.ArgumentTypeError(f"must be a multiple of {GROUP_SIZE}, found {text}")
    return value
