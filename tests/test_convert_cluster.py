"""Runs on a Dask cluster of real processes: lost workers, large tensors, the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")
pytest.importorskip("distributed")

from model_files import BF16, gauss, write_model
from test_convert_resume import content, write_folder

from q43nl_numba.convert import ModelFileError, Progress, cluster, convert_model, unfinished

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.{module}", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


class RunningCluster:
    """A scheduler and three workers, each a process."""

    def __init__(self, folder: Path) -> None:
        import distributed

        file = folder / "scheduler.json"
        options = ("--scheduler-file", str(file), "--no-dashboard")
        self.scheduler = start("dask_scheduler", "--port", "0", *options)
        self.workers = [
            start("dask_worker", *options, "--nthreads", "1", "--no-nanny", "--name", str(number),
                  "--local-directory", str(folder))
            for number in range(3)
        ]  # fmt: skip
        with distributed.Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(3, timeout=120)
            self.address = client.scheduler.address

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    found = RunningCluster(tmp_path_factory.mktemp("dask"))
    yield found
    found.stop()


@pytest.mark.filterwarnings("default")
def test_the_bytes_are_the_same_though_a_worker_is_killed(
    running: RunningCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "in", rows=30_000)
    importance = {f"l{i}.0": np.random.default_rng(i).exponential(size=64) for i in range(4)}
    arguments = {
        "method": "coarse_fine",
        "importance": write_model(tmp_path / "imp", importance),
        "num_threads": 1,
    }
    whole = convert_model(folder, tmp_path / "whole", **arguments)
    monkeypatch.setattr(cluster, "PART_BYTES", 2_500_000)
    monkeypatch.chdir(tmp_path)
    seen: list[Progress] = []

    def kill_one(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == 3:
            running.workers[0].send_signal(signal.SIGKILL)

    report = convert_model(
        "in",
        "out",
        scheduler=running.address,
        progress=kill_one,
        **{**arguments, "importance": "imp"},
    )
    assert running.workers[0].wait() == -signal.SIGKILL
    assert len(seen) > 12  # more parts than tensors
    assert seen[-1].done == seen[-1].total
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["imp", "in", "out", "whole"]
    for before, after in zip(whole.packed, report.packed, strict=True):
        assert after.name == before.name
        assert after.snr_db == pytest.approx(before.snr_db, abs=1e-9)
        assert after.max_abs_error == before.max_abs_error
        assert after.mse_ratio == pytest.approx(before.mse_ratio, rel=0.05)

    # a file that goes to a file, and what goes wrong on a worker
    path = tmp_path / "in" / "model-00001-of-00004.safetensors"
    convert_model(path, tmp_path / "file", "grid", scheduler=running.address)
    convert_model(path, tmp_path / "same", "grid")
    assert (tmp_path / "file").read_bytes() == (tmp_path / "same").read_bytes()
    bad = gauss((64, 64), BF16)
    bad[5, 6] = np.nan
    path = write_model(tmp_path / "bad", {"good": gauss((64, 64)), "bad": bad})
    with pytest.raises(ModelFileError, match=r"bad: tensor 'bad': 1 of its 4096 .* at \[5, 6\]"):
        convert_model(path, tmp_path / "x", "grid", scheduler=running.address)
    left = {"bad", "file", "imp", "in", "out", "same", "whole"}
    assert set(os.listdir(tmp_path)) == left

    def interrupt(progress: Progress) -> None:
        if progress.done > 0.6 * progress.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_model(
            folder, tmp_path / "again", scheduler=running.address, progress=interrupt, **arguments
        )
    found = unfinished(tmp_path / "again")
    if found is not None:
        assert 0 < found.done < found.files == 4
    convert_model(folder, tmp_path / "again", resume=True, **arguments)
    assert content(tmp_path / "again") == content(tmp_path / "whole")


def test_no_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_SECONDS_TO_CONNECT", 1)
    path = write_model(tmp_path / "in", {"w": gauss((8, 64))})
    with pytest.raises(OSError, match=r"there is no Dask scheduler at tcp://127.0.0.1:1"):
        convert_model(path, tmp_path / "out", "grid", scheduler="tcp://127.0.0.1:1")
    assert os.listdir(tmp_path) == ["in"]


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    path = write_model(tmp_path / "in", {"w": gauss((8, 64))})
    with pytest.raises(ModuleNotFoundError, match=r'pip install "\.\[distributed\]"'):
        convert_model(path, tmp_path / "out", "grid", scheduler="tcp://127.0.0.1:1")
