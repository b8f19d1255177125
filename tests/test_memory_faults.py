"""Memory that runs out, at every request in turn: MemoryError or the right result, nothing else.

`failing_memory.c` stands in for the C library's allocation. Kernels are tested at every request of
Numba's runtime; all other code at requests of the Python interpreter from 513 bytes on (below,
Python serves itself) and at every one of anyone from 160 KiB on. What lies between is NumPy's own:
where the buffer of an iterator cannot be had, up to 128 KiB, NumPy 2.4 itself ends with a
segmentation fault (``np.square(a.T, out=b)``), and so do tokenizers and LLVM wherever they ask.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from every_command import tiny_commands
from test_kernels import PACKAGE

LARGE = 160 << 10  # bytes
FOREVER = 1 << 60


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The allocation that fails on demand."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and the C library of Linux")
    path = tmp_path_factory.mktemp("library") / "failing_memory.so"
    source = Path(__file__).with_name("failing_memory.c")
    built = subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-o", str(path), str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if built.returncode:
        pytest.skip(f"the C library is not GNU's: {built.stderr.splitlines()[0]}")
    return path


PRELUDE = """
import contextlib, ctypes, json, os, sys
from collections import Counter
import numpy as np

memory = ctypes.CDLL(None)
memory.fail_memory.argtypes = [
    ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_int
]
memory.stop_failing.restype = ctypes.c_long
python = b"libpython" if "libpython" in open("/proc/self/maps").read() else b"python"

def at_every_request(attempt, count=1, size=1, of=b"", own=False, step=1):
    '''Counts of what `attempt` returns, where request 1, 2, 3, ... fails and `count` - 1 more.'''
    found = Counter()
    for first in range(1, 1_000_000, step):
        start = lambda: memory.fail_memory(first, count, size, of, own)
        result = attempt(start, memory.stop_failing)
        found[result[0]] += 1
        if result[1] < first:
            break
    return found
"""

CALLS = """
from q43nl_numba import METHODS, _threads, dequantize, q43nl, quality
_threads._WORTH_A_THREAD = 1.0  # every call launches on all threads that it asks for

rng = np.random.default_rng(0)
weights = rng.standard_normal((groups, 32), dtype=np.float32)
few = weights[:1]
packed = q43nl(weights, "grid")
inputs = rng.standard_normal((64, 96))
hessian = inputs.T @ inputs
rows = rng.standard_normal((groups // 2, 96), dtype=np.float32)

def calls_of(threads):
    for method in METHODS:
        some = few if method == "exact" else weights
        yield method, lambda: q43nl(some, method, num_threads=threads)
        importance = np.arange(32)
        yield (f"{method}, importance",
               lambda: q43nl(some, method, importance=importance, num_threads=threads))
    yield "dequantize", lambda: dequantize(packed, num_threads=threads)
    yield "float16", lambda: dequantize(packed, dtype=np.float16, num_threads=threads)
    yield "quality", lambda: quality(weights, packed, num_threads=threads)
    yield "hessian", lambda: q43nl(rows, "coarse_fine", hessian=hessian, num_threads=threads)

def survey(threads, **options):
    found = {}
    for name, call in calls_of(threads):
        expected = call()

        def attempt(start, stop):
            start()
            try:
                result = call()
                seen = stop()
            except MemoryError:
                return "MemoryError", stop()
            except BaseException as error:
                seen = stop()
                return f"{type(error).__name__}: {error}", seen
            return ("right" if same(result, expected) else "wrong"), seen

        before = _threads.numba.get_num_threads()
        found[name] = at_every_request(attempt, **options)
        assert _threads.numba.get_num_threads() == before
        assert same(call(), expected)
    return found

def same(result, expected):
    if isinstance(result, np.ndarray):
        return result.tobytes() == expected.tobytes()
    return result == expected
"""


def run(library: Path, script: str, **variables: str) -> dict[str, dict[str, int]]:
    """What a script printed as JSON, with the library in front of the C library."""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "PYTHONPATH": str(PACKAGE.parent),
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script)],
        env=environment, cwd=PACKAGE.parent, capture_output=True, text=True, check=False,
        timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(sum(sum(counts.values()) for counts in found.values()), "failures", json.dumps(found))
    return found


def outcomes(found: dict[str, dict[str, int]]) -> set[str]:
    return {outcome for counts in found.values() for outcome in counts}


@pytest.mark.parametrize(
    ("threads", "groups"), [(1, 40), pytest.param(2, 140, marks=pytest.mark.slow)]
)
def test_every_request_of_a_kernel(library: Path, threads: int, groups: int) -> None:
    """Requests that Numba's threads make, too: what they raise gets lost."""
    script = f"""
    groups = {groups}
    {textwrap.indent(CALLS, "    ").strip()}
    print(json.dumps(survey({threads}, of=b"_nrt_python")))
    """
    found = run(library, script, NUMBA_NUM_THREADS="2")
    assert outcomes(found) == {"right", "MemoryError"}
    for name, counts in found.items():
        assert name in ("dequantize", "float16") or counts["MemoryError"] > 3, name


@pytest.mark.parametrize("count", [1, pytest.param(FOREVER, marks=pytest.mark.slow)])
def test_every_large_request_of_a_call(library: Path, count: int) -> None:
    """One request fails, or all from there on."""
    script = f"""
    groups = 9000
    {textwrap.indent(CALLS, "    ").strip()}
    print(json.dumps(survey(1, count={count}, size={LARGE})))
    """
    found = run(library, script)
    assert outcomes(found) == {"right", "MemoryError"}
    assert all(found[name]["MemoryError"] for name in ("grid", "gradient", "dequantize"))


COMMANDS = """
import io, shutil
from pathlib import Path
from q43nl_numba.cli import main

def run_quietly(argv):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except MemoryError:  # before the command's own handling of errors begins
            return 1, "q43nl-numba: error: out of memory"
    return code, err.getvalue()

def content(path):
    if path.is_dir():
        return {p.relative_to(path).as_posix(): p.read_bytes()
                for p in path.rglob("*") if p.is_file()}
    return path.read_bytes() if path.exists() else None

def survey(commands, out, strict=True, **options):
    found = {}
    for name, argv in commands.items():

        def attempt(start, stop):
            shutil.rmtree(out.parent, ignore_errors=True)
            out.parent.mkdir()
            start()
            code, errors = run_quietly(argv)
            seen = stop()
            if code == 0:
                return ("right" if content(out) == expected else "wrong"), seen
            *_, last = errors.splitlines()  # before it, what Numba's threads have raised
            left = sorted(os.listdir(out.parent))
            if "--resume continues" in errors:
                left.remove(f"{out.name}.q43nl-partial")
            elif left == [out.name] and content(out) == expected:
                left = []  # written before memory ran out for the figures that are printed
            is_clear = last.startswith("q43nl-numba: error: " + ("out of memory" if strict else ""))
            if code == 1 and left == [] and is_clear:
                return "MemoryError", seen
            return f"{code} {last} {left}", seen

        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        run_quietly(argv)  # compiled and imported
        shutil.rmtree(out.parent)
        out.parent.mkdir()
        code, errors = run_quietly(argv)
        assert code == 0, errors
        expected = content(out)
        found[name] = at_every_request(attempt, **options)
    return found
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[str]], Path]:
    """Every command on tiny models, and where its output goes."""
    return tiny_commands(tmp_path_factory.mktemp("commands"))


def survey_of_commands(
    library: Path, commands: tuple[dict[str, list[str]], Path], names: list[str], options: str
) -> dict[str, dict[str, int]]:
    argv, out = commands
    script = f"""
    {textwrap.indent(COMMANDS, "    ").strip()}
    commands = json.loads({json.dumps({name: argv[name] for name in names})!r})
    print(json.dumps(survey(commands, Path({str(out)!r}), {options})))
    """
    found = run(library, script)
    assert outcomes(found) == {"right", "MemoryError"}
    return found


FILES = ["restore", "restore engine", "verify", "inspect"]
STEPS = dict.fromkeys(FILES, 1) | {"evaluate": 31}  # of 9,000 requests, in code that repeats itself


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (FILES, 1),
        pytest.param(["convert", "export", "compare"], 1, marks=pytest.mark.slow),
        pytest.param(FILES, FOREVER, marks=pytest.mark.slow),
    ],
)
def test_every_large_request_of_a_command(
    library: Path, commands: tuple[dict[str, list[str]], Path], names: list[str], count: int
) -> None:
    """Exit code 1, one line that says it, and no file under any name."""
    survey_of_commands(library, commands, names, f"count={count}, size={LARGE}")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FILES, "convert", "export", "calibrate", "evaluate", "compare"])
def test_requests_of_the_interpreter_in_a_command(
    library: Path, commands: tuple[dict[str, list[str]], Path], name: str
) -> None:
    """Those of the main thread: others that cannot start leave Python 3.11 waiting for them.

    NumPy and Numba lose some of these errors, and raise others in their place.
    """
    options = f"strict=False, size=513, of=python, own=True, step={STEPS.get(name, 7)}"
    survey_of_commands(library, commands, [name], options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "window", "size"),
    [("evaluate", 40, 32 << 10), ("evaluate", 200, LARGE), ("calibrate", 200, LARGE)],
)
def test_every_large_array_of_a_forward_pass(
    library: Path, commands: tuple[dict[str, list[str]], Path], name: str, window: int, size: int
) -> None:
    argv, out = commands
    changed = {name: [*argv[name], "--window", str(window)]}
    options = f"size={size}, of=b'_multiarray_umath'"
    found = survey_of_commands(library, (changed, out), [name], options)
    assert found[name]["MemoryError"] > 3


def test_a_ladder_of_limits(library: Path) -> None:
    """`ulimit -v` at 0, 1, 2, 4, ... MiB above what the process has."""
    script = f"""
    import resource
    groups = 9000
    {textwrap.indent(CALLS, "    ").strip()}
    expected = {{name: call() for name, call in calls_of(1)}}
    found = {{}}
    for step in [0, *(1 << power for power in range(8))]:
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + (step << 20)
        outcome = Counter()
        for name, call in calls_of(1):
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
            try:
                result = call()
            except MemoryError:
                result = None
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
            right = result is None or same(result, expected[name])
            outcome["MemoryError" if result is None else "right" if right else "wrong"] += 1
        found[str(step)] = outcome
    print(json.dumps(found))
    """
    found = run(library, script)
    assert outcomes(found) <= {"right", "MemoryError"}
    assert set(found["128"]) == {"right"}
