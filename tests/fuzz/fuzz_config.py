"""config.json, generation_config.json and tokenizer_config.json of a model folder.

An input is a JSON object with the name of a tiny model (``model``) and the files' contents; any
other input is taken for ``config.json``.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path

import harness

with harness.instrumented():
    from q43nl_numba.calibrate.config import read_config
    from q43nl_numba.calibrate.forward import Decoder
    from q43nl_numba.calibrate.rope import SCALINGS
    from q43nl_numba.calibrate.sources import check_tensors, open_weights
    from q43nl_numba.convert.plan import Wishes
    from q43nl_numba.convert.rules import Treatment
    from q43nl_numba.export.exporting import find_format, plan_export

from engine_models import ENGINE, MODELS

_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
_SCALING = {
    "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "attention_factor": 1.0,
    "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
    "mscale_all_dim": 1.0, "short_factor": [1.0] * 8, "long_factor": [1.0] * 8,
}  # fmt: skip


@functools.cache
def seeds() -> list[bytes]:
    """Return the files of every tiny model, and one of them with every scaling of RoPE."""
    found = []
    for model in MODELS:
        files = {
            name: json.loads((ENGINE / model / name).read_text("utf-8"))
            for name in _FILES
            if (ENGINE / model / name).exists()
        }
        found.append({"model": model, **files})
    base = found[MODELS.index("smollm2")]
    for kind in SCALINGS:
        config = {**base["config.json"], "rope_scaling": {"rope_type": kind, **_SCALING}}
        found.append({**base, "config.json": config})
    return [json.dumps(document).encode() for document in found]


def read(folder: Path, data: bytes) -> None:
    """Plan an export, and prepare the forward pass."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("model") not in MODELS:
        document = {"model": "smollm2", "config.json": None}
    source = ENGINE / document["model"]
    for path in source.iterdir():
        if path.name not in (*_FILES, "expected.json"):
            shutil.copyfile(path, folder / path.name)
    for name in _FILES:
        if name in document:
            (folder / name).write_text(json.dumps(document[name]), "utf-8")
    if document.get("config.json") is None:
        (folder / "config.json").write_bytes(data)
    wishes = Wishes(Treatment("grid"))
    folder_name, q43nl, bf16 = os.fspath(folder), find_format("q43nl"), find_format("bf16")
    harness.try_all(
        (
            lambda: plan_export(folder_name, q43nl, wishes),
            lambda: plan_export(folder_name, bf16, wishes, allow_rope_scaling=True),
            lambda: _prepare_pass(folder),
        )
    )


def _prepare_pass(folder: Path) -> None:
    config, source = read_config(folder), open_weights(folder)
    check_tensors(source, config)
    Decoder(config, source, 8)


READER = harness.Reader("config", seeds, read, harness.mutate_json)

if __name__ == "__main__":
    harness.main(READER)
