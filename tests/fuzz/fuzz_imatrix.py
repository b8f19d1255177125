"""Files of llama-imatrix, both forms: GGUF and the older .dat."""

from __future__ import annotations

import functools
import random
import struct
import tempfile
from pathlib import Path

import harness
import numpy as np

with harness.instrumented():
    import gguf

    from q43nl_numba.convert.imatrix import is_imatrix, read_imatrix

SHAPES = {
    "model.embed_tokens.weight": (300, 32),
    "model.layers.0.self_attn.q_proj.weight": (64, 32),
    **{f"model.layers.0.mlp.experts.{e}.up_proj.weight": (64, 32) for e in range(3)},
}
NAMES = {"token_embd.weight": 1, "blk.0.attn_q.weight": 1, "blk.0.ffn_up_exps.weight": 3}


@functools.cache
def seeds() -> list[bytes]:
    """Return a file of each form."""
    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "imatrix.gguf"
        writer = gguf.GGUFWriter(path, "imatrix")
        writer.add_type("imatrix")
        old = struct.pack("<i", len(NAMES))
        for entry, rows in NAMES.items():
            values = rng.random((rows, 32), np.float32)
            writer.add_tensor(entry + ".in_sum2", values)
            writer.add_tensor(entry + ".counts", np.full((rows, 1), 24, np.float32))
            old += struct.pack("<i", len(entry)) + entry.encode()
            old += struct.pack("<ii", 5, values.size) + values.tobytes()
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return [path.read_bytes(), old + struct.pack("<ii", 2, 8) + b"text.txt"]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change bytes, most often near the begin of a GGUF file."""
    end = min(len(data), 900) if data[:4] == b"GGUF" else len(data)
    return harness.mutate_bytes(data[:end], rng) + data[end:]


def read(folder: Path, data: bytes) -> None:
    """Read a file."""
    path = folder / "imatrix"
    path.write_bytes(data)
    is_imatrix(path)
    read_imatrix(path, SHAPES)


READER = harness.Reader("imatrix", seeds, read, mutate)

if __name__ == "__main__":
    harness.main(READER)
