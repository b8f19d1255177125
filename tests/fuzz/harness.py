"""What all fuzzers share: mutations, the judgement of a reader's answer, and the run itself.

A reader is judged by `Reader.check`. It may return, or raise a documented error: one whose message
is a printable line, or an OSError that names its file. Anything else (another exception, a warning,
a hang, memory without bound) is a finding. Where atheris is installed, it guides the mutations by
the lines that they reach; without it they are blind, which is enough for the tests' short run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CASES = HERE / "cases"
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

_UNDER_ATHERIS = os.environ.get("Q43NL_FUZZ") == "atheris"
_INSTRUMENTED = ("q43nl_numba", "gguf", "tomllib")

_SECONDS_AN_INPUT = 20
_MEMORY_MIB = 3000
_LONGEST_INPUT = 1 << 20
_LONGEST_MESSAGE = 4000


def instrumented() -> Any:
    """Return the context to import the package in, so that atheris sees which lines run."""
    if not _UNDER_ATHERIS:
        return contextlib.nullcontext()
    import atheris

    return atheris.instrument_imports(include=list(_INSTRUMENTED))


# The kernels must be loaded before: Numba does not compile what is instrumented.
from q43nl_numba import dequantize, q43nl, quality  # noqa: E402, F401

with instrumented():
    from q43nl_numba.calibrate.errors import CalibrationError
    from q43nl_numba.convert.errors import ModelFileError

#: What the readers may raise, beside an OSError.
DOCUMENTED = (ModelFileError, CalibrationError)


def try_all(works: Sequence[Callable[[], Any]]) -> None:
    """Do everything that an input is good for, and then raise the last documented error."""
    errors = []
    for work in works:
        errors += _documented_error(work)
    if errors:
        raise errors[-1]


def _documented_error(work: Callable[[], Any]) -> list[Exception]:
    try:
        work()
    except DOCUMENTED as error:
        return [error]
    return []


@dataclass(frozen=True)
class Reader:
    """One kind of file: how it is read, inputs to begin with, and how these are changed."""

    name: str
    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[Path, bytes], None]
    mutate: Callable[[bytes, random.Random], bytes]

    def check(self, folder: Path, data: bytes) -> None:
        """Read an input in an empty folder; raise where the answer is no documented one."""
        message = self._answer(folder, data)
        assert message.isprintable(), f"not one printable line: {message!r}"
        assert len(message) <= _LONGEST_MESSAGE, f"{len(message)} characters: {message:.200}"

    def _answer(self, folder: Path, data: bytes) -> str:
        """Return the message of a documented error, empty where there is none."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                self.read(folder, data)
        except OSError as error:
            return "" if error.filename is not None else "\n"  # it must name its file
        except DOCUMENTED as error:
            return str(error)
        return ""

    def mutated(self, rng: random.Random) -> bytes:
        """Return a seed after a few mutations."""
        data = rng.choice(self.seeds())
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            data = self.mutate(data, rng) if rng.random() < 0.8 else mutate_bytes(data, rng)
        return data


# ---------------------------------------------------------------------------------------------
# Mutations
# ---------------------------------------------------------------------------------------------

#: What takes the place of a value. Texts are those that would hurt as a path or on a terminal.
ABSURD: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, 3, 31, 33, -1, 2**31, 2**63 - 1, 2**63, 2**64, 10**18, -(10**18),
    10**400, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), -float("inf"), "", "a", "1", "0",
    "\x1b[2J\n", "\u202e", "\ud800", "a\0b", "../../x", "/etc/passwd", "C:\\x", "x" * 300,
    "F32", "U8", "Q43NL", "1" * 5000, [], {}, [[]], [0, 1], ["a"], {"a": 1}, [None],
)  # fmt: skip


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change, cut, repeat or insert a few bytes."""
    place = rng.randrange(len(data) + 1)
    length = rng.choice((1, 1, 2, 4, 8, 64, 1000))
    kind = rng.randrange(6)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + data[place + length :]
    if kind == 2:
        return data[:place] + rng.randbytes(length) + data[place + length :]
    if kind == 3:
        number = rng.choice((0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1))
        width = rng.choice((4, 8))
        return (
            data[:place]
            + (number % 2 ** (8 * width)).to_bytes(width, "little")
            + data[place + width :]
        )
    if kind == 4:
        return data[:place] + data[place : place + length] * 2 + data[place + length :]
    return data[:place] + rng.choice((b"[" * 5000, b'{"a":' * 5000, b"\xff\xfe", b"\0" * 8)) + data[
        place:
    ]  # fmt: skip


def mutate_tree(value: Any, rng: random.Random) -> Any:
    """Return nested data in which one value, somewhere, is another, gone, there twice or moved."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        return _changed_object(value, key, rng)
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        kind = rng.randrange(6)
        if kind == 0:
            return value[:place] + value[place + 1 :]
        if kind == 1:
            return [*value, value[place]]
        return [*value[:place], mutate_tree(value[place], rng), *value[place + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.4:
        return rng.choice((value + 1, value - 1, value * 2, -value, value * 10**9, value + 32))
    if isinstance(value, str) and rng.random() < 0.3:
        return value + rng.choice(("\x1b", "\0", "/..", "\ud800", "x" * 300))
    return rng.choice(ABSURD)


def _changed_object(value: dict[str, Any], key: str, rng: random.Random) -> dict[str, Any]:
    kind = rng.randrange(8)
    changed = dict(value)
    if kind == 0:
        del changed[key]
    elif kind == 1:
        changed[str(rng.choice(ABSURD))] = changed.pop(key)
    elif kind == 2:
        changed[rng.choice(list(value))] = value[key]
    else:
        changed[key] = mutate_tree(value[key], rng)
    return changed


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Change one value of a JSON text; bytes of what is none."""
    try:
        return json.dumps(mutate_tree(json.loads(data), rng)).encode()
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)


def mutate_header(data: bytes, rng: random.Random) -> bytes:
    """Change the JSON header of a safetensors file, and keep the length before it right."""
    length = int.from_bytes(data[:8], "little")
    if length > len(data):
        return mutate_bytes(data, rng)
    header = mutate_json(data[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


# ---------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------


def scratch_root() -> str | None:
    """Return a folder in memory, where there is one."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


@contextlib.contextmanager
def scratch_folder() -> Any:
    """Give an empty folder."""
    with tempfile.TemporaryDirectory(dir=scratch_root()) as folder:
        yield Path(folder)


class _Findings:
    """Keeps one input for each place at which a reader failed."""

    def __init__(self, reader: Reader, folder: Path) -> None:
        self._reader = reader
        self._folder = folder
        self._seen: set[str] = set()

    def check(self, data: bytes) -> None:
        """Read an input; keep it where that fails as no other did."""
        with scratch_folder() as folder:
            try:
                self._reader.check(folder, data)
            except Exception as error:
                self._note(data, error)
            except BaseException as error:
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    raise
                self._note(data, error)  # a panic of a package in Rust

    def _note(self, data: bytes, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "q43nl_numba" in f.filename] or frames
        place = f"{type(error).__name__} {Path(own[-1].filename).name}:{own[-1].lineno}"
        if place in self._seen:
            return
        self._seen.add(place)
        self._folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(data).hexdigest()[:12]
        path = self._folder / f"{self._reader.name}-{digest}"
        path.write_bytes(data)
        print(f"FOUND {path}: {place}: {error!r:.300}", flush=True)


def main(reader: Reader) -> None:
    """Run one fuzzer: ``fuzz_NAME.py SECONDS FOLDER``, or ``fuzz_NAME.py INPUT`` to try a file."""
    if len(sys.argv) == 2:
        with scratch_folder() as folder:
            reader.check(folder, Path(sys.argv[1]).read_bytes())
        print("a documented answer")
        return
    seconds, folder = int(sys.argv[1]), Path(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))  # so that a huge array is an error
    findings = _Findings(reader, folder / "findings")
    if _UNDER_ATHERIS:
        _run_guided(reader, findings, seconds, folder)
    else:
        _run_blind(reader, findings, seconds)


def _run_blind(reader: Reader, findings: _Findings, seconds: int) -> None:
    rng, count, end = random.Random(0), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        findings.check(reader.mutated(rng))
        count += 1
    print(f"Done {count} runs in {seconds} second(s)")


def _run_guided(reader: Reader, findings: _Findings, seconds: int, folder: Path) -> None:
    import atheris

    corpus = folder / f"corpus-{reader.name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(reader.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.25:
            return bytes(atheris.Mutate(data, max_size))
        return reader.mutate(data, rng)[:max_size]

    options = {
        "max_total_time": seconds,
        "timeout": _SECONDS_AN_INPUT,
        "rss_limit_mb": _MEMORY_MIB,
        "max_len": _LONGEST_INPUT,
        "artifact_prefix": f"{folder}/findings/{reader.name}-",
        "print_final_stats": 1,
        "verbosity": 0,
    }
    (folder / "findings").mkdir(exist_ok=True)
    arguments = [sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)]
    atheris.Setup(arguments, findings.check, custom_mutator=mutate)
    atheris.Fuzz()
