"""A ``tokenizer.json`` for the engine's tokenizer: as exact as the file allows.

The file keeps pieces and the order of merges, not which two pieces a merge joins, and nothing of
how text is cut into words. The two pieces follow from the order (source: how tiktoken's ranks are
turned into merges); words are cut by the engine's own expression. What cannot be found without a
guess that would change the engine's tokens is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from .tokenizer import META_SPACE, Tokenizer, byte_alphabet

#: How the engine cuts text into words.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_PIECES = frozenset(f"<0x{byte:02X}>".encode() for byte in range(256))

#: What the engine recognizes as one token in a prompt.
_SPECIAL = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")
_UNKNOWN = "<unk>"


class NotRebuiltError(ValueError):
    """The tokenizer cannot be rebuilt; the message says why."""


def rebuild_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the contents of a ``tokenizer.json`` that exports to the same tokenizer.

    Raises
    ------
    NotRebuiltError
        If two tokens share a piece, a piece is no text, or the merges leave a gap.
    """
    by_bytes = set(tokenizer.pieces) >= _BYTE_PIECES
    special = {
        token: piece.decode("utf-8")
        for token, piece in enumerate(tokenizer.pieces)
        if not tokenizer.scores[token] and _is_special(piece)
    }
    texts = [
        special[token] if token in special else _text(piece, by_bytes)
        for token, piece in enumerate(tokenizer.pieces)
    ]
    vocabulary: dict[str, int] = {}
    for token, text in enumerate(texts):
        if not text:
            continue
        if text in vocabulary:
            raise NotRebuiltError(
                f"every piece must be of one token, found {text!r} of {vocabulary[text]} and "
                f"{token}"
            )
        vocabulary[text] = token
    merges = _merges(tokenizer.scores, texts, vocabulary)
    return _document(vocabulary, merges, special, by_bytes)


def with_zero_byte(tokenizer: Tokenizer) -> Tokenizer:
    r"""Undo that the engine's own converter writes the piece of byte 0 as that of byte 7.

    Byte-level vocabularies have both, so the first of two pieces ``b"\x07"`` was byte 0.
    """
    bell = [token for token, piece in enumerate(tokenizer.pieces) if piece == b"\x07"]
    if len(bell) != 2 or b"\0" in tokenizer.pieces:
        return tokenizer
    pieces = list(tokenizer.pieces)
    pieces[bell[0]] = b"\0"
    return Tokenizer(tuple(pieces), tokenizer.scores)


def _text(piece: bytes, by_bytes: bool) -> str:
    """Return how a vocabulary of this kind writes a piece."""
    if by_bytes:
        try:
            return piece.decode("utf-8").replace(" ", META_SPACE)
        except UnicodeDecodeError as error:
            raise NotRebuiltError(f"a piece must be UTF-8 text, found {piece!r}") from error
    characters = {byte: character for character, byte in byte_alphabet().items()}
    return "".join(characters[byte] for byte in piece)


def _is_special(piece: bytes) -> bool:
    """Tell whether the engine recognizes a piece that no merge makes; it is an added token then."""
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return _SPECIAL.fullmatch(text) is not None and piece not in _BYTE_PIECES


def _merges(
    scores: npt.NDArray[np.float32], texts: Sequence[str], vocabulary: dict[str, int]
) -> list[list[str]]:
    """Return merges of which the first that makes each piece has the index its score says."""
    made = {int(-scores[token]) - 1: texts[token] for token in np.flatnonzero(scores).tolist()}
    first = {text: index for index, text in made.items()}
    order = sorted(made)
    if len(made) < np.count_nonzero(scores) or (order and order[0] != 0):
        raise NotRebuiltError("the scores must be those of merges, found a merge twice or none")
    merges: list[list[str]] = []
    for index, following in pairwise([*order, order[-1] + 1 if order else 0]):
        merges += _splits(made[index], index, following - index, first, vocabulary)
    return merges


def _splits(
    text: str, index: int, count: int, first: dict[str, int], vocabulary: dict[str, int]
) -> list[list[str]]:
    """Return `count` ways to merge a piece; a vocabulary of SentencePiece lists all of them."""
    halves = [[text[:cut], text[cut:]] for cut in range(1, len(text))]
    possible = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
    if len(possible) < count:
        raise NotRebuiltError(
            f"the merges must be {count} of {text!r} from {index} on, found {len(possible)}"
        )
    possible.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    if len(possible) == count:
        return possible
    joined = _last_pair(text, index, first)
    if joined in possible:  # the pair that the merges before it leave
        possible.remove(joined)
        possible.insert(0, joined)
    return possible[:count]


def _last_pair(text: str, index: int, first: dict[str, int]) -> list[str]:
    """Merge the characters of a piece by the merges before `index`, and return what is left."""
    parts = list(text)
    while len(parts) > 2:
        ranks = [first.get(a + b, index) for a, b in pairwise(parts)]
        lowest = min(ranks)
        if lowest >= index:
            break
        at = ranks.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _document(
    vocabulary: dict[str, int], merges: list[list[str]], special: dict[int, str], by_bytes: bool
) -> dict[str, Any]:
    """Return the file's contents; the engine puts no space before a text, so this does not."""
    if by_bytes:
        around: dict[str, Any] = {
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": META_SPACE},
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": META_SPACE}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                ],
            },
        }
    else:
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        split = {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Isolated"}
        around = {
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {**split, "invert": False},
                    {**byte_level, "use_regex": False},
                ],
            },
            "post_processor": None,
            "decoder": {**byte_level, "use_regex": False},
        }
    unknown = _UNKNOWN if by_bytes and _UNKNOWN in vocabulary else None
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(token, text) for token, text in special.items()],
        **around,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": unknown is not None,
            "byte_fallback": by_bytes,
            "ignore_merges": not by_bytes,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _added(token: int, text: str) -> dict[str, Any]:
    """Return the entry of an added token."""
    return {
        "id": token,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
