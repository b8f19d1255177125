"""Open GGUF files: stored and quantized tensors under Hugging Face's names."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from .container import Header, plain_entry
from .errors import optional_package, tensor_error
from .gguf_names import hugging_face_name, original_rows, permuted_heads
from .gguf_reader import read_gguf
from .model import Model, ModelFile
from .tensors import Array, RowPermutation, SourceFile, StoredTensor, Tensor

#: The types of GGUF that are stored as safetensors stores them.
_STORED: Final = {
    "F64": "F64", "F32": "F32", "F16": "F16", "BF16": "BF16",
    "I8": "I8", "I16": "I16", "I32": "I32", "I64": "I64",
}  # fmt: skip

#: What quantized tensors count as: their values need more than 16 bits.
_DEQUANTIZED: Final = "F32"

#: Transformers insists on knowing that tensors are laid out as PyTorch's.
_METADATA: Final = {"format": "pt"}


@dataclass(frozen=True)
class GgufTensor(Tensor):
    """A quantized tensor of a GGUF file, decoded by the gguf package to float32.

    `block` elements are stored in `block_bytes`.
    """

    file: SourceFile
    offset: int
    kind: str
    block: int
    block_bytes: int

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The file that it is read from."""
        return (self.file,)

    @property
    def nbytes(self) -> int:
        """Number of its bytes in the file."""
        return self.size // self.block * self.block_bytes

    def values(self, start: int, stop: int) -> Array:
        """Return decoded elements."""
        first, last = start // self.block, -(-stop // self.block)
        nbytes = (last - first) * self.block_bytes
        data = self.file.read(self.offset + first * self.block_bytes, nbytes)
        gguf = optional_package("gguf")
        kind = gguf.GGMLQuantizationType[self.kind]
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
            decoded: Array = gguf.dequantize(data.reshape(1, -1), kind).reshape(-1)
        return decoded[start - first * self.block : stop - first * self.block]


def open_gguf(path: str) -> Model:
    """Open a GGUF file.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        If it is not sound, or holds a type that the gguf package cannot decode.
    ModuleNotFoundError
        If the gguf package is missing.
    """
    file = SourceFile.at(path)
    gguf = optional_package("gguf")
    architecture, heads, kv_heads, stored = read_gguf(path, _contents)
    tensors: dict[str, Tensor] = {}
    for info in stored:
        tensor = _tensor(gguf, file, info)
        permuted = permuted_heads(architecture, tensor.name, heads, kv_heads)
        if permuted is not None:
            tensor = _in_original_order(tensor, permuted)
        name = hugging_face_name(architecture, tensor.name)
        if name in tensors:
            raise tensor_error(path, name, "is there more than once")
        tensors[name] = replace(tensor, name=name)
    return Model(path, (_model_file(path, file, tensors),), tensors)


def _contents(reader: Any) -> tuple[str, int, int, list[Any]]:
    """Return the architecture, its numbers of heads, and what the reader knows of the tensors."""
    architecture = _text(reader, "general.architecture")
    heads = _number(reader, f"{architecture}.attention.head_count")
    kv_heads = _number(reader, f"{architecture}.attention.head_count_kv") or heads
    return architecture, heads, kv_heads, list(reader.tensors)


def _model_file(path: str, file: SourceFile, tensors: Mapping[str, Tensor]) -> ModelFile:
    """Return the file with the header that a safetensors file of the same tensors has."""
    entries = tuple(
        tensor.entry if isinstance(tensor, StoredTensor)
        else plain_entry(tensor.name, tensor.dtype, tensor.shape)
        for tensor in tensors.values()
    )  # fmt: skip
    header = Header(path, entries, dict(_METADATA), 0, file.nbytes)
    return ModelFile(os.path.basename(path), file, header)


def _tensor(gguf: Any, file: SourceFile, info: Any) -> Tensor:
    """Return one tensor; its dimensions are listed from the innermost on."""
    name = str(info.name)
    shape = tuple(int(size) for size in reversed(info.shape))
    kind = info.tensor_type.name
    offset, nbytes = int(info.data_offset), int(info.n_bytes)
    block, block_bytes = gguf.GGML_QUANT_SIZES[info.tensor_type]
    size = math.prod(shape)
    if size % block or nbytes != size // block * block_bytes or offset + nbytes > file.nbytes:
        raise tensor_error(file.path, name, f"{kind} {list(shape)} does not fit the file")
    if kind in _STORED:
        return StoredTensor(name, _STORED[kind], shape, file, offset, nbytes)
    tensor = GgufTensor(name, _DEQUANTIZED, shape, file, offset, kind, block, block_bytes)
    try:
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), info.tensor_type)
    except NotImplementedError:
        raise tensor.error(f"is of type {kind}, which the gguf package cannot decode") from None
    return tensor


def _in_original_order(tensor: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's permutation of the rows of a projection."""
    rows = tensor.shape[0] if tensor.size else 0
    if heads < 1 or rows < 1 or rows % (2 * heads):
        raise tensor.error(f"has {rows} rows, expected a multiple of twice its {heads} heads")
    return RowPermutation.of(tensor, original_rows(rows, heads))


def _text(reader: Any, key: str) -> str:
    """Return a text of the metadata, or nothing."""
    field = reader.fields.get(key)
    return "" if field is None else str(field.contents())


def _number(reader: Any, key: str) -> int:
    """Return a number of the metadata, 0 where there is none or one for each layer."""
    field = reader.fields.get(key)
    content = None if field is None else field.contents()
    return int(content) if isinstance(content, (int, np.integer)) else 0
