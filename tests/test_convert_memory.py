"""Memory stays bounded, whatever the size of a tensor."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")
pytest.importorskip("resource")

MEASURE = """
import json, resource, sys
from q43nl_numba.convert import convert_model, restore, verify_model

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

small, large, folder, method = sys.argv[1:]
convert_model(small, f"{folder}/a", method)
restore(f"{folder}/a", f"{folder}/b")
found = [peak()]
convert_model(large, f"{folder}/c", method)
found.append(peak())
restore(f"{folder}/c", f"{folder}/d")
found.append(peak())
verify_model(large, f"{folder}/c")
found.append(peak())
print(json.dumps(found))
"""


def write_sparse(path: Path, rows: int, columns: int) -> Path:
    """One bfloat16 tensor of zeros that takes no room on the disk."""
    nbytes = rows * columns * 2
    entry = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, nbytes]}
    text = json.dumps({"w": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + nbytes)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize(("rows", "columns"), [(1 << 15, 1 << 12), (1 << 2, 1 << 25)])
def test_a_large_tensor_takes_no_more_memory(tmp_path: Path, rows: int, columns: int) -> None:
    small = write_sparse(tmp_path / "small", 64, 64)
    large = write_sparse(tmp_path / "large", rows, columns)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(large), str(tmp_path), "grid"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    before, *after = json.loads(done.stdout)
    assert max(after) - before < 200, (before, after)  # MiB; the file has 256
