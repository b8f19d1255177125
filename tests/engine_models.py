"""The tiny models under ``engine/``, one an architecture, and copies of them to spoil.

Each folder holds what transformers saves and ``expected.json``: what the engine's own converter
made of it (metadata; dtype, shape and digest of every tensor), and where that is wrong.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from model_files import DTYPES, Tensors, read_raw, write_model

ENGINE = Path(__file__).parent / "engine"
MODELS = tuple(sorted(path.name for path in ENGINE.iterdir() if path.is_dir()))
FORMATS = ("bf16", "q43nl")

#: What models with RoPE scaling need.
ROPE_SCALED = ("llama3",)


def expected(model: str, dtype: str) -> dict[str, Any]:
    """What a correct converter writes: upstream's, with its corrections."""
    document = json.loads((ENGINE / model / "expected.json").read_text())
    made = document["formats"][dtype]
    corrected = document.get("corrected", {}).get(dtype, {})
    made["metadata"].update(corrected.get("metadata", {}))
    made["tensors"].update(corrected.get("tensors", {}))
    return made


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class ModelCopy:
    """A tiny model's folder that a test may change."""

    def __init__(self, model: str, path: Path) -> None:
        shutil.copytree(ENGINE / model, path)
        (path / "expected.json").unlink()
        self.path = path

    def json(self, name: str, edit: Callable[[dict[str, Any]], Any]) -> ModelCopy:
        """Change a JSON file, which need not exist."""
        file = self.path / name
        content = json.loads(file.read_text("utf-8")) if file.exists() else {}
        edit(content)
        file.write_text(json.dumps(content), "utf-8")
        return self

    def config(self, **changes: Any) -> ModelCopy:
        """Change keys of config.json; ``...`` removes one."""

        def edit(config: dict[str, Any]) -> None:
            for key, value in changes.items():
                if value is ...:
                    config.pop(key, None)
                else:
                    config[key] = value

        return self.json("config.json", edit)

    def tensors(self, edit: Callable[[Tensors], Any] = lambda tensors: None) -> ModelCopy:
        """Change the tensors, and write them as one file."""
        tensors = read_tensors(self.path)
        edit(tensors)
        for file in self.path.glob("model*"):
            file.unlink()
        write_model(self.path / "model.safetensors", tensors, {"format": "pt"})
        return self


def read_tensors(folder: Path) -> Tensors:
    """Read all tensors of a folder."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= read_file(file)
    return tensors


def read_file(file: Path) -> Tensors:
    """Read all tensors of a file."""
    header, data = read_raw(file)
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        array = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]])
        tensors[name] = array.reshape(entry["shape"]).copy()
    return tensors


def read_pieces(tokens: bytes) -> list[bytes]:
    """Cut the bytes of ``tokenizer.tokens`` into pieces."""
    pieces, position = [], 0
    while position < len(tokens):
        length = int.from_bytes(tokens[position : position + 4], "little")
        pieces.append(tokens[position + 4 : position + 4 + length])
        position += 4 + length
    return pieces
