"""Interrupts (Ctrl-C) at random moments of every call and command: nothing stays behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from every_command import tiny_commands
from test_cli import default_signals
from test_kernels import PACKAGE

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX signals")

# `attempt` runs something with an interrupt at a moment from 0 to its usual duration. The first
# argument of the script is how often.
PRELUDE = """
import faulthandler, json, os, random, signal, sys, threading, time
faulthandler.dump_traceback_later(1500, exit=True)  # of a call that hangs
moments = random.Random(11)

def interrupt(*_):
    signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGALRM, interrupt)

def attempt(call, seconds):
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, max(moments.random() * seconds, 1e-5))
            return call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
        return "interrupted"

def usual(call):
    begin = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begin
"""


def run(script: str, *arguments: object) -> dict[str, Any]:
    """What a script printed as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        cwd=PACKAGE.parent, capture_output=True, text=True, timeout=2000, check=False,
        preexec_fn=default_signals,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found))
    return found


CALLS = """
import numba
import numpy as np
from q43nl_numba import METHODS, _threads, dequantize, q43nl, quality
_threads._WORTH_A_THREAD = 1.0

rng = np.random.default_rng(0)
weights = rng.standard_normal((4096, 32), dtype=np.float32)
packed = q43nl(weights, "grid")
inputs = rng.standard_normal((300, 256))
hessian = inputs.T @ inputs
calls = {m: lambda m=m: q43nl(weights[:4 if m == "exact" else 4096], m) for m in METHODS}
calls |= {
    "importance": lambda: q43nl(weights, "grid", importance=np.arange(32)),
    "float64": lambda: q43nl(weights.astype(np.float64), "grid"),
    "hessian": lambda: q43nl(weights.reshape(-1, 256), "coarse_fine", hessian=hessian),
    "dequantize": lambda: dequantize(packed),
    "quality": lambda: quality(weights, packed),
}

def same(result, expected):
    if isinstance(result, np.ndarray):
        return result.tobytes() == expected.tobytes()
    return result == expected

found = {}
for name, call in calls.items():
    call()
    expected, seconds = usual(call)
    setting, running = numba.get_num_threads(), threading.active_count()
    outcomes = [0, 0]
    for _ in range(int(sys.argv[1])):
        result = attempt(call, seconds)
        is_interrupted = isinstance(result, str)
        outcomes[is_interrupted] += 1
        assert is_interrupted or same(result, expected), name
        assert numba.get_num_threads() == setting, name
    assert same(call(), expected), name
    assert threading.active_count() <= running + 2, name
    found[name] = outcomes
print(json.dumps(found))
"""


@pytest.mark.parametrize("tries", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_every_call(tries: int) -> None:
    """The interrupt arrives, or the result is right; the next call is right in any case."""
    found = run(CALLS, tries)
    assert sum(interrupted for _, interrupted in found.values()) > tries


COMMANDS = """
import contextlib, io, shutil
from pathlib import Path
from typing import Any
from q43nl_numba.cli import main

commands, out, resumed = json.loads(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]

def run_quietly(argv):
    text, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(errors):
        code = main(argv)
    return code, errors.getvalue()

def content(path):
    if path.is_dir():
        return {p.relative_to(path).as_posix(): p.read_bytes()
                for p in path.rglob("*") if p.is_file()}
    return path.read_bytes() if path.exists() else None

def clear():
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()

found = {}
for name, argv in commands.items():
    for _ in range(2):
        clear()
        result, seconds = usual(lambda: run_quietly(argv))
        assert result[0] == 0, result
    expected = content(out)
    outcomes = [0, 0]
    clear()
    for number in range(int(sys.argv[1])):
        result = attempt(lambda: run_quietly(argv), seconds)
        is_interrupted = result == "interrupted" or result[0] == 130
        outcomes[is_interrupted] += 1
        if not is_interrupted:
            assert result[0] == 0, (name, number, result)
            assert content(out) == expected, (name, number)
        else:
            assert content(out) in (None, expected), (name, number, result)
            left = set(os.listdir(out.parent)) - {out.name, f"{out.name}.q43nl-partial"}
            assert left == set(), (name, number, left)
            for path in out.parent.rglob("*.tmp"):
                raise AssertionError((name, number, str(path)))
            assert result == "interrupted" or "interrupted" in result[1], (name, number, result)
        if out.exists() or not (resumed and is_interrupted):  # complete: nothing to resume
            clear()
    if not out.exists():
        assert run_quietly(argv)[0] == 0
    assert content(out) == expected, name
    assert sorted(os.listdir(out.parent)) == ([out.name] if expected is not None else []), name
    found[name] = outcomes
# An interrupt while `redirect_stdout` or `main` put stdout back leaves another one there.
print(json.dumps(found), file=sys.__stdout__)
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[str]], Path]:
    """Every command on tiny models, and where its output goes."""
    return tiny_commands(tmp_path_factory.mktemp("commands"))


@pytest.mark.parametrize("tries", [6, pytest.param(120, marks=pytest.mark.slow)])
def test_every_command(commands: tuple[dict[str, list[str]], Path], tries: int) -> None:
    """Exit code 130, no file but the whole one, and no temporary."""
    argv, out = commands
    found = run(COMMANDS, tries, json.dumps(argv), out, "")
    assert sum(interrupted for _, interrupted in found.values()) > 2 * tries


@pytest.mark.slow
def test_every_command_that_resumes(commands: tuple[dict[str, list[str]], Path]) -> None:
    """Interrupted again and again, it ends with the same bytes."""
    argv, out = commands
    names = ("convert", "restore", "export", "restore engine")
    resuming = {name: [*argv[name], "--resume"] for name in names}
    run(COMMANDS, 120, json.dumps(resuming), out, "resumed")


@pytest.mark.slow
def test_every_command_as_a_process(commands: tuple[dict[str, list[str]], Path]) -> None:
    """From the first import to the end of the interpreter."""
    argv, out = commands
    moments = random.Random(3)
    codes: dict[int, int] = {}
    for name, words in argv.items():
        command = [sys.executable, "-m", "q43nl_numba", *words]
        seconds = 0.0
        for number in range(13):
            shutil.rmtree(out.parent, ignore_errors=True)
            out.parent.mkdir()
            begin = time.perf_counter()
            with subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
                preexec_fn=default_signals,
            ) as process:  # fmt: skip
                if number:  # the first one shows how long it takes
                    time.sleep(moments.random() * seconds)
                    process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=300)
            seconds = seconds or time.perf_counter() - begin
            codes[process.returncode] = codes.get(process.returncode, 0) + 1
            # Before the package's first line runs, Python itself ends with the signal.
            assert process.returncode in (0, 130, -signal.SIGINT), (name, errors)
            assert process.returncode != 130 or "q43nl-numba: interrupted" in errors
            left = set(os.listdir(out.parent)) - {out.name, f"{out.name}.q43nl-partial"}
            assert left == set()
            assert not list(out.parent.rglob("*.tmp"))
    print(codes)


def test_no_launch_loses_an_interrupt() -> None:
    """Numba calls Python code for a function that it is passed; it used to forget what that raised.

    What came then was "TypeError: _get_wrapper_address() missing 1 required positional argument".
    """
    script = """
    import numpy as np
    from q43nl_numba import q43nl
    weights = np.random.default_rng(0).standard_normal((64, 32), dtype=np.float32)
    def call():
        while True:
            q43nl(weights, "coarse_fine", num_threads=1)
    q43nl(weights, "coarse_fine", num_threads=1)
    print(json.dumps({"interrupted": [attempt(call, 1e-3) for _ in range(400)]}))
    """
    assert set(run(script)["interrupted"]) == {"interrupted"}
