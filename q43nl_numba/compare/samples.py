"""A sample of weights to compare methods on, drawn from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from .. import GROUP_SIZE
from .._arrays import is_too_large
from .._layout import MAX_SCALE

if TYPE_CHECKING:
    from ..convert.tensors import Tensor

DEFAULT_FILE_SIZE = 1_048_576

_NPY_MAGIC = b"\x93NUMPY"  # numpy.lib.format


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


def read_sample(
    path: str | Path, size: int = DEFAULT_FILE_SIZE, largest: float = MAX_SCALE
) -> Sample:
    """Read at most `size` weights from a file, in whole groups taken evenly over all of it.

    The file's content decides how it is read, not its name.

    Parameters
    ----------
    path : str or Path
        A NumPy array file (.npy) of real numbers, or a model as `q43nl_numba.convert` takes it
        (safetensors file, folder, GGUF file), of which all floating matrices (2-D and up) whose
        last dimension is a multiple of 32 count as one.
    size : int, default 1,048,576
        The most weights to take, at least 32.
    largest : float, default 65504
        The largest magnitude that can be stored, on one side of zero in each group.

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
        raise ValueError(f"size must be at least one group of {GROUP_SIZE}, found {size}")
    read = _read_npy if _is_npy(path) else _read_model
    return read(path, size // GROUP_SIZE, largest)


def _is_npy(path: Path) -> bool:
    """Return whether a file is an array of NumPy."""
    if path.is_dir():
        return False
    with path.open("rb") as file:
        return file.read(len(_NPY_MAGIC)) == _NPY_MAGIC


def _read_npy(path: Path, most_groups: int, largest: float) -> Sample:
    """Read a sample of an array file."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # never unpickles
    except (EOFError, ValueError) as error:
        raise ValueError(f"{path}: must be a whole array of numbers, found: {error}") from error
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path}: must hold real numbers, found dtype {array.dtype}")
    if array.size == 0 or array.size % GROUP_SIZE:
        raise ValueError(
            f"{path}: its size must be a positive multiple of {GROUP_SIZE}, found {array.size}"
        )
    groups = array.reshape(-1, GROUP_SIZE)
    picked = groups[_spread(len(groups), most_groups)]
    return Sample(str(path), _checked(picked, str(path), largest), array.size)


def _read_model(path: Path, most_groups: int, largest: float) -> Sample:
    """Read a sample of a model: groups taken evenly over all matrices, a piece at a time."""
    from ..convert.model import open_model  # the convert extra is needed for models only

    matrices = [tensor for tensor in open_model(path).tensors.values() if _is_matrix(tensor)]
    total = sum(tensor.size for tensor in matrices) // GROUP_SIZE
    if total == 0:
        raise ValueError(
            f"{path}: no floating matrix whose last dimension is a multiple of {GROUP_SIZE}"
        )
    wanted = _spread(total, most_groups)
    parts, start = [], 0
    for tensor in sorted(matrices, key=lambda tensor: tensor.name):
        stop = start + tensor.size // GROUP_SIZE
        inside = wanted[(wanted >= start) & (wanted < stop)] - start
        if inside.size:
            where = f"{tensor.files[0].path}: tensor {tensor.name!r}"
            parts.append(_checked(_groups(tensor, inside), where, largest))
        start = stop
    return Sample(str(path), np.concatenate(parts), total * GROUP_SIZE)


def _is_matrix(tensor: Tensor) -> bool:
    """Return whether `q43nl_numba.convert` would pack a tensor."""
    floating = tensor.dtype in ("F64", "F32", "F16", "BF16")
    return floating and len(tensor.shape) >= 2 and tensor.shape[-1] % GROUP_SIZE == 0


def _groups(tensor: Tensor, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return some groups of a tensor."""
    from ..convert.tensors import piece_bounds

    parts = []
    for start, stop in piece_bounds(tensor.shape):
        first, last = start // GROUP_SIZE, stop // GROUP_SIZE
        inside = indices[(indices >= first) & (indices < last)] - first
        if inside.size:
            parts.append(tensor.floats(start, stop).reshape(-1, GROUP_SIZE)[inside])
    return np.concatenate(parts)


def _spread(available: int, most: int) -> NDArray[np.int64]:
    """Return indices of at most `most` of the groups, evenly spaced, the first included."""
    count = min(available, most)
    return np.arange(count, dtype=np.int64) * available // count


def _checked(picked: NDArray[Any], where: str, largest: float) -> NDArray[np.float32]:
    """Return the picked groups as flat float32, if all of them can be stored."""
    with np.errstate(over="ignore", invalid="ignore"):
        weights = picked.astype(np.float32).reshape(-1)
    bad = np.count_nonzero(~np.isfinite(weights) | is_too_large(weights, largest))
    if bad:
        one_side = " on one side of zero" if largest > MAX_SCALE else ""
        raise ValueError(
            f"{where}: sampled weights must be finite and at most {largest:.0f}{one_side}, "
            f"found {bad} of {weights.size} that are not"
        )
    return cast("NDArray[np.float32]", weights)
