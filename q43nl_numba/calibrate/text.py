"""Text for calibration and evaluation: read, cut into tokens, and those into windows."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from ..convert.companions import companion
from .errors import CalibrationError, package

__all__ = ["DEFAULT_WINDOW", "Text", "Windows", "built_in_text", "cut_windows", "read_text"]

#: Tokens of a window, as in llama.cpp: long enough that most tokens have the context they need,
#: short enough that attention costs little.
DEFAULT_WINDOW = 512

TOKENIZER_FILE = "tokenizer.json"
_BUILT_IN = "built_in_text.txt"

#: The class of what Python sees of a panic in Rust (package pyo3), which no module exports.
_PANIC = "PanicException"

#: Characters that are read for every token that is asked for: no common text has more.
_MOST_CHARACTERS = 16


@dataclass(frozen=True)
class Text:
    """Text and the names of the files it came from."""

    content: str
    sources: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the text in UTF-8."""
        return hashlib.sha256(self.content.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class Windows:
    """Token ids, int32 ``[windows, length]``, and what is known of the text they are from."""

    ids: npt.NDArray[np.int32]
    text: Text

    @property
    def tokens(self) -> int:
        """Number of tokens of all windows together."""
        return int(self.ids.size)

    @property
    def length(self) -> int:
        """Tokens of one window."""
        return int(self.ids.shape[1])


def built_in_text() -> Text:
    """Return the small text that is used where the caller has none."""
    content = resources.files(__package__).joinpath(_BUILT_IN).read_text(encoding="utf-8")
    return Text(content, ("built-in text",))


def read_text(files: Sequence[str | os.PathLike[str]]) -> Text:
    """Read UTF-8 text files, one after another.

    Raises
    ------
    OSError
        If a file cannot be read.
    CalibrationError
        If one is not UTF-8, or there is nothing but white space in all of them.
    """
    parts = [_read_file(os.fspath(file)) for file in files]
    content = "\n".join(parts)
    names = tuple(os.path.basename(os.fspath(file)) for file in files)
    if not content.strip():
        raise CalibrationError(f"text must not be empty, found no word in {', '.join(names)}")
    return Text(content, names)


def _read_file(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        try:
            return file.read()
        except UnicodeDecodeError as error:
            raise CalibrationError(f"{path}: must be text in UTF-8, found {error}") from error


def cut_windows(
    folder: str | os.PathLike[str],
    text: Text,
    tokens: int,
    *,
    window: int = DEFAULT_WINDOW,
    vocab_size: int,
) -> Windows:
    """Cut text into windows of equally many tokens.

    The windows are spread evenly over the text; of one that is much longer than needed, only
    excerpts are cut into tokens. Where the model's tokenizer puts tokens before a text (Llama's
    beginning of text), every window begins with them.

    Parameters
    ----------
    folder : path
        The model folder, for its ``tokenizer.json``.
    text : Text
        What to cut.
    tokens : int
        Tokens to take, at most; rounded down to whole windows, but at least one.
    window : int
        Tokens of a window, at least 2.
    vocab_size : int
        Number of token ids that the model knows.

    Raises
    ------
    CalibrationError
        If the folder has no usable tokenizer, the text is shorter than a window, or a token is
        not in the model's vocabulary.
    """
    if window < 2:
        raise CalibrationError(f"window must be at least 2 tokens, found {window}")
    if tokens < window:
        raise CalibrationError(f"tokens must be at least one window of {window}, found {tokens}")
    tokenizer = _load_tokenizer(os.fspath(folder))
    path = os.path.join(folder, TOKENIZER_FILE)
    with _panics_named(path):
        prefix = _prefix(tokenizer)
    length = window - len(prefix)
    if length < 1:
        raise CalibrationError(
            f"window must be longer than the {len(prefix)} tokens that begin a text, found {window}"
        )
    with _panics_named(path):
        cut = _cut(tokenizer, text.content, tokens // window, length)
        found = (
            0 if len(cut) else len(_encode(tokenizer, text.content[: _MOST_CHARACTERS * length]))
        )
    if not len(cut):
        raise CalibrationError(
            f"text must have at least one window of {length} tokens, "
            f"found {found} in {', '.join(text.sources)}"
        )
    highest = max(int(cut.max()), *prefix, 0)
    if highest >= vocab_size:
        raise CalibrationError(
            f"{path}: token ids must be below the model's "
            f"vocabulary size {vocab_size}, found {highest}"
        )
    begin = np.tile(np.array(prefix, np.int64), (len(cut), 1))
    return Windows(np.concatenate([begin, cut], axis=1).astype(np.int32), text)


def _cut(tokenizer: Any, content: str, count: int, length: int) -> npt.NDArray[np.int64]:
    """Return at most `count` windows of `length` tokens, spread evenly over the text."""
    excerpt = _MOST_CHARACTERS * length
    if len(content) > count * excerpt:
        begins = (len(content) * i // count for i in range(count))
        parts = [_encode(tokenizer, content[begin : begin + excerpt]) for begin in begins]
        whole = [part[:length] for part in parts if len(part) >= length]
        return np.array(whole, np.int64).reshape(-1, length)
    ids = np.array(_encode(tokenizer, content), np.int64)
    available = ids.size // length
    count = min(count, available)
    middles = (2 * np.arange(count) + 1) * available // (2 * max(count, 1))
    return ids[: available * length].reshape(available, length)[middles]


def _load_tokenizer(folder: str) -> Any:
    """Load the tokenizer of a folder, and see that it cuts a text at all."""
    path = companion(folder, TOKENIZER_FILE)
    if path is None:
        raise CalibrationError(f"{folder}: must have a {TOKENIZER_FILE}, found none")
    tokenizers = package("tokenizers")
    with _panics_named(path):
        return tokenizers.Tokenizer.from_file(path)


@contextlib.contextmanager
def _panics_named(path: str) -> Iterator[None]:
    """Turn what the package tokenizers raises into the error about the file.

    It raises no narrower kinds, and a panic of its Rust code is not even an Exception.
    """
    try:
        yield
    except BaseException as error:
        is_panic = type(error).__name__ == _PANIC
        if isinstance(error, MemoryError) or not (is_panic or isinstance(error, Exception)):
            raise
        raise CalibrationError(f"{path}: must be a tokenizer, found {error}") from error


def _encode(tokenizer: Any, content: str) -> list[int]:
    ids: list[int] = tokenizer.encode(content, add_special_tokens=False).ids
    return ids


def _prefix(tokenizer: Any) -> list[int]:
    """Return the token ids that the tokenizer puts before a text."""
    plain = _encode(tokenizer, "a")
    with_special: list[int] = tokenizer.encode("a").ids
    for begin in range(len(with_special) - len(plain) + 1):
        if with_special[begin : begin + len(plain)] == plain:
            return with_special[:begin]
    return []
