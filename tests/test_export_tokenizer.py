"""The tokenizer's two tensors, the chat template and the ends of a turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")
pytest.importorskip("tqdm")

from engine_models import ENGINE, MODELS, ModelCopy, read_pieces
from hypothesis import given
from hypothesis import strategies as st
from model_files import read_raw

from q43nl_numba.convert import ModelFileError
from q43nl_numba.convert.json_file import JsonFile
from q43nl_numba.export import ExportWarning, export_model
from q43nl_numba.export.rebuilding import NotRebuiltError, rebuild_tokenizer, with_zero_byte
from q43nl_numba.export.tokenizer import (
    Tokenizer,
    build_tokenizer,
    byte_alphabet,
    parse_tokens,
    read_tokenizer,
)

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}


def tokenizer_json(
    vocab: dict[str, int], merges: Any = (), added: dict[str, int] | None = None, **more: Any
) -> JsonFile:
    model = {"type": "BPE", "vocab": vocab, "merges": list(merges), **more.pop("model", {})}
    entries = [{"id": token, "content": text} for text, token in (added or {}).items()]
    document = {"decoder": BYTE_LEVEL, "added_tokens": entries, "model": model, **more}
    return JsonFile("tokenizer.json", document)


def pieces_of(file: JsonFile, vocab_size: int) -> list[bytes]:
    return list(build_tokenizer(file, vocab_size).pieces)


SENTENCEPIECE = {"model": {"byte_fallback": True}, "decoder": None}


# Pieces


def test_the_alphabet_is_that_of_the_tokenizers_package() -> None:
    pre_tokenizers = pytest.importorskip("tokenizers").pre_tokenizers
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert set(byte_alphabet()) == set(byte_level.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))
    for text in ("".join(map(chr, range(128))), "\u00e9\u00df\u0142\u4e16\U0001f600"):
        ((written, _),) = byte_level.pre_tokenize_str(text)
        assert bytes(byte_alphabet()[character] for character in written) == text.encode()


@given(st.binary(min_size=1, max_size=12))
def test_byte_level_pieces(piece: bytes) -> None:
    characters = {byte: character for character, byte in byte_alphabet().items()}
    text = "".join(characters[byte] for byte in piece)
    assert pieces_of(tokenizer_json({text: 0}), 1) == [piece]


def test_pieces_of_sentencepiece() -> None:
    """Spaces become spaces, byte pieces stay text, which the engine decodes."""
    vocab = {"<unk>": 0, "\u2581the": 1, "<0x41>": 2, "\u00e9": 3, "\u2581\u2581": 4}
    file = tokenizer_json(vocab, **SENTENCEPIECE)
    assert pieces_of(file, 5) == [b"<unk>", b" the", b"<0x41>", "\u00e9".encode(), b"  "]


ADDED = ["<|im_end|>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<my token>", "\u0120x", "\n\n"]


@pytest.mark.parametrize("more", [{}, SENTENCEPIECE])
def test_added_tokens_are_their_own_text(more: dict[str, Any]) -> None:
    """The original passes them through the alphabet of bytes, and writes 7 for the rest."""
    added = {text: index + 1 for index, text in enumerate(ADDED)}
    file = tokenizer_json({"a": 0}, added=added, **more)
    assert pieces_of(file, 6) == [b"a", *(text.encode() for text in ADDED)]


def test_added_tokens_overwrite_the_vocabulary() -> None:
    file = tokenizer_json({"a": 0, "\u0120b": 1}, added={"<s>": 1})
    assert pieces_of(file, 2) == [b"a", b"<s>"]


def test_pieces_that_look_like_bytes_need_no_declaration() -> None:
    """Nowhere does the file say that it is byte-level; added tokens may have any characters."""
    file = tokenizer_json({"\u0120b": 0, "\u4e16": 1}, added={"\u4e16": 1}, decoder=None)
    assert pieces_of(file, 2) == [b" b", "\u4e16".encode()]


def test_padding_rows_have_no_piece() -> None:
    tokenizer = build_tokenizer(tokenizer_json({"a": 0, "c": 2}), 5)
    assert tokenizer.pieces == (b"a", b"", b"c", b"", b"")
    assert tokenizer.count == 2
    assert tokenizer.tokens_tensor().tobytes() == b"\1\0\0\0a\0\0\0\0\1\0\0\0c" + bytes(8)
    assert tokenizer.scores.tolist() == [0] * 5


def test_added_tokens_without_a_row_are_left_out(tmp_path: Path) -> None:
    copy = ModelCopy("smollm2", tmp_path / "model")
    extra = {"id": 448, "content": "<extra>", "special": True}
    copy.json("tokenizer.json", lambda file: file["added_tokens"].append(extra))
    with pytest.warns(ExportWarning, match="1 added tokens are left out.*'<extra>'"):
        report = export_model(copy.path, tmp_path / "out.st", dtype="bf16")
    assert report.tokens == 448
    assert "note" in report.table()


@given(st.lists(st.binary(max_size=9), max_size=20))
def test_tokens_there_and_back(pieces: list[bytes]) -> None:
    tokenizer = Tokenizer(tuple(pieces), np.zeros(len(pieces), np.float32))
    data = tokenizer.tokens_tensor().tobytes()
    assert list(parse_tokens(data, len(pieces))) == pieces == read_pieces(data)
    with pytest.raises(ValueError, match="must hold"):
        parse_tokens(data, len(pieces) + 1)
    with pytest.raises(ValueError, match="must hold"):
        parse_tokens(data + b"\0", len(pieces))


# Scores


@pytest.mark.parametrize("as_text", [True, False])
def test_the_first_merge_that_makes_a_piece_counts(as_text: bool) -> None:
    vocab = {text: index for index, text in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    pairs = [["b", "c"], ["a", "b"], ["ab", "c"], ["a", "bc"]]
    merges = [" ".join(pair) for pair in pairs] if as_text else pairs
    tokenizer = build_tokenizer(tokenizer_json(vocab, merges), 7)
    assert tokenizer.scores.tolist() == [0, 0, 0, -2, -1, -3, 0]
    assert tokenizer.scores.dtype == np.float32


# What is refused


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (JsonFile("t", {}), "'model' must be an object, found nothing"),
        (tokenizer_json({}, model={"type": "Unigram"}), "'type' must be 'BPE'.*found 'Unigram'"),
        (tokenizer_json({}, model={"type": "WordPiece"}), "'type' must be 'BPE'"),
        (tokenizer_json({}, model={"vocab": None}), "'type' must be 'BPE', with 'vocab'"),
        (tokenizer_json({}, model={"vocab": [["a", 0.0]]}), "'vocab' must be an object"),
        (tokenizer_json({"a": 3}), "number of the piece 'a' .* from 0 to 2 .* found 3"),
        (tokenizer_json({"a": -1}), "number of the piece 'a'"),
        (tokenizer_json({"a": "0"}), "number of the piece 'a'"),
        (tokenizer_json({"a": 1, "b": 1}), "found 'a' and 'b' with 1"),
        (tokenizer_json({"a": 0}, ["a b"]), "merge 0 makes must be in 'vocab', found 'ab'"),
        (tokenizer_json({"a": 0}, ["a"]), "merge 0 must be two pieces, found 'a'"),
        (tokenizer_json({"a": 0}, [["a", "b", "c"]]), "merge 0 must be two pieces"),
        (tokenizer_json({"a": 0}, [["a", ""]]), "merge 0 must be two pieces"),
        (tokenizer_json({"a": 0}, model={"merges": "a b"}), "'merges' must be a list"),
        (tokenizer_json({"a": 0}, added_tokens=[{"id": "x"}]), "'added_tokens' must be a list"),
        (tokenizer_json({"a": 0}, added_tokens={"id": 1}), "'added_tokens' must be a list"),
        (tokenizer_json({"\u4e16": 0}, decoder=None), "'byte_fallback' must be true.*'\u4e16'"),
        (tokenizer_json({"\ud800": 0}), "must be Unicode text"),
        (tokenizer_json({"a": 0}, model={"end_of_word_suffix": "</w>"}), "'end_of_word_suffix'"),
        (
            tokenizer_json({"a": 0}, model={"continuing_subword_prefix": "##"}),
            "'continuing_subword_prefix' must be absent",
        ),
        (tokenizer_json({"a": 0}, model={"byte_fallback": "yes"}), "'byte_fallback' must be true"),
    ],
)
def test_tokenizers_that_are_refused(file: JsonFile, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        build_tokenizer(file, 3)


def test_empty_affixes_are_none() -> None:
    affixes = {"end_of_word_suffix": "", "continuing_subword_prefix": ""}
    assert pieces_of(tokenizer_json({"a": 0}, model=affixes), 1) == [b"a"]


def test_no_tokenizer_json(tmp_path: Path) -> None:
    copy = ModelCopy("tinyllama", tmp_path / "model")
    (copy.path / "tokenizer.json").rename(copy.path / "tokenizer.model")
    with pytest.raises(ModelFileError, match=r"must hold a tokenizer\.json, found none.*Auto"):
        export_model(copy.path, tmp_path / "out.st")
    assert not (tmp_path / "out.st").exists()


def test_a_text_in_place_of_the_engine_reading(tmp_path: Path) -> None:
    """A byte-level vocabulary that has special tokens among its pieces."""
    file = tokenizer_json({"a": 0, "<\uff5cend\uff5c>": 1, "b c": 2}, decoder=BYTE_LEVEL)
    assert pieces_of(file, 3) == [b"a", "<\uff5cend\uff5c>".encode(), b"b c"]


# Chat


def exported_metadata(copy: ModelCopy) -> dict[str, str]:
    path = copy.path.parent / "out.st"
    export_model(copy.path, path, dtype="bf16")
    header, _ = read_raw(path)
    return header["__metadata__"]


@pytest.fixture
def smollm2(tmp_path: Path) -> ModelCopy:
    return ModelCopy("smollm2", tmp_path / "model")


def set_key(key: str, value: Any) -> Any:
    return lambda content: content.update({key: value})


@pytest.mark.parametrize(
    ("own", "generation", "written"),
    [
        (2, 2, "2"),
        (2, ..., "2"),
        (2, None, "2"),
        (2, [2, 5], "[2, 5]"),
        ([2, 5], 7, "[2, 5, 7]"),
        ([2], 2, "[2]"),
        (None, 3, "3"),
        (None, None, "[]"),
        (..., [7, 3], "[7, 3]"),
        (..., ..., "[]"),
    ],
)
def test_ends_of_both_files_count(
    own: Any, generation: Any, written: str, smollm2: ModelCopy
) -> None:
    """The original takes those of config.json alone."""

    def edit(content: dict[str, Any]) -> None:
        content.pop("eos_token_id")
        if generation is not ...:
            content["eos_token_id"] = generation

    smollm2.config(eos_token_id=own).json("generation_config.json", edit)
    assert exported_metadata(smollm2)["eos_token_id"] == written


def test_ends_without_a_generation_config(smollm2: ModelCopy) -> None:
    (smollm2.path / "generation_config.json").unlink()
    assert exported_metadata(smollm2)["eos_token_id"] == "2"


def test_an_end_that_is_no_token_is_noted(smollm2: ModelCopy) -> None:
    with pytest.warns(ExportWarning, match="eos_token_id 32000 is no token of the vocabulary"):
        metadata = exported_metadata(smollm2.config(eos_token_id=32000))
    assert metadata["eos_token_id"] == "[32000, 2]"


def test_no_begin(smollm2: ModelCopy) -> None:
    for value in (None, ..., -1):
        assert exported_metadata(smollm2.config(bos_token_id=value))["bos_token_id"] == "-1"


def test_the_template_of_a_file_of_its_own_counts(smollm2: ModelCopy) -> None:
    text = "{{ bos_token }}\r\n\u00e9 "
    (smollm2.path / "chat_template.jinja").write_bytes(text.encode())
    assert exported_metadata(smollm2)["chat_template"] == text
    (smollm2.path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelFileError, match=r"chat_template\.jinja: must be UTF-8"):
        exported_metadata(smollm2)


def test_the_default_of_named_templates(smollm2: ModelCopy) -> None:
    """The original writes the list's text."""
    named = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    smollm2.json("tokenizer_config.json", set_key("chat_template", named))
    assert exported_metadata(smollm2)["chat_template"] == "D"
    smollm2.json("tokenizer_config.json", set_key("chat_template", named[:1]))
    with pytest.warns(ExportWarning, match="names 'tool' and no 'default'"):
        assert "chat_template" not in exported_metadata(smollm2)


@pytest.mark.parametrize("value", [3, {"default": "D"}, ["D"], [{"name": "default"}]])
def test_templates_that_are_refused(value: Any, smollm2: ModelCopy) -> None:
    smollm2.json("tokenizer_config.json", set_key("chat_template", value))
    with pytest.raises(ModelFileError, match="'chat_template' must be a text"):
        exported_metadata(smollm2)


def test_texts_of_special_tokens(smollm2: ModelCopy) -> None:
    """Of objects the content, where the original writes their text; absent ones are left out."""
    added = {"__type": "AddedToken", "content": "<s>", "lstrip": False}
    smollm2.json("tokenizer_config.json", set_key("bos_token", added))
    smollm2.json("tokenizer_config.json", set_key("eos_token", None))
    metadata = exported_metadata(smollm2)
    assert metadata["bos_token"] == "<s>"
    assert "eos_token" not in metadata
    for value in ({"lstrip": False}, 3):
        smollm2.json("tokenizer_config.json", set_key("bos_token", value))
        with pytest.raises(ModelFileError, match="'bos_token' must be a text or an object"):
            exported_metadata(smollm2)


def test_a_folder_without_tokenizer_config(smollm2: ModelCopy) -> None:
    (smollm2.path / "tokenizer_config.json").unlink()
    assert not {"chat_template", "bos_token", "eos_token"} & set(exported_metadata(smollm2))


# Rebuilding tokenizer.json


def read_tiny(model: str) -> Tokenizer:
    vocab_size = json.loads((ENGINE / model / "config.json").read_text())["vocab_size"]
    return read_tokenizer(str(ENGINE / model), vocab_size)


@pytest.mark.parametrize("model", MODELS)
def test_a_rebuilt_tokenizer_is_the_original(model: str) -> None:
    """Vocabulary, merges and added tokens; the merges' halves are nowhere in the file."""
    rebuilt = rebuild_tokenizer(read_tiny(model))
    original = json.loads((ENGINE / model / "tokenizer.json").read_text("utf-8"))

    def pairs(merges: list[Any]) -> list[Any]:
        return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]

    def added(document: dict[str, Any]) -> dict[int, str]:
        return {entry["id"]: entry["content"] for entry in document["added_tokens"]}

    assert pairs(rebuilt["model"]["merges"]) == pairs(original["model"]["merges"])
    assert added(rebuilt) == added(original)
    of_added = {text: token for token, text in added(original).items()}
    assert rebuilt["model"]["vocab"] == {**original["model"]["vocab"], **of_added}
    assert rebuilt["model"]["byte_fallback"] == original["model"]["byte_fallback"]


@pytest.mark.parametrize("model", ["smollm2", "gemma", "qwen2"])
def test_a_rebuilt_tokenizer_gives_the_same_tokens(model: str, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    original = tokenizers.Tokenizer.from_file(str(ENGINE / model / "tokenizer.json"))
    rebuilt = tokenizers.Tokenizer.from_str(json.dumps(rebuild_tokenizer(read_tiny(model))))
    for text in ("the other end of the matter", "a b c", "caf\u00e9 \u4e16", "<unknown>"):
        ids = original.encode(text, add_special_tokens=False).ids
        assert rebuilt.encode(text).ids == ids
        assert rebuilt.decode(ids) == original.decode(ids)


def scored(pieces: list[bytes], scores: list[float]) -> Tokenizer:
    return Tokenizer(tuple(pieces), np.array(scores, np.float32))


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (scored([b"a", b"a"], [0, 0]), "found 'a' of 0 and 1"),
        (scored([b"a", b"b", b"ab"], [0, 0, -2]), "a merge twice or none"),
        (scored([b"a", b"b", b"ab", b"ba"], [0, 0, -1, -1]), "a merge twice or none"),
        (scored([b"a", b"b", b"ab", b"ba"], [0, 0, -1, -3]), "must be 2 of 'ab' from 0 on"),
        (scored([b"a", b"b", b"xy"], [0, 0, -1]), "must be 1 of 'xy'"),
    ],
)
def test_tokenizers_that_cannot_be_rebuilt(tokenizer: Tokenizer, message: str) -> None:
    with pytest.raises(NotRebuiltError, match=message):
        rebuild_tokenizer(tokenizer)


def test_added_tokens_beyond_ascii_are_rebuilt() -> None:
    """Also beside a piece of the same look that merges make."""
    pieces = [b"<", b"a", b">", b"<a", b"<a>", "<\uff5cUser\uff5c>".encode(), b"<b c>", b"\xff"]
    tokenizer = scored([*pieces, b" "], [0, 0, 0, -1, -2, 0, 0, 0, 0])
    document = rebuild_tokenizer(tokenizer)
    assert [entry["content"] for entry in document["added_tokens"]] == ["<\uff5cUser\uff5c>"]
    assert build_tokenizer(JsonFile("t", document), 9).pieces == tokenizer.pieces


def test_the_bell_of_the_original_is_undone() -> None:
    """It writes byte 0 as byte 7, so that two tokens have the same piece."""
    tokenizer = read_tiny("smollm2")
    assert with_zero_byte(tokenizer) is tokenizer
    spoiled = Tokenizer(
        tuple(piece.replace(b"\0", b"\7") for piece in tokenizer.pieces), tokenizer.scores
    )
    with pytest.raises(NotRebuiltError):
        rebuild_tokenizer(spoiled)
    assert with_zero_byte(spoiled).pieces == tokenizer.pieces
