"""Interrupted runs: nothing half-written, and a resumed run ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")

from model_files import BF16, gauss, write_model

from q43nl_numba import q43nl
from q43nl_numba.convert import (
    ModelFileError,
    Progress,
    Unfinished,
    convert_model,
    packing,
    restore,
    run,
    unfinished,
)

FILES = [f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)]
LAST = "out.q43nl-partial"


def write_folder(folder: Path, rows: int = 8) -> Path:
    folder.mkdir()
    weight_map = {}
    for number, name in enumerate(FILES):
        tensors = {f"l{number}.{i}": gauss((rows, 64), BF16, 10 * number + i) for i in range(3)}
        write_model(folder / name, tensors, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "in")


def content(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


class Interrupt:
    """A progress callback that interrupts the run at one of the tensors."""

    def __init__(self, tensor: str, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.tensor = tensor
        self.error = error

    def __call__(self, progress: Progress) -> None:
        if progress.tensor == self.tensor:
            raise self.error


class Raise:
    """A function that raises."""

    def __init__(self, error: Any) -> None:
        self.error = error

    def __call__(self, *_: Any) -> None:
        raise self.error


def interrupted(folder: Path, out: Path, tensor: str = "l2.1", **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert_model(folder, out, "grid", progress=Interrupt(tensor), **options)


def test_a_resumed_run_ends_with_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert_model(folder, tmp_path / "whole", "grid")
    interrupted(folder, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["in", LAST, "whole"]
    assert unfinished(tmp_path / "out") == Unfinished(2, 4)
    calls = []

    def counted(weights: Any, *args: Any, **options: Any) -> Any:
        calls.append(np.asarray(weights).size)
        return q43nl(weights, *args, **options)

    monkeypatch.setattr(packing, "q43nl", counted)
    seen: list[Progress] = []
    report = convert_model(folder, tmp_path / "out", "grid", resume=True, progress=seen.append)
    assert len(calls) == 6
    assert seen[-1].done == seen[-1].total
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["in", "out", "whole"]
    assert report.packed == whole.packed
    assert unfinished(tmp_path / "out") is None


def test_resume_without_an_interrupted_run(folder: Path, tmp_path: Path) -> None:
    convert_model(folder, tmp_path / "out", "grid", resume=True)
    assert set(content(tmp_path / "out")) > set(FILES)


def test_a_run_that_does_not_resume_starts_again(folder: Path, tmp_path: Path) -> None:
    interrupted(folder, tmp_path / "out")
    (tmp_path / LAST / "files" / FILES[0]).write_bytes(b"damaged")
    convert_model(folder, tmp_path / "out", "grid", single_file=True)
    assert set(content(tmp_path / "out")) == {"model.safetensors", "config.json"}
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_nothing_stays_of_a_run_without_a_complete_file(folder: Path, tmp_path: Path) -> None:
    interrupted(folder, tmp_path / "out", "l0.1")
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "full", "journal")])
def test_nothing_stays_of_a_run_that_does_not_begin(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    """Of its journal, which is the first file that it writes, not even a line could be written."""
    monkeypatch.setattr(run.os, "fsync", Raise(error))
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        convert_model(folder, tmp_path / "out", "grid")
    assert os.listdir(tmp_path) == ["in"]


def touch(folder: Path) -> None:
    write_model(folder / FILES[3], {f"l3.{i}": gauss((8, 64), BF16, i) for i in range(3)})


@pytest.mark.parametrize(
    ("change", "options", "problem"),
    [
        (None, {"method": "coarse_fine"}, "arguments.method must be 'grid' .* 'coarse_fine'"),
        (None, {"grid_size": 17}, "arguments.grid_size must be None .* found 17"),
        (None, {"exclude": "l3.1"}, r"arguments.exclude must be \[\] .* found \['l3.1'\]"),
        (None, {"keep_dtype": "float16"}, "arguments.keep_dtype must be 'as-is'"),
        (None, {"max_shard_size": 1000}, "arguments.max_shard_size must be None"),
        (touch, {}, r"input\[3\]\.\w+ must be"),
    ],
)
def test_another_run_is_not_resumed(
    folder: Path, tmp_path: Path, change: Any, options: dict[str, Any], problem: str
) -> None:
    interrupted(folder, tmp_path / "out")
    before = content(tmp_path / LAST)
    if change is not None:
        change(folder)
    arguments = {"method": "grid", **options}
    with pytest.raises(ModelFileError, match=rf"{LAST}: cannot resume: {problem}"):
        convert_model(folder, tmp_path / "out", resume=True, **arguments)
    assert content(tmp_path / LAST) == before


def test_another_version_is_not_resumed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(folder, tmp_path / "out")
    monkeypatch.setattr("q43nl_numba.convert.conversion.__version__", "99")
    with pytest.raises(ModelFileError, match=r"cannot resume: version must be .* found '99'"):
        convert_model(folder, tmp_path / "out", "grid", resume=True)


@pytest.mark.parametrize(
    "damage", ["file", "no file", "no folder", "journal line", "empty journal", "journal"]
)
def test_what_was_damaged_meanwhile_is_made_again(
    folder: Path, tmp_path: Path, damage: str
) -> None:
    convert_model(folder, tmp_path / "whole", "grid")
    interrupted(folder, tmp_path / "out")
    first = tmp_path / LAST / "files" / FILES[0]
    journal = tmp_path / LAST / "journal.jsonl"
    if damage == "file":
        first.write_bytes(first.read_bytes()[:-1] + b"x")
    elif damage == "no file":
        first.unlink()
    elif damage == "no folder":  # as after a kill while the folder was removed
        shutil.rmtree(first.parent)
    elif damage == "journal line":
        journal.write_bytes(journal.read_bytes()[:-20])  # the last line has no end
    elif damage == "empty journal":  # as after a kill before the first line was written
        journal.write_bytes(b"")
    else:
        journal.write_bytes(b"{}\n{\n")
        with pytest.raises(ModelFileError, match="is damaged; remove the folder"):
            convert_model(folder, tmp_path / "out", "grid", resume=True)
        return
    convert_model(folder, tmp_path / "out", "grid", resume=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_shard_that_vanishes(folder: Path, tmp_path: Path) -> None:
    def vanish(progress: Progress) -> None:
        if progress.tensor == "l1.0":
            (folder / FILES[3]).rename(tmp_path / "moved")

    with pytest.raises(FileNotFoundError) as caught:
        convert_model(folder, tmp_path / "out", "grid", progress=vanish)
    assert caught.value.filename == str(folder / FILES[3])
    assert unfinished(tmp_path / "out") == Unfinished(3, 4)
    (tmp_path / "moved").rename(folder / FILES[3])
    convert_model(folder, tmp_path / "out", "grid", resume=True)
    assert (tmp_path / "out" / FILES[3]).exists()


def test_a_full_disk(folder: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    convert_model(folder, tmp_path / "whole", "grid")
    big = gauss((64, 1024), BF16)
    write_model(folder / FILES[3], {f"l3.{i}": big for i in range(3)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            convert_model(folder, tmp_path / "out", "grid")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename.endswith(FILES[3])
    assert sorted(os.listdir(tmp_path / LAST / "files")) == FILES[:3]
    convert_model(folder, tmp_path / "out", "grid", resume=True)
    assert not (tmp_path / LAST).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, RuntimeError])
def test_no_temporary_file_stays(folder: Path, tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        convert_model(folder, tmp_path / "out", "grid", progress=Interrupt("l1.2", error))
    assert sorted(os.listdir(tmp_path / LAST / "files")) == FILES[:1]


def test_restore_is_resumed_too(folder: Path, tmp_path: Path) -> None:
    convert_model(folder, tmp_path / "packed", "grid")
    restore(tmp_path / "packed", tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        restore(tmp_path / "packed", tmp_path / "out", progress=Interrupt("l2.0"))
    assert unfinished(tmp_path / "out") == Unfinished(2, 4)
    with pytest.raises(ModelFileError, match="cannot resume: input"):
        convert_model(folder, tmp_path / "out", "grid", resume=True)
    restore(tmp_path / "packed", tmp_path / "out", resume=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


# As processes

RUN = """
import sys
from q43nl_numba.convert import convert_model
print("ready", flush=True)
sys.stdin.readline()
convert_model(sys.argv[1], sys.argv[2], "grid", num_threads=1, resume=True)
"""


def start(folder: Path, out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), str(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Each run goes on where the killed one was; no file is ever half there."""
    folder = write_folder(tmp_path / "in", rows=12_000)
    convert_model(folder, tmp_path / "whole", "grid", num_threads=1)
    expected = content(tmp_path / "whole")
    moments = random.Random(5)
    for _ in range(6):
        process = start(folder, tmp_path / "out")
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(moments.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        files = tmp_path / LAST / "files"
        for name in os.listdir(files) if files.exists() else []:
            if not name.endswith(".tmp"):
                assert (files / name).read_bytes() == expected[name]
    if not (tmp_path / "out").exists():
        convert_model(folder, tmp_path / "out", "grid", num_threads=1, resume=True)
    assert content(tmp_path / "out") == expected
    assert sorted(os.listdir(tmp_path)) == ["in", "out", "whole"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX locks")
def test_two_runs_do_not_write_the_same_folder(folder: Path, tmp_path: Path) -> None:
    def other_run(progress: Progress) -> None:
        if progress.tensor == "l1.0":
            process = start(folder, tmp_path / "out")
            _, errors = process.communicate("\n")
            assert "another process is writing it" in errors
            assert process.returncode == 1

    convert_model(folder, tmp_path / "out", "grid", progress=other_run)
    assert (tmp_path / "out" / FILES[3]).exists()
