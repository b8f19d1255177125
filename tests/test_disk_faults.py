"""Disks that are full, and inputs that shrink, change or vanish while they are read."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibrate_folders import model_folder, text_file
from engine_models import ENGINE
from model_files import BF16, gauss, write_model

from q43nl_numba.cli import main
from q43nl_numba.convert import ModelFileError, convert_model, restore, verify_model

# --- a full disk -----------------------------------------------------------------------------

KIB = 1 << 10


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of so many bytes in memory."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"nothing can be mounted: {error}")
    if done.returncode:
        pytest.skip(f"nothing can be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Commands that write, in which ``OUT`` stands for the small disk."""
    base = tmp_path_factory.mktemp("models")
    packed, engine = base / "packed", base / "engine.st"
    assert main(["convert", str(ENGINE / "llama3"), str(packed), "--method", "grid"]) == 0
    assert main(["export", str(ENGINE / "qwen3"), str(engine), "--method", "grid"]) == 0
    folder, text = model_folder(base), text_file(base)
    shown = ["--text", text, "--tokens", 200, "--window", 40]
    report = ["--report", "OUT/report.html"]
    found = {
        "convert": ["convert", ENGINE / "llama3", "OUT/out", "--method", "grid"],
        "convert file": ["convert", ENGINE / "qwen3/model.safetensors", "OUT/out"],
        "export": ["export", ENGINE / "qwen3", "OUT/out", "--method", "grid"],
        "restore": ["restore", packed, "OUT/out"],
        "restore engine": ["restore", engine, "OUT/out"],
        "calibrate": ["calibrate", folder, "OUT/out", *shown, "--hessians"],
        "report": ["convert", ENGINE / "llama3", base / "elsewhere", "--method", "grid", *report],
    }
    return {name: [str(word) for word in argv] for name, argv in found.items()}


NAMES = [
    "convert", "convert file", "export", "restore", "restore engine", "calibrate",
    "report",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk(
    commands: dict[str, list[str]], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At any size that is too small: one line that says it, and no file but whole ones."""
    disk = tmp_path / "disk"
    argv = [word.replace("OUT", str(disk)) for word in commands[name]]
    elsewhere = [Path(word) for word in argv if word.endswith("elsewhere")]

    def run() -> tuple[int, str, dict[str, bytes]]:
        for path in elsewhere:
            shutil.rmtree(path, ignore_errors=True)
        code = main(argv)
        return code, capsys.readouterr().err, content(disk)

    with small_disk(disk, 64 << 20):
        code, errors, expected = run()
        assert code == 0, errors
    full = 0
    size = sum(len(data) + 4 * KIB for data in expected.values()) + 16 * KIB
    for part in (0, 1, 2, 4, 6, 7):
        shutil.rmtree(disk)
        with small_disk(disk, max(size * part // 8, 4 * KIB)):
            code, errors, found = run()
            if code == 0:
                assert found == expected
                continue
            full += 1
            assert code == 1
            assert "No space left on device" in errors.splitlines()[-1], errors
            assert str(disk) in errors.splitlines()[-1]
            # What is complete may wait for --resume, but has not got its name.
            waiting = {name for name in found if name.startswith("out.q43nl-partial/")}
            assert set(found) == waiting, found.keys()
            assert not any(name.endswith(".tmp") for name in found)
            assert waiting == set() or "--resume continues" in errors
    assert full > 2


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- inputs that do not stay -----------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {f"w{n}": gauss((256, 256), BF16, n) for n in range(24)}
    return write_model(tmp_path / "model.st", tensors)


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def vanish(path: Path) -> None:
    path.unlink()


def after(calls: int, change: Any, path: Path) -> Any:
    """A progress callback that changes a file once."""
    left = [calls]

    def progress(_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            change(path)

    return progress


@pytest.mark.parametrize("change", [cut, empty, vanish])
@pytest.mark.parametrize("calls", [1, 8, 15])
def test_a_file_that_shrinks_under_convert(
    model: Path, tmp_path: Path, change: Any, calls: int
) -> None:
    """The error names file and tensor (or the file that is gone), and nothing is written."""
    out = tmp_path / "out"
    with pytest.raises((ModelFileError, FileNotFoundError), match=r"model\.st"):
        convert_model(model, out, "grid", progress=after(calls, change, model))
    assert sorted(os.listdir(tmp_path)) == sorted({"model.st"} & set(os.listdir(tmp_path)))


@pytest.mark.parametrize("change", [cut, vanish])
def test_a_file_that_shrinks_under_restore(model: Path, tmp_path: Path, change: Any) -> None:
    packed, out = tmp_path / "packed", tmp_path / "out"
    convert_model(model, packed, "grid")
    with pytest.raises((ModelFileError, FileNotFoundError), match="packed"):
        restore(packed, out, progress=after(3, change, packed))
    assert not out.exists()
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


@pytest.mark.parametrize("hidden", [False, True])
def test_a_file_that_changes_under_convert(model: Path, tmp_path: Path, hidden: bool) -> None:
    """Its time gives it away; where that is put back, weights that became NaN are refused."""
    status = model.stat()

    def spoil(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(status.st_size - 4096)
            file.write(b"\xff" * 4096)
        if hidden:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    problem = "tensor 'w23'.*cannot be quantized" if hidden else "the file changed while"
    with pytest.raises(ModelFileError, match=rf"model\.st: {problem}"):
        convert_model(model, tmp_path / "out", "grid", progress=after(2, spoil, model))
    assert sorted(os.listdir(tmp_path)) == ["model.st"]


def test_another_file_in_the_place_of_a_shard(tmp_path: Path) -> None:
    """A shard that is replaced by one whose tensors lie elsewhere."""
    folder = tmp_path / "in"
    folder.mkdir()
    names = ("a.safetensors", "b.safetensors")
    for number, name in enumerate(names):
        write_model(folder / name, {f"w{number}": gauss((64, 64), BF16, number)})
    weight_map = {f"w{number}": name for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    (folder / "config.json").write_text("{}")

    def replace(_: Path) -> None:
        write_model(folder / names[1], {"other": gauss((2, 32), BF16)})

    with pytest.raises(ModelFileError, match=r"b\.safetensors"):
        convert_model(folder, tmp_path / "out", "grid", progress=after(1, replace, folder))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [cut, vanish])
@pytest.mark.parametrize("which", ["model.st", "packed"])
def test_a_file_that_shrinks_under_verify(
    model: Path, tmp_path: Path, change: Any, which: str
) -> None:
    convert_model(model, tmp_path / "packed", "grid")
    with pytest.raises((ModelFileError, FileNotFoundError), match=which.replace(".", r"\.")):
        verify_model(model, tmp_path / "packed", progress=after(3, change, tmp_path / which))


def test_weights_that_change_under_a_call() -> None:
    """The bytes are those of some moment of each group, never an error that names nothing."""
    import threading

    from q43nl_numba import dequantize, q43nl

    weights = np.ones((1 << 14, 32), np.float32)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            weights[:, ::2] = 2
            weights[:, ::2] = 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(20):
            decoded = dequantize(q43nl(weights, "grid", num_threads=2))
            assert np.abs(decoded).max() <= 2.01
    finally:
        stop.set()
        thread.join()
