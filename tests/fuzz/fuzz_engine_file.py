"""Files of the engine."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import harness

with harness.instrumented():
    from q43nl_numba.export import export_model, inspect_model, restore_model

from engine_models import ENGINE


@functools.cache
def seeds() -> list[bytes]:
    """Return tiny models, dense and of experts, packed and not."""
    found = []
    for model, dtype in (("smollm2", "q43nl"), ("mixtral", "q43nl"), ("phi3", "bf16")):
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "out"
            options = {"method": "coarse_fine"} if dtype == "q43nl" else {}
            export_model(ENGINE / model, path, dtype=dtype, **options)
            found.append(path.read_bytes())
    return found


def read(folder: Path, data: bytes) -> None:
    """Look into a file, and bring it back to a folder."""
    path = folder / "in.safetensors"
    path.write_bytes(data)
    inspect_model(path).table()
    restore_model(path, folder / "back")


READER = harness.Reader("engine_file", seeds, read, harness.mutate_header)

if __name__ == "__main__":
    harness.main(READER)
