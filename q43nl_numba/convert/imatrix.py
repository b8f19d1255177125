"""Importance from the files of llama.cpp's ``llama-imatrix``, under Hugging Face names.

Two forms exist. GGUF, since 2025: for every matrix ``NAME.in_sum2``, the sums of the squares of
its input columns, and ``NAME.counts``, how many inputs were summed; of the experts of a layer,
which llama.cpp keeps in one tensor, a row each. The older ``.dat``, little-endian: int32 number of
entries; for each of them int32 length of the name, the name, int32 calls, int32 number of values,
and float32 values, which are the mean squares times the number of calls.

llama.cpp permutes the rows of queries and keys, but importance belongs to columns, which keep their
order, so nothing has to be permuted back.
"""

from __future__ import annotations

import functools
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .errors import ModelFileError
from .gguf_reader import read_gguf

__all__ = ["Imatrix", "is_imatrix", "read_imatrix"]

Floats = npt.NDArray[np.float32]

_GGUF_MAGIC = b"GGUF"
_SUM_SUFFIX, _COUNT_SUFFIX = ".in_sum2", ".counts"
_INT = struct.Struct("<i")
_LONGEST_NAME = 1024

#: Architectures of llama.cpp whose tensor names are tried, in this order. Dense and mixed models
#: of the Llama family have the names of the first; the others add fused and shared matrices.
_NAME_MAPS = ("LLAMA", "QWEN3MOE", "QWEN2MOE", "PHI3", "GEMMA2")

#: An expert's number in a Hugging Face name; llama.cpp keeps the experts of a layer together.
_EXPERT = re.compile(r"(?<=\.experts)\.(\d+)(?=\.)")
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Imatrix:
    """What a file of ``llama-imatrix`` says about a model's matrices.

    Parameters
    ----------
    importance : mapping of str to float32 array ``[columns]``
        Mean square of each input column, by the Hugging Face name of the matrix.
    missing : tuple of str
        Matrices of the model that the file has no entry for.
    unused : tuple of str
        Entries of the file, in llama.cpp's names, that belong to no matrix of the model.
    """

    importance: Mapping[str, Floats]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def is_imatrix(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file looks like one of ``llama-imatrix``, from its first bytes."""
    with open(path, "rb") as file:
        begin = file.read(8 + _LONGEST_NAME)
    if begin[:4] == _GGUF_MAGIC:
        return True
    if len(begin) < 8:
        return False
    entries, length = _INT.unpack_from(begin)[0], _INT.unpack_from(begin, 4)[0]
    name = begin[8 : 8 + max(length, 0)]
    return entries > 0 and 0 < length < _LONGEST_NAME and name.isascii() and b"." in name


def read_imatrix(path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]]) -> Imatrix:
    """Read a file of ``llama-imatrix`` for a model.

    Parameters
    ----------
    path : path
        The file, GGUF or the older ``.dat`` form.
    shapes : mapping of str to tuple of int
        Shapes of the model's matrices that importance is wanted for, by their Hugging Face names.

    Returns
    -------
    Imatrix
        Importance by Hugging Face names, and what is missing or left over.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        If it is no such file, is damaged, or an entry has another number of columns than its
        matrix or not a row for every expert.
    ModuleNotFoundError
        If the package gguf is missing.
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        is_gguf = file.read(4) == _GGUF_MAGIC
    entries = _read_gguf(path) if is_gguf else _read_dat(path)
    importance: dict[str, Floats] = {}
    missing, used = [], set()
    layers = 1 + max((int(n) for name in shapes for n in _LAYER.findall(name)), default=0)
    for name, shape in shapes.items():
        candidates = _llama_cpp_names(name, layers, tied="lm_head.weight" not in shapes)
        entry = next((candidate for candidate in candidates if candidate in entries), None)
        if entry is None:
            missing.append(name)
            continue
        used.add(entry)
        importance[name] = _columns(path, entry, entries[entry], name, shape)
    unused = tuple(name for name in entries if name not in used)
    return Imatrix(importance, tuple(missing), unused)


def _columns(path: str, entry: str, values: Floats, name: str, shape: tuple[int, ...]) -> Floats:
    """Return the row of an entry that belongs to a matrix, after checking its size."""
    expert, columns = _EXPERT.search(name), shape[-1]
    if expert and len(values) == 1 and values.size % columns == 0:
        values = values.reshape(-1, columns)  # the older form keeps all experts in one list
    if values.shape[1] != columns or (len(values) > 1 and not expert):
        raise ModelFileError(
            f"{path}: {entry!r} must have {columns} columns as {name!r} has, "
            f"found {'x'.join(map(str, values.shape)).removeprefix('1x')}"
        )
    number = int(expert.group(1)) if expert else 0
    if number >= len(values):
        raise ModelFileError(
            f"{path}: {entry!r} must have an entry for {name!r}, found {len(values)} experts"
        )
    found: Floats = values[number]
    if not (np.isfinite(found) & (found >= 0)).all():
        raise ModelFileError(f"{path}: {entry!r} must hold finite numbers from 0 on, found others")
    return found


# ---------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------


def _llama_cpp_names(name: str, layers: int, *, tied: bool) -> Iterator[str]:
    """Yield the names that llama.cpp may have for a tensor of a Hugging Face folder."""
    stem = _EXPERT.sub("", name.removesuffix(".weight"))
    for architecture in _NAME_MAPS:
        found = _name_map(architecture, layers)(stem)
        if found is not None:
            yield f"{found}.weight"
    if tied and stem == "model.embed_tokens":
        yield "output.weight"


@functools.cache
def _name_map(architecture: str, layers: int) -> Callable[[str], str | None]:
    gguf = _gguf()
    kind = getattr(gguf.MODEL_ARCH, architecture, None)
    if kind is None:  # another release of gguf
        return lambda _: None
    names: Callable[[str], str | None] = gguf.get_tensor_name_map(kind, layers).get_name
    return names


def _gguf() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise ModuleNotFoundError(
            "the package 'gguf' is needed for files of llama-imatrix and is not installed; "
            'in a clone of the project: pip install ".[convert]"',
            name="gguf",
        ) from error
    return gguf


# ---------------------------------------------------------------------------------------------
# The two forms
# ---------------------------------------------------------------------------------------------


def _read_gguf(path: str) -> dict[str, Floats]:
    """Return the mean squares of every entry, ``[experts or 1, columns]``."""
    _gguf()  # says how to get the package
    tensors = read_gguf(path, _float_tensors)
    sums = {name: values for name, values in tensors.items() if name.endswith(_SUM_SUFFIX)}
    if not sums:
        raise ModelFileError(
            f"{path}: must be a file of llama-imatrix with tensors '*{_SUM_SUFFIX}', found none"
        )
    entries = {}
    for name, values in sums.items():
        stem = name.removesuffix(_SUM_SUFFIX)
        counts = tensors.get(stem + _COUNT_SUFFIX)
        if not values.size:
            raise ModelFileError(f"{path}: {name!r} must have a sum for each column, found none")
        if counts is None or counts.size != values.size // values.shape[-1]:
            found = "none" if counts is None else f"{counts.size} counts"
            raise ModelFileError(
                f"{path}: {name!r} must have {stem + _COUNT_SUFFIX!r} with a count for each row, "
                f"found {found}"
            )
        entries[stem] = _means(values.reshape(-1, values.shape[-1]), counts.reshape(-1, 1))
    return entries


def _float_tensors(reader: Any) -> dict[str, Floats]:
    """Return the float32 tensors, by name; llama-imatrix writes no others."""
    return {
        str(tensor.name): np.asarray(tensor.data)
        for tensor in reader.tensors
        if tensor.tensor_type.name == "F32"
    }


def _means(sums: npt.NDArray[Any], counts: npt.NDArray[Any]) -> Floats:
    """Divide sums by counts; an expert that no token met counts all its columns the same."""
    seen = counts > 0
    with np.errstate(over="ignore", invalid="ignore"):  # means that are not finite are refused
        means: Floats = np.where(seen, sums / np.where(seen, counts, 1), 1).astype(np.float32)
    return means


def _read_dat(path: str) -> dict[str, Floats]:
    """Return the mean squares of every entry of the older form, ``[1, columns]``."""
    with open(path, "rb") as file:
        remaining = os.fstat(file.fileno()).st_size
        try:
            count = _integer(file)
            if not 0 < count <= remaining:
                raise ValueError(f"{count} entries")
            return dict(_dat_entry(file, remaining) for _ in range(count))
        except (ValueError, struct.error) as error:
            raise ModelFileError(
                f"{path}: must be a file of llama-imatrix (GGUF or .dat), found {error}"
            ) from error


def _dat_entry(file: BinaryIO, file_bytes: int) -> tuple[str, Floats]:
    length = _integer(file)
    if not 0 < length < _LONGEST_NAME:
        raise ValueError(f"a name of {length} bytes")
    name = file.read(length).decode("utf-8")
    calls, size = _integer(file), _integer(file)
    if not 0 < size <= file_bytes // 4:
        raise ValueError(f"{size} values for {name!r}")
    raw = file.read(4 * size)
    if len(raw) != 4 * size:
        raise ValueError(f"the end of the file within {name!r}")
    values = np.frombuffer(raw, "<f4").reshape(1, -1)
    return name, _means(values, np.array([[calls]]))


def _integer(file: BinaryIO) -> int:
    value: int = _INT.unpack(file.read(_INT.size))[0]
    return value
