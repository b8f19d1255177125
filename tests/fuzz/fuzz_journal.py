"""The journal of an interrupted run, which ``resume`` goes on from."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import harness

with harness.instrumented():
    from q43nl_numba.convert import convert_model, unfinished
    from q43nl_numba.convert.html import html_page
    from q43nl_numba.convert.model import INDEX_NAME

from model_files import gauss, write_model

_TENSORS = {"a.safetensors": "x.weight", "b.safetensors": "y.weight", "c.safetensors": "z.weight"}


@functools.cache
def _base() -> Path:
    """Return a folder with a model, a complete output, and an interrupted run."""
    folder = Path(tempfile.mkdtemp(dir=harness.scratch_root()))
    model = folder / "model"
    model.mkdir()
    for file, tensor in _TENSORS.items():
        write_model(model / file, {tensor: gauss((2, 32))})
    index = {"metadata": {}, "weight_map": {t: f for f, t in _TENSORS.items()}}
    (model / INDEX_NAME).write_text(json.dumps(index))
    convert_model(model, folder / "complete", "grid")

    def stop(progress: Any) -> None:
        if progress.tensor == "z.weight":
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        convert_model(model, folder / "out", "grid", progress=stop)
    return folder


@functools.cache
def seeds() -> list[bytes]:
    """Return the journal of the interrupted run."""
    return [(_base() / "out.q43nl-partial" / "journal.jsonl").read_bytes()]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change one line."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    lines[place] = harness.mutate_json(lines[place], rng)
    return b"\n".join(lines)


def read(folder: Path, data: bytes) -> None:
    """Resume; where that succeeds, the files are those of an uninterrupted run."""
    base = _base()
    shutil.copytree(base / "out.q43nl-partial", folder / "out.q43nl-partial")
    (folder / "out.q43nl-partial" / "journal.jsonl").write_bytes(data)
    unfinished(folder / "out")
    report = convert_model(base / "model", folder / "out", "grid", resume=True)
    report.table()
    html_page(report, "in", "out")
    for path in (base / "complete").iterdir():
        assert (folder / "out" / path.name).read_bytes() == path.read_bytes(), path.name


READER = harness.Reader("journal", seeds, read, mutate)

if __name__ == "__main__":
    harness.main(READER)
