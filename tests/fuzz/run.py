"""Run fuzzers, one after the other: ``python tests/fuzz/run.py [--seconds 60] [NAME ...]``.

With atheris installed (``pip install atheris``) their mutations are guided by coverage, else they
are blind. Inputs that a reader fails on are kept in ``<folder>/findings``; a fuzzer tries a single
file again: ``python tests/fuzz/fuzz_gguf.py FILE``. The exit code is 1 if there are findings.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
NAMES = sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py"))


def main() -> int:
    """Run the fuzzers that were asked for and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument("--seconds", type=int, default=60, help="for each of them (60)")
    parser.add_argument("--folder", type=Path, help="for findings and corpora (a new one)")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="q43nl-fuzz-"))
    guided = importlib.util.find_spec("atheris") is not None
    environment = {**os.environ, "Q43NL_FUZZ": "atheris" if guided else "blind"}
    print(f"{'guided by coverage' if guided else 'blind'}, {args.seconds} s each, in {folder}")
    for name in args.names or NAMES:
        command = [sys.executable, str(HERE / f"fuzz_{name}.py"), str(args.seconds), str(folder)]
        print(f"== {name}", flush=True)
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        told = ("FOUND", "Done", "stat::number_of_executed_units", "ERROR", "Traceback")
        print("\n".join(line for line in lines if line.startswith(told)), flush=True)
        if not any(line.startswith(("Done", "stat::")) for line in lines):
            print("\n".join(lines[-30:]), flush=True)
    findings = sorted((folder / "findings").glob("*"))
    findings = [path for path in findings if "-slow-unit-" not in path.name]  # compiling is slow
    print(f"{len(findings)} findings" + "".join(f"\n  {path}" for path in findings))
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
