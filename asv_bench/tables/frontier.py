"""The README's picture: error against speed, of all methods and efforts and the peers.

    pip install ".[convert,peers,plot]"
    python -m asv_bench.tables.frontier asv_bench/tables/frontier.svg

All of them work on the same normal weights and take turns, as in ``performance.py``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from asv_bench.tables.contenders import PEERS, ROW, package_contender, peer_contenders
from asv_bench.tables.machine import facts, most_threads
from asv_bench.tables.measuring import Row, measure
from q43nl_numba.compare import ALL_VARIANTS, draw

DEFAULT_SIZE = 4_194_304
DEFAULT_REPEAT = 3
# Where names stand: those of the peers below their points, which are close below ours.
ABOVE = {"xytext": (2, 5), "rotation": 55}
BELOW = {"xytext": (3, -3), "rotation": -35, "va": "top", "rotation_mode": "anchor"}
MOST_BITS = 5  # of what is drawn: more bits are another class, and in the table


def measured(size: int, repeat: int, threads: int) -> dict[str, list[Row]]:
    """A row for every point, by whose it is."""
    chosen = ALL_VARIANTS
    ours = [package_contender(variant) for variant in chosen]
    peers = {package: peer_contenders(package) for package in PEERS}
    weights = draw("normal", size, seed=0).reshape(-1, ROW)
    found = [*ours, *(peer for group in peers.values() for peer in group)]
    rows = iter(measure(found, weights, [threads], repeat))
    series: dict[str, list[Row]] = {}
    for variant in chosen:
        series.setdefault(variant.method, []).append(next(rows))
    for package, group in peers.items():
        series[package] = [next(rows) for _ in group]
    return {name: points for name, points in series.items() if points}


def plot(series: dict[str, list[Row]], threads: int, path: Path) -> None:
    """Draw the points, those of one method joined, each with its name."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise SystemExit(f'{error}: pip install ".[plot]"') from error
    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    for name, every in series.items():
        rows = [row for row in every if row.bits_per_weight <= MOST_BITS]
        speeds = [row.quantize[threads] for row in rows]
        joined = "-" if name in ("gradient", "optimal") else ""
        axes.plot(speeds, [row.snr_db for row in rows], f"o{joined}", label=name, markersize=5)
        for row, speed in zip(rows, speeds, strict=True):
            label = row.label.replace("`", "").removeprefix(f"{name} ")
            bits = "" if row.bits_per_weight == 4.75 else f" ({row.bits_per_weight:g} bits)"
            place = dict(BELOW if name in PEERS else ABOVE, textcoords="offset points", fontsize=7)
            axes.annotate(label + bits, (speed, row.snr_db), **place)
    axes.set(
        xscale="log",
        xlabel=f"million weights a second, {threads} threads",
        ylabel="signal-to-noise ratio, dB",
        title="Normal weights; 4.75 bits a weight unless said otherwise",
    )
    axes.margins(x=0.12, y=0.24)  # for the names
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def table(series: dict[str, list[Row]], threads: int) -> str:
    """The same figures as text."""
    exact = series["exact"][0].mse
    lines = [f"{'':24} bits  SNR dB  MSE / exact     Mw/s"]
    for rows in series.values():
        for row in rows:
            label = row.label.replace("`", "")
            lines.append(
                f"{label:24} {row.bits_per_weight:4g}  {row.snr_db:6.2f}  {row.mse / exact:11.4f}"
                f"  {row.quantize[threads]:7.2f}"
            )
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description="Draw error against speed.")
    parser.add_argument("path", type=Path, help="picture to write: .svg, .png, .pdf")
    parser.add_argument("--size", type=int, default=DEFAULT_SIZE, help="weights")
    parser.add_argument("--repeat", type=int, default=DEFAULT_REPEAT, help="timed calls of each")
    args = parser.parse_args(arguments)
    threads = most_threads()
    with np.errstate(all="ignore"):
        series = measured(args.size, args.repeat, threads)
    print(f"{args.size:,} normal weights ({facts()}):\n\n{table(series, threads)}")
    plot(series, threads, args.path)


if __name__ == "__main__":
    main(sys.argv[1:])
