"""What goes wrong with model files, and the packages that may be missing."""

from __future__ import annotations

import importlib
from typing import Any

from .._text import printable


class ModelFileError(ValueError):
    """A model file, or a tensor in it, is not what the work needs.

    The message is one line that names the file and, where there is one, the tensor. Control
    characters, which names in a file may hold, are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def tensor_error(path: str, name: str, problem: str) -> ModelFileError:
    """Return the error for one tensor of one file."""
    return ModelFileError(f"{path}: tensor {name!r}: {problem}")


def optional_package(name: str) -> Any:
    """Import a package of the ``convert`` extra, or say how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(
            f"the package {name!r} is needed for model files and is not installed; "
            'in a clone of the project: pip install ".[convert]"',
            name=name,
        ) from error
