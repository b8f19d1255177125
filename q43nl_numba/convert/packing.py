"""Pack tensors: the recipe that quantizes, and judges what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .. import GROUP_SIZE, q43nl
from .errors import ModelFileError
from .importance import Importance
from .job import Maker, Piece, Recipe
from .judging import Figures, Judge
from .tensors import Tensor, piece_bounds

Floats = npt.NDArray[np.float32]

#: Largest finite binary16, which most methods take for the largest weight that can be stored.
_LARGEST_SCALE: Final = float(np.finfo(np.float16).max)

#: What code -8 decodes to with that scale and c = 1, the largest weight of all.
_LARGEST_JOINT: Final = float(np.nextafter(np.float32(_LARGEST_SCALE * 64 / 49), np.float32(0)))


@dataclass(frozen=True)
class Pack(Recipe):
    """The packed groups of a tensor; what is found are `judging.Figures`, as nested data.

    Attributes
    ----------
    tensor : Tensor
        Its last dimension must be a multiple of 32.
    method : str
        One of `METHODS`.
    options : tuple of (str, value)
        Keyword arguments of `q43nl`.
    importance : Importance, optional
        Weights of the squared errors.
    """

    tensor: Tensor
    method: str
    options: tuple[tuple[str, Any], ...] = ()
    importance: Importance | None = None

    @property
    def source_bytes(self) -> int:
        """Number of bytes of the tensor."""
        return self.tensor.nbytes

    def pieces(self) -> Sequence[Piece]:
        """Return ranges of elements: whole rows, or groups of longer ones."""
        return piece_bounds(self.tensor.shape)

    def load(self, piece: Piece) -> tuple[Floats, Floats | None]:
        """Read weights and their importance."""
        importance = None if self.importance is None else self.importance.piece(*piece)
        return self.tensor.floats(*piece), importance

    def maker(self) -> Maker:
        """Return a maker that quantizes."""
        return _Packer(self)

    def merged(self, findings: Sequence[Any]) -> Any:
        """Return the figures of all parts together."""
        figures = [Figures.from_document(finding) for finding in findings]
        return sum(figures[1:], figures[0]).document()


class _Packer(Maker):
    """Quantizes the pieces of one tensor and measures each while it is in the cache."""

    def __init__(self, recipe: Pack) -> None:
        self._recipe = recipe
        self._options = dict(recipe.options)
        common = {k: v for k, v in self._options.items() if k in ("eps_scale", "num_threads")}
        is_grid = recipe.method == "grid" and "grid_size" not in self._options
        self._judge = Judge(recipe.tensor.size, is_reference=is_grid, **common)

    def make(self, loaded: tuple[Floats, Floats | None]) -> npt.NDArray[np.uint8]:
        """Return the packed groups of a piece."""
        weights, importance = loaded
        try:
            packed = q43nl(weights, self._recipe.method, importance=importance, **self._options)
        except ValueError as error:
            problem = _unquantizable(self._recipe)
            if problem is None:
                raise
            raise problem from error
        self._judge.add(weights, packed)
        return packed

    def finding(self) -> dict[str, Any]:
        """Return the figures."""
        return self._judge.figures().document()


def _unquantizable(recipe: Pack) -> ModelFileError | None:
    """Return the error about weights of a tensor that cannot be quantized, None if all can be.

    `q43nl` saw only a piece of the tensor, so all of it is read again.
    """
    tensor = recipe.tensor
    first: float = math.nan
    first_index = count = 0
    for start, stop in piece_bounds(tensor.shape):
        bad = np.flatnonzero(_are_unquantizable(tensor.floats(start, stop), recipe))
        if bad.size and not count:
            first_index = start + int(bad[0])
            first = float(tensor.values(first_index, first_index + 1)[0])
        count += bad.size
    if not count:
        return None
    where = [int(index) for index in np.unravel_index(first_index, tensor.shape)]
    beyond = np.zeros(GROUP_SIZE, np.float32)
    beyond[0] = _LARGEST_JOINT
    further = f" ({_LARGEST_JOINT:.0f} on one side of zero)" if _is_taken(beyond, recipe) else ""
    return tensor.error(
        f"{count} of its {tensor.size} values cannot be quantized, the first is {first} at "
        f"{where}; expected finite values up to {_LARGEST_SCALE:.0f}{further}"
    )


def _are_unquantizable(weights: Floats, recipe: Pack) -> npt.NDArray[np.bool_]:
    """Return which weights are not finite, or too large in a group that the method refuses."""
    groups = weights.reshape(-1, GROUP_SIZE)
    bad: npt.NDArray[np.bool_] = ~np.isfinite(groups)
    large = np.abs(groups) > _LARGEST_SCALE
    for number in np.flatnonzero(large.any(axis=1) & ~bad.any(axis=1)):
        large[number] &= not _is_taken(groups[number], recipe)
    return (bad | large).reshape(-1)


def _is_taken(weights: Floats, recipe: Pack) -> bool:
    """Tell whether the recipe's method can quantize some weights."""
    try:
        q43nl(weights, recipe.method, **dict(recipe.options))
    except ValueError:
        return False
    return True
