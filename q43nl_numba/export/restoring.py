"""`restore_model`: from the engine's file back to a Hugging Face folder."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from q43nl_numba import GROUP_BYTES, GROUP_SIZE, dequantize
from q43nl_numba.convert.container import Entry, header_bytes, place, plain_entry
from q43nl_numba.convert.dtypes import numpy_dtype
from q43nl_numba.convert.errors import ModelFileError, tensor_error
from q43nl_numba.convert.output import whole_file
from q43nl_numba.convert.reading import PIECE_WEIGHTS, TensorReader
from q43nl_numba.export.architectures import architecture_of
from q43nl_numba.export.chat import read_chat
from q43nl_numba.export.checks import OUTPUT
from q43nl_numba.export.config import JsonFile, read_json
from q43nl_numba.export.engine_file import EngineFile, read_engine_file, read_tokens
from q43nl_numba.export.folder import CONFIG, SINGLE
from q43nl_numba.export.metadata import build_metadata, read_dimensions
from q43nl_numba.export.model_config import model_config, tokenizer_config
from q43nl_numba.export.rebuilding import NotRebuiltError, rebuild_tokenizer, with_zero_byte
from q43nl_numba.export.report import FolderReport
from q43nl_numba.export.tensors import EngineTensor, Floats
from q43nl_numba.export.tokenizer import FILE_NAME, Tokenizer, build_tokenizer, read_tokenizer

_DTYPES: Final = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

#: The choices of ``dtype`` in `restore_model`.
RESTORE_DTYPES: tuple[str, ...] = tuple(_DTYPES)

_TOKENIZER_CONFIG: Final = "tokenizer_config.json"

#: What a folder holds beside the weights, for `like`.
_COMPANIONS: Final = (
    CONFIG,
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
_METADATA: Final = {"format": "pt"}


def restore_model(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    like: str | os.PathLike[str] | None = None,
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
        The folder to write; there must be none yet.
    dtype : {"float32", "bfloat16", "float16"}
        The dtype of all tensors. Values of Q43NL are exact in float32 only.
    like : path, optional
        The folder that the file was exported from; its configuration must give the file's
        metadata, and its tokenizer the file's.
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
        the folder it was made from, or `folder` exists.
    ValueError
        If `dtype` is not one of the choices, or num_threads is out of range.
    """
    started = time.perf_counter()
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, found {dtype!r}")
    file = read_engine_file(os.fspath(path))
    folder = os.fspath(folder)
    tied = all(tensor.source != OUTPUT for tensor in file.tensors)
    with TensorReader(file.header) as reader, _whole_folder(folder) as made:
        tokenizer = read_tokens(reader, file.entries, file.dims.vocab_size)
        if like is None:
            files, notes = _write_companions(made, file, tokenizer, tied=tied, dtype=dtype)
        else:
            files, notes = _copy_companions(os.fspath(like), made, file, tokenizer), []
        sources = _sources(file, _DTYPES[dtype])
        weights_path = os.path.join(made, SINGLE)
        with whole_file(weights_path) as output:
            output.write(
                header_bytes(weights_path, [source.entry for source in sources], _METADATA)
            )
            for source in sorted(sources, key=lambda source: source.entry.begin):
                for tensor in source.parts:
                    for piece in _folder_pieces(reader, file, tensor, num_threads):
                        output.write(_cast(file, tensor, piece, source.entry).data)
        bytes_out = os.path.getsize(weights_path)
    return FolderReport(
        path=folder,
        class_name=file.architecture.class_name,
        word=file.format.word,
        tensors=len(sources),
        weights=sum(source.entry.size for source in sources),
        files=(*files, SINGLE),
        bytes_in=os.path.getsize(os.fspath(path)),
        bytes_out=bytes_out,
        seconds=time.perf_counter() - started,
        notes=tuple(notes),
    )


# The weights


@dataclass(frozen=True)
class _Source:
    """A tensor of the folder, and the engine's tensors that its rows come from, in order."""

    entry: Entry
    parts: tuple[EngineTensor, ...]


def _sources(file: EngineFile, dtype: str) -> list[_Source]:
    """Return the folder's tensors in the order of the engine's."""
    parts: dict[str, list[EngineTensor]] = {}
    for tensor in file.tensors:
        parts.setdefault(tensor.source, []).append(tensor)
    entries = place(
        plain_entry(name, dtype, together[0].source_shape) for name, together in parts.items()
    )
    return [
        _Source(entry, tuple(sorted(parts[entry.name], key=lambda tensor: tensor.first_row)))
        for entry in entries
    ]


def _folder_pieces(
    reader: TensorReader, file: EngineFile, tensor: EngineTensor, num_threads: int | None
) -> Iterator[Floats]:
    """Yield the folder's float32 values of a tensor, whole rows (and heads) at a time."""
    for rows in _engine_pieces(reader, file, tensor, num_threads):
        ordered = rows if tensor.rotary is None else tensor.rotary.from_engine(rows)
        yield tensor.affine.from_engine(ordered)


def _engine_pieces(
    reader: TensorReader, file: EngineFile, tensor: EngineTensor, num_threads: int | None
) -> Iterator[Floats]:
    """Yield the values that the engine computes with."""
    entry = file.entries[tensor.name]
    columns = tensor.size // tensor.shape[0]
    together = tensor.rows_together
    count = max(PIECE_WEIGHTS // (columns * together), 1) * together
    shape = (-1, *tensor.shape[1:])
    if tensor.is_matrix and file.format.is_packed:
        row_bytes = columns // GROUP_SIZE * GROUP_BYTES
        for part in reader.bytes_of(entry, count * row_bytes):
            yield dequantize(part, num_threads=num_threads).reshape(shape)
        return
    dtype = numpy_dtype(entry.dtype)
    for part in reader.bytes_of(entry, count * columns * dtype.itemsize):
        yield part.view(dtype).reshape(shape).astype(np.float32)


def _cast(
    file: EngineFile, tensor: EngineTensor, values: Floats, target: Entry
) -> npt.NDArray[np.uint8]:
    with np.errstate(over="ignore"):
        cast = values.astype(numpy_dtype(target.dtype))
    lost = ~np.isfinite(cast.astype(np.float32))
    if lost.any():
        raise tensor_error(
            file.header.path, tensor.name,
            f"its values must fit {target.dtype}, found {values[lost][0]}",
        )  # fmt: skip
    return cast.reshape(-1).view(np.uint8)


# The files beside the weights


def _write_companions(
    folder: str, file: EngineFile, tokenizer: Tokenizer, *, tied: bool, dtype: str
) -> tuple[list[str], list[str]]:
    """Write what the file tells of the configuration and the tokenizer; return names and notes."""
    files = {
        CONFIG: model_config(file, tied=tied, torch_dtype=dtype),
        _TOKENIZER_CONFIG: tokenizer_config(file),
    }
    notes = [f"{CONFIG} and {_TOKENIZER_CONFIG} hold what the file tells, not all of the original"]
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
    for name, content in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as output:
            json.dump(content, output, ensure_ascii=False, indent=2)
    return list(files), notes


def _check_rebuilt(rebuilt: dict[str, Any], expected: Tokenizer) -> None:
    """Export what was rebuilt, and compare."""
    try:
        found = build_tokenizer(JsonFile(FILE_NAME, rebuilt), len(expected.pieces))
    except ModelFileError as error:
        raise NotRebuiltError(str(error)) from error
    if not _same_tokenizer(found, expected):
        raise NotRebuiltError("the same tokens and scores must come out again, found others")


def _copy_companions(like: str, folder: str, file: EngineFile, tokenizer: Tokenizer) -> list[str]:
    """Copy the original's files, after checking that the engine file was made from it."""
    config = read_json(os.path.join(like, CONFIG))
    architecture = architecture_of(config)
    dims = read_dimensions(config, architecture)
    chat = read_chat(like, config, dims.vocab_size)
    expected = build_metadata(config, architecture, dims, chat, file.format.word)
    found = file.header.metadata
    for key in ("arch", "dim", "n_layers", *expected):
        if found.get(key) != expected.get(key):
            raise ModelFileError(
                f"{file.header.path}: metadata key {key!r} must be {expected.get(key)!r:.80} as in "
                f"{like}, found {found.get(key)!r:.80}"
            )
    if not _same_tokenizer(read_tokenizer(like, dims.vocab_size), with_zero_byte(tokenizer)):
        raise ModelFileError(
            f"{file.header.path}: the tokenizer must be that of {like}, found another"
        )
    names = [name for name in _COMPANIONS if os.path.isfile(os.path.join(like, name))]
    for name in names:
        shutil.copyfile(os.path.join(like, name), os.path.join(folder, name))
    return names


def _same_tokenizer(one: Tokenizer, other: Tokenizer) -> bool:
    return one.pieces == other.pieces and np.array_equal(one.scores, other.scores)


@contextlib.contextmanager
def _whole_folder(path: str) -> Iterator[str]:
    """Make a folder that appears under its name only when the block ends without an exception."""
    target = os.path.abspath(path)
    if os.path.lexists(target):
        raise ModelFileError(f"{path}: must be a folder that does not exist yet, found one")
    temporary = os.path.join(os.path.dirname(target), f".q43nl-{secrets.token_hex(8)}.tmp")
    os.mkdir(temporary)
    try:
        yield temporary
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
