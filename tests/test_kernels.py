"""How kernels run: bounds, forks, threads, imports, caches. Each in a process of its own."""

import os
import platform
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import samples

import q43nl_numba
from q43nl_numba import METHODS, dequantize, q43nl

PACKAGE = Path(q43nl_numba.__file__).parent

# What a child process works on; `digest()` is all bytes that the methods and the decoder give.
PRELUDE = """
import hashlib, sys
import numpy as np
from q43nl_numba import METHODS, dequantize, q43nl, quality

weights = np.random.default_rng(4).standard_normal((203, 32)).astype(np.float32)
weights[5] = 0

def digest(methods=METHODS, num_threads=None):
    result = hashlib.sha256()
    for method in methods:
        packed = q43nl(weights, method, num_threads=num_threads)
        result.update(packed.tobytes())
        result.update(dequantize(packed, num_threads=num_threads).tobytes())
    return result.hexdigest()
"""


def run(script, package=PACKAGE, **environment):
    """Run a script after the prelude with warnings as errors; what it printed, stripped."""
    variables = {**os.environ, "PYTHONPATH": str(package.parent), **environment}
    variables = {name: value for name, value in variables.items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(script)],
        env=variables,
        cwd=package.parent,  # the first place that Python looks in
        capture_output=True,
        text=True,
        timeout=3000,  # a busy machine compiles all kernels for ten minutes and more
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.fixture(scope="module")
def digest():
    """The digest as this process computes it, with all threads."""
    scope = {}
    exec(PRELUDE, scope)
    return scope["digest"]()


def test_no_access_is_out_of_bounds(other_kernels, digest):
    """Bounds are checked in serial builds only; every index of the kernels is the same there."""
    script = """
    print(digest(num_threads=1))
    odd = np.random.default_rng(1).integers(0, 256, (301, 19), dtype=np.uint8)
    dequantize(odd, num_threads=1)
    for size in (2, 3, 255, 1000):
        q43nl(weights, "grid", grid_size=size, num_threads=1)
    q43nl(weights[:1], gd_iterations=20, gd_lr=0.1, num_threads=1)
    for method in METHODS:
        q43nl(weights[:9], method, importance=np.arange(32), num_threads=1)
    """
    checked = run(script, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=other_kernels)
    assert checked == digest


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86 processors")
@pytest.mark.parametrize("processor", ["generic", pytest.param("haswell", marks=pytest.mark.slow)])
def test_bytes_do_not_depend_on_the_processor(other_kernels, digest, processor):
    """Vectors of 4 lanes and no fused multiply-add, vectors of 8, and whatever this machine has."""
    script = """
    print(digest())
    many = np.random.default_rng(8).laplace(size=(4096, 32))
    efforts = [q43nl(many, "optimal", effort=effort) for effort in range(1, 9)]
    print(hashlib.sha256(np.concatenate(efforts).tobytes()).hexdigest())
    """
    machine = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""}
    found = run(script, NUMBA_CACHE_DIR=other_kernels, **machine)
    assert found == run(script)
    assert found.startswith(digest)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_fork_after_a_parallel_launch():
    """The child of a process whose thread pool runs, and its own child, still compute."""
    script = """
    import os, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
    before = digest(num_threads=2)
    child = os.fork()
    if child == 0:
        same = digest(num_threads=2) == before and digest() == before
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if digest(num_threads=2) == before else 1)
        same = same and os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 0
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert digest(num_threads=2) == before
    """
    run(script)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_fork_after_portions_ran_on_threads():
    """Large tensors of `gradient` are taken in portions by threads that the package keeps."""
    script = """
    import os, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
    large = np.random.default_rng(5).standard_normal(1 << 19, dtype=np.float32)
    before = q43nl(large, num_threads=2).tobytes()
    child = os.fork()
    if child == 0:
        os._exit(0 if q43nl(large, num_threads=2).tobytes() == before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert q43nl(large, num_threads=1).tobytes() == before
    """
    run(script)


def test_portions_of_several_calls_at_once():
    large = np.random.default_rng(6).standard_normal(1 << 19, dtype=np.float32)
    expected = q43nl(large, num_threads=1)
    found = []
    calls = [threading.Thread(target=lambda: found.append(q43nl(large))) for _ in range(4)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert len(found) == 4
    assert all(np.array_equal(packed, expected) for packed in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_fork_before_any_launch():
    """A parent that has computed nothing leaves its children the thread pool."""
    script = """
    import os
    child = os.fork()
    if child == 0:
        os._exit(0 if digest(num_threads=2) == digest(num_threads=1) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert digest(num_threads=2) == digest(num_threads=1)
    """
    run(script)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_multiprocessing_fork_pool():
    script = """
    import multiprocessing, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
    before = digest(num_threads=2)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.starmap(digest, [(METHODS, 2), (METHODS, None), (METHODS, 1)])
    assert found == [before] * 3
    """
    run(script)


@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_python_threads_at_once(layer, digest):
    """Also on the layer that ends the process when two launches meet."""
    script = """
    import threading
    found = []
    def work(num_threads):
        for _ in range(5):
            found.append(digest(num_threads=num_threads))
    threads = [threading.Thread(target=work, args=(n,)) for n in (None, 1, 2, None)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(found) == 20 and len(set(found)) == 1, set(found)
    print(found[0])
    """
    if layer == "omp" and not sys.platform.startswith("linux"):
        pytest.skip("the omp layer is sure to be there on Linux only")
    assert run(script, NUMBA_THREADING_LAYER=layer) == digest


def test_python_threads_write_their_own_output(normal):
    """Calls of several methods at once, each into its own array, in this process."""
    expected = {method: q43nl(normal, method) for method in METHODS}
    wrong = []

    def work(method):
        out = np.empty_like(expected[method])
        for _ in range(4):
            out[:] = 0
            q43nl(normal, method, out=out)
            if not np.array_equal(out, expected[method]):
                wrong.append(method)
            if not np.array_equal(dequantize(out), dequantize(expected[method])):
                wrong.append(method)

    threads = [threading.Thread(target=work, args=(method,)) for method in (*METHODS, *METHODS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_numba_threads_setting_is_restored():
    numba = pytest.importorskip("numba")
    before = numba.get_num_threads()
    weights = samples.draw("normal", 64)
    q43nl(weights, num_threads=1)
    q43nl(weights, num_threads=2)
    q43nl(weights, num_threads=1000)
    with pytest.raises(ValueError, match="tensor"):
        q43nl(np.full(32, np.nan, np.float32), num_threads=1)
    assert numba.get_num_threads() == before


def test_one_numba_thread(digest):
    assert run("print(digest(num_threads=8))", NUMBA_NUM_THREADS="1") == digest


def test_import_is_light():
    """Importing the package takes neither SciPy's statistics nor an optional package."""
    heavy = ["scipy.stats", "scipy.optimize", "safetensors", "ml_dtypes", "tqdm", "matplotlib"]
    assert run(f"print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_small_tensors_do_without_scipy_stats():
    """Which takes longer to import than all the rest, and to call than the kernel."""
    script = """
    few = q43nl(weights[:64])
    print("scipy.stats" in sys.modules, np.array_equal(q43nl(weights)[: few.size], few))
    """
    assert run(script) == "False True"


def test_import_compiles_nothing():
    """Importing leaves the thread pool alone."""
    script = """
    import numba
    try:
        numba.threading_layer()
    except ValueError:
        print("not started")
    """
    assert run(script) == "not started"
