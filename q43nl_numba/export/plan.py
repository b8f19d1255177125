"""What is written: every tensor of the engine's file, in which format, and from what."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ..convert.container import QTYPE, Entry, packed_shape, plain_entry
from ..convert.importance import Importance
from ..convert.job import Literal, Recipe, Step
from ..convert.packing import Pack
from ..convert.plan import Decision
from ..convert.tensors import Tensor
from .tensors import IDENTITY, EngineTensor
from .tokenizer import Tokenizer
from .values import EngineValues, FiniteCast

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

#: Returns the importance of a tensor of the folder that is quantized, or None.
ImportanceOf = Callable[[Decision], Importance | None]


def plan_steps(
    resolved: Sequence[tuple[EngineTensor, Decision]],
    tokenizer: Tokenizer,
    chosen: Format,
    importance_of: ImportanceOf,
) -> tuple[Step, ...]:
    """Return the steps of the engine's file, in the order of its own converter."""
    return tuple(_steps(resolved, tokenizer, chosen, importance_of))


def _steps(
    resolved: Sequence[tuple[EngineTensor, Decision]],
    tokenizer: Tokenizer,
    chosen: Format,
    importance_of: ImportanceOf,
) -> Iterator[Step]:
    """Yield the steps."""
    for tensor, decision in resolved:
        if not tensor.is_matrix:
            entry = plain_entry(tensor.name, "F32", tensor.shape)
        else:
            entry = chosen.entry(tensor.name, tensor.shape)
        yield Step(entry, _recipe(tensor, decision, entry, importance_of))
    tokens = tokenizer.tokens_tensor().tobytes()
    yield Step(Entry(TOKENS, "U8", (len(tokens),), 0, len(tokens)), Literal(tokens))
    scores = tokenizer.scores.astype("<f4")
    yield Step(plain_entry(SCORES, "F32", scores.shape), Literal(scores.tobytes()))


def _recipe(
    tensor: EngineTensor, decision: Decision, entry: Entry, importance_of: ImportanceOf
) -> Recipe:
    """Return how the bytes of one tensor are made."""
    values = EngineValues.of(decision.tensor, tensor)
    treatment = decision.treatment
    if entry.qtype != QTYPE or treatment is None:
        return FiniteCast(values, entry.dtype)
    importance = _permuted(importance_of(decision), decision.tensor, tensor)
    return Pack(values, treatment.method, treatment.options, importance)


def _permuted(
    importance: Importance | None, source: Tensor, tensor: EngineTensor
) -> Importance | None:
    """Cut and order importance like the rows; a number for each column serves every row.

    What `affine` does to the weights leaves it alone: it multiplies all errors of a tensor by the
    same number.
    """
    if importance is None:
        return None
    values = importance.values
    if values.shape == source.shape:
        values = EngineValues.of(values, replace(tensor, affine=IDENTITY))
    return Importance(values, tensor.shape)
