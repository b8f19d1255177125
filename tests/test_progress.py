"""What is shown while a model is converted: a bar in a terminal, lines in a log."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("tqdm")

from safetensors.numpy import save_file

from q43nl_numba.convert import Progress, convert_model, progress, shown_progress


class Clock:
    """A clock that stands where it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def test_a_log_gets_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress() as show:
        assert show is not None
        for step in range(100):
            clock.now += 1
            show(Progress(step * 1000, 100_000, f"layer\x1b.{step}"))
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert 5 <= len(lines) <= 10
    assert re.fullmatch(r"\d+% of 100,000 bytes, layer\\x1b\.\d+", lines[0])


def test_a_short_run_leaves_no_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress() as show:
        assert show is not None
        for step in range(100):
            clock.now += 0.01
            show(Progress(step, 100, "w"))
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with shown_progress() as show:
        assert show is not None
        show(Progress(500, 1000, "a\nb"))
        time.sleep(0.2)  # tqdm draws ten times a second
        show(Progress(1000, 1000, "c\nd"))
    shown = terminal.getvalue()
    assert "\n" not in shown
    assert "\r" in shown
    assert "100%|" in shown
    assert "1.00k/1.00k" in shown
    assert "c\\nd" in shown


def test_nothing_is_shown_if_it_is_not_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress(shown=False) as show:
        assert show is None
    assert capsys.readouterr().err == ""


def test_a_callback_sees_every_byte_once(tmp_path: Path) -> None:
    tensors = {f"w{i}": np.ones((64, 320), np.float32) for i in range(3)}
    tensors["b"] = np.ones(7, np.float32)
    save_file(tensors, tmp_path / "in")
    seen: list[Progress] = []
    convert_model(tmp_path / "in", tmp_path / "out", "grid", progress=seen.append)
    done = [step.done for step in seen]
    assert done == sorted(done)
    assert {step.total for step in seen} == {done[-1]}
    assert done[-1] == sum(array.nbytes for array in tensors.values())
    assert {step.tensor for step in seen} == set(tensors)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_the_command_in_a_terminal(tmp_path: Path) -> None:
    save_file({"w": np.ones((4096, 1024), np.float32)}, tmp_path / "in")
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    ours, theirs = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    command = [sys.executable, "-m", "q43nl_numba", "convert", "in", "out", "--method", "grid"]
    path = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # how Linux says that the other end is closed
                break
            if not part:
                break
            shown += part
        assert process.wait(120) == 0
        assert process.stdout is not None
        assert b"packed  1 tensor" in process.stdout.read()
    os.close(ours)
    assert b"%|" in shown
    assert b"16.8M" in shown
    assert b"\n" not in shown.replace(b"\r\n", b"")
