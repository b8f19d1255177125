"""The engine's tokenizer: two tensors, out of ``tokenizer.json``.

``tokenizer.tokens`` has for every token of the vocabulary its length (uint32, little-endian) and
its bytes; ``tokenizer.scores`` has a float32 for each, by which the engine merges: the i-th merge
gives the piece it makes the score -(1 + i), every other piece has 0.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from ..convert.companions import companion
from ..convert.errors import ModelFileError
from ..convert.json_file import JsonFile, is_integer, read_json

#: How SentencePiece writes a space.
META_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

FILE_NAME = "tokenizer.json"
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Tokenizer:
    """What the engine knows of a tokenizer.

    ``pieces[i]`` are the bytes of token i, empty where there is none; ``scores[i]`` is its score.
    ``notes`` say what was left out.
    """

    pieces: tuple[bytes, ...]
    scores: npt.NDArray[np.float32]
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of tokens that have a piece."""
        return sum(map(bool, self.pieces))

    def tokens_tensor(self) -> npt.NDArray[np.uint8]:
        """Return the bytes of ``tokenizer.tokens``."""
        parts = (_LENGTH.pack(len(piece)) + piece for piece in self.pieces)
        return np.frombuffer(b"".join(parts), np.uint8)


def parse_tokens(data: bytes, vocab_size: int) -> tuple[bytes, ...]:
    """Return the pieces of ``tokenizer.tokens``.

    Raises
    ------
    ValueError
        If the bytes are not those of `vocab_size` pieces; the message is the second half of a
        sentence.
    """
    pieces, position = [], 0
    for token in range(vocab_size):
        begin = position + _LENGTH.size
        if begin > len(data):
            raise ValueError(f"must hold {vocab_size} pieces, found {token}")
        (length,) = _LENGTH.unpack_from(data, position)
        position = begin + length
        pieces.append(data[begin:position])
    if position != len(data):
        raise ValueError(f"must hold {position} bytes for its pieces, found {len(data)}")
    return tuple(pieces)


def read_tokenizer(folder: str, vocab_size: int) -> Tokenizer:
    """Read the tokenizer of a model folder.

    Raises
    ------
    ModelFileError
        If there is no ``tokenizer.json``, or it is not a BPE tokenizer that the engine can follow.
    """
    path = companion(folder, FILE_NAME)
    if path is None:
        raise ModelFileError(
            f"{folder}: must hold a {FILE_NAME}, found none; AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(...) of transformers makes one of other tokenizer files"
        )
    return build_tokenizer(read_json(path), vocab_size)


def build_tokenizer(file: JsonFile, vocab_size: int) -> Tokenizer:
    """Return the engine's tokenizer of the contents of a ``tokenizer.json``.

    Raises
    ------
    ModelFileError
        As `read_tokenizer`.
    """
    model = file.part("model")
    if model is None:
        raise file.error("model", "an object")
    _check_model(model)
    vocabulary = _vocabulary(model, vocab_size)
    added, notes = _added_tokens(file, vocab_size)
    if model.flag("byte_fallback"):
        to_bytes = _meta_space_bytes
    else:
        _check_byte_level(file, model, vocabulary, set(added.values()))
        to_bytes = byte_level_bytes
    pieces = [b""] * vocab_size
    try:
        for text, token in vocabulary.items():
            pieces[token] = to_bytes(text)
        for token, text in added.items():
            pieces[token] = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ModelFileError(f"{file.path}: a piece must be Unicode text, found {error}") from error
    return Tokenizer(tuple(pieces), _scores(model, vocabulary, vocab_size), notes)


@cache
def byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    The printable bytes stand for themselves, the others in ascending order for U+0100 and so on
    (source: GPT-2's tokenizer).
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


def byte_level_bytes(text: str) -> bytes:
    r"""Return the bytes of a byte-level piece; a piece outside of the alphabet means its own text.

    >>> byte_level_bytes("Ġthe"), byte_level_bytes("Ā"), byte_level_bytes("<a b>")
    (b' the', b'\x00', b'<a b>')
    """
    alphabet = byte_alphabet()
    if all(character in alphabet for character in text):
        return bytes(alphabet[character] for character in text)
    return text.encode("utf-8")


def _meta_space_bytes(text: str) -> bytes:
    """Return the bytes of a SentencePiece-like piece; the engine itself decodes ``<0x41>``."""
    return text.replace(META_SPACE, " ").encode("utf-8")


def _check_model(model: JsonFile) -> None:
    """Refuse what is no byte-pair encoding as the engine does it."""
    if model.get("type") not in ("BPE", None) or "vocab" not in model or "merges" not in model:
        raise model.error("type", "'BPE', with 'vocab' and 'merges'")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise model.error(key, "absent: the engine does not know it")


def _vocabulary(model: JsonFile, vocab_size: int) -> dict[str, int]:
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict):
        raise model.error("vocab", "an object")
    seen: dict[int, str] = {}
    for text, token in vocabulary.items():
        if not is_integer(token) or not 0 <= token < vocab_size:
            raise ModelFileError(
                f"{model.path}: the number of the piece {text!r} in 'vocab' must be from 0 to "
                f"{vocab_size - 1} (vocab_size - 1), found {token!r}"
            )
        if token in seen:
            raise ModelFileError(
                f"{model.path}: every number in 'vocab' must have one piece, found "
                f"{seen[token]!r} and {text!r} with {token}"
            )
        seen[token] = text
    return vocabulary


def _added_tokens(file: JsonFile, vocab_size: int) -> tuple[dict[int, str], tuple[str, ...]]:
    """Return the added tokens by number, and a note about those without a row to embed them."""
    entries = file.get("added_tokens") or []
    added: dict[int, str] = {}
    outside = []
    for entry in entries if isinstance(entries, list) else [entries]:
        token = entry.get("id") if isinstance(entry, dict) else None
        text = entry.get("content") if isinstance(entry, dict) else None
        if not is_integer(token) or token < 0 or not isinstance(text, str):
            raise file.error("added_tokens", "a list of objects with 'id' and 'content'")
        if token < vocab_size:
            added[token] = text
        else:
            outside.append(text)
    if not outside:
        return added, ()
    names = ", ".join(map(repr, outside[:5])) + (", ..." if len(outside) > 5 else "")
    return added, (
        f"{len(outside)} added tokens are left out, the embedding has no row for them: {names}",
    )


def _check_byte_level(
    file: JsonFile, model: JsonFile, vocabulary: Iterable[str], added: set[str]
) -> None:
    """Refuse pieces that are no bytes in a tokenizer that nowhere says that it is byte-level."""
    parts = [file.get(key) for key in ("pre_tokenizer", "decoder", "post_processor")]
    if "ByteLevel" in json.dumps(parts):
        return
    alphabet = byte_alphabet()
    for text in vocabulary:
        if text not in added and any(character not in alphabet for character in text):
            raise ModelFileError(
                f"{model.path}: 'byte_fallback' must be true, or the pieces be byte-level, "
                f"found the piece {text!r}"
            )


def _scores(
    model: JsonFile, vocabulary: dict[str, int], vocab_size: int
) -> npt.NDArray[np.float32]:
    """Return the scores; the first merge that makes a piece counts."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise model.error("merges", "a list")
    scores = np.zeros(vocab_size, np.float32)
    for index, merge in enumerate(merges):
        made = "".join(_halves(model, index, merge))
        if made not in vocabulary:
            raise ModelFileError(
                f"{model.path}: what merge {index} makes must be in 'vocab', found {made!r}"
            )
        token = vocabulary[made]
        if not scores[token]:
            scores[token] = -(1 + index)
    return scores


def _halves(model: JsonFile, index: int, merge: object) -> list[str]:
    """Return the two pieces of a merge, which is written as a list or with a space between."""
    halves = merge.split(" ") if isinstance(merge, str) else merge
    if (
        isinstance(halves, list)
        and len(halves) == 2
        and all(isinstance(half, str) and half for half in halves)
    ):
        return halves
    raise ModelFileError(f"{model.path}: merge {index} must be two pieces, found {merge!r}")
