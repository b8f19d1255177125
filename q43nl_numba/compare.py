"""The ``compare`` command: one sample of weights, every method, a row each.

The way through this module: `run` gets a sample (`draw` or `read_sample`), `compare` quantizes it
with each variant of `VARIANTS` and measures, and `format_table` or `format_json` shows the rows.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from q43nl_numba import GROUP_SIZE, METHODS, __version__, q43nl, quality
from q43nl_numba._threads import thread_count
from q43nl_numba.distributions import DISTRIBUTIONS, draw
from q43nl_numba.methods.optimal import EFFORTS
from q43nl_numba.sample import DEFAULT_FILE_SIZE, Sample, read_sample

__all__ = [
    "ALL_VARIANTS",
    "VARIANTS",
    "Row",
    "Variant",
    "add_arguments",
    "compare",
    "format_json",
    "format_table",
    "machine_facts",
    "run",
    "select_variants",
]

DEFAULT_DISTRIBUTION = "normal"
DEFAULT_SIZE = 32_768
DEFAULT_SEED = 0

LEAST_ROUNDS = 5
SHORTEST_TIMING = 0.5  # seconds for all variants together


@dataclass(frozen=True)
class Variant:
    """A method at one setting of its parameters.

    Parameters
    ----------
    method : str
        A name in `METHODS`.
    parameters : mapping of str to float
        Keyword arguments for `q43nl`; empty for the method's defaults.
    """

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method and its settings, as in ``gradient-5/0.3``.

        Examples
        --------
        >>> Variant("gradient", {"gd_iterations": 5, "gd_lr": 0.3}).label
        'gradient-5/0.3'
        >>> Variant("grid").label
        'grid'
        """
        settings = "/".join(str(value) for value in self.parameters.values())
        return f"{self.method}-{settings}" if settings else self.method


#: The settings worth comparing of a method that has several; any other method is compared at its
#: defaults. A further setting is one more entry here.
SETTINGS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "gradient": (
        {"gd_iterations": 5, "gd_lr": 0.3},
        {"gd_iterations": 10, "gd_lr": 0.1},
        {"gd_iterations": 20, "gd_lr": 0.1},
    ),
    "optimal": ({"effort": 1}, {"effort": 5}, {"effort": 9}),
}

#: What is compared, in the table's order.
VARIANTS: tuple[Variant, ...] = tuple(
    Variant(method, settings) for method in METHODS for settings in SETTINGS.get(method, ({},))
)

#: What is compared when it is asked for: also the efforts between those of the table.
ALL_VARIANTS: tuple[Variant, ...] = tuple(
    sorted(
        {
            v.label: v for v in (*VARIANTS, *(Variant("optimal", {"effort": n}) for n in EFFORTS))
        }.values(),
        key=lambda v: (METHODS.index(v.method), v.parameters.get("effort", 0)),
    )
)

#: The method whose error and speed the others are measured against.
REFERENCE = Variant("grid")


@dataclass(frozen=True)
class Row:
    """What one variant made of the sample.

    Parameters
    ----------
    label, method : str
        The variant and its method.
    parameters : mapping
        The variant's keyword arguments.
    mse : float
        Mean squared error, decoded from the packed bytes.
    mse_ratio : float
        `mse` over the `mse` of ``grid``; 1 when both are 0.
    snr_db : float
        Signal-to-noise ratio in dB.
    seconds : float
        Best time of one call, without compilation.
    speed : float
        Million weights a second.
    speedup : float
        Time of ``grid`` over `seconds`.
    packed_bytes : int
        Size of the result.
    """

    label: str
    method: str
    parameters: Mapping[str, Any]
    mse: float
    mse_ratio: float
    snr_db: float
    seconds: float
    speed: float
    speedup: float
    packed_bytes: int


# ---------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------


def compare(
    weights: ArrayLike,
    variants: Sequence[Variant] = VARIANTS,
    *,
    num_threads: int | None = None,
    repeat: int | None = None,
) -> tuple[Row, ...]:
    """Quantize the same weights with several methods and measure each.

    ``grid`` is always measured, as the reference, and has a row if it is among the variants.

    Parameters
    ----------
    weights : array_like
        What `q43nl` accepts, at least one group of it.
    variants : sequence of Variant, default `VARIANTS`
        What to compare.
    num_threads : int, optional
        As for `q43nl`.
    repeat : int, optional
        Calls of each variant to time, after one that compiles; the best counts. By default as many
        as take half a second in all, and at least 5.

    Returns
    -------
    tuple of Row
        One row a variant, in their order.

    Raises
    ------
    ValueError
        If there are no weights, `repeat` is less than 1, or `q43nl` refuses the input.

    Examples
    --------
    >>> rows = compare(draw("normal", 64), [Variant("grid")], repeat=1)
    >>> [(row.label, row.mse_ratio, row.packed_bytes) for row in rows]
    [('grid', 1.0, 38)]
    """
    if repeat is not None and repeat < 1:
        raise ValueError(f"repeat: {repeat}; expected at least 1")
    weights = np.asarray(weights)
    if weights.size == 0:
        raise ValueError(f"weights: none; expected at least one group of {GROUP_SIZE}")
    measured = [REFERENCE, *(variant for variant in variants if variant != REFERENCE)]
    calls = [_call(weights, variant, num_threads) for variant in measured]
    results = [
        _result(weights, call) for call in calls
    ]  # these calls compile, so no timed one does
    seconds = _best_times(calls, repeat)
    rows = [
        _row(variant, weights.size, result, results[0], best, seconds[0])
        for variant, result, best in zip(measured, results, seconds, strict=True)
    ]
    return tuple(rows[measured.index(variant)] for variant in variants)


@dataclass(frozen=True)
class _Result:
    """What the packed bytes say about a variant."""

    mse: float
    snr_db: float
    packed_bytes: int


def _call(
    weights: NDArray[Any], variant: Variant, num_threads: int | None
) -> Callable[[], NDArray[np.uint8]]:
    return partial(q43nl, weights, variant.method, num_threads=num_threads, **variant.parameters)


def _result(weights: NDArray[Any], call: Callable[[], NDArray[np.uint8]]) -> _Result:
    packed = call()
    found = quality(weights, packed)
    return _Result(found.mse, found.snr_db, packed.nbytes)


def _best_times(calls: Sequence[Callable[[], object]], repeat: int | None) -> list[float]:
    """Seconds of each call's fastest run, the one that was disturbed least.

    The calls take turns, so that a disturbance does not meet one of them alone.
    """
    best = [math.inf] * len(calls)
    start, rounds = time.perf_counter(), 0
    while rounds < (repeat or LEAST_ROUNDS) or (
        repeat is None and time.perf_counter() - start < SHORTEST_TIMING
    ):
        for i, call in enumerate(calls):
            best[i] = min(best[i], _seconds(call))
        rounds += 1
    return best


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _row(
    variant: Variant,
    size: int,
    result: _Result,
    reference: _Result,
    seconds: float,
    reference_seconds: float,
) -> Row:
    return Row(
        label=variant.label,
        method=variant.method,
        parameters=dict(variant.parameters),
        mse=result.mse,
        mse_ratio=_mse_ratio(result.mse, reference.mse),
        snr_db=result.snr_db,
        seconds=seconds,
        speed=size / seconds / 1e6,
        speedup=reference_seconds / seconds,
        packed_bytes=result.packed_bytes,
    )


def _mse_ratio(mse: float, reference: float) -> float:
    if mse == reference:  # two exact results are equally good
        return 1.0
    return mse / reference if reference > 0 else math.inf


def select_variants(names: Sequence[str] | None) -> tuple[Variant, ...]:
    """Look up variants by method (all its settings) or by label (one of them).

    None stands for `VARIANTS`.

    Examples
    --------
    >>> [variant.label for variant in select_variants(["gradient-5/0.3", "grid"])]
    ['grid', 'gradient-5/0.3']
    """
    if names is None:
        return VARIANTS
    for name in names:
        _check_variant_name(name)
    return tuple(v for v in ALL_VARIANTS if v.method in names or v.label in names)


def _check_variant_name(name: str) -> str:
    known = (*METHODS, *(v.label for v in ALL_VARIANTS if v.label not in METHODS))
    if name not in known:
        raise ValueError(f"unknown method {name!r}; expected one of {', '.join(known)}")
    return name


# ---------------------------------------------------------------------------------------------
# Showing
# ---------------------------------------------------------------------------------------------


def machine_facts(num_threads: int | None = None) -> dict[str, str | int]:
    """What a reader needs to know to place the times: processor, threads, versions."""
    return {
        "q43nl_numba": __version__,
        "cpu": _cpu_name(),
        "threads": thread_count(num_threads),
        "python": platform.python_version(),
        "numba": metadata.version("numba"),
        "numpy": np.__version__,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "model name" and value.strip():
                    return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown processor"


#: Heading and cell of each column of the table.
_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("method", lambda row: row.label),
    ("MSE ratio", lambda row: f"{row.mse_ratio:.4f}"),
    ("SNR dB", lambda row: f"{row.snr_db:.2f}"),
    ("time ms", lambda row: f"{row.seconds * 1e3:.3f}"),
    ("Mw/s", lambda row: f"{row.speed:.2f}"),
    ("speed-up", lambda row: f"{row.speedup:.2f}x"),
    ("bytes", lambda row: str(row.packed_bytes)),
)


def format_table(sample: Sample, rows: Sequence[Row], facts: Mapping[str, str | int]) -> str:
    """Lay out the rows as aligned plain text under two lines that say what was measured where."""
    header = (
        f"q43nl_numba {facts['q43nl_numba']} on {facts['cpu']}, threads: {facts['threads']}, "
        f"Python {facts['python']}, numba {facts['numba']}, numpy {facts['numpy']}"
    )
    cells = [[heading for heading, _ in _COLUMNS]]
    cells += [[cell(row) for _, cell in _COLUMNS] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([header, _sample_line(sample), "", *lines])


def _sample_line(sample: Sample) -> str:
    line = f"{sample.source}: {sample.weights.size:,} weights"
    if sample.available > sample.weights.size:
        line += f", in groups taken evenly from {sample.available:,}"
    return line


def format_json(sample: Sample, rows: Sequence[Row], facts: Mapping[str, str | int]) -> str:
    """Lay out facts and rows as a JSON object; a number that is not finite becomes null."""
    document = {
        "machine": dict(facts),
        "sample": {
            "source": sample.source,
            "weights": sample.weights.size,
            "available": sample.available,
        },
        "rows": [{key: _finite(value) for key, value in asdict(row).items()} for row in rows],
    }
    return json.dumps(document, indent=2, allow_nan=False)


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------

_EXAMPLES = """\
examples:
  q43nl-numba compare
  q43nl-numba compare --distribution laplace --size 1048576
  q43nl-numba compare weights.npy --methods grid gradient-5/0.3
  q43nl-numba compare model.safetensors --num-threads 1 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``compare`` on its parser."""
    if parser.epilog is None:
        parser.epilog = _EXAMPLES
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="weights to compare on: an array (.npy) or the floating matrices of a model "
        "(.safetensors); without it, synthetic weights",
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
        type=_at_least(0),
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
    parser.add_argument(
        "--num-threads", type=_at_least(1), metavar="N", help="threads (default: numba's)"
    )
    parser.add_argument(
        "--repeat",
        type=_at_least(1),
        metavar="N",
        help="timed calls of each method, of which the best counts (default: as many as take "
        f"{SHORTEST_TIMING} s in all, at least {LEAST_ROUNDS})",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object, not a table")
    parser.set_defaults(usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Compare as the parsed arguments say, print, and return the exit code.

    Raises
    ------
    OSError, ValueError, ImportError
        As `read_sample`; the message names the file.
    """
    sample = _sample(args)
    rows = compare(
        sample.weights,
        select_variants(args.methods),
        num_threads=args.num_threads,
        repeat=args.repeat,
    )
    show = format_json if args.json else format_table
    print(show(sample, rows, machine_facts(args.num_threads)))
    return 0


def _sample(args: argparse.Namespace) -> Sample:
    if args.file is not None:
        if args.seed is not None:
            args.usage_error("argument --seed: not allowed with argument FILE")
        return read_sample(args.file, args.size or DEFAULT_FILE_SIZE)
    distribution = args.distribution or DEFAULT_DISTRIBUTION
    size = args.size or DEFAULT_SIZE
    seed = DEFAULT_SEED if args.seed is None else args.seed
    return Sample(f"{distribution}, seed {seed}", draw(distribution, size, seed), size)


def _variant_name(text: str) -> str:
    try:
        return _check_variant_name(text)
    except ValueError as error:
        swallowed = Path(text).suffix in (".npy", ".safetensors")  # --methods takes all it gets
        hint = "; FILE goes before --methods" if swallowed else ""
        raise argparse.ArgumentTypeError(f"{error}{hint}") from None


def _at_least(least: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r}; expected an integer of at least {least}")
        return value

    return integer


def _size(text: str) -> int:
    value = _at_least(GROUP_SIZE)(text)
    if value % GROUP_SIZE:
        raise argparse.ArgumentTypeError(f"{text}; expected a multiple of {GROUP_SIZE}")
    return value
