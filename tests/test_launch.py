"""Locks, threads and interrupts: no call hangs, and none changes what it was not asked to."""

import itertools
import os
import signal
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from test_kernels import run

import q43nl_numba
from q43nl_numba import _jit, _threads, dequantize, q43nl, quality
from q43nl_numba._threads import pool, run_side_by_side, thread_count

LARGE = np.random.default_rng(3).standard_normal(1 << 20, dtype=np.float32)


# --- failed launches -------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["tbb", "no such layer"])
def test_a_missing_threading_layer_is_named_at_every_call(layer):
    """The second call used to wait for a lock that the first one had kept."""
    script = """
    for call in range(3):
        try:
            q43nl(np.ones(1 << 20, np.float32), "grid", num_threads=2)
        except RuntimeError as error:
            print(error)
    print(q43nl(np.ones(32), "grid", num_threads=1).size)
    """
    available = "from numba.np.ufunc import tbbpool"
    try:
        exec(available)
    except ImportError:
        *errors, size = run(script, NUMBA_THREADING_LAYER=layer).splitlines()
        said = [line for line in errors if line.startswith("NUMBA_THREADING_LAYER must name")]
        assert len(said) == 3
        assert all(layer in line for line in said)
        assert size == "19"
    else:
        pytest.skip("the layer is installed")


def test_an_error_in_a_launch_releases_the_lock():
    def fail(*_):
        raise ZeroDivisionError

    class Failing:
        compiled = staticmethod(fail)

        def prepare(self, *_):
            pass

    before = pool.setting()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            pool.launch(Failing(), (), 1)
    assert pool.setting() == before
    assert in_another_thread(lambda: q43nl(LARGE, "grid", num_threads=2).size)


def in_another_thread(function, seconds=60):
    """Result of a function on a thread, an error if it hangs."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert results, "the call hangs"
    return results[0]


# --- interrupts ------------------------------------------------------------------------------

INTERRUPTED = """
import random, signal, threading, time
import numba

main = threading.get_ident()
small = weights[:128].repeat(40, axis=0)
q43nl(small, "coarse_fine"), dequantize(q43nl(small, "grid"))  # compiled
expected = q43nl(small, "grid", num_threads=2).tobytes()
setting = numba.get_num_threads()
# Every call is worth two threads, so that all of them launch in parallel.
import q43nl_numba._threads
q43nl_numba._threads._WORTH_A_THREAD = 1.0

armed = False

def handler(*_):
    global armed
    if armed:
        armed = False  # one interrupt a call, and none in what follows it
        raise KeyboardInterrupt

def send():
    random.seed(5)
    while not done.is_set():
        time.sleep(random.random() * 0.02)
        signal.pthread_kill(main, signal.SIGUSR1)

signal.signal(signal.SIGUSR1, handler)
done = threading.Event()
interrupts = finished = 0
sender = threading.Thread(target=send)
sender.start()
end = time.monotonic() + SECONDS
# On a machine that is busy, until some calls have come to their end.
while time.monotonic() < end or (finished <= 10 and time.monotonic() < end + 200):
    try:
        armed = True
        assert q43nl(small, "grid", num_threads=2).tobytes() == expected
        armed = False
        finished += 1
    except KeyboardInterrupt:
        interrupts += 1
done.set()
sender.join()
print(interrupts > 10, finished > 10, numba.get_num_threads() == setting)
result = []
thread = threading.Thread(target=lambda: result.append(q43nl(small, "grid", num_threads=2)))
thread.daemon = True
thread.start()
thread.join(60)
print(len(result))
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="the system has no such signals")
def test_interrupts_at_random_moments_of_many_calls():
    """None leaves the lock taken or the caller's number of threads changed."""
    found = run(INTERRUPTED.replace("SECONDS", "6"), NUMBA_NUM_THREADS="2").split()
    assert found == ["True", "True", "True", "1"]


def test_no_lock_of_numba_is_taken_where_interrupts_arrive(monkeypatch):
    """Numba starts its pool, and looks whether it has, behind a lock; an interrupt leaves it taken.

    The next call that compiles or loads a kernel waited for that lock for ever.
    """
    parallel = pytest.importorskip("numba.np.ufunc.parallel")
    launch, callers = parallel._launch_threads, []

    def noted():
        callers.append(threading.current_thread())
        launch()

    monkeypatch.setattr(parallel, "_launch_threads", noted)
    monkeypatch.setattr(_threads, "_WORTH_A_THREAD", 1.0)
    monkeypatch.setattr(pool, "_is_started", False, raising=False)
    weights = LARGE[: 1 << 15]
    packed = q43nl(weights, "coarse_fine", num_threads=2)
    q43nl(weights.reshape(-1, 32), "grid", hessian=np.eye(32) + 0.1)
    dequantize(packed)
    quality(weights, packed)
    assert callers
    assert threading.main_thread() not in callers


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no interval timer")
def test_an_interrupt_of_a_long_call_is_noticed_soon():
    """`exact` on many groups takes a minute, but comes back between two portions."""
    script = """
    import signal
    from q43nl_numba.kernels import encode
    many = np.random.default_rng(1).standard_normal((100_000, 32)).astype(np.float32)
    q43nl(many[:8], "exact")
    launched = []
    kernel = encode._encode
    def counted(*arguments, **options):
        launched.append(1)
        kernel(*arguments, **options)
    encode._encode = counted
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        q43nl(many, "exact", num_threads=1)
        print("finished")
    except KeyboardInterrupt:
        print("interrupted", len(launched) < 8)
    """
    assert run(script) == "interrupted True"


def test_work_is_cut_into_portions_that_take_half_a_second():
    from q43nl_numba._portions import _portions
    from q43nl_numba.methods import TABLE

    method = TABLE["exact"]
    cost = method.cost(method.parameters("full"))
    cuts = list(_portions(1 << 24, int(5e8 / cost)))
    assert cuts[0].start == 0
    assert cuts[-1].stop == 1 << 24
    assert all(a.stop == b.start for a, b in itertools.pairwise(cuts))
    assert max(cut.stop - cut.start for cut in cuts) * cost < 1e9


def test_what_is_cut_gives_the_same_bytes(monkeypatch):
    from q43nl_numba import _portions

    expected = {m: q43nl(LARGE[: 1 << 17], m) for m in ("grid", "gradient", "optimal")}
    monkeypatch.setattr(_portions, "_NANOSECONDS", 1e5)
    for method, packed in expected.items():
        np.testing.assert_array_equal(q43nl(LARGE[: 1 << 17], method), packed)


def portions_of_a_call(monkeypatch, tiles, tiles_in_half_a_second, threads, statistics=None):
    """Tiles of each portion that a method of some cost gets, and what ran side by side."""
    from q43nl_numba import _portions
    from q43nl_numba.kernels.tile import LANES

    found, side_by_side = [], []

    def encoder(weights, importance, statistics, parameters, eps_scale, packed, *, num_threads):
        assert packed.size == weights.size // 32 * 19
        found.append(weights.size // (32 * LANES))
        return True

    def run_in_turn(tasks, threads):
        side_by_side.append((len(tasks), threads))
        return [task() for task in tasks]

    encoder.tile_function = lambda importance: SimpleNamespace(compiled=None)
    monkeypatch.setattr(_portions, "thread_count", lambda requested, nanoseconds: threads)
    monkeypatch.setattr(_portions, "run_side_by_side", run_in_turn)
    cost = 5e8 / (tiles_in_half_a_second * 32 * LANES)
    method = SimpleNamespace(cost=lambda parameters: cost, statistics=statistics, encoder=encoder)
    weights = np.zeros(tiles * 32 * LANES, np.float32)
    packed = np.zeros(weights.size // 32 * 19, np.uint8)
    assert _portions.encode(_portions.Call(method, None, 0.0, None), weights, None, packed)
    return found, side_by_side


def test_threads_share_a_portion_of_half_a_second(monkeypatch):
    assert portions_of_a_call(monkeypatch, 20, 3.3, 1) == ([3, 3, 3, 3, 3, 3, 2], [])
    assert portions_of_a_call(monkeypatch, 20, 3.3, 2) == ([6, 6, 6, 2], [])


def test_threads_take_portions_of_their_own_with_statistics(monkeypatch):
    def statistics(groups):
        return None

    cut = partial(portions_of_a_call, monkeypatch, statistics=statistics)
    assert cut(12, 100.5, 3) == ([2] * 6, [(6, 3)])  # two for each thread
    assert cut(12, 100.5, 2) == ([3] * 4, [(4, 2)])
    assert cut(12, 1.5, 3) == ([1] * 12, [(12, 3)])
    assert cut(12, 5.5, 1) == ([5, 5, 2], [])
    assert cut(1, 100.5, 3) == ([1], [])


# --- tasks on threads of our own -------------------------------------------------------------


def test_tasks_come_back_in_order():
    assert run_side_by_side([lambda n=n: n for n in range(50)], 3) == list(range(50))


def test_a_failing_task_ends_the_others():
    done = []

    def task(number):
        if number == 1:
            raise ZeroDivisionError
        time.sleep(0.01)
        done.append(number)

    with pytest.raises(ZeroDivisionError):
        run_side_by_side([lambda n=n: task(n) for n in range(200)], 2)
    count = len(done)
    time.sleep(0.1)
    assert len(done) == count < 199


# --- threads that a call is worth ------------------------------------------------------------


def test_small_calls_take_one_thread():
    assert thread_count(None, 1e6) == 1
    assert thread_count(8, 1e6) == 1
    available = _threads.numba.config.NUMBA_NUM_THREADS
    assert thread_count(None, 1e12) == pool.setting()
    assert thread_count(10_000, 1e12) == available


def test_a_small_call_does_not_start_the_pool():
    script = """
    import numba
    q43nl(weights, "grid"), dequantize(q43nl(weights))
    try:
        numba.threading_layer()
    except ValueError:
        print("not started")
    """
    assert run(script) == "not started"


# --- forks -----------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("num_threads", [1, 2])
def test_fork_while_another_thread_compiles(tmp_path, num_threads):
    """The child used to wait for the compiler's lock, whose owner was gone."""
    script = f"""
    import os, threading, time, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
    large = np.ones(1 << 19, np.float32)
    thread = threading.Thread(
        target=lambda: q43nl(large, "coarse_fine", num_threads={num_threads})
    )
    thread.start()
    children = []
    for _ in range(4):
        time.sleep(0.3)
        child = os.fork()
        if child == 0:
            import faulthandler
            faulthandler.dump_traceback_later(100, exit=True)
            q43nl(weights, "coarse_fine", num_threads=2)
            os._exit(0)
        children.append(child)
    thread.join()
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
    """
    assert run(script, NUMBA_CACHE_DIR=str(tmp_path)) == "[0, 0, 0, 0]"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_fork_while_another_thread_is_in_a_kernel():
    script = """
    import os, threading, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
    large = np.random.default_rng(5).standard_normal(1 << 21, dtype=np.float32)
    expected = q43nl(weights, "grid").tobytes()
    q43nl(large, "grid", num_threads=2)
    stop = threading.Event()
    def work():
        while not stop.is_set():
            q43nl(large, "grid", num_threads=2)
    thread = threading.Thread(target=work)
    thread.start()
    codes = []
    for _ in range(10):
        child = os.fork()
        if child == 0:
            os._exit(0 if q43nl(weights, "grid", num_threads=2).tobytes() == expected else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.set()
    thread.join()
    print(sum(codes))
    """
    assert run(script) == "0"


# --- the end of the interpreter --------------------------------------------------------------


@pytest.mark.parametrize(("method", "compiles"), [("coarse_fine", True), ("gradient", False)])
def test_calls_at_exit(tmp_path, method, compiles):
    """No thread can be started any more: neither one that compiles, nor those of portions."""
    script = f"""
    import atexit, threading
    large = np.random.default_rng(5).standard_normal(1 << 19, dtype=np.float32)
    atexit.register(lambda: print(q43nl(large, "{method}", num_threads=2).size))
    """
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)} if compiles else {}
    assert run(script, **cache) == str((1 << 19) // 32 * 19)


@pytest.mark.parametrize("method", ["grid", "gradient"])
def test_a_thread_that_outlives_the_main_thread(method):
    script = f"""
    import threading, time
    large = np.random.default_rng(5).standard_normal(1 << 19, dtype=np.float32)
    def late():
        threading.main_thread().join()
        print(q43nl(large, "{method}", num_threads=2).size)
    threading.Thread(target=late).start()
    """
    assert run(script) == str((1 << 19) // 32 * 19)


# --- one core --------------------------------------------------------------------------------


def test_the_training_runs_on_one_core():
    """It used to ask for two threads, which failed, and then hung."""
    script = """
    from q43nl_numba.methods.predictor import train
    train.GROUPS = train.LANES
    groups = train.draw_groups({"normal": train.TRAINING["normal"]}, 1)
    print(groups.errors.shape)
    """
    assert run(script, NUMBA_NUM_THREADS="1") == "(128, 255)"


# --- the host program ------------------------------------------------------------------------


def test_a_log_at_debug_level_stays_readable(tmp_path):
    """The compiler writes tens of thousands of lines at that level."""
    script = """
    import io, logging
    log = io.StringIO()
    logging.basicConfig(level=logging.DEBUG, stream=log)
    dequantize(np.zeros(19, np.uint8))
    print(log.getvalue().count("numba"), logging.getLogger("numba").level)
    """
    assert run(script, NUMBA_CACHE_DIR=str(tmp_path)) == "0 0"


def test_the_allocator_of_the_process_is_left_alone():
    """Nothing that large is asked for and freed only to change the C library's thresholds."""
    assert not hasattr(sys.modules["q43nl_numba.methods.gradient"], "_keep_freed_memory")
    sizes = []
    empty = np.empty

    def spy(shape, *rest, **options):
        sizes.append(int(np.prod(shape)))
        return empty(shape, *rest, **options)

    np.empty = spy
    try:
        q43nl_numba.methods.statistics.group_statistics(LARGE[:65536].reshape(-1, 32))
    finally:
        np.empty = empty
    assert max(sizes, default=0) <= 65536


# --- memory that runs out in a kernel --------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_tile_that_was_not_encoded_is_an_error(num_threads):
    """What is raised in a compiled tile gets lost; its status does not."""
    from q43nl_numba._jit import helper
    from q43nl_numba.kernels.curve_search import curve_encoder

    @helper
    def out_of_memory(magnitudes, importance, scales, statistics, parameters, curves):
        if scales[0] > 1000:
            raise MemoryError
        curves[0] = 0

    encode = curve_encoder(out_of_memory, nearest=True, name="out_of_memory")
    weights = np.ones((_threads.numba.get_num_threads() * 1024, 32), np.float32)
    packed = np.zeros(len(weights) * 19, np.uint8)
    arguments = (None, None, np.zeros(0), 0.0, packed)
    stderr = os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silence, 2)  # "Exception ignored in ..."
        assert encode(weights.reshape(-1), *arguments, num_threads=num_threads)
        weights[256] = 2000
        with pytest.raises(MemoryError, match="1 of"):
            encode(weights.reshape(-1), *arguments, num_threads=num_threads)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(silence)


def test_an_input_that_changes_under_the_call_is_named(monkeypatch):
    from q43nl_numba import _quantize

    monkeypatch.setattr(_quantize, "encode", lambda *_: False)
    with pytest.raises(RuntimeError, match="tensor must not change"):
        q43nl(np.ones(32, np.float32))


# --- plain Python ----------------------------------------------------------------------------


def test_fused_multiply_add_in_plain_python():
    """Against exact rational arithmetic, where the double rounding of a * b + c would show."""
    from fractions import Fraction

    rng = np.random.default_rng(2)
    numbers = rng.standard_normal((3000, 3)).astype(np.float32)
    numbers[::2, 2] = -(numbers[::2, 0] * numbers[::2, 1])
    numbers[::3, 2] *= np.float32(2.0**-24)
    for a, b, c in numbers:
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        found = float(_jit._multiply_add(a, b, c))
        neighbors = np.nextafter(np.float32(found), np.float32([-np.inf, np.inf]))
        for other in neighbors:
            assert abs(Fraction(found) - exact) <= abs(Fraction(float(other)) - exact)


def test_quality_and_decoding_survive_a_lost_pool(monkeypatch):
    monkeypatch.setattr(pool, "lost_in_fork", True)
    packed = q43nl(LARGE, "grid", num_threads=2)
    assert quality(LARGE, packed).snr_db > 21
    assert dequantize(packed, num_threads=2).size == LARGE.size
