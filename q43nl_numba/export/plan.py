"""What is written: every tensor of the engine's file, in which format, and from what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from q43nl_numba.convert.container import QTYPE, Entry, packed_shape, place, plain_entry
from q43nl_numba.export.folder import StoredTensor
from q43nl_numba.export.tensors import EngineTensor, Floats
from q43nl_numba.export.tokenizer import Tokenizer

TOKENS: Final = "tokenizer.tokens"
SCORES: Final = "tokenizer.scores"


@dataclass(frozen=True)
class Format:
    """A format of the engine's matrices: its word in the file, and what safetensors calls it."""

    word: str
    dtype: str

    @property
    def is_packed(self) -> bool:
        """Whether the quantizer makes it."""
        return self.word == QTYPE

    def entry(self, name: str, shape: tuple[int, ...]) -> Entry:
        """Return the (not yet placed) entry of a matrix.

        Packed bytes have one dimension, as the engine's own converter writes them.
        """
        if not self.is_packed:
            return replace(plain_entry(name, self.dtype, shape), qtype=self.word)
        nbytes = math.prod(packed_shape(shape))
        return Entry(name, "U8", (nbytes,), 0, nbytes, QTYPE)


#: What ``dtype`` can be. The names are those of the engine's own converter.
FORMATS: Final = {
    "q43nl": Format("Q43NL", "U8"),
    "bf16": Format("BF16", "BF16"),
    "fp16": Format("FP16", "F16"),
    "fp32": Format("FP32", "F32"),
}


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the output: its entry there, and what it is made from."""

    target: Entry
    tensor: EngineTensor
    stored: StoredTensor

    @property
    def is_matrix(self) -> bool:
        """Whether the tensor is stored in the file's format."""
        return self.tensor.is_matrix

    def pieces(self) -> Iterator[Floats]:
        """Yield the engine's float32 values of the tensor, whole rows at a time."""
        tensor = self.tensor
        rows = self.stored.rows_of(tensor.first_row, tensor.shape[0], tensor.rows_together)
        for piece in rows:
            ordered = piece if tensor.rotary is None else tensor.rotary.to_engine(piece)
            yield tensor.affine.to_engine(ordered)


@dataclass(frozen=True)
class Plan:
    """All tensors of the output, placed; the tokenizer's two come ready."""

    tensors: tuple[OutputTensor, ...]
    tokens: Entry
    scores: Entry

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries in the order of the header."""
        return (*(tensor.target for tensor in self.tensors), self.tokens, self.scores)


def plan_output(
    resolved: Sequence[tuple[EngineTensor, StoredTensor]], tokenizer: Tokenizer, chosen: Format
) -> Plan:
    """Place every tensor of the output, without gaps and float32 first.

    Stock readers want no gaps; float32 data stay aligned when the packed bytes, of any length,
    come after them.
    """
    entries = [
        chosen.entry(tensor.name, tensor.shape)
        if tensor.is_matrix
        else plain_entry(tensor.name, "F32", tensor.shape)
        for tensor, _ in resolved
    ]
    count = len(tokenizer.tokens_tensor())
    entries.append(Entry(TOKENS, "U8", (count,), 0, count))
    entries.append(plain_entry(SCORES, "F32", tokenizer.scores.shape))
    *targets, tokens, scores = place(entries)
    return Plan(
        tuple(
            OutputTensor(target, tensor, stored)
            for target, (tensor, stored) in zip(targets, resolved, strict=True)
        ),
        tokens,
        scores,
    )
