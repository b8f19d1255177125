"""What goes wrong with model files, and the packages that may be missing."""

from __future__ import annotations

import importlib
from typing import Any, Final

from .._text import printable

#: Characters of a message: enough for two paths and a name, whatever a file holds.
_LONGEST_MESSAGE: Final = 3000


class ModelFileError(ValueError):
    """A model file, or a tensor in it, is not what the work needs.

    The message is one line that names the file and, where there is one, the tensor. Control
    characters, which names in a file may hold, are escaped, and what is very long is cut.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """Return a message without control characters; of a very long one, its begin and its end."""
    line = printable(message)
    if len(line) <= _LONGEST_MESSAGE:
        return line
    kept = _LONGEST_MESSAGE // 2 - 3
    return f"{line[:kept]} ... {line[-kept:]}"


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
