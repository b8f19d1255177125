"""The scripts in examples/ run as they stand, with warnings as errors, and show what they say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import q43nl_numba

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parent.parent / "examples"
PACKAGE = Path(q43nl_numba.__file__).parent


def run(name, folder):
    """Run an example in a folder of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_importance_lowers_the_error_of_the_outputs(tmp_path):
    printed = run("convert_with_importance.py", tmp_path)
    assert float(printed.rpartition("ratio:")[2]) < 0.8


def test_curves_are_plotted(tmp_path):
    printed = run("plot_curves.py", tmp_path)
    assert printed.count("8192 groups of 19 bytes") == 3
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "convert_with_importance.py",
        "plot_curves.py",
    }
