"""Model folders for the tests of calibration, made of the tiny random models beside this file."""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from q43nl_numba import dequantize, q43nl
from q43nl_numba.calibrate.config import read_config
from q43nl_numba.calibrate.forward import Decoder, logits
from q43nl_numba.calibrate.sources import open_weights

MODELS = Path(__file__).parent / "calibrate_models"
NAMES = sorted(path.parent.name for path in MODELS.glob("*/config.json"))
STRIDE = 4  # expected logits are those of every fourth position, from the fourth on


def model_folder(tmp_path, name="llama", **changes):
    """Copy a tiny model with its tokenizer, and change keys of its configuration."""
    folder = tmp_path / name
    shutil.copytree(MODELS / name, folder)
    shutil.copy(MODELS / "tokenizer.json", folder)
    for extra in ("expected.safetensors", "variants.json"):
        (folder / extra).unlink()
    change_config(folder, **changes)
    return folder


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder, change):
    """Let a function change the dictionary of a folder's tensors."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def text_file(tmp_path, words=2000, name="text.txt", seed=0):
    """Some text that the tiny tokenizer cuts into more tokens than words."""
    rng = np.random.default_rng(seed)
    vocabulary = ["the", "model", "text", "token", "of", "def", "return", "import", "name", "is"]
    path = tmp_path / name
    path.write_text(" ".join(rng.choice(vocabulary, words)))
    return path


def decoder_of(folder, length):
    return Decoder(read_config(folder), open_weights(folder), length)


def logits_of(folder, ids):
    return logits(decoder_of(folder, ids.shape[1]), ids)


def quantized(weights, **options):
    """What a matrix is after its bytes were decoded."""
    return dequantize(q43nl(weights, "coarse_fine", **options), weights.shape)
