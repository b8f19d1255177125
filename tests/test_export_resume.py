"""Interrupted exports: nothing under the output's name, and a resumed run gives the same bytes."""

from __future__ import annotations

import json
import os
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
pytest.importorskip("tqdm")

from engine_models import ENGINE, ModelCopy, read_tensors

from q43nl_numba import q43nl, quality
from q43nl_numba.convert import ModelFileError, packing, sections
from q43nl_numba.convert import tensors as convert_tensors
from q43nl_numba.convert.run import unfinished
from q43nl_numba.export import export_model

MODEL = ENGINE / "qwen3"
PARTIAL = "out.st.q43nl-partial"


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The bytes of an uninterrupted run."""
    export_model(MODEL, tmp_path / "whole.st", method="grid")
    content = (tmp_path / "whole.st").read_bytes()
    (tmp_path / "whole.st").unlink()
    return content


@pytest.fixture(autouse=True)
def small_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "_SECTION_BYTES", 6000)


class Interrupted:
    """A quantizer that is interrupted at some call; counts the weights of its calls."""

    def __init__(self, calls: int, error: BaseException | None = None) -> None:
        self.calls = calls
        self.weights = 0
        self.error = error or KeyboardInterrupt()

    def __call__(self, weights: Any, *arguments: Any, **options: Any) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise self.error
        self.weights += weights.size
        return q43nl(weights, *arguments, **options)


def interrupt(
    path: Path, calls: int, monkeypatch: pytest.MonkeyPatch, model: Path = MODEL, **options: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(packing, "q43nl", Interrupted(calls))
        with pytest.raises(KeyboardInterrupt):
            export_model(model, path, method="grid", **options)


@pytest.mark.parametrize("calls", [4, 7, 12, 14])
def test_a_resumed_run_gives_the_same_bytes(
    calls: int, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.st"
    interrupt(path, calls, monkeypatch)
    assert os.listdir(tmp_path) == [PARTIAL]
    before = unfinished(path)
    assert before is not None
    assert 0 < before.done < before.files
    again = Interrupted(1000)
    monkeypatch.setattr(packing, "q43nl", again)
    seen: list[int] = []
    report = export_model(
        MODEL, path, method="grid", resume=True, progress=lambda p: seen.append(p.done)
    )
    assert path.read_bytes() == whole
    assert os.listdir(tmp_path) == ["out.st"]
    assert again.weights < sum(a.size for a in read_tensors(MODEL).values() if a.ndim == 2)
    assert len(report.packed) == 1 + 2 * 7
    assert seen == sorted(seen)
    assert report.table().count("4.75") == len(report.packed)


def test_interrupted_twice(tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.st"
    interrupt(path, 5, monkeypatch)
    interrupt(path, 5, monkeypatch, resume=True)
    export_model(MODEL, path, method="grid", resume=True)
    assert path.read_bytes() == whole


def test_the_old_file_stays_until_the_new_one_is_complete(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.st"
    path.write_text("old")
    path.chmod(0o640)
    interrupt(path, 7, monkeypatch)
    assert path.read_text() == "old"
    export_model(MODEL, path, method="grid", resume=True)
    assert path.read_bytes() == whole
    assert path.stat().st_mode & 0o777 == 0o640


def test_without_resume_a_run_starts_again(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.st"
    interrupt(path, 7, monkeypatch)
    export_model(MODEL, path, method="optimal", effort=1)
    assert os.listdir(tmp_path) == ["out.st"]
    assert path.read_bytes() != whole


def test_nothing_is_left_where_no_section_was_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "_SECTION_BYTES", 1 << 28)
    interrupt(tmp_path / "out.st", 10, monkeypatch)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "predictor"}, "arguments.method must be 'grid' .* found 'predictor'"),
        ({"method": "grid", "grid_size": 17}, "arguments.grid_size must be None .* found 17"),
        ({"method": "grid", "eps_scale": 0.5}, "arguments.eps_scale"),
        ({"method": "grid", "dtype": "bf16"}, "arguments.dtype must be 'Q43NL' .* found 'BF16'"),
    ],
)
def test_another_run_is_not_resumed(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if options.get("dtype") == "bf16":
        options = {"dtype": "bf16", "method": "grid"}
    path = tmp_path / "out.st"
    interrupt(path, 7, monkeypatch)
    with pytest.raises(ModelFileError, match=message):
        export_model(MODEL, path, resume=True, **options)
    assert os.listdir(tmp_path) == [PARTIAL]


def test_another_input_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = ModelCopy("qwen3", tmp_path / "model")
    path = tmp_path / "out.st"
    interrupt(path, 7, monkeypatch, copy.path)
    copy.tensors(lambda tensors: tensors["model.norm.weight"].__setitem__(0, 2.0))
    with pytest.raises(ModelFileError, match="cannot resume: input"):
        export_model(copy.path, path, method="grid", resume=True)
    copy = ModelCopy("qwen3", tmp_path / "other").config(rope_theta=1.0)
    with pytest.raises(ModelFileError, match="cannot resume"):
        export_model(copy.path, path, method="grid", resume=True)


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "no folder", "longer"])
def test_what_was_damaged_is_written_again(
    damage: str, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.st"
    interrupt(path, 12, monkeypatch)
    growing = tmp_path / PARTIAL / "files" / "file"
    content = bytearray(growing.read_bytes())
    if damage == "gone":
        growing.unlink()
    elif damage == "no folder":  # as after a kill while the folder was removed
        shutil.rmtree(growing.parent)
    elif damage == "cut":
        growing.write_bytes(content[: len(content) // 2])
    elif damage == "longer":
        growing.write_bytes(content + b"more")
    else:
        content[len(content) // 2] ^= 1
        growing.write_bytes(content)
    export_model(MODEL, path, method="grid", resume=True)
    assert path.read_bytes() == whole


def test_a_journal_that_was_cut(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.st"
    interrupt(path, 12, monkeypatch)
    journal = tmp_path / PARTIAL / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    export_model(MODEL, path, method="grid", resume=True)
    assert path.read_bytes() == whole


def test_a_file_that_appeared_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.st"
    real = sections.rename_complete

    def late(*arguments: Any, **options: Any) -> None:
        path.write_text("another's")
        real(*arguments, **options)

    monkeypatch.setattr(sections, "rename_complete", late)
    with pytest.raises(ModelFileError, match="exists already"):
        export_model(MODEL, path, method="grid", no_clobber=True)
    assert path.read_text() == "another's"


KILLED = """
import sys, time
from q43nl_numba.convert import packing, sections
from q43nl_numba.export import export_model

sections._SECTION_BYTES = 6000
quantize = packing.q43nl

def slow(*arguments, **options):
    time.sleep(0.05)
    print("piece", flush=True)
    return quantize(*arguments, **options)

packing.q43nl = slow
export_model(sys.argv[1], sys.argv[2], method="grid", resume=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "out.st"
    command = [sys.executable, "-c", KILLED, str(MODEL), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(9):
        assert process.stdout.readline() == "piece\n"
    with pytest.raises(ModelFileError, match="another process is writing it"):
        export_model(MODEL, path, method="grid")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert os.listdir(tmp_path) == [PARTIAL]
    deadline = time.monotonic() + 60
    while unfinished(path) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    export_model(MODEL, path, method="grid", resume=True)
    assert path.read_bytes() == whole
    assert os.listdir(tmp_path) == ["out.st"]


def test_a_section_ends_where_so_many_bytes_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "_SECTION_BYTES", 60_000)
    path = tmp_path / "out.st"
    interrupt(path, 12, monkeypatch)
    first, *lines = (tmp_path / PARTIAL / "journal.jsonl").read_text().splitlines()
    assert json.loads(first)["description"]["arguments"]["command"] == "export"
    ends = [json.loads(line)["nbytes"] for line in lines]
    assert len(ends) >= 2
    packed = np.diff(ends) * 32 / 19 * 2  # bytes of bfloat16
    assert np.all((packed > 40_000) & (packed <= 60_000))


def test_a_large_tensor_has_sections_of_its_own(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted run goes on within the tensor; its figures are those of all its parts."""
    monkeypatch.setattr(convert_tensors, "PIECE_WEIGHTS", 1 << 12)
    path = tmp_path / "out.st"
    interrupt(path, 4, monkeypatch)
    again = Interrupted(1000)
    monkeypatch.setattr(packing, "q43nl", again)
    report = export_model(MODEL, path, method="grid", resume=True)
    assert path.read_bytes() == whole
    matrices = sum(a.size for a in read_tensors(MODEL).values() if a.ndim == 2)
    assert again.weights == matrices - 4 * (1 << 12)
    embedding = read_tensors(MODEL)["model.embed_tokens.weight"].astype(np.float32)
    wanted = quality(embedding, q43nl(embedding, "grid")).snr_db
    assert report.packed[0].figures.weights == embedding.size
    assert report.packed[0].snr_db == pytest.approx(wanted, abs=1e-4)
