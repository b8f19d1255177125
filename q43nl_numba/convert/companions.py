"""The small files beside a model's weights: JSON and text that others wrote.

All of them are read through here, so that none is a device, a link out of the folder, or larger
than memory allows.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final

from .container import MAX_HEADER_BYTES
from .errors import ModelFileError
from .folders import check_inside

#: The largest of these files that is read; the largest known tokenizers have a third of it.
MAX_COMPANION_BYTES: Final = MAX_HEADER_BYTES


def companion(folder: str, name: str) -> str | None:
    """Return the path of a file that a model's folder may hold, or None where there is none.

    Raises
    ------
    ModelFileError
        If there is something else under that name, or a link that leads out of the folder.
    """
    path = os.path.join(folder, name)
    if not os.path.lexists(path):
        return None
    check_inside(folder, name)
    _check_regular(path)
    return path


def _check_regular(path: str) -> None:
    """Refuse what is there and is no regular file, or too large to be read at once."""
    if not os.path.lexists(path):
        return  # opening it says so
    if not os.path.isfile(path):
        raise ModelFileError(f"{path}: must be a regular file, found something else")
    nbytes = os.path.getsize(path)
    if nbytes > MAX_COMPANION_BYTES:
        raise ModelFileError(
            f"{path}: must have at most {MAX_COMPANION_BYTES:,} bytes, found {nbytes:,}"
        )


def read_text(path: str, encoding: str = "utf-8") -> str:
    """Return a text file as it is.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        If it is no regular file, too large, or not UTF-8.
    """
    _check_regular(path)
    with open(path, encoding=encoding, newline="") as file:
        try:
            return file.read()
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{path}: must be UTF-8, found {error}") from error


def read_object(path: str) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        As `read_text`, or if it is not JSON, or no object.
    """
    text = read_text(path, "utf-8-sig")  # with or without a byte order mark
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: must be JSON, found {error}") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path}: must hold a JSON object, found {type(content).__name__}")
    return content
