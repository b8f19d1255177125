"""Measuring commands over a model file, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asv_bench.tables.contenders import VARIANTS
from q43nl_numba.compare import Variant

COMMAND_REPEAT = 3


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
