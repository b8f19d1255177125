"""safetensors files: models, converted ones with their record, importance, statistics."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np

with harness.instrumented():
    from q43nl_numba.calibrate.sources import open_weights
    from q43nl_numba.calibrate.statistics import STATISTICS_KEY, Statistics
    from q43nl_numba.convert import convert, inspect, plan_model, restore
    from q43nl_numba.convert.importance import ImportanceFile

from model_files import BF16, DTYPES, gauss, info, write_model, write_raw

SHAPES = {"l.weight": (4, 64), "norm": (8,)}


@functools.cache
def seeds() -> list[bytes]:
    """Return a model, the same converted (records of both versions), statistics."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors = {
            "l.weight": gauss((4, 64)), "norm": gauss((8,), BF16), "i": np.arange(4, dtype="<i8"),
            "f.weight": gauss((2, 32)).astype(DTYPES["F8_E4M3"]), "f.weight_scale": gauss((2, 1)),
        }  # fmt: skip
        model = write_model(folder / "model", tensors, {"format": "pt"})
        convert(model, folder / "converted", "coarse_fine", keep_dtype="float16")
        record: dict[str, Any] = {
            "version": 1,
            "model": {"sha256": "0", "summary": "s"},
            "tokens": 8,
            "hessians": {"l.weight": "l.weight.hessian"},
        }
        old = {"version": 1, "tensors": {
            "l.weight": {"dtype": "F32", "shape": [4, 64], "qtype": "Q43NL"}}}  # fmt: skip
        header = {
            "__metadata__": {"dtype": "Q43NL", "q43nl_numba": json.dumps(old)},
            "l.weight": info("U8", [4, 38], 0, 152, qtype="Q43NL"),
        }
        statistics = {"l.weight": gauss((64,)) ** 2, "l.weight.hessian": gauss((64, 64))}
        files = [
            model,
            folder / "converted",
            write_raw(folder / "old", header, bytes(152)),
            write_model(folder / "statistics", statistics, {STATISTICS_KEY: json.dumps(record)}),
        ]
        return [file.read_bytes() for file in files]


def read(folder: Path, data: bytes) -> None:
    """Read a file in every way that it can be meant."""
    path = folder / "in.safetensors"
    path.write_bytes(data)
    harness.try_all(
        (
            lambda: inspect(path).table(),
            lambda: plan_model(path, folder / "out"),
            lambda: restore(path, folder / "back"),
            lambda: open_weights(path),
            lambda: _read_statistics(str(path)),
            lambda: ImportanceFile(str(path), SHAPES),
        )
    )


def _read_statistics(path: str) -> None:
    statistics = Statistics(path)
    for name in statistics.names():
        statistics.importance(name)
        statistics.hessian(name)


READER = harness.Reader("safetensors", seeds, read, harness.mutate_header)

if __name__ == "__main__":
    harness.main(READER)
