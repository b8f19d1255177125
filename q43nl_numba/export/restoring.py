"""`restore_model`: from the engine's file back to a Hugging Face folder."""

from __future__ import annotations

import json
import os
import time
from typing import Any, Final

import numpy as np

from .. import __version__, dequantize
from ..convert.companions import companion
from ..convert.container import plain_entry
from ..convert.errors import ModelFileError
from ..convert.job import FilePlan, Step
from ..convert.json_file import JsonFile, read_json
from ..convert.model import CONFIG_NAME, INDEX_NAME
from ..convert.output import whole_file
from ..convert.run import OnProgress, write_folder
from ..convert.shards import index_text, parse_size, shard_names, split_by_size
from ..convert.tensors import StoredTensor
from .architectures import architecture_of
from .chat import read_chat
from .checks import OUTPUT
from .engine_file import EngineFile, read_engine_file
from .metadata import build_metadata, read_dimensions
from .model_config import model_config, tokenizer_config
from .rebuilding import NotRebuiltError, rebuild_tokenizer, with_zero_byte
from .report import FolderReport
from .tensors import EngineTensor
from .tokenizer import FILE_NAME, Tokenizer, build_tokenizer, read_tokenizer
from .values import FiniteCast, FolderValues

_DTYPES: Final = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

#: The choices of ``dtype`` in `restore_model`.
RESTORE_DTYPES: tuple[str, ...] = tuple(_DTYPES)

_TOKENIZER_CONFIG: Final = "tokenizer_config.json"

#: What a folder holds beside the weights, for `like`.
_COMPANIONS: Final = (
    CONFIG_NAME,
    "generation_config.json",
    FILE_NAME,
    _TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)

#: transformers refuses a file without it.
_METADATA: Final = (("format", "pt"),)


def restore_model(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    like: str | os.PathLike[str] | None = None,
    max_shard_size: int | str | None = None,
    resume: bool = False,
    progress: OnProgress | None = None,
    num_threads: int | None = None,
) -> FolderReport:
    """Bring an engine file back to a Hugging Face folder that transformers opens.

    Tensors get their names, the order of their rows and their scale back; their values are what
    the engine computes with. In float32, `export_model` of the folder by the "grid" or "exact"
    method writes the same bytes as the file has, if it was written by that method.

    The file does not hold all of a folder. ``config.json`` is written from the metadata.
    ``tokenizer.json`` is rebuilt where that gives the same tokens and scores again; it cuts text
    into words by the engine's expression. The report's notes say what was not found. With `like`
    these files are copied from the original folder instead.

    Parameters
    ----------
    path : path
        The engine's file, in Q43NL, BF16, FP16 or FP32.
    folder : path
        The folder to write; it must be a new or an empty one.
    dtype : {"float32", "bfloat16", "float16"}
        The dtype of all tensors. Values of Q43NL are exact in float32 only.
    like : path, optional
        The folder that the file was exported from; its configuration must give the file's
        metadata, and its tokenizer the file's.
    max_shard_size : int or str, optional
        Write files of at most so many bytes of data: a number, or a string such as "5GB". By
        default there is one file.
    resume : bool
        Go on with an interrupted run that wrote the same folder, if there is one.
    progress : callable, optional
        Called with a `Progress` (bytes read, bytes to read, name of the tensor) after each piece.
    num_threads : int, optional
        Threads for decoding, as in `dequantize`.

    Returns
    -------
    FolderReport
        What was written, and notes about what the file does not tell.

    Raises
    ------
    OSError
        If a file cannot be read or written.
    ModelFileError
        If `path` is no sound engine file of an architecture and a format known here, `like` is not
        the folder it was made from, `folder` cannot be written, or the interrupted run was another
        one.
    ValueError, TypeError
        If `dtype` is not one of the choices, or another argument is out of range.
    """
    started = time.perf_counter()
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, found {dtype!r}")
    dequantize(np.empty(0, np.uint8), num_threads=num_threads)  # checks the argument
    limit = None if max_shard_size is None else parse_size(max_shard_size)
    file = read_engine_file(os.fspath(path))
    tokenizer = file.tokenizer()
    plans = _weight_plans(file, _DTYPES[dtype], limit, num_threads)
    if like is None:
        companions, notes = _written_companions(file, tokenizer, dtype)
    else:
        companions, notes = _copied_companions(os.fspath(like), file, tokenizer), []
    if len(plans) > 1:
        companions[INDEX_NAME] = index_text(plans, {}).encode()

    def finish(made: str) -> None:
        for name, content in companions.items():
            with whole_file(os.path.join(made, name)) as output:
                output.write(content)

    written = write_folder(
        plans,
        os.fspath(folder),
        _description(file, dtype, limit),
        finish,
        resume=resume,
        progress=progress,
    )
    return FolderReport(
        path=os.fspath(folder),
        class_name=file.architecture.class_name,
        word=file.format.word,
        tensors=sum(len(plan.steps) for plan in plans),
        weights=sum(tensor.size for tensor, _ in file.tensors),
        files=(*companions, *(plan.name for plan in plans)),
        bytes_in=file.file.nbytes,
        bytes_out=sum(part.nbytes for part in written),
        seconds=time.perf_counter() - started,
        notes=tuple(notes),
    )


def _weight_plans(
    file: EngineFile, dtype: str, limit: int | None, num_threads: int | None
) -> tuple[FilePlan, ...]:
    """Return the plans of the folder's files of weights; tensors in the order of the engine's."""
    parts: dict[str, list[tuple[EngineTensor, StoredTensor]]] = {}
    for tensor, stored in file.tensors:
        parts.setdefault(tensor.source, []).append((tensor, stored))
    steps = {}
    for name, together in parts.items():
        values = FolderValues.of(together, num_threads)
        steps[name] = Step(plain_entry(name, dtype, values.shape), FiniteCast(values, dtype))
    entries = [step.target for step in steps.values()]
    groups = [entries] if limit is None else split_by_size(entries, limit)
    return tuple(
        FilePlan(name, tuple(steps[entry.name] for entry in group), _METADATA)
        for name, group in zip(shard_names(len(groups)), groups, strict=True)
    )


def _description(file: EngineFile, dtype: str, limit: int | None) -> dict[str, Any]:
    """Return what decides about the bytes."""
    return {
        "version": __version__,
        "input": [
            {
                "path": file.file.path,
                "bytes": file.file.nbytes,
                "modified_ns": file.file.modified_ns,
            }
        ],
        "arguments": {"command": "restore", "dtype": dtype, "max_shard_size": limit},
    }


# The files beside the weights


def _written_companions(
    file: EngineFile, tokenizer: Tokenizer, dtype: str
) -> tuple[dict[str, bytes], list[str]]:
    """Return what the file tells of the configuration and the tokenizer, and notes about that."""
    tied = all(tensor.source != OUTPUT for tensor, _ in file.tensors)
    files = {
        CONFIG_NAME: model_config(file, tied=tied, torch_dtype=dtype),
        _TOKENIZER_CONFIG: tokenizer_config(file),
    }
    notes = [
        f"{CONFIG_NAME} and {_TOKENIZER_CONFIG} hold what the file tells, not all of the original"
    ]
    corrected = with_zero_byte(tokenizer)
    try:
        rebuilt = rebuild_tokenizer(corrected)
        _check_rebuilt(rebuilt, corrected)
    except NotRebuiltError as error:
        notes.append(
            f"no {FILE_NAME} is written, it could not be rebuilt: {error}; "
            "copy the original's, or name its folder by 'like'"
        )
    else:
        files[FILE_NAME] = rebuilt
        notes.append(
            f"{FILE_NAME} is rebuilt: the same tokens and merges, words cut by the engine's "
            "expression instead of the original's"
        )
    texts = {
        name: json.dumps(content, ensure_ascii=False, indent=2) for name, content in files.items()
    }
    return {name: (text + "\n").encode() for name, text in texts.items()}, notes


def _check_rebuilt(rebuilt: dict[str, Any], expected: Tokenizer) -> None:
    """Export what was rebuilt, and compare."""
    try:
        found = build_tokenizer(JsonFile(FILE_NAME, rebuilt), len(expected.pieces))
    except ModelFileError as error:
        raise NotRebuiltError(str(error)) from error
    if not _same_tokenizer(found, expected):
        raise NotRebuiltError("the same tokens and scores must come out again, found others")


def _copied_companions(like: str, file: EngineFile, tokenizer: Tokenizer) -> dict[str, bytes]:
    """Return the original's files, after checking that the engine file was made from it."""
    config = read_json(os.path.join(like, CONFIG_NAME))
    architecture = architecture_of(config)
    dims = read_dimensions(config, architecture)
    chat = read_chat(like, config, dims.vocab_size)
    expected = build_metadata(config, architecture, dims, chat, file.format.word)
    found = file.header.metadata
    for key, text in expected.items():
        if found.get(key) != text:
            raise ModelFileError(
                f"{file.header.path}: metadata key {key!r} must be {text!r:.80} as in {like}, "
                f"found {found.get(key)!r:.80}"
            )
    if not _same_tokenizer(read_tokenizer(like, dims.vocab_size), with_zero_byte(tokenizer)):
        raise ModelFileError(
            f"{file.header.path}: the tokenizer must be that of {like}, found another"
        )
    files = {}
    for name in _COMPANIONS:
        path = companion(like, name)
        if path is not None:
            with open(path, "rb") as content:
                files[name] = content.read()
    return files


def _same_tokenizer(one: Tokenizer, other: Tokenizer) -> bool:
    """Tell whether two tokenizers have the same pieces and scores."""
    return one.pieces == other.pieces and np.array_equal(one.scores, other.scores)
