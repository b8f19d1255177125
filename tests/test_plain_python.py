"""Kernels as plain Python (NUMBA_DISABLE_JIT=1) store the bytes that compiled ones do.

In plain Python a debugger stops in a kernel, and coverage sees its lines. It is slow, so the input
is small: a few groups of each kind.
"""

import hashlib
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

# What both sides do: `results(weights, methods, importance)` by method, as text, and the others.
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

def with_hessian(weights, methods, hessian):
    found = {}
    for method in methods:
        options = {"effort": 1} if method == "optimal" else {}
        packed = q43nl(weights, method, hessian=np.array(hessian), sweeps=1, **options)
        found[method] = packed.tobytes().hex()
    return found

def decoded(seed):
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, (5, 19), np.uint8)
    weights = rng.standard_normal((5, 32))
    dtypes = (np.float32, np.float16, np.float64)
    found = [dequantize(packed, dtype=dtype).tobytes().hex() for dtype in dtypes]
    return found + [repr(quality(weights.astype(dtype), packed)) for dtype in dtypes]

def answer(given):
    weights = np.array(given["weights"], np.float32)
    if given["hessian"] is not None:
        return with_hessian(weights, given["methods"], given["hessian"])
    if given["seed"] is not None:
        return decoded(given["seed"])
    return results(weights, given["methods"], given["importance"])
"""

PLAIN = """
import json, sys
print(json.dumps(answer(json.load(sys.stdin))))
"""


def groups(count):
    """Normal, sparse, tiny and zero groups in turn."""
    rng = np.random.default_rng(11)
    weights = rng.standard_normal((count, GROUP_SIZE)).astype(np.float32)
    weights[1::4] *= rng.random((len(weights[1::4]), GROUP_SIZE)) < 0.2
    weights[2::4] *= np.float32(2.0**-20)
    weights[3::4] = 0
    return weights


def check(weights, methods, importance=None, hessian=None, seed=None):
    """Compare this process, with compiled kernels, with one that compiles nothing."""
    scope = {}
    exec(COMMON, scope)
    given = {
        "weights": weights.tolist(),
        "methods": list(methods),
        "importance": importance,
        "hessian": hessian,
        "seed": seed,
    }
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
    assert json.loads(done.stdout) == scope["answer"](given)


@pytest.mark.parametrize("method", METHODS)
def test_bytes_of_a_method(method):
    check(groups(3), [method])


@pytest.mark.parametrize("method", METHODS)
def test_bytes_of_a_method_with_importance(method):
    check(groups(1), [method], importance=np.linspace(0, 1, GROUP_SIZE).tolist())


def second_moments(columns):
    """Sums of whole numbers, so that they are the same whatever computes them."""
    inputs = np.random.default_rng(5).integers(-3, 5, (2 * columns, columns)).astype(float)
    return (inputs.T @ inputs).tolist()


def test_bytes_with_a_hessian():
    check(groups(2).reshape(1, 64), ["grid"], hessian=second_moments(64))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_bytes_of_every_method_with_a_hessian(method):
    check(groups(6).reshape(2, 96), [method], hessian=second_moments(96))


@pytest.mark.parametrize("seed", range(3))
def test_any_bytes_decoded_and_judged(seed):
    check(np.empty((0, GROUP_SIZE), np.float32), [], seed=seed)


# What compiled kernels store, recorded: a process that compiles nothing can be judged by it alone,
# as `.ci/mutate.py --plain` does.
RECORDED = Path(__file__).parent / "golden" / "plain.json"


def digest_of(method):
    """The digest of a few groups by a method, with importance, and for two with a hessian."""
    scope = {}
    exec(COMMON, scope)
    count = 2 if method in ("grid", "optimal", "exact") else 12  # those are slow in plain Python
    parts = [
        scope["results"](weights, [method], importance)[method][:2]
        for weights, importance in ((groups(count), None), (groups(1), list(range(GROUP_SIZE))))
    ]
    if method in ("grid", "optimal"):
        weights = groups(2).reshape(1, 64)
        parts.append(scope["with_hessian"](weights, [method], second_moments(64)))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@pytest.mark.parametrize("method", METHODS)
def test_recorded_bytes(method):
    """After a change that may store other bytes: python tests/test_plain_python.py."""
    assert digest_of(method) == json.loads(RECORDED.read_text())[method]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_bytes_of_many_groups(method):
    """More groups than a tile has lanes."""
    check(groups(150), [method])


if __name__ == "__main__":
    digests = {method: digest_of(method) for method in METHODS}
    RECORDED.write_text(json.dumps(digests, indent=2) + "\n")
