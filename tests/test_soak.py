"""A soak: billions of weights in varied sizes and methods, with flat memory.

``Q43NL_SOAK_WEIGHTS`` and ``Q43NL_SOAK_SECONDS`` bound it: by default 10^10 weights and 10 minutes,
whichever comes first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_kernels import PACKAGE

WEIGHTS = os.environ.get("Q43NL_SOAK_WEIGHTS", "1e10")
SECONDS = os.environ.get("Q43NL_SOAK_SECONDS", "600")

SCRIPT = """
import json, random, sys, time
import numpy as np
from q43nl_numba import METHODS, dequantize, q43nl, quality

limit, seconds = float(sys.argv[1]), float(sys.argv[2])

def resident():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

rng = np.random.default_rng(0)
stock = rng.standard_normal(1 << 24, dtype=np.float32)
sizes = [32, 4064, 4096, 1 << 17, (1 << 20) + 32, 1 << 22, 1 << 24]
# The fast methods take all sizes, the slow ones those that they do in about a second.
most = {"grid": 1 << 20, "optimal": 1 << 17, "exact": 4096}
draw = random.Random(1)
inputs = rng.standard_normal((512, 256))
hessian = inputs.T @ inputs

def one_call(method, size, kind):
    start = draw.randrange(0, stock.size - size + 1, 32)
    weights = stock[start : start + size]
    options = {"effort": 1} if method == "optimal" else {}
    if kind == 1:
        weights = weights[: 1 << 20].astype(np.float16)
    elif kind == 2:
        weights = weights[: 1 << 20]
        options["importance"] = np.abs(weights)
    elif kind == 3 and size >= 4096 and method == "predictor":
        weights = weights[: 1 << 17].reshape(-1, 256)
        options["hessian"] = hessian
    packed = q43nl(weights, method, **options)
    error = quality(weights, packed)
    assert error.snr_db > 15 or size < 128, (method, size, kind, error)
    dequantize(packed, dtype=(np.float32, np.float16)[kind % 2])
    return weights.size

# Each kind of call once, then the memory that they keep is there.
warm = [(m, size, kind) for m in METHODS for size in (32, 4096, 1 << 20) for kind in range(3)
        if size <= most.get(m, 1 << 24)]
for call in warm:
    one_call(*call)
one_call("predictor", 1 << 17, 3)
one_call("predictor", 1 << 24, 0)
begin = time.monotonic()
done = 0
at_first = resident()
figures = [at_first]
calls = 0
shares = [{"predictor": 20, "coarse_fine": 8, "hybrid": 8}.get(m, 1) for m in METHODS]
while done < limit and time.monotonic() - begin < seconds:
    # Mostly the fast methods on large arrays: they get the weights done.
    method = draw.choices(METHODS, shares)[0]
    sized = [size for size in sizes if size <= most.get(method, stock.size)]
    size = draw.choices(sized, range(1, len(sized) + 1))[0]
    done += one_call(method, size, draw.choice((0, 0, 0, 1, 2, 3)))
    calls += 1
    if calls % 20 == 0:
        figures.append(resident())
figures.append(resident())
print(json.dumps({"weights": done, "calls": calls, "first": at_first, "last": figures[-1],
                  "most": max(figures), "seconds": time.monotonic() - begin}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to see the memory")
def test_memory_stays_flat() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, WEIGHTS, SECONDS],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        cwd=PACKAGE.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(json.dumps(found))
    assert found["calls"] > 10
    assert found["last"] < found["first"] + (64 << 10)  # KiB
