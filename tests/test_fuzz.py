"""The fuzzers of ``tests/fuzz``: what they found before, a short blind run, a long guided one."""

from __future__ import annotations

import importlib
import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

for package in ("safetensors", "ml_dtypes", "tqdm", "gguf", "tokenizers"):
    pytest.importorskip(package)
if sys.platform == "win32":
    pytest.skip("the fuzzers limit their memory as POSIX does", allow_module_level=True)

FUZZ = Path(__file__).parent / "fuzz"
sys.path.insert(0, str(FUZZ))

import harness  # noqa: E402

NAMES = sorted(path.stem.removeprefix("fuzz_") for path in FUZZ.glob("fuzz_*.py"))
CASES = sorted(harness.CASES.iterdir())
BLIND_RUNS = 60


def reader(name: str) -> harness.Reader:
    found: Any = importlib.import_module(f"fuzz_{name}")
    return found.READER


@pytest.mark.parametrize("name", NAMES)
def test_seeds(name: str, tmp_path: Path) -> None:
    read = reader(name)
    for number, seed in enumerate(read.seeds()):
        folder = tmp_path / str(number)
        folder.mkdir()
        read.check(folder, seed)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_was_found_before(case: Path, tmp_path: Path) -> None:
    reader(case.name.rsplit("-", 1)[0]).check(tmp_path, case.read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_a_short_run(name: str, tmp_path: Path) -> None:
    read, rng = reader(name), random.Random(name)
    for number in range(BLIND_RUNS):
        folder = tmp_path / str(number)
        folder.mkdir()
        read.check(folder, read.mutated(rng))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_guided_by_coverage(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, FUZZ / "run.py", name, "--seconds", "60", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 findings" in done.stdout
    assert "number_of_executed_units" in done.stdout
