"""What a run leaves behind: modes, files that must stay, temporaries of runs that were killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")

from model_files import gauss, write_model

from q43nl_numba.convert import ModelFileError, convert, locks, restore
from q43nl_numba.convert.output import whole_file

needs_locks = pytest.mark.skipif(not locks.LOCKS_ARE_KEPT, reason="no locks on this system")

WRITER = """
import sys, time
from q43nl_numba.convert.output import whole_file
with whole_file(sys.argv[1]) as file:
    file.write(b"half")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.st", {"w": gauss((4, 64)), "b": gauss((8,))})


def temporaries(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".tmp")]


def start_writer(path: Path) -> subprocess.Popen[str]:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    return writer


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_what_killed_runs_left_is_removed_and_what_living_ones_write_is_not(
    model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "outputs"
    folder.mkdir()
    killed = [start_writer(folder / f"killed{i}") for i in range(3)]
    living = start_writer(folder / "living")
    try:
        assert len(temporaries(folder)) == 4
        for writer in killed:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        (folder / ".q43nl-mine.tmp").touch()  # not a name that this package gives
        convert(model, folder / "out", "grid")
        assert len(temporaries(folder)) == 2
        assert living.poll() is None
    finally:
        for writer in (*killed, living):
            writer.kill()
            writer.communicate()
    convert(model, folder / "out", "grid")
    assert temporaries(folder) == [".q43nl-mine.tmp"]


@needs_locks
@pytest.mark.parametrize("replaced", [False, True])
def test_a_temporary_that_is_removed_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """Another run takes it for abandoned in the moment between its creation and its lock."""
    removed: list[str] = []

    def late_lock(file: Any, operation: int) -> None:
        if not removed:
            (name,) = temporaries(tmp_path)
            removed.append(name)
            (tmp_path / name).unlink()
            if replaced:
                (tmp_path / name).touch()
        lock(file, operation)

    lock = locks.fcntl.flock
    monkeypatch.setattr(locks.fcntl, "flock", late_lock)
    with whole_file(str(tmp_path / "out")) as file:
        monkeypatch.undo()
        assert len(set(temporaries(tmp_path)) - set(removed)) == 1
        file.write(b"whole")
    assert (tmp_path / "out").read_bytes() == b"whole"
    with whole_file(str(tmp_path / "other")):
        pass
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]


@needs_locks
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are whole all the same, and a temporary that may be another run's stays."""
    living = start_writer(tmp_path / "living")
    try:

        def no_lock(file: Any, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(locks.fcntl, "flock", no_lock)
        (other,) = temporaries(tmp_path)
        with whole_file(str(tmp_path / "out")) as file:
            file.write(b"whole")
        assert sorted(os.listdir(tmp_path)) == [other, "out"]
        assert (tmp_path / "out").read_bytes() == b"whole"
    finally:
        living.kill()
        living.communicate()


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_a_replaced_output_keeps_its_mode(model: Path, tmp_path: Path, mode: int) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"old")
    out.chmod(mode)
    seen = []
    convert(model, out, "grid")
    assert out.stat().st_mode & 0o777 == mode
    with whole_file(str(out)) as file:
        file.write(b"new")
        (name,) = temporaries(tmp_path)
        seen.append((tmp_path / name).stat().st_mode & 0o777)
    assert seen == [mode]
    assert out.stat().st_mode & 0o777 == mode


def test_no_clobber(model: Path, tmp_path: Path) -> None:
    packed, back = tmp_path / "packed", tmp_path / "back"
    convert(model, packed, "grid", no_clobber=True)
    restore(packed, back, no_clobber=True)
    content = packed.read_bytes(), back.read_bytes()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ModelFileError, match="packed: exists already, and no_clobber"):
        convert(model, packed, "grid", no_clobber=True)
    with pytest.raises(ModelFileError, match="back: exists already, and no_clobber"):
        restore(packed, back, no_clobber=True)
    assert (packed.read_bytes(), back.read_bytes()) == content
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("name", ["open", "fdopen", "fstat"])
def test_nothing_stays_of_an_output_that_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An interrupt comes as soon as the file exists, or there is no memory for its buffer."""
    function = getattr(os, name)

    def interrupted(*arguments: Any) -> None:
        found = function(*arguments)
        if name == "open":
            os.close(found)
        elif name == "fdopen":
            found.close()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, name, interrupted)
        with pytest.raises(KeyboardInterrupt), whole_file(str(tmp_path / "out")):
            pass
    assert os.listdir(tmp_path) == []


def write_while_another_does(out: Path) -> None:
    with whole_file(str(out), no_clobber=True) as file:
        file.write(b"ours")
        out.write_bytes(b"theirs")


@pytest.mark.parametrize("has_links", [True, False])
def test_no_clobber_of_a_file_that_appears_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:

        def refuse(*_: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", refuse)
    out = tmp_path / "out"
    with pytest.raises(ModelFileError, match="exists already"):
        write_while_another_does(out)
    assert out.read_bytes() == b"theirs"
    out.unlink()
    with whole_file(str(out), no_clobber=True) as file:
        file.write(b"ours")
    assert os.listdir(tmp_path) == ["out"]


def test_the_bytes_are_on_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut may leave an empty file in the place of the old one."""
    events: list[object] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(number: int) -> None:
        events.append(os.fstat(number).st_size)
        sync(number)

    def noted_replace(source: str, target: str) -> None:
        events.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    with whole_file(str(tmp_path / "out")) as file:
        file.write(b"four")
    assert events == [4, "out"]


def test_standard_output_is_no_file_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match="-: standard output cannot be written to"):
        convert(model, "-", "grid")
    convert(model, "./-", "grid")
    assert sorted(os.listdir(tmp_path)) == ["-", "model.st"]


def test_many_writers_of_one_folder(tmp_path: Path) -> None:
    """Each new run looks for abandoned files while others create theirs."""
    code = (
        "import sys\nfrom q43nl_numba.convert.output import whole_file\n"
        "for i in range(60):\n"
        "    with whole_file(f'{sys.argv[1]}-{i % 3}') as file:\n        file.write(b'x' * 1000)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / f"w{i}")]) for i in range(4)
    ]
    deadline = time.monotonic() + 300
    for writer in writers:
        assert writer.wait(deadline - time.monotonic()) == 0
    assert sorted(os.listdir(tmp_path)) == [f"w{i}-{j}" for i in range(4) for j in range(3)]
    assert {(tmp_path / name).stat().st_size for name in os.listdir(tmp_path)} == {1000}
