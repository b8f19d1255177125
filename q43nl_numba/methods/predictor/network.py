"""The network's file: its numbers, as they are read, checked and written.

JSON, so that a new training shows what has changed. Each layer is a list of rows, one for each
output: its bias, then the weights of its inputs. The digest is of all rows as little-endian float32
numbers one after another, which is also how the kernel gets them (as doubles).
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

COUNTS: Final = 32
HIDDEN: Final = 16
ESTIMATES: Final = 3

SHAPES: Final = ((HIDDEN, 1 + COUNTS), (HIDDEN, 1 + HIDDEN), (ESTIMATES, 1 + HIDDEN))
"""Rows and columns of each layer."""

FILE: Final = Path(__file__).with_name("network.json")


def write_network(layers: list[NDArray[np.float32]], path: Path = FILE) -> None:
    """Write a network's layers, with their digest."""
    content = {
        "layers": [[[float(str(x)) for x in row] for row in layer] for layer in layers],
        "sha256": _digest(layers),
    }
    text = json.dumps(content, separators=(",", ":")).replace("],[", "],\n[")  # a row a line
    path.write_text(text + "\n", encoding="utf-8")


def read_network(path: Path = FILE) -> list[NDArray[np.float32]]:
    """Read a network's layers; an error if the file is not what was written.

    Raises
    ------
    RuntimeError
        The file is missing, no JSON, or its numbers are not those of the digest.
    """
    try:
        content = json.loads(path.read_bytes())
        layers = [np.array(layer, np.float32) for layer in content["layers"]]
        expected = content["sha256"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, f"cannot be read: {error!r}") from error
    shapes = tuple(layer.shape for layer in layers)
    if shapes != SHAPES:
        raise _damaged(path, f"holds layers of shape {shapes}, expected {SHAPES}")
    if _digest(layers) != expected:
        raise _damaged(path, f"has the digest {_digest(layers)}, expected {expected}")
    return layers


def _damaged(path: Path, found: str) -> RuntimeError:
    return RuntimeError(f"the predictor's network {path} {found}; install q43nl_numba again")


def _digest(layers: list[Any]) -> str:
    return hashlib.sha256(b"".join(layer.astype("<f4").tobytes() for layer in layers)).hexdigest()


@functools.cache
def flat_network() -> NDArray[np.float64]:
    """Return the network as the kernel reads it, loaded and checked once."""
    return np.concatenate([layer.reshape(-1) for layer in read_network()]).astype(np.float64)
