"""Kernels as plain Python (NUMBA_DISABLE_JIT=1) store the bytes that compiled ones do.

In plain Python a debugger stops in a kernel, and coverage sees its lines. It is slow, so the input
is small: a few groups of each kind.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import q43nl_numba
from q43nl_numba import GROUP_SIZE, METHODS

PACKAGE = Path(q43nl_numba.__file__).parent

# What both sides do: `results(weights, methods, importance)` by method, as text.
COMMON = """
import hashlib
import numpy as np
from q43nl_numba import dequantize, q43nl, quality

def results(weights, methods, importance):
    found = {}
    for method in methods:
        packed = q43nl(weights, method, importance=importance)
        decoded = dequantize(packed)
        record = quality(weights, packed)
        found[method] = [packed.tobytes().hex(), decoded.tobytes().hex(), repr(record)]
    return found
"""

PLAIN = """
import json, sys
given = json.load(sys.stdin)
weights = np.array(given["weights"], np.float32)
importance = given["importance"]
print(json.dumps(results(weights, given["methods"], importance)))
"""


def groups(count):
    """Normal, sparse, tiny and zero groups in turn."""
    rng = np.random.default_rng(11)
    weights = rng.standard_normal((count, GROUP_SIZE)).astype(np.float32)
    weights[1::4] *= rng.random((len(weights[1::4]), GROUP_SIZE)) < 0.2
    weights[2::4] *= np.float32(2.0**-20)
    weights[3::4] = 0
    return weights


def check(weights, methods, importance=None):
    """Compare this process, with compiled kernels, with one that compiles nothing."""
    scope = {}
    exec(COMMON, scope)
    given = {"weights": weights.tolist(), "methods": list(methods), "importance": importance}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMMON + PLAIN],
        input=json.dumps(given),
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), "NUMBA_DISABLE_JIT": "1"},
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == scope["results"](weights, methods, importance)


@pytest.mark.parametrize("method", METHODS)
def test_bytes_of_a_method(method):
    check(groups(3), [method])


@pytest.mark.parametrize("method", METHODS)
def test_bytes_of_a_method_with_importance(method):
    check(groups(1), [method], importance=np.linspace(0, 1, GROUP_SIZE).tolist())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_bytes_of_many_groups(method):
    """More groups than a tile has lanes."""
    check(groups(150), [method])
