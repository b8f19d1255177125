"""`inspect_model`: what an engine file is, and what its tensors cost."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Any

from .._text import number, printable
from ..convert.contents import FileContents, inspect
from ..convert.errors import ModelFileError
from .engine_file import EngineFile, read_engine_file
from .plan import SCORES, TOKENS

#: Lines of the description: a title, and the metadata keys that it shows.
_DESCRIPTION = (
    ("layers", "n_layers"),
    ("width", "dim"),
    ("feed-forward", "hidden_dim"),
    ("heads", "n_heads"),
    ("of keys and values", "n_kv_heads"),
    ("experts", "n_experts"),
    ("vocabulary", "vocab_size"),
    ("context", "max_seq_len"),
)


@dataclass(frozen=True)
class EngineContents:
    """What an engine file holds.

    Attributes
    ----------
    arch, word : str
        The engine's words for the architecture and for the format of the matrices.
    class_name : str or None
        The architecture by transformers' name, None where it is not known here.
    tokens : int or None
        Number of tokens that have a piece, None where the tokenizer cannot be read.
    file : FileContents
        The tensors; packed ones have the shape of their weights where the architecture is known.
    problem : str
        What is wrong with the file, or not known here; empty for a sound file.
    """

    arch: str
    word: str
    class_name: str | None
    tokens: int | None
    file: FileContents
    problem: str = ""

    @property
    def weights(self) -> int:
        """Number of weights; the tokenizer's two tensors hold none."""
        return sum(
            math.prod(tensor.shape)
            for tensor in self.file.tensors
            if tensor.name not in (TOKENS, SCORES)
        )

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole file, tokenizer and all, for each weight."""
        return self.file.file_bytes * 8 / self.weights if self.weights else math.nan

    @property
    def tied(self) -> bool:
        """Whether the engine multiplies with the embedding at the output."""
        return all(tensor.name != "model.output.weight" for tensor in self.file.tensors)

    def document(self) -> dict[str, Any]:
        """Return the contents as nested data, for programs."""
        return {
            **self.file.document(),
            "arch": self.arch,
            "class_name": self.class_name,
            "dtype": self.word,
            "tokens": self.tokens,
            "tied": self.tied,
            "weights": self.weights,
            "bits_per_weight": self.bits_per_weight,
            "problem": self.problem,
        }

    def table(self, *, sparklines: bool = True, whole: bool = False) -> str:
        """Return the contents as text: a description, then metadata and tensors.

        Parameters
        ----------
        sparklines, whole : bool
            As in `FileContents.table`.
        """
        lines = [self._model_line(), self._numbers_line(), self._cost_line()]
        if self.problem:
            lines.append(f"problem {printable(self.problem)}")
        return "\n".join([*lines, "", self.file.table(sparklines=sparklines, whole=whole)])

    def _model_line(self) -> str:
        name = self.class_name or "an architecture that is not known here"
        tokens = "no readable tokenizer" if self.tokens is None else f"{self.tokens:,} tokens"
        tied = "output tied to the embedding" if self.tied else "output of its own"
        template = "" if "chat_template" in self.file.metadata else "no "
        return (
            f"engine  {printable(self.arch)} ({name}) in {printable(self.word)}, {tokens}, "
            f"{template}chat template, {tied}"
        )

    def _numbers_line(self) -> str:
        metadata = self.file.metadata
        parts = [
            f"{title} {printable(metadata[key])}" for title, key in _DESCRIPTION if key in metadata
        ]
        return f"model   {', '.join(parts)}"

    def _cost_line(self) -> str:
        return (
            f"total   {self.weights:,} weights, {self.file.file_bytes:,} bytes, "
            f"{number(self.bits_per_weight)} bits per weight with the tokenizer"
        )


def inspect_model(path: str | os.PathLike[str]) -> EngineContents:
    """Tell what is in an engine file, written by `export_model` or by the engine's own converter.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    EngineContents
        The model's description and a record for every tensor. A file that the engine would misread
        is described too; `problem` says what is wrong.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        If it is not a sound safetensors file.
    """
    contents = inspect(path)
    problem, tokens, file = "", None, None
    try:
        file = read_engine_file(contents.path)
        tokens = file.tokenizer().count
    except ModelFileError as error:
        problem = str(error)
    return EngineContents(
        arch=contents.metadata.get("arch", ""),
        word=contents.metadata.get("dtype", ""),
        class_name=None if file is None else file.architecture.class_name,
        tokens=tokens,
        file=contents if file is None else _with_shapes(contents, file),
        problem=problem,
    )


def _with_shapes(contents: FileContents, file: EngineFile) -> FileContents:
    """Give packed tensors, which are stored as bytes in a row, the shape of their weights."""
    shapes = {tensor.name: tensor.shape for tensor, _ in file.tensors}
    tensors = tuple(
        replace(tensor, shape=shapes.get(tensor.name, tensor.shape)) for tensor in contents.tensors
    )
    return replace(contents, tensors=tensors)
