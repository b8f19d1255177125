"""The README's performance tables, printed from a run, so that no figure in them is typed by hand.

    pip install ".[convert,peers]"
    python asv_bench/performance.py --model model.safetensors --update README.md

Every variant of `q43nl`, the peers that are installed and a plain copy work on the same arrays and
take turns, a call each, so that a disturbance does not meet one of them alone; the best counts.
Encoders return new memory, decoders write to an array that is there. A package without threads of
its own gets its rows in as many Python threads (NumPy and the C libraries let go of the GIL).
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from q43nl_numba import dequantize, q43nl
from q43nl_numba._threads import thread_count
from q43nl_numba.compare import VARIANTS as ALL_VARIANTS
from q43nl_numba.compare import Variant, machine_facts
from q43nl_numba.distributions import draw
from q43nl_numba.sample import read_sample

#: All but the judge of the others, which would take minutes a call.
VARIANTS = tuple(variant for variant in ALL_VARIANTS if variant.method != "exact")

ROW = 4_096  # weights; the peers want rows, of a multiple of 256
DEFAULT_SIZE = 16_777_216
DEFAULT_REPEAT = 5
COMMAND_REPEAT = 3
BEGIN, END = "<!-- {name}: begin -->", "<!-- {name}: end -->"
NOTHING = "-"

Rows = NDArray[np.float32]


# ---------------------------------------------------------------------------------------------
# Who competes
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """Something that makes weights smaller and back."""

    label: str
    quantize: Callable[[Rows, int], Any]
    """From weights and a number of threads to what `dequantize` takes."""
    dequantize: Callable[[Any, Rows, int], object]
    """From what `quantize` returned, to an array, with a number of threads."""
    bits: Callable[[Any], int]
    """Stored bits of what `quantize` returned."""
    takes_threads: bool = True
    """Whether it can be told how many; otherwise it uses as many as there are."""
    timed: tuple[str, ...] = ("quantize", "dequantize")


def contenders() -> list[Contender]:
    """The package's variants, then the peers that are installed."""
    found = [package_contender(variant) for variant in VARIANTS]
    for package in PEERS:
        found += peer_contenders(package)
    return found


def peer_contenders(package: str) -> list[Contender]:
    """A peer's formats, or none with a note."""
    try:
        return list(PEERS[package]())
    except ImportError as error:
        print(f"{package} is left out: {error}; it is in the extra [peers]", file=sys.stderr)
        return []


def package_contender(variant: Variant) -> Contender:
    options = dict(variant.parameters)
    return Contender(
        f"`{variant.method}`" + (" " + ", ".join(map(str, options.values())) if options else ""),
        lambda rows, threads: q43nl(rows, variant.method, num_threads=threads, **options),
        lambda packed, out, threads: dequantize(packed, out=out, num_threads=threads),
        lambda packed: 8 * packed.nbytes,
    )


def gguf_contenders() -> Iterator[Contender]:
    """The NumPy quantizers of the gguf package."""
    from gguf import GGMLQuantizationType, quants

    for name in ("Q4_0", "Q5_1"):
        kind = GGMLQuantizationType[name]
        yield Contender(
            f"gguf (NumPy) {name}",
            partial(in_parts, partial(quants.quantize, qtype=kind)),
            partial(back_in_parts, partial(quants.dequantize, qtype=kind)),
            lambda parts: 8 * sum(part.nbytes for part in parts),
        )


def libgguf_contenders() -> Iterator[Contender]:
    """The C quantizers of ggml, as the libgguf package builds them."""
    import libgguf

    for name in ("Q4_0", "IQ4_NL", "Q4_K"):
        kind = libgguf.GGMLQuantizationType[name]
        yield Contender(
            f"libgguf (C) {name}",
            lambda rows, threads, kind=kind: libgguf.quantize_rows(rows, kind),
            lambda packed, out, threads, kind=kind: libgguf.dequantize_rows_into_raw(
                kind, packed, out, *out.shape
            ),
            lambda packed: 8 * packed.nbytes,
            takes_threads=False,
        )


PEERS: Mapping[str, Callable[[], Iterator[Contender]]] = {
    "gguf": gguf_contenders,
    "libgguf": libgguf_contenders,
}


def copy_contender() -> Contender:
    """The memory's own speed, which a decoder can at best come near to."""
    return Contender(
        "`np.copyto`",
        partial(in_parts, np.copy),
        partial(back_in_parts, lambda part: part),
        lambda parts: 8 * sum(part.nbytes for part in parts),
        timed=("dequantize",),
    )


def in_parts(function: Callable[[Rows], Any], rows: Rows, threads: int) -> list[Any]:
    """A function's results on equal shares of the rows, each in a thread."""
    return in_threads(function, np.array_split(rows, threads), threads)


def back_in_parts(
    function: Callable[[Any], Rows], parts: Sequence[Any], out: Rows, threads: int
) -> None:
    """A function's results on parts, written to the rows that they were made from."""
    stops = np.cumsum([0, *map(len, parts)])

    def write(i: int) -> None:
        np.copyto(out[stops[i] : stops[i + 1]], function(parts[i]))

    in_threads(write, range(len(parts)), threads)


def in_threads(function: Callable[[Any], Any], items: Sequence[Any], threads: int) -> list[Any]:
    if threads == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


# ---------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What one contender made of the weights."""

    label: str
    bits_per_weight: float
    mse: float
    snr_db: float
    quantize: Mapping[int, float]
    """Million weights a second by number of threads; empty where not measured."""
    dequantize: Mapping[int, float]


Key = tuple[int, str, int]  # contender, what it does, threads


def measure(
    found: Sequence[Contender], weights: Rows, threads: Sequence[int], repeat: int
) -> list[Row]:
    """Each contender's error and speeds; the first call of each may compile, and is not timed."""
    out = np.empty_like(weights)
    most = max(threads)
    results = []
    calls: dict[Key, Callable[[], object]] = {}
    for i, one in enumerate(found):
        packed = one.quantize(weights, most)
        one.dequantize(packed, out, most)
        results.append((one.label, one.bits(packed) / weights.size, *error(weights, out)))
        for count in threads if one.takes_threads else [most]:
            calls[i, "quantize", count] = partial(one.quantize, weights, count)
            calls[i, "dequantize", count] = partial(one.dequantize, packed, out, count)
    calls = {key: call for key, call in calls.items() if repeat and key[1] in found[key[0]].timed}
    for call in calls.values():
        call()
    speeds = {
        key: weights.size / seconds / 1e6 for key, seconds in best_times(calls, repeat).items()
    }
    return [
        Row(*result, by_threads(speeds, i, "quantize"), by_threads(speeds, i, "dequantize"))
        for i, result in enumerate(results)
    ]


def best_times(calls: Mapping[Any, Callable[[], object]], repeat: int) -> dict[Any, float]:
    """Seconds of each call's fastest run; the calls take turns."""
    best = dict.fromkeys(calls, math.inf)
    for _ in range(repeat):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            best[key] = min(best[key], time.perf_counter() - start)
    return best


def by_threads(speeds: Mapping[Key, float], i: int, what: str) -> dict[int, float]:
    return {count: speed for (j, name, count), speed in speeds.items() if (j, name) == (i, what)}


def error(weights: Rows, decoded: Rows) -> tuple[float, float]:
    """Mean squared error and signal-to-noise ratio in dB, summed up in float64."""
    noise = signal = 0.0
    for rows, back in zip(weights, decoded, strict=True):
        noise += float(np.square(rows - back, dtype=np.float64).sum())
        signal += float(np.square(rows, dtype=np.float64).sum())
    return noise / weights.size, 10 * math.log10(signal / noise) if noise else math.inf


@dataclass(frozen=True)
class Command:
    """What a command over a model file took, as a process of its own."""

    seconds: float
    peak_mib: float
    megabytes: float
    """Size of the file it wrote."""

    def cells(self) -> list[str]:
        return [f"{self.seconds:.1f} s", f"{self.peak_mib:.0f} MiB", f"{self.megabytes:.1f} MB"]


def time_commands(model: Path) -> tuple[list[Command], Command]:
    """Converting a model with each variant, and restoring the last result."""
    with tempfile.TemporaryDirectory() as folder:
        packed, back = (os.path.join(folder, f"{name}.safetensors") for name in ("packed", "back"))
        conversions = [
            time_command("convert", os.fspath(model), packed, *command_options(variant))
            for variant in VARIANTS
        ]
        return conversions, time_command("restore", packed, back)


def command_options(variant: Variant) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in variant.parameters.items()]
    return [f"--method={variant.method}", *options]


def time_command(name: str, source: str, destination: str, *options: str) -> Command:
    """Best of some runs of a command, after one that may compile."""
    command = [sys.executable, "-m", "q43nl_numba", name, source, destination, *options]
    runs = [run(command) for _ in range(1 + COMMAND_REPEAT)][1:]
    seconds, peaks = zip(*runs, strict=True)
    return Command(min(seconds), min(peaks), os.path.getsize(destination) / 1e6)


# Linux counts the memory of the process that starts a command as the command's own peak, up to the
# moment that the command replaces it. This one is small; the one that measures is not.
STARTER = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def run(command: Sequence[str]) -> tuple[float, float]:
    """Seconds and peak memory in MiB of a command."""
    starter = [sys.executable, "-c", STARTER, *command]
    found = subprocess.run(starter, check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak = map(float, found.stdout.split())
    return seconds, peak


# ---------------------------------------------------------------------------------------------
# Showing
# ---------------------------------------------------------------------------------------------


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


def model_table(rows: Sequence[Row], conversions: Sequence[Command]) -> str:
    """Error of every contender on a model, and what converting it took where that was measured."""
    heading = ["encoder", "bits a weight", "MSE ratio", "SNR", "convert", "peak memory", "file"]
    taken = [command.cells() for command in conversions]
    taken += [[NOTHING] * 3] * (len(rows) - len(taken))
    lines = [[*quality_cells(row, rows[0]), *cells] for row, cells in zip(rows, taken, strict=True)]
    return markdown([heading, *lines])


def generations_table() -> str:
    """MSE ratios of the gradient optimizer's generations, from their benchmark."""
    from benchmarks.generations import DISTRIBUTIONS, SIZE, Generations

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
    from fixed_costs import cost_rows

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


def threads_word(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def markdown(cells: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    lines.insert(1, "|---" * len(cells[0]) + "|")
    return "\n".join(lines)


def facts() -> str:
    """The machine and the versions, in a sentence's words."""
    known = machine_facts()
    packages = ("numba", "numpy", "scipy", *PEERS)
    versions = [f"Python {known['python']}", *filter(None, map(version, packages))]
    return f"{known['cpu']}, {threads_word(int(known['threads']))}; {', '.join(versions)}"


def version(package: str) -> str | None:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return None


# ---------------------------------------------------------------------------------------------
# The README
# ---------------------------------------------------------------------------------------------


def replace(text: str, sections: Mapping[str, str]) -> str:
    """The text with other sections between their markers.

    Raises
    ------
    ValueError
        If a section's two markers are not there once each, in their order.
    """
    for title, section in sections.items():
        begin, end = BEGIN.format(name=title), END.format(name=title)
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ValueError(f"expected {begin} and, after it, {end}, once each")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{section}\n{end}{after}"
    return text


def update(path: Path, sections: Mapping[str, str]) -> None:
    """Replace a file's sections: all of them, or the file stays as it was."""
    text = replace(path.read_text(encoding="utf-8"), sections)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=path.name, delete=False, encoding="utf-8"
    ) as new:
        new.write(text)
    shutil.copymode(path, new.name)
    os.replace(new.name, path)


# ---------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------


def speed_section(found: Sequence[Contender], size: int, repeat: int) -> str:
    weights = draw("normal", size).reshape(-1, ROW)
    threads = sorted({1, thread_count(None)}, reverse=True)
    rows = measure([*found, copy_contender()], weights, threads, repeat)
    note = f"{size:,} normal weights, in million weights a second, best of {repeat} ({facts()}):"
    return f"{note}\n\n{speed_table(rows, threads)}"


def model_section(found: Sequence[Contender], model: Path) -> str:
    sample = read_sample(model, size=sys.maxsize)
    whole = sample.weights.size // ROW * ROW
    threads = [thread_count(None)]
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
    sections = dict.fromkeys(["performance", "costs", "generations"], "")
    sections |= {"model": ""} if args.model else {}
    if args.update:  # before the minutes of measuring
        replace(args.update.read_text(encoding="utf-8"), sections)
    found = contenders()
    sections["performance"] = speed_section(found, args.size, args.repeat)
    sections["costs"] = costs_table()
    sections["generations"] = generations_table()
    if args.model:
        sections["model"] = model_section(found, args.model)
    print("\n\n".join(sections.values()))
    if args.update:
        update(args.update, sections)


if __name__ == "__main__":
    main()
