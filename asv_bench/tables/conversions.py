"""What it takes to convert whole models, beside the time that the quantizer itself needs.

    pip install ".[convert]"
    python -m asv_bench.tables.conversions MODEL...

A model is anything that ``q43nl-numba convert`` takes. The command runs in a process of its own,
kernels in the cache; the quantizer's own time is that of `q43nl` on a sample of the same weights,
in this process, and is scaled to the number of weights.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asv_bench.tables.commands import command_options, run
from asv_bench.tables.contenders import VARIANTS
from asv_bench.tables.machine import facts
from asv_bench.tables.readme import markdown
from q43nl_numba import q43nl
from q43nl_numba.compare import Variant, read_sample

SAMPLE = 1 << 24
DEFAULT_REPEAT = 2
HEADING = ["method", "convert", "kernels", "ratio", "peak memory", "output", "SNR", "worst tensor"]


def model_table(model: Path, variants: Sequence[Variant], repeat: int) -> str:
    """A line for each variant."""
    sample = read_sample(model, size=SAMPLE)
    lines = [
        conversion_cells(model, variant, kernel_seconds(sample, variant, repeat), repeat)
        for variant in variants
    ]
    note = f"`{model.name}`, {sample.available:,} weights in matrices ({facts()}):"
    return f"{note}\n\n{markdown([HEADING, *lines])}"


def kernel_seconds(sample: Any, variant: Variant, repeat: int) -> float:
    """Seconds that the quantizer needs for as many weights as the model has."""
    runs = [time_kernels(sample.weights, variant) for _ in range(1 + repeat)][1:]
    return min(runs) * sample.available / sample.weights.size


def time_kernels(weights: NDArray[np.float32], variant: Variant) -> float:
    start = time.perf_counter()
    q43nl(weights, variant.method, **variant.parameters)
    return time.perf_counter() - start


def conversion_cells(model: Path, variant: Variant, kernels: float, repeat: int) -> list[str]:
    """Convert a model some times; return the cells of its line, from the fastest run."""
    runs = []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory(dir=model.parent) as folder:
            target, report = (os.path.join(folder, name) for name in ("target", "report.json"))
            command = [sys.executable, "-m", "q43nl_numba", "convert", os.fspath(model), target]
            runs.append(run([*command, *command_options(variant), f"--report={report}"]))
            found = json.loads(Path(report).read_text(encoding="utf-8"))
    seconds, peak = min(runs)
    total = found["total"]
    worst = min(tensor["snr_db"] for tensor in found["packed"])
    return [
        variant.label,
        f"{seconds:.1f} s",
        f"{kernels:.1f} s",
        f"{seconds / kernels:.2f}",
        f"{peak:.0f} MiB",
        f"{total['bytes_out'] / 1e6:.1f} MB",
        f"{total['snr_db']:.2f} dB",
        f"{worst:.2f} dB",
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument(
        "--method", action="append", help="only variants of this method; can be given again"
    )
    parser.add_argument(
        "--repeat", type=int, default=DEFAULT_REPEAT, help="runs, of which the fastest counts"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    variants = [v for v in VARIANTS if args.method is None or v.method in args.method]
    for model in args.models:
        print(model_table(model, variants, args.repeat), end="\n\n")


if __name__ == "__main__":
    main()
