"""What a conversation needs: the chat template, and the tokens that begin and end a turn."""

from __future__ import annotations

from dataclasses import dataclass

from ..convert.companions import companion, read_text
from ..convert.json_file import JsonFile, is_integer, read_companion

#: What the engine takes for "no such token".
NO_TOKEN = -1

_TEMPLATE_FILE = "chat_template.jinja"
_DEFAULT_TEMPLATE = "default"


@dataclass(frozen=True)
class Chat:
    """The part of the metadata that only conversations need.

    ``eos_token_id`` is an integer or a list, as the engine's own converter would write it.
    ``notes`` say what could not be taken over.
    """

    bos_token_id: int
    eos_token_id: int | list[int]
    template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    notes: tuple[str, ...] = ()

    def texts(self) -> dict[str, str]:
        """Return the metadata of the texts that there are."""
        texts = {
            "chat_template": self.template,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
        }
        return {key: text for key, text in texts.items() if text is not None}


def read_chat(folder: str, config: JsonFile, vocab_size: int) -> Chat:
    """Read what a conversation needs from a model folder.

    The ends of a turn are those of ``config.json`` and of ``generation_config.json`` together:
    chat models often end a turn with a token that only the latter knows.

    Raises
    ------
    ModelFileError
        If a token is no token of the vocabulary, or a text is none.
    """
    generation = read_companion(folder, "generation_config.json")
    tokenizer = read_companion(folder, "tokenizer_config.json")
    template, notes = _template(folder, tokenizer)
    ends, end_notes = _end_tokens(config, generation, vocab_size)
    return Chat(
        bos_token_id=_begin_token(config, vocab_size),
        eos_token_id=ends,
        template=template,
        bos_token=_token_text(tokenizer, "bos_token"),
        eos_token=_token_text(tokenizer, "eos_token"),
        notes=(*notes, *end_notes),
    )


def _begin_token(config: JsonFile, vocab_size: int) -> int:
    token = config.get("bos_token_id")
    if token is None:
        return NO_TOKEN
    if not is_integer(token) or not NO_TOKEN <= token < vocab_size:
        # the engine looks it up in the embedding
        raise config.error("bos_token_id", f"null or an integer from -1 to {vocab_size - 1}")
    return int(token)


def _end_tokens(
    config: JsonFile, generation: JsonFile, vocab_size: int
) -> tuple[int | list[int], tuple[str, ...]]:
    """Return the union of both files' ends: one integer stays one, as in ``config.json``."""
    own, more = _token_list(config), _token_list(generation)
    ends = list(dict.fromkeys([*own, *more]))
    notes = tuple(
        f"eos_token_id {token} is no token of the vocabulary of {vocab_size}, it never ends a turn"
        for token in ends
        if token >= vocab_size
    )
    is_list = isinstance(config.get("eos_token_id"), list)
    return (ends[0] if len(ends) == 1 and not is_list else ends), notes


def _token_list(source: JsonFile) -> list[int]:
    value = source.get("eos_token_id")
    tokens = value if isinstance(value, list) else [] if value is None else [value]
    if any(not is_integer(token) or token < 0 for token in tokens):
        raise source.error("eos_token_id", "null, a token's number or a list of them")
    return [int(token) for token in tokens]


def _template(folder: str, tokenizer: JsonFile) -> tuple[str | None, tuple[str, ...]]:
    """Return the chat template: that of the file of its own, else that of the tokenizer."""
    path = companion(folder, _TEMPLATE_FILE)
    if path is not None:
        return read_text(path), ()
    value = tokenizer.get("chat_template")
    if value is None or isinstance(value, str):
        return value, ()
    return _named_template(tokenizer, value)


def _named_template(tokenizer: JsonFile, value: object) -> tuple[str | None, tuple[str, ...]]:
    """Return the template named ``default`` of several."""
    expected = "a text, or a list of objects with 'name' and 'template'"
    if not isinstance(value, list):
        raise tokenizer.error("chat_template", expected)
    templates: dict[str, str] = {}
    for entry in value:
        name = entry.get("name") if isinstance(entry, dict) else None
        text = entry.get("template") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not isinstance(text, str):
            raise tokenizer.error("chat_template", expected)
        templates[name] = text
    if _DEFAULT_TEMPLATE in templates:
        return templates[_DEFAULT_TEMPLATE], ()
    names = ", ".join(map(repr, templates)) or "none"
    return None, (
        f"no chat template is written: {tokenizer.path} names {names} and no 'default'; "
        "the engine takes that of the family it recognizes",
    )


def _token_text(tokenizer: JsonFile, key: str) -> str | None:
    """Return the text of a special token, which may be an object that holds it as ``content``."""
    value = tokenizer.get(key)
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise tokenizer.error(key, "a text or an object with 'content'")
    if value is not None and text is None:
        raise tokenizer.error(key, "a text or an object with 'content'")
    return text
