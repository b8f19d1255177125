"""Files in folders that others made: none may lead out of its folder."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from typing import Final

from .errors import ModelFileError

#: How deep the files beside a model's weights may lie, as `1_Pooling/config.json` does.
_DEEPEST: Final = 3
_LONGEST_NAME: Final = 255

_DISK_FULL: Final = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def list_files(folder: str) -> list[str]:
    """Return the names, relative to a folder, of its files and those in its folders.

    Names that begin with a dot are left out. Separators are ``/``.
    """
    found: list[str] = []
    _collect(folder, "", _DEEPEST, found)
    return sorted(found)


def check_inside(folder: str, name: str, *, is_weights: bool = False) -> str:
    """Return the path of a file that a model's folder names, after checking the name.

    Raises
    ------
    ModelFileError
        If the name is a path out of the folder, or the file a symbolic link out of it. Links of
        the hub's cache are accepted, and so are those of weights, which are read as such.
    """
    parts = name.split("/")
    if (
        not name
        or len(name) > _LONGEST_NAME
        or any(part in ("", ".", "..") for part in parts)
        or any(c in name for c in "\\:\0")
    ):
        raise ModelFileError(f"{folder}: {name!r} must be the name of a file in the folder")
    path = os.path.join(folder, *parts)
    if not is_weights and not _is_inside(folder, path):
        raise ModelFileError(f"{path}: must lie in the folder, found a link to elsewhere")
    return path


def copy_files(source: str, names: Iterable[str], target: str) -> None:
    """Copy files from one folder to another.

    Raises
    ------
    OSError
        If a file cannot be read or written.
    ModelFileError
        If a symbolic link leads out of the source.
    """
    for name in names:
        path = os.path.join(target, *name.split("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            shutil.copyfile(check_inside(source, name), path)
        except OSError as error:
            if error.errno in _DISK_FULL:  # else the error names the file that is read
                raise OSError(error.errno, error.strerror, path) from error
            raise


def _collect(folder: str, below: str, depth: int, found: list[str]) -> None:
    """Add the files of a folder to those that were found."""
    for item in os.scandir(os.path.join(folder, below)):
        name = f"{below}/{item.name}" if below else item.name
        if item.name.startswith("."):
            continue
        if item.is_dir(follow_symlinks=False):
            if depth:
                _collect(folder, name, depth - 1, found)
        elif item.is_file():
            found.append(name)


def _is_inside(folder: str, path: str) -> bool:
    """Tell whether a file lies in a folder once all links are followed."""
    root = os.path.realpath(folder)
    real = os.path.realpath(path)
    roots = [root]
    if os.path.basename(os.path.dirname(root)) == "snapshots":
        roots.append(os.path.join(os.path.dirname(os.path.dirname(root)), "blobs"))
    return any(os.path.commonpath([real, allowed]) == allowed for allowed in roots)
