"""The README's tables, from one run.

pip install ".[convert,peers]"
python -m asv_bench.tables.performance --model model.safetensors --update README.md
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from asv_bench.tables.commands import COMMAND_REPEAT, Command, time_commands
from asv_bench.tables.contenders import ROW, Contender, contenders, copy_contender
from asv_bench.tables.fixed_costs import cost_rows
from asv_bench.tables.machine import facts, most_threads, threads_word
from asv_bench.tables.measuring import Row, measure
from asv_bench.tables.readme import markdown, replace, update
from q43nl_numba.compare import draw, read_sample

DEFAULT_SIZE = 16_777_216
DEFAULT_REPEAT = 5
NOTHING = "-"

#: What a reader wants, the method for it, and the variants whose figures stand beside it.
CHOICES = (
    ("good results at once", "`gradient`, the default", ["`gradient` 5, 0.3"]),
    ("the least time", "`predictor`", ["`predictor`"]),
    ("the least error", "`optimal`, `effort` 1 to 9", ["`optimal` 1", "`optimal` 9"]),
)


def speed_table(rows: Sequence[Row], threads: Sequence[int]) -> str:
    """Error and speed of every contender; MSE ratios are to the first row, which is `grid`."""
    heading = ["encoder", "bits a weight", "MSE ratio", "SNR"]
    heading += [
        f"{what}, {threads_word(count)}" for what in ("quantize", "dequantize") for count in threads
    ]
    lines = [
        [
            *quality_cells(row, rows[0]),
            *(speed(row.quantize, n) for n in threads),
            *(speed(row.dequantize, n) for n in threads),
        ]
        for row in rows
    ]
    return markdown([heading, *lines])


def choice_table(rows: Sequence[Row], threads: int) -> str:
    """The README's first table: three methods, from the same figures as the long one."""
    found = {row.label: row for row in rows}
    lines = [
        ["you want", "method", "MSE ratio", f"million weights a second, {threads_word(threads)}"]
    ]
    for want, method, labels in CHOICES:
        ratios = [f"{found[label].mse / rows[0].mse:.2f}" for label in labels]
        speeds = [speed(found[label].quantize, threads) for label in labels]
        lines.append([want, method, " to ".join(ratios), " to ".join(speeds)])
    return markdown(lines)


def model_table(rows: Sequence[Row], conversions: Sequence[Command]) -> str:
    """Error of every contender on a model, and what converting it took where that was measured."""
    heading = ["encoder", "bits a weight", "MSE ratio", "SNR", "convert", "peak memory", "file"]
    taken = [command.cells() for command in conversions]
    taken += [[NOTHING] * 3] * (len(rows) - len(taken))
    lines = [[*quality_cells(row, rows[0]), *cells] for row, cells in zip(rows, taken, strict=True)]
    return markdown([heading, *lines])


def generations_table() -> str:
    """MSE ratios of the gradient optimizer's generations, from their benchmark."""
    from asv_bench.benchmarks.generations import DISTRIBUTIONS, SIZE, Generations

    results = Generations().setup_cache()
    heading = ["generation", *DISTRIBUTIONS, "Mw/s"]
    lines = []
    for generation in Generations.params[0]:
        found = [results[generation, distribution] for distribution in DISTRIBUTIONS]
        speed = SIZE * len(found) / sum(seconds for _, seconds in found) / 1e6
        lines.append([generation, *(f"{ratio:.4f}" for ratio, _ in found), f"{speed:.1f}"])
    return markdown([heading, *lines])


def costs_table() -> str:
    """What a call costs whatever its size."""
    return markdown(cost_rows())


def quality_cells(row: Row, reference: Row) -> list[str]:
    if row.mse == 0:
        return [row.label, f"{row.bits_per_weight:g}", "0", "exact"]
    ratio = 1.0 if row.mse == reference.mse else row.mse / reference.mse
    return [row.label, f"{row.bits_per_weight:g}", f"{ratio:.4f}", f"{row.snr_db:.2f} dB"]


def speed(by_threads: Mapping[int, float], threads: int) -> str:
    if threads not in by_threads:
        return NOTHING
    found = by_threads[threads]
    return f"{found:.0f}" if found >= 100 else f"{found:.1f}"


def speed_sections(found: Sequence[Contender], size: int, repeat: int) -> dict[str, str]:
    """The short and the long table of error and speed."""
    weights = draw("normal", size).reshape(-1, ROW)
    threads = sorted({1, most_threads()}, reverse=True)
    rows = measure([*found, copy_contender()], weights, threads, repeat)
    note = f"{size:,} normal weights, in million weights a second, best of {repeat} ({facts()}):"
    return {
        "choice": choice_table(rows, threads[0]),
        "performance": f"{note}\n\n{speed_table(rows, threads)}",
    }


def model_section(found: Sequence[Contender], model: Path) -> str:
    sample = read_sample(model, size=sys.maxsize)
    whole = sample.weights.size // ROW * ROW
    threads = [most_threads()]
    rows = measure(found, sample.weights[:whole].reshape(-1, ROW), threads, repeat=0)
    conversions, restore = time_commands(model)
    note = (
        f"`{model.name}`, {os.path.getsize(model) / 1e6:.1f} MB, {sample.available:,} weights in "
        f"matrices; time and peak memory of the whole command, kernels in the cache, best of "
        f"{COMMAND_REPEAT} ({facts()}):"
    )
    last = "`restore` takes {} and {}, and writes {}.".format(*restore.cells())
    return f"{note}\n\n{model_table(rows, conversions)}\n\n{last}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", type=int, default=DEFAULT_SIZE, help=f"normal weights, a multiple of {ROW}"
    )
    parser.add_argument(
        "--repeat", type=int, default=DEFAULT_REPEAT, help="timed calls, of which the best counts"
    )
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="a safetensors file, for a table of its own"
    )
    parser.add_argument(
        "--update", type=Path, metavar="FILE", help="replace the tables between this file's markers"
    )
    args = parser.parse_args(arguments)
    if args.size < ROW or args.size % ROW:
        parser.error(f"argument --size: {args.size}; expected a positive multiple of {ROW}")
    if args.repeat < 1:
        parser.error(f"argument --repeat: {args.repeat}; expected at least 1")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    sections = dict.fromkeys(["choice", "performance", "costs", "generations"], "")
    sections |= {"model": ""} if args.model else {}
    if args.update:  # before the minutes of measuring
        replace(args.update.read_text(encoding="utf-8"), sections)
    found = contenders()
    sections |= speed_sections(found, args.size, args.repeat)
    sections["costs"] = costs_table()
    sections["generations"] = generations_table()
    if args.model:
        sections["model"] = model_section(found, args.model)
    print("\n\n".join(sections.values()))
    if args.update:
        update(args.update, sections)


if __name__ == "__main__":
    main()
