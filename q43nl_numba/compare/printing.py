"""Showing the rows: a table for people, JSON for programs, and facts about the machine."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata

import numba
import numpy as np

from .. import __version__
from .._text import columns, display_width, json_text, number, printable
from .measuring import Row
from .samples import Sample


def machine_facts(num_threads: int | None = None) -> dict[str, str | int]:
    """Return what a reader needs to know to place the times: processor, threads, versions."""
    return {
        "q43nl_numba": __version__,
        "cpu": _cpu_name(),
        "threads": num_threads or numba.get_num_threads(),
        "python": platform.python_version(),
        "numba": metadata.version("numba"),
        "numpy": np.__version__,
    }


def _cpu_name() -> str:
    """Return the processor's name, as the system knows it."""
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
    ("MSE ratio", lambda row: number(row.mse_ratio, 4)),
    ("SNR dB", lambda row: number(row.snr_db)),
    ("time ms", lambda row: number(row.seconds * 1e3, 3)),
    ("Mw/s", lambda row: number(row.speed)),
    ("speed-up", lambda row: number(row.speedup) + "x" * (row.speedup == row.speedup)),
    ("bytes", lambda row: "-" if row.packed_bytes is None else str(row.packed_bytes)),
)


def format_table(sample: Sample, rows: Sequence[Row], facts: Mapping[str, str | int]) -> str:
    """Return the rows as aligned text under two lines that say what was measured where."""
    machine = (
        f"q43nl_numba {facts['q43nl_numba']} on {facts['cpu']}, threads: {facts['threads']}, "
        f"Python {facts['python']}, numba {facts['numba']}, numpy {facts['numpy']}"
    )
    titles = [heading for heading, _ in _COLUMNS]
    cells = [[cell(row) for _, cell in _COLUMNS] for row in rows]
    heading, *lines = columns(titles, cells, left=1)
    table = [heading, _rule(heading), *lines]
    notes = ["", "-: weights above what the method can store"] * any(
        not row.measured for row in rows
    )
    return "\n".join([printable(machine), _sample_line(sample), "", *table, *notes])


def _rule(heading: str) -> str:
    """Return the line under a heading."""
    return "-" * display_width(heading)


def _sample_line(sample: Sample) -> str:
    """Return the line about the weights."""
    line = f"{printable(sample.source)}: {sample.weights.size:,} weights"
    if sample.available > sample.weights.size:
        line += f", in groups taken evenly from {sample.available:,}"
    return line


def format_json(sample: Sample, rows: Sequence[Row], facts: Mapping[str, str | int]) -> str:
    """Return facts and rows as a JSON object; a number that is not finite becomes null."""
    return json_text(
        {
            "machine": dict(facts),
            "sample": {
                "source": sample.source,
                "weights": sample.weights.size,
                "available": sample.available,
            },
            "rows": [asdict(row) for row in rows],
        }
    )
