"""Compiled kernels on disk, kept between processes.

Numba's own cache takes an entry for current when the file of the cached function has not changed,
and trusts whatever it reads back. Here an entry's name is a digest of everything that decides about
the machine code, the sources of all kernels included, and its content has a checksum. So an entry
is used as it was written, or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import llvmlite
import numba
import numpy as np
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from ._version import __version__

_CHECKSUM_BYTES: Final = hashlib.sha256().digest_size
_KEPT_BUILDS: Final = 5
"""Folders kept for other versions of the sources or of Numba; older ones are removed."""

_KERNEL_FOLDERS: Final = (".", "kernels", "methods", "methods/optimal", "methods/predictor")
"""Where code and constants of kernels come from, relative to the package."""

_COMPILER_SETTINGS: Final = (
    "BOUNDSCHECK",
    "DEBUGINFO_DEFAULT",
    "LOOP_VECTORIZE",
    "OPT",
    "SLP_VECTORIZE",
)
"""Settings of Numba, besides the target processor, that change the machine code."""


class KernelCache:
    """The entries of one kernel: what a Numba dispatcher asks of its cache.

    A folder that cannot be used, or an entry that is damaged, costs a compilation and one warning,
    never an error.

    Parameters
    ----------
    name : str
        Name of the kernel, unique in the package.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def cache_path(self) -> str | None:
        """The folder of the entries, None where there is none."""
        folder = cache_folder()
        return None if folder is None else str(folder)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return the compiled kernel for a signature, or None."""
        target_context.refresh()
        found = None
        with _tolerant("read from"):
            path = self._path(signature, target_context.codegen())
            if path is not None and path.exists():
                found = CompileResult._rebuild(target_context, *pickle.loads(_read(path)))  # type: ignore[no-untyped-call]
        return found

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep a compiled kernel for the processes to come."""
        with _tolerant("written to"):
            path = self._path(signature, compiled.library.codegen)
            # Addresses of this process mean nothing in another one.
            if path is not None and not compiled.library.has_dynamic_globals:
                payload = dumps(compiled._reduce())  # type: ignore[no-untyped-call]
                _write_whole(path, hashlib.sha256(payload).digest() + payload)

    def flush(self) -> None:
        """Do nothing: entries of other sources are not found, whatever they hold."""

    def _path(self, signature: Any, codegen: Any) -> Path | None:
        folder = cache_folder()
        key = repr((self._name, str(signature), codegen.magic_tuple()))
        name = f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.nbc"
        return None if folder is None else folder / name


@functools.cache
def cache_folder() -> Path | None:
    """Return the folder for what these sources and this Numba compile to; None where there is none.

    It lies in ``NUMBA_CACHE_DIR`` where that is set, else in the user's cache folder: not beside
    the sources, where it would outlive them.
    """
    build = _build_digest()
    asked_for = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    if build is None:
        return None
    users = AppDirs("numba", appauthor=False).user_cache_dir  # type: ignore[no-untyped-call]
    parent = Path(asked_for or users, "q43nl_numba")
    folder = parent / f"{__version__}-{build}"
    try:
        is_new = not folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        if is_new:
            _remove_old_builds(parent)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        if asked_for:
            _warn_once(f"written to {folder}", error)
        return None
    return folder


@functools.cache
def _build_digest() -> str | None:
    """Return a digest of all that decides about machine code, apart from the target processor."""
    package = Path(__file__).parent
    sources = [path for name in _KERNEL_FOLDERS for path in sorted((package / name).glob("*.py"))]
    if not sources:  # installed without sources, or in an archive
        return None
    settings = {name: getattr(numba.config, name, None) for name in _COMPILER_SETTINGS}
    versions = (
        sys.implementation.cache_tag,
        numba.__version__,
        llvmlite.__version__,
        np.__version__,
    )
    digest = hashlib.sha256(repr((versions, settings)).encode())
    for path in sources:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


_build_digest()  # now: the sources may be replaced before the first compilation


def _remove_old_builds(parent: Path) -> None:
    """Remove the folders of builds that were made long ago."""
    builds = sorted(parent.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in builds[_KEPT_BUILDS:]:
        shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> bytes:
    """Return the content of an entry, without its checksum; an error if they do not fit."""
    content = path.read_bytes()
    payload = content[_CHECKSUM_BYTES:]
    if hashlib.sha256(payload).digest() != content[:_CHECKSUM_BYTES]:
        raise ValueError(f"{path.name} is damaged")
    return payload


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file that other processes see complete or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with open(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def _tolerant(action: str) -> Iterator[None]:
    """Turn any error of the cache into a warning: the kernel can be compiled instead."""
    try:
        yield
    except Exception as error:
        _warn_once(f"{action} {cache_folder()}", error)


_reported: Final[set[str]] = set()


def _warn_once(problem: str, error: Exception) -> None:
    if problem not in _reported:
        _reported.add(problem)
        warnings.warn(
            f"q43nl_numba: compiled kernels cannot be {problem} ({error}); they are compiled anew",
            RuntimeWarning,
            stacklevel=2,
        )
