"""kill -9 at random moments: no file under its name but whole, and the next run tidies up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from calibrate_folders import model_folder, text_file
from engine_models import ENGINE
from test_kernels import PACKAGE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks and POSIX signals")

# The work is done once, which compiles, imports and shows how long it takes. Then each try is a
# fork that is killed.
SERVER = """
import contextlib, json, os, random, shutil, signal, sys, threading, time, warnings
from pathlib import Path
import numpy as np
import tqdm
from q43nl_numba.cli import main
from q43nl_numba.convert import sections, tensors

warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
tqdm.tqdm.set_lock(threading.RLock())  # its own is shared with forks, one of which dies with it
sections._SECTION_BYTES = 20_000  # so that even a tiny file is written in several steps
tensors.PIECE_WEIGHTS = 1 << 12
argv, out, tries, resumes = json.loads(sys.argv[1])
out = Path(out)
partial = Path(f"{out}.q43nl-partial")
moments = random.Random(7)

def command(more=()):
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return main([*argv, *more])

def content(path):
    if path.is_dir():
        return {p.relative_to(path).as_posix(): p.read_bytes()
                for p in path.rglob("*") if p.is_file()}
    return path.read_bytes()

def kill_one(more):
    child = os.fork()
    if child == 0:
        os._exit(command(more))
    time.sleep(moments.random() * seconds * 1.2)
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status == 0

def check(old):
    if out.exists():
        assert content(out) in (expected, old)
    files = partial / "files"
    if files.is_dir() and isinstance(expected, dict):
        for path in files.iterdir():
            if not path.name.endswith(".tmp"):
                assert path.read_bytes() == expected[path.name], path

def clear():
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()

clear()
assert command() == 0
clear()
begin = time.perf_counter()
assert command() == 0
seconds = time.perf_counter() - begin
expected = content(out)
counts = {"killed": 0, "finished": 0, "left": 0, "resumed": 0}
more = ["--resume"] if resumes else []
for number in range(tries):
    if number % 5 == 0:
        clear()
    old = None
    if number % 2 and isinstance(expected, bytes):
        old = b"the file of before"
        out.write_bytes(old)
    elif out.is_dir():
        shutil.rmtree(out)
    elif out.exists():
        out.unlink()
    finished = kill_one(more)
    counts["finished" if finished else "killed"] += 1
    check(old)
    assert not finished or content(out) == expected
    left = set(os.listdir(out.parent)) - {out.name}
    counts["left"] += bool(left)
    counts["resumed"] += resumes and partial.exists()
    if resumes and number % 5 < 4:
        continue  # killed again, in what is resumed
    if out.exists() and out.is_dir():
        shutil.rmtree(out)
    assert command(more) == 0
    assert content(out) == expected
    assert os.listdir(out.parent) == [out.name], os.listdir(out.parent)
print(json.dumps(counts))
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    base = tmp_path_factory.mktemp("killed")
    out = base / "out" / "out"
    folder, text = model_folder(base), text_file(base)
    sharded = ENGINE / "llama3"
    found = {
        "convert": ["convert", sharded, out, "--method", "grid"],
        "convert file": ["convert", ENGINE / "qwen3" / "model.safetensors", out],
        "export": ["export", ENGINE / "qwen3", out, "--method", "grid"],
        "calibrate": ["calibrate", folder, out, "--text", text, "--tokens", 400, "--window", 40],
    }
    return {name: [str(word) for word in argv] for name, argv in found.items()}


ALL = [
    ("convert", False), ("convert", True), ("convert file", False), ("export", False),
    ("export", True), ("calibrate", False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "resumes", "tries"),
    [
        ("convert", True, 5),
        ("export", True, 5),
        *(pytest.param(*kind, 50, marks=pytest.mark.slow) for kind in ALL),
    ],
)
def test_killed_at_random_moments(
    commands: dict[str, list[str]], name: str, resumes: bool, tries: int
) -> None:
    argv = commands[name]
    out = next(word for word in argv if Path(word).name == "out")
    done = subprocess.run(
        [sys.executable, "-c", SERVER, json.dumps([argv, out, tries, resumes])],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        cwd=PACKAGE.parent, capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    print(name, counts)
    assert counts["killed"] > tries // 3
