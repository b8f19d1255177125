"""A sample of weights to compare methods on, drawn from a file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from q43nl_numba import GROUP_SIZE
from q43nl_numba._layout import MAX_SCALE

__all__ = ["DEFAULT_FILE_SIZE", "Sample", "read_sample"]

DEFAULT_FILE_SIZE = 1_048_576


@dataclass(frozen=True)
class Sample:
    """Weights to compare on, and where they come from.

    Parameters
    ----------
    source : str
        A file name, or the name of a distribution with its seed.
    weights : ndarray of float32, shape (size,)
        Whole groups.
    available : int
        How many weights the source holds; more than ``weights.size`` if they were thinned out.
    """

    source: str
    weights: NDArray[np.float32]
    available: int


def read_sample(path: str | Path, size: int = DEFAULT_FILE_SIZE) -> Sample:
    """Read at most `size` weights from a file, in whole groups taken evenly over all of it.

    Parameters
    ----------
    path : str or Path
        A ``.npy`` file of real numbers, or a ``.safetensors`` file, of which all floating matrices
        (2-D and up) whose last dimension is a multiple of 32 count as one.
    size : int, default 1,048,576
        The most weights to take, at least 32.

    Returns
    -------
    Sample

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is damaged, holds nothing to quantize, or weights that cannot be quantized.
    ImportError
        If reading it needs the ``convert`` extra, which is not installed.
    """
    path = Path(path)
    if size < GROUP_SIZE:
        raise ValueError(f"size: {size}; expected at least one group of {GROUP_SIZE}")
    if path.suffix == ".npy":
        return _read_npy(path, size // GROUP_SIZE)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, size // GROUP_SIZE)
    raise ValueError(f"{path}: unknown file type {path.suffix!r}; expected .npy or .safetensors")


def _read_npy(path: Path, most_groups: int) -> Sample:
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # never unpickles
    except (EOFError, ValueError) as error:
        raise ValueError(f"{path}: not a readable .npy file of numbers: {error}") from error
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path}: dtype {array.dtype}; expected real numbers")
    if array.size == 0 or array.size % GROUP_SIZE:
        raise ValueError(
            f"{path}: {array.size} weights; expected a positive multiple of {GROUP_SIZE}"
        )
    groups = array.reshape(-1, GROUP_SIZE)
    picked = groups[_spread(len(groups), most_groups)]
    return Sample(str(path), _checked(picked, str(path)), array.size)


def _read_safetensors(path: Path, most_groups: int) -> Sample:
    try:
        import ml_dtypes  # noqa: F401  (safetensors hands out bfloat16 through it)
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            f'{path}: reading .safetensors needs {error.name}: pip install "q43nl_numba[convert]"'
        ) from error
    with path.open("rb"):
        pass  # else the reader's own message would differ from system to system
    try:
        with safe_open(path, framework="numpy") as tensors:
            return _sample_tensors(path, tensors, most_groups)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable .safetensors file: {error}") from error


def _sample_tensors(path: Path, tensors: Any, most_groups: int) -> Sample:
    """Take groups evenly over all matrices, one tensor in memory at a time."""
    sizes = dict(_matrix_groups(tensors))
    total = sum(sizes.values())
    if total == 0:
        raise ValueError(
            f"{path}: no floating matrix whose last dimension is a multiple of {GROUP_SIZE}"
        )
    wanted = _spread(total, most_groups)
    parts, start = [], 0
    for name, groups in sizes.items():
        inside = wanted[(wanted >= start) & (wanted < start + groups)] - start
        if inside.size:
            tensor = tensors.get_tensor(name).reshape(-1, GROUP_SIZE)
            parts.append(_checked(tensor[inside], f"{path}, tensor {name!r}"))
        start += groups
    return Sample(str(path), np.concatenate(parts), total * GROUP_SIZE)


def _matrix_groups(tensors: Any) -> Iterator[tuple[str, int]]:
    """Every tensor worth quantizing, with its number of groups."""
    for name in sorted(tensors.keys()):
        header = tensors.get_slice(name)
        shape = header.get_shape()
        floating = header.get_dtype() in ("F64", "F32", "F16", "BF16")
        if floating and len(shape) >= 2 and shape[-1] % GROUP_SIZE == 0:
            yield name, math.prod(shape) // GROUP_SIZE


def _spread(available: int, most: int) -> NDArray[np.int64]:
    """Indices of at most `most` of the available groups, evenly spaced, the first included."""
    count = min(available, most)
    return np.arange(count, dtype=np.int64) * available // count


def _checked(picked: NDArray[Any], where: str) -> NDArray[np.float32]:
    """The picked groups as flat float32, if `q43nl` can take all of them."""
    with np.errstate(over="ignore", invalid="ignore"):
        weights = picked.astype(np.float32).reshape(-1)
        bad = np.count_nonzero(~(np.abs(weights) <= MAX_SCALE))
    if bad:
        raise ValueError(
            f"{where}: {bad} of {weights.size} sampled weights are NaN, infinite or "
            f"beyond {MAX_SCALE:.0f}; expected none"
        )
    return cast("NDArray[np.float32]", weights)
