"""tokenizer.json, as the export reads it and as calibration does."""

from __future__ import annotations

import functools
from pathlib import Path

import harness

with harness.instrumented():
    from q43nl_numba.calibrate.text import Text, cut_windows
    from q43nl_numba.export.tokenizer import parse_tokens, read_tokenizer

from engine_models import ENGINE

_VOCABULARY = 512
_TEXT = Text("the model's text of 3 words\n" * 40, ("text",))


@functools.cache
def seeds() -> list[bytes]:
    """Return tokenizers of both kinds: byte-level and like SentencePiece's."""
    models = ("smollm2", "gemma", "qwen2")
    return [(ENGINE / model / "tokenizer.json").read_bytes() for model in models]


def read(folder: Path, data: bytes) -> None:
    """Read a tokenizer in both ways."""
    (folder / "tokenizer.json").write_bytes(data)
    harness.try_all((lambda: _export(folder), lambda: _calibrate(folder)))


def _export(folder: Path) -> None:
    tokenizer = read_tokenizer(str(folder), _VOCABULARY)
    tensor = tokenizer.tokens_tensor().tobytes()
    assert parse_tokens(tensor, _VOCABULARY) == tokenizer.pieces


def _calibrate(folder: Path) -> None:
    cut_windows(folder, _TEXT, 64, window=16, vocab_size=_VOCABULARY)


READER = harness.Reader("tokenizer", seeds, read, harness.mutate_json)

if __name__ == "__main__":
    harness.main(READER)
