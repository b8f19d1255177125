"""Open models: a file, a folder as Hugging Face lays it out, or a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .companions import companion, read_object
from .container import Header
from .errors import ModelFileError, tensor_error
from .folders import check_inside, list_files
from .formats import format_name, is_gguf
from .reading import read_header
from .tensors import SourceFile, StoredTensor, Tensor

#: The names that Hugging Face gives to a model's weights, and to the index of several files.
WEIGHTS_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
CONFIG_NAME: Final = "config.json"

_WEIGHTS_SUFFIX: Final = ".safetensors"
_INDEX_SUFFIX: Final = ".safetensors.index.json"

#: Files of weights in other formats, which are not copied.
_OTHER_WEIGHTS: Final = (
    ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".ot", ".gguf",
    ".bin.index.json", ".h5.index.json", ".msgpack.index.json",
)  # fmt: skip


@dataclass(frozen=True)
class ModelFile:
    """One file of weights: its name in the model, and its header."""

    name: str
    file: SourceFile
    header: Header


@dataclass(frozen=True)
class Model:
    """A model that was opened: nothing but headers has been read.

    Attributes
    ----------
    path : str
        The file or the folder.
    files : tuple of ModelFile
        Its files of weights, in the order of their names.
    tensors : mapping of str to Tensor
        All tensors, file by file, in the order of the headers.
    is_folder : bool
        Whether it is a folder.
    index_metadata : mapping or None
        The ``metadata`` of the index, if there is one.
    other_files : tuple of str
        Names, relative to the folder, of the files beside the weights.
    """

    path: str
    files: tuple[ModelFile, ...]
    tensors: Mapping[str, Tensor]
    is_folder: bool = False
    index_metadata: Mapping[str, Any] | None = None
    other_files: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Number of bytes of the files of weights."""
        return sum(file.file.nbytes for file in self.files)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of all files; where they disagree, the first one's."""
        merged: dict[str, str] = {}
        for file in reversed(self.files):
            merged |= file.header.metadata
        return merged

    def config(self) -> dict[str, Any] | None:
        """Return the content of ``config.json``, or None where there is none."""
        if not self.is_folder or CONFIG_NAME not in self.other_files:
            return None
        return read_object(os.path.join(self.path, CONFIG_NAME))


def open_model(path: str | os.PathLike[str]) -> Model:
    """Open a model.

    Parameters
    ----------
    path : path
        A safetensors file; a folder with ``model.safetensors``, or with several files and their
        index, or with a single file of another name; a folder of the hub's cache; a GGUF file.

    Returns
    -------
    Model
        The tensors, which are read when they are needed.

    Raises
    ------
    OSError
        If a file cannot be read.
    ModelFileError
        If a file is not sound, the index and the files disagree, or a name in the index or a
        symbolic link leads out of the folder.
    ModuleNotFoundError
        If a package of the ``convert`` extra is missing.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        return _open_folder(_snapshot(path))
    if os.path.isfile(path) and is_gguf(path):
        from .gguf_model import open_gguf

        return open_gguf(path)
    return _joined(path, [_open_file(os.path.basename(path), path)])


def _snapshot(path: str) -> str:
    """Return the snapshot that a repository's folder in the hub's cache refers to.

    Other folders are returned as they are.
    """
    reference = os.path.join(path, "refs", "main")
    if not (os.path.isdir(os.path.join(path, "snapshots")) and os.path.isfile(reference)):
        return path
    with open(reference, encoding="utf-8", errors="replace") as file:
        revision = file.read(100).strip()
    if not revision.isalnum():
        raise ModelFileError(f"{reference}: must be the name of a revision, found {revision!r}")
    return os.path.join(path, "snapshots", revision)


def _open_folder(path: str) -> Model:
    """Open a folder."""
    names = list_files(path)
    top = [name for name in names if "/" not in name]
    index = _index_name(path, top)
    others = tuple(name for name in names if not _is_weights(name) and name != index)
    if index is None:
        name = _single_name(path, top)
        if name.endswith(".gguf"):
            return open_model(os.path.join(path, name))
        file = _open_file(name, os.path.join(path, name))
        return _joined(path, [file], is_folder=True, other_files=others)
    companion(path, index)  # checks it
    content = read_object(os.path.join(path, index))
    files = [
        _open_file(name, check_inside(path, name, is_weights=True))
        for name in _indexed_names(os.path.join(path, index), content)
    ]
    _check_index(os.path.join(path, index), content["weight_map"], files)
    metadata = content.get("metadata")
    return _joined(
        path,
        files,
        is_folder=True,
        index_metadata=metadata if isinstance(metadata, dict) else {},
        other_files=others,
    )


def _is_weights(name: str) -> bool:
    """Tell whether a file holds weights, in whatever format."""
    return name.endswith((_WEIGHTS_SUFFIX, *_OTHER_WEIGHTS))


def _index_name(path: str, names: list[str]) -> str | None:
    """Return the name of the index, None where a single file holds the model."""
    if WEIGHTS_NAME in names:
        return None
    if INDEX_NAME in names:
        return INDEX_NAME
    found = [name for name in names if name.endswith(_INDEX_SUFFIX)]
    if len(found) > 1:
        raise ModelFileError(f"{path}: must have one index, found {', '.join(found)}")
    return found[0] if found else None


def _single_name(path: str, names: list[str]) -> str:
    """Return the name of the only file of weights."""
    if WEIGHTS_NAME in names:
        return WEIGHTS_NAME
    for suffix in (_WEIGHTS_SUFFIX, ".gguf"):
        found = [name for name in names if name.endswith(suffix)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ModelFileError(
                f"{path}: must have an index ({INDEX_NAME}) for its {len(found)} {suffix} files, "
                "found none"
            )
    others = [name for name in names if _is_weights(name)]
    what = f"found {others[0]!r}" if others else "found no file of weights"
    if others:
        what += f", {format_name(os.path.join(path, others[0])) or 'of another format'}"
    raise ModelFileError(f"{path}: must be a folder with safetensors files, {what}")


def _indexed_names(path: str, content: Mapping[str, Any]) -> list[str]:
    """Return the names of the files that an index names."""
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ModelFileError(f"{path}: 'weight_map' must map tensors to files")
    return sorted(set(weight_map.values()))


def _check_index(path: str, weight_map: Mapping[str, str], files: list[ModelFile]) -> None:
    """Check that the files hold what the index says."""
    held = {file.name: {entry.name for entry in file.header.entries} for file in files}
    for tensor, name in weight_map.items():
        if tensor not in held[name]:
            raise tensor_error(path, tensor, f"must be in {name!r}, which does not hold it")


def _open_file(name: str, path: str) -> ModelFile:
    """Open one safetensors file."""
    if not os.path.isfile(path):
        return ModelFile(name, SourceFile(path, 0, 0), read_header(path))  # raises
    file = SourceFile.at(path)
    return ModelFile(name, file, read_header(path))


def _joined(path: str, files: list[ModelFile], **fields: Any) -> Model:
    """Return the model of some files, which must not hold a tensor twice."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        for entry in file.header.entries:
            if entry.name in tensors:
                other = tensors[entry.name].files[0].path
                raise tensor_error(file.file.path, entry.name, f"is in {other}, too")
            tensors[entry.name] = StoredTensor.of(file.file, file.header, entry)
    return Model(path, tuple(files), tensors, **fields)
