"""Copy the packed bytes that `packing` made into the target, and judge them on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import GROUP_BYTES, GROUP_SIZE
from ..convert.job import Maker, Piece, Recipe
from ..convert.judging import Judge
from ..convert.tensors import Tensor, piece_bounds
from .forward import Floats

__all__ = ["CopyPacked"]


@dataclass(frozen=True)
class CopyPacked(Recipe):
    """Groups that were packed before, judged against the weights as `convert.packing.Pack` does.

    Attributes
    ----------
    tensor : Tensor
        The weights.
    packed : Tensor
        Their groups, as bytes in the same order.
    method : str
        The method that made them.
    options : tuple of (str, value)
        Keyword arguments of `q43nl` that they were made with.
    """

    tensor: Tensor
    packed: Tensor
    method: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def source_bytes(self) -> int:
        """Number of bytes of the tensor."""
        return self.tensor.nbytes

    def pieces(self) -> Sequence[Piece]:
        """Return ranges of elements."""
        return piece_bounds(self.tensor.shape)

    def load(self, piece: Piece) -> tuple[Floats, npt.NDArray[np.uint8]]:
        """Read weights and their packed groups."""
        first, last = (element // GROUP_SIZE * GROUP_BYTES for element in piece)
        return self.tensor.floats(*piece), self.packed.values(first, last)

    def maker(self) -> Maker:
        """Return a maker that judges and copies."""
        return _Judged(self)


class _Judged(Maker):
    """Copies packed groups and measures what they cost."""

    def __init__(self, recipe: CopyPacked) -> None:
        options = dict(recipe.options)
        common = {key: options[key] for key in ("eps_scale", "num_threads") if key in options}
        self._judge = Judge(recipe.tensor.size, is_reference=False, **common)

    def make(self, loaded: tuple[Floats, npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        """Return the groups of a piece."""
        weights, packed = loaded
        self._judge.add(weights, packed)
        return packed

    def finding(self) -> dict[str, Any]:
        """Return the figures."""
        return self._judge.figures().document()
