"""Convert a model file with an importance file, and measure what the importance is worth.

A linear layer computes y = W x. An error in column j of W is multiplied by input x[j], so the
squared error of a weight should count by the mean of x[j] squared over typical inputs. This script
makes a model of one layer whose inputs differ in size, converts it twice, and compares the errors
of the outputs.

Needs the extra [convert]. From the top of the repository:

    pip install ".[convert]"
    python examples/convert_with_importance.py
"""

import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from q43nl_numba import dequantize
from q43nl_numba.convert import convert

ROWS, COLUMNS, INPUTS = 256, 512, 1024
NAME = "layer.weight"

rng = np.random.default_rng(0)
weights = rng.standard_normal((ROWS, COLUMNS), dtype=np.float32)
# A few columns get inputs that are much larger than the others', as in language models.
sizes = rng.lognormal(sigma=1.0, size=COLUMNS).astype(np.float32)
inputs = rng.standard_normal((INPUTS, COLUMNS), dtype=np.float32) * sizes
importance = np.square(inputs).mean(axis=0)  # float32[COLUMNS]: one number for each column


def output_error(file: Path) -> float:
    """Return the mean squared error of y where W is decoded from a converted file."""
    decoded = dequantize(load_file(file)[NAME], weights.shape)
    return float(np.square(inputs @ (weights - decoded).T).mean())


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    save_file({NAME: weights}, folder / "model.safetensors")
    save_file({NAME: importance}, folder / "importance.safetensors")

    convert(folder / "model.safetensors", folder / "plain.safetensors", "optimal")
    convert(
        folder / "model.safetensors",
        folder / "weighted.safetensors",
        "optimal",
        importance=folder / "importance.safetensors",
    )
    plain = output_error(folder / "plain.safetensors")
    weighted = output_error(folder / "weighted.safetensors")

print(f"mean squared error of the outputs without importance: {plain:.2f}")
print(f"mean squared error of the outputs with importance:    {weighted:.2f}")
print(f"ratio: {weighted / plain:.2f}")
