"""Threads, executors and processes of the caller's: the same bytes, and settings as before."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from test_kernels import PACKAGE, PRELUDE

# Every call launches on all threads that it asks for, however small it is.
EAGER = """
import q43nl_numba._threads
q43nl_numba._threads._WORTH_A_THREAD = 1.0
FEW = ["grid", "gradient", "optimal"]
"""


def run(folder: Path, script: str, strict: bool = True, **environment: str) -> str:
    """Run a script from a file, which spawned processes import; what it printed.

    Not strict: with the warnings of `multiprocessing` about its own resources.
    """
    path = folder / "script.py"
    path.write_text(PRELUDE + EAGER + textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, *(["-W", "error"] if strict else []), str(path)],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment},
        cwd=folder, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" or not strict
    return done.stdout.strip()


SLOW = pytest.mark.slow


@pytest.fixture(
    params=["workqueue", pytest.param("omp", marks=SLOW), pytest.param("tbb", marks=SLOW)]
)
def layer(request: pytest.FixtureRequest) -> str:
    module = {"workqueue": "workqueue", "omp": "omppool", "tbb": "tbbpool"}[request.param]
    try:
        importlib.import_module(f"numba.np.ufunc.{module}")
    except ImportError as error:
        pytest.skip(f"Numba cannot load this layer here: {error}")
    return str(request.param)


# --- threads ---------------------------------------------------------------------------------


def test_sixteen_threads_at_once(tmp_path: Path, layer: str) -> None:
    """Calls of all methods, the decoder and the comparison, each on 1, 2 or all of its threads."""
    script = """
    import threading
    expected = digest(FEW, 1), repr(quality(weights, q43nl(weights), num_threads=1))
    found, start = [], threading.Barrier(16)
    def work(num_threads):
        start.wait()
        for _ in range(3):
            packed = q43nl(weights, num_threads=num_threads)
            compared = repr(quality(weights, packed, num_threads=num_threads))
            found.append((digest(FEW, num_threads), compared))
    threads = [threading.Thread(target=work, args=((None, 1, 2, 4)[n % 4],)) for n in range(16)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(found) == 48 and set(found) == {expected}
    import numba
    print(numba.threading_layer())
    """
    assert run(tmp_path, script, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="4") == layer


def test_a_thread_pool_executor(tmp_path: Path) -> None:
    """Its threads are used again, and keep Numba's number of threads of their own."""
    script = """
    import numba
    from concurrent.futures import ThreadPoolExecutor
    def work(num_threads):
        before = numba.get_num_threads()
        return digest(FEW, num_threads), numba.get_num_threads() == before
    with ThreadPoolExecutor(4) as executor:
        found = set(executor.map(work, [1, 2, None, 7] * 4))
    assert found == {(digest(FEW, 1), True)}, found
    """
    run(tmp_path, script)


NESTED = """
import numba
from numba import njit, objmode, prange

def inside(number):
    calls[number] = digest(FEW, 2), numba.get_num_threads()

@njit(parallel=True)
def program(numbers):
    for i in prange(numbers.size):
        with objmode():
            inside(i)

before = numba.get_num_threads()
expected = digest(FEW, 1)
digest(FEW, 2)  # compiled
for _ in range(3):
    calls = {}
    program(np.zeros(6))
    assert {found for found, _ in calls.values()} == {expected}
    assert digest(FEW, 2) == expected
    assert numba.get_num_threads() == before
print(numba.threading_layer(), len(calls))
"""


def test_calls_from_inside_a_parallel_program(tmp_path: Path, layer: str) -> None:
    """Under workqueue, two threads for such a call used to end the process."""
    variables = {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    assert run(tmp_path, NESTED, **variables) == f"{layer} 6"


def test_the_number_of_threads_is_as_before(tmp_path: Path) -> None:
    """After results, errors and interrupts, in calls of every kind."""
    script = """
    import numba, signal
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((300, 224))
    hessian = inputs.T @ inputs
    rows = rng.standard_normal((150, 224), dtype=np.float32)
    many = rng.standard_normal((1 << 12, 32), dtype=np.float32)
    wrong = many.copy()
    wrong[-1] = np.nan
    packed = q43nl(many, "grid")
    calls = [
        lambda n: q43nl(many, "grid", num_threads=n),
        lambda n: q43nl(many, "gradient", num_threads=n),
        lambda n: q43nl(wrong, "grid", num_threads=n),
        lambda n: q43nl(rows, "coarse_fine", hessian=hessian, num_threads=n),
        lambda n: q43nl(rows, "coarse_fine", hessian=-hessian, num_threads=n),
        lambda n: dequantize(packed, num_threads=n),
        lambda n: dequantize(packed[:-1], num_threads=n),
        lambda n: quality(many, packed, num_threads=n),
        lambda n: quality(many, packed[19:], num_threads=n),
    ]
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    ended = {"result": 0, "error": 0, "interrupt": 0}
    for setting in (1, 3):
        numba.set_num_threads(setting)
        for threads in (None, 2, 99):
            for call in calls:
                for delay in (0, 0.001):
                    try:
                        try:
                            signal.setitimer(signal.ITIMER_REAL, delay)
                            call(threads)
                            ended["result"] += 1
                        except ValueError:
                            ended["error"] += 1
                        finally:
                            signal.setitimer(signal.ITIMER_REAL, 0)
                    except KeyboardInterrupt:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                        ended["interrupt"] += 1
                    assert numba.get_num_threads() == setting
    assert all(ended.values()), ended
    """
    run(tmp_path, script, NUMBA_NUM_THREADS="3")


# --- processes -------------------------------------------------------------------------------

PROCESSES = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads

def work(num_threads):
    return digest(FEW, num_threads)

if __name__ == "__main__":
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    if HAS_COMPUTED:
        work(2)
    context = multiprocessing.get_context(METHOD)
    if EXECUTOR:
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            found = list(executor.map(work, [None, 1, 2, 2]))
    else:
        with context.Pool(2) as pool:
            found = pool.map(work, [None, 1, 2, 2], chunksize=1)
    assert set(found) == {work(2)}, found
"""


def processes(method: str, has_computed: bool, executor: bool) -> str:
    values = {"METHOD": repr(method), "HAS_COMPUTED": has_computed, "EXECUTOR": executor}
    script = PROCESSES
    for name, value in values.items():
        script = script.replace(name, str(value))
    return script


@pytest.mark.parametrize(
    ("method", "has_computed", "executor"),
    [
        pytest.param("fork", True, True, marks=SLOW),
        pytest.param("forkserver", True, False, marks=SLOW),
        ("spawn", True, True),
        pytest.param("fork", False, True, marks=SLOW),
        pytest.param("fork", False, False, marks=SLOW),
        pytest.param("fork", True, False, marks=SLOW),
        pytest.param("forkserver", False, True, marks=SLOW),
        pytest.param("forkserver", False, False, marks=SLOW),
        pytest.param("forkserver", True, True, marks=SLOW),
        pytest.param("spawn", False, True, marks=SLOW),
        pytest.param("spawn", False, False, marks=SLOW),
        pytest.param("spawn", True, False, marks=SLOW),
    ],
)
def test_processes_of_a_pool(
    tmp_path: Path, method: str, has_computed: bool, executor: bool
) -> None:
    """Started in each way, by a parent that has used its threads or not."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("the system has no such processes")
    run(tmp_path, processes(method, has_computed, executor), strict=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_a_pool_under_each_layer(tmp_path: Path, layer: str, method: str) -> None:
    """A child that GNU's OpenMP would end does not use it."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("the system has no such processes")
    run(tmp_path, processes(method, True, True), strict=False, NUMBA_THREADING_LAYER=layer)


@pytest.mark.parametrize("backend", ["loky", pytest.param("threading", marks=SLOW)])
def test_joblib(tmp_path: Path, backend: str) -> None:
    """loky limits the threads of its workers by NUMBA_NUM_THREADS."""
    pytest.importorskip("joblib")
    script = f"""
    from joblib import Parallel, delayed

    def work(num_threads):
        return digest(FEW, num_threads)

    if __name__ == "__main__":
        parallel = Parallel(n_jobs=2, backend={backend!r})
        found = parallel(delayed(work)(n) for n in (None, 1, 2, 2))
        assert set(found) == {{work(2)}}, found
    """
    run(tmp_path, script)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_forks_of_a_program_whose_threads_all_work(tmp_path: Path) -> None:
    """Launches, portions on threads of our own and compilations, while the main thread forks."""
    script = """
    import threading, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
    expected = digest(FEW, 2)
    stop = threading.Event()
    def work(method):
        large = np.random.default_rng(5).standard_normal(1 << 18, dtype=np.float32)
        while not stop.is_set():
            q43nl(large, method, num_threads=2)
    threads = [threading.Thread(target=work, args=(m,)) for m in ("grid", "gradient", "hybrid")]
    for thread in threads: thread.start()
    codes = []
    for _ in range(12):
        child = os.fork()
        if child == 0:
            import faulthandler
            faulthandler.dump_traceback_later(200, exit=True)
            os._exit(0 if digest(FEW, 2) == expected else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.set()
    for thread in threads: thread.join()
    assert sum(codes) == 0, codes
    """
    run(tmp_path, "    import os\n" + script, NUMBA_CACHE_DIR=str(tmp_path / "cache"))


@pytest.mark.slow
def test_one_thread_serves_calls_of_many(tmp_path: Path) -> None:
    """A machine with one core, or a container that grants one."""
    script = """
    import numba, threading
    expected = digest(FEW, 1)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(digest(FEW, 8))) for _ in range(8)
    ]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert found == [expected] * 8
    print(numba.config.NUMBA_NUM_THREADS)
    """
    assert run(tmp_path, script, NUMBA_NUM_THREADS="1") == "1"
