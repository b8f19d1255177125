"""The index of a model in several files."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import harness

with harness.instrumented():
    from q43nl_numba.convert import convert_model, inspect
    from q43nl_numba.convert.model import INDEX_NAME, open_model

from model_files import gauss, write_model

FILES = {"a.safetensors": "x.weight", "b.safetensors": "y.weight"}


@functools.cache
def seeds() -> list[bytes]:
    """Return a sound index."""
    index = {"metadata": {"total_size": 512}, "weight_map": {t: f for f, t in FILES.items()}}
    return [json.dumps(index).encode()]


def read(folder: Path, data: bytes) -> None:
    """Open and convert a folder with two files and the index; nothing may appear beside it."""
    model = folder / "model"
    model.mkdir()
    for file, tensor in FILES.items():
        write_model(model / file, {tensor: gauss((2, 32))})
    (model / INDEX_NAME).write_bytes(data)
    open_model(model)
    inspect(model)
    convert_model(model, folder / "out", "grid")
    assert sorted(os.listdir(folder)) == ["model", "out"], os.listdir(folder)


READER = harness.Reader("index", seeds, read, harness.mutate_json)

if __name__ == "__main__":
    harness.main(READER)
