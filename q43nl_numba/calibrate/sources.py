"""Where a model's weights come from: any tensor, or some of its rows, as float32.

The forward pass sees a `WeightSource`, which is a model's tensors under their Hugging Face names. A
kind of file is one function of this module that returns them; what ``convert`` or ``export`` packed
is decoded when it is read. A tensor is read when it is asked for and kept by nobody here. An
infinity or NaN is refused where it is read, so that the error names the tensor that is damaged and
not one that the forward pass meets later.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .. import GROUP_BYTES, GROUP_SIZE, dequantize
from ..convert.dtypes import FLOATING
from ..convert.model import Model, open_model
from ..convert.quantized import find_scales
from ..convert.record import Record, is_converted
from ..convert.tensors import Array, ScaledTensor, SourceFile, StoredTensor, Tensor
from ..export.engine_file import is_engine_file, read_engine_file
from ..export.tensors import EngineTensor
from ..export.values import FolderValues
from .config import CONFIG_FILE, ModelConfig, expected_shapes, read_config
from .errors import ModelFileError

__all__ = ["WeightSource", "check_tensors", "open_weights"]

Floats = npt.NDArray[np.float32]


class WeightSource:
    """Reads the weights of one model.

    Parameters
    ----------
    path : str
        The file or folder, for errors.
    tensors : mapping of str to Tensor
        Its tensors under their Hugging Face names.
    """

    def __init__(self, path: str, tensors: Mapping[str, Tensor]) -> None:
        self.path = path
        self._tensors = tensors

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor's weights, or None where there is no such tensor."""
        tensor = self._tensors.get(name)
        return None if tensor is None else tensor.shape

    def rows(self, name: str, begin: int, end: int) -> Floats:
        """Return some rows of a tensor; of one with a single dimension, elements.

        Raises
        ------
        ModelFileError
            If there is no such tensor, it does not hold floating numbers, or one of those that are
            read is not finite.
        """
        tensor = self._found(name)
        columns = math.prod(tensor.shape[1:])
        shape = (end - begin, *tensor.shape[1:])
        values = tensor.floats(begin * columns, end * columns).reshape(shape)
        _check_finite(tensor, values, begin)
        return values

    def tensor(self, name: str) -> Floats:
        """Return a whole tensor."""
        shape = self._found(name).shape
        return self.rows(name, 0, shape[0] if shape else 1).reshape(shape)

    def _found(self, name: str) -> Tensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{self.path}: must have a tensor {name!r}, found none")
        if tensor.dtype not in FLOATING:
            raise tensor.error(f"dtype must be one of {', '.join(FLOATING)}, found {tensor.dtype}")
        return tensor


def _check_finite(tensor: Tensor, values: Floats, first_row: int) -> None:
    """Check some rows of a tensor; the error says where the first infinity or NaN is."""
    is_finite = np.isfinite(values)
    if not is_finite.all():
        row, *rest = (int(index) for index in np.argwhere(~is_finite)[0])
        found = values[(row, *rest)]
        raise tensor.error(
            f"its weights must be finite, found {found} at {[first_row + row, *rest]}"
        )


def check_tensors(source: WeightSource, config: ModelConfig) -> None:
    """Check that a model has every tensor that its configuration asks for, in the right shape.

    Raises
    ------
    ModelFileError
        If a tensor is missing or has another shape.
    """
    for name, expected in expected_shapes(config).items():
        found = source.shape(name)
        if found != expected:
            problem = "none" if found is None else f"one of shape {list(found)}"
            raise ModelFileError(
                f"{source.path}: must have a tensor {name!r} of shape {list(expected)}, "
                f"found {problem}"
            )


def config_of(path: str | os.PathLike[str], otherwise: ModelConfig) -> ModelConfig:
    """Return the configuration of a folder; of a file, which has none, that of its original."""
    return read_config(path) if os.path.isfile(os.path.join(path, CONFIG_FILE)) else otherwise


# ---------------------------------------------------------------------------------------------
# Kinds of models
# ---------------------------------------------------------------------------------------------


def open_weights(path: str | os.PathLike[str]) -> WeightSource:
    """Open a model: a folder or a safetensors file, converted or not, an engine's or a GGUF file.

    Raises
    ------
    OSError
        If a file cannot be read.
    ModelFileError
        If it is no model folder and no sound model file.
    """
    model = open_model(path)
    kind = next(read for is_kind, read in _KINDS if is_kind(model))
    return WeightSource(model.path, kind(model))


def _is_converted(model: Model) -> bool:
    return any(is_converted(file.header) for file in model.files)


def _decoded_tensors(model: Model) -> Mapping[str, Tensor]:
    """Return the tensors of a model that ``convert`` made, each packed one decoded."""
    records = {file.file.path: Record(file.header) for file in model.files}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.tensors.items():
        if isinstance(tensor, StoredTensor):
            original = records[tensor.file.path].original(tensor.entry)
            if original.packed:
                tensor = DecodedTensor(name, "F32", original.shape, tensor)
        tensors[name] = tensor
    return tensors


def _is_engine_file(model: Model) -> bool:
    return len(model.files) == 1 and is_engine_file(model.files[0].header)


def _engine_tensors(model: Model) -> Mapping[str, Tensor]:
    """Return the tensors of the folder that ``export`` made an engine file of."""
    parts: dict[str, list[tuple[EngineTensor, StoredTensor]]] = {}
    for tensor, stored in read_engine_file(model.files[0].file.path).tensors:
        parts.setdefault(tensor.source, []).append((tensor, stored))
    return {name: FolderValues.of(found, None) for name, found in parts.items()}


def _scaled_tensors(model: Model) -> Mapping[str, Tensor]:
    """Return the tensors of a model as it was published, 8-bit floats times their scales."""
    scaled: dict[str, Tensor] = {}
    for name, scale in find_scales(model.tensors).items():
        tensor = model.tensors[name]
        if isinstance(tensor, StoredTensor):
            scaled[name] = ScaledTensor.of(tensor, scale)
    return {**model.tensors, **scaled}


#: What tells a kind of model, and what returns its tensors; the first that fits counts.
_KINDS: tuple[tuple[Callable[[Model], bool], Callable[[Model], Mapping[str, Tensor]]], ...] = (
    (_is_engine_file, _engine_tensors),
    (_is_converted, _decoded_tensors),
    (lambda _: True, _scaled_tensors),
)


@dataclass(frozen=True)
class DecodedTensor(Tensor):
    """The weights that a packed tensor decodes to; ranges must begin and end at groups."""

    packed: StoredTensor

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The file of the packed bytes."""
        return self.packed.files

    @property
    def nbytes(self) -> int:
        """Number of packed bytes."""
        return self.packed.nbytes

    def values(self, start: int, stop: int) -> Array:
        """Return decoded weights as float32."""
        first, last = start // GROUP_SIZE * GROUP_BYTES, stop // GROUP_SIZE * GROUP_BYTES
        decoded: Array = dequantize(self.packed.stored_bytes(first, last))
        return decoded
