"""GGUF files of models."""

from __future__ import annotations

import functools
import random
import tempfile
from pathlib import Path

import harness
import numpy as np

with harness.instrumented():
    import gguf

    from q43nl_numba.convert import plan_model
    from q43nl_numba.convert.model import open_model

from model_files import gauss


@functools.cache
def seeds() -> list[bytes]:
    """Return a model of stored and of quantized tensors."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
        writer.add_array("numbers", [1, 2, 3])
        writer.add_float32("some.float", 0.5)
        writer.add_tensor("token_embd.weight", gauss((8, 64)))
        writer.add_tensor("blk.0.attn_q.weight", gauss((64, 64)))
        packed = gguf.quantize(gauss((32, 64)), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor("blk.0.attn_k.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor("output_norm.weight", np.ones(8, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return [path.read_bytes()]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change bytes of the metadata, which the file begins with."""
    end = min(len(data), 900)
    return harness.mutate_bytes(data[:end], rng) + data[end:]


def read(folder: Path, data: bytes) -> None:
    """Open a model, plan its conversion, and read a piece of every tensor."""
    path = folder / "in.gguf"
    path.write_bytes(b"GGUF" + data[4:])
    for tensor in open_model(path).tensors.values():
        tensor.values(0, min(tensor.size, 64))
    plan_model(path, folder / "out")


READER = harness.Reader("gguf", seeds, read, mutate)

if __name__ == "__main__":
    harness.main(READER)
