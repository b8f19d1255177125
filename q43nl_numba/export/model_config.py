"""``config.json`` out of the engine's metadata: the way back of `metadata`."""

from __future__ import annotations

import ast
import re
from typing import Any

from ..convert.errors import ModelFileError
from ..convert.json_file import LARGEST_INTEGER
from .architectures.architecture import SLIDING, Architecture
from .engine_file import EngineFile

#: The engine computes the tanh form of GELU.
_ACTIVATIONS = {"gelu": "gelu_pytorch_tanh"}

#: What the metadata's values look like: a number or a word, or a list of some. Nothing else is
#: given to Python's parser, which deep nesting would end.
_ITEM = r"(?:[-+]?\w[\w.]*(?:[-+]\d+)?|'\w*')"
_LITERAL = re.compile(rf"{_ITEM}|\[(?:{_ITEM}(?:, {_ITEM})*)?\]")

_TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def model_config(file: EngineFile, *, tied: bool, torch_dtype: str) -> dict[str, Any]:
    """Return a configuration that exports to the metadata of an engine file.

    Raises
    ------
    ModelFileError
        If a value of the metadata cannot be read.
    """
    dims, architecture = file.dims, file.architecture
    metadata = file.header.metadata
    values = _Literals(file.header.path, metadata)
    begin = values.read("bos_token_id", -1)
    config: dict[str, Any] = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "hidden_size": dims.dim,
        "intermediate_size": dims.hidden_dim,
        "head_dim": dims.head_dim,
        "num_hidden_layers": dims.n_layers,
        "num_attention_heads": dims.n_heads,
        "num_key_value_heads": dims.n_kv_heads,
        "vocab_size": dims.vocab_size,
        "max_position_embeddings": dims.max_seq_len,
        "bos_token_id": None if begin == -1 else begin,
        "eos_token_id": values.read("eos_token_id", []) or None,
        "pad_token_id": None,  # the default of some classes is no token of a small vocabulary
        "rope_theta": values.read("rope_theta", 10000.0),
        "rms_norm_eps": values.read("norm_eps", 1e-5),
        "hidden_act": _ACTIVATIONS.get(metadata.get("act_type", "silu"), metadata.get("act_type")),
        "tie_word_embeddings": tied,
        "torch_dtype": torch_dtype,
    }
    for key in ("attention_bias", "attention_dropout", "qk_norm"):
        if key in metadata:
            config[key] = values.read(key, None)
    config |= _windows(values, architecture)
    return config | architecture.config_keys(metadata, dims)


def tokenizer_config(file: EngineFile) -> dict[str, Any]:
    """Return what the metadata knows of ``tokenizer_config.json``."""
    metadata = file.header.metadata
    config: dict[str, Any] = {
        "tokenizer_class": _TOKENIZER_CLASS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.dims.max_seq_len,
    }
    texts = ("bos_token", "eos_token", "chat_template")
    return config | {key: metadata[key] for key in texts if key in metadata}


def _windows(values: _Literals, architecture: Architecture) -> dict[str, Any]:
    """Return the keys of sliding attention; without one transformers must not take its default."""
    kinds = values.read_list("attention_types", str)
    sizes = values.read_list("sliding_window_sizes", int)
    if kinds is None:
        return {"sliding_window": None}
    sliding = [size for kind, size in zip(kinds, sizes or [], strict=False) if kind == SLIDING]
    window = {
        "sliding_window": sliding[0] if sliding else None,
        "use_sliding_window": bool(sliding),
    }
    if len(sliding) == len(kinds) and not architecture.reads_layer_types:
        return window
    return {"layer_types": list(kinds), **window}


class _Literals:
    """The metadata's values, which are Python's text of them."""

    def __init__(self, path: str, metadata: dict[str, str]) -> None:
        self._path = path
        self._metadata = metadata

    def read(self, key: str, default: Any) -> Any:
        text = self._metadata.get(key)
        if text is None:
            return default
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        try:
            value = ast.literal_eval(text if _LITERAL.fullmatch(text) else "")
        except (ValueError, SyntaxError):
            value = None
        if not _is_plain(value):
            raise ModelFileError(
                f"{self._path}: metadata key {key!r} must be a number, a list or True or False, "
                f"found {text!r:.80}"
            )
        return value

    def read_list(self, key: str, kind: type) -> list[Any] | None:
        """Return a list of items of a type, None where there is none."""
        value = self.read(key, None)
        if value is None or (isinstance(value, list) and all(type(v) is kind for v in value)):
            return value
        raise ModelFileError(
            f"{self._path}: metadata key {key!r} must be a list of {kind.__name__}, "
            f"found {value!r:.80}"
        )


def _is_plain(value: Any) -> bool:
    """Tell whether a value is a finite number, True or False, or a list of numbers or words."""
    if isinstance(value, list):
        return all(isinstance(item, str) or _is_plain(item) for item in value)
    return isinstance(value, int | float) and abs(value) <= LARGEST_INTEGER
