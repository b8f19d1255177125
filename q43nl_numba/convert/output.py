"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

from .errors import ModelFileError
from .locks import LOCKS_ARE_KEPT, is_locked_here, try_lock

_TEMPORARY: Final = re.compile(r"\.q43nl-[0-9a-f]{16}\.tmp")
_NEW_FILE_MODE: Final = 0o666  # less what the umask takes


class OutputFile:
    """A file under its temporary name; errors speak of the name it is going to have.

    `checksum` is the CRC-32 of what has been written.
    """

    def __init__(self, file: BinaryIO, path: str) -> None:
        self.checksum = 0
        self._file = file
        self._path = path

    def write(self, part: bytes | memoryview) -> None:
        """Append bytes."""
        with errors_name(self._path):
            self._file.write(part)
        self.checksum = zlib.crc32(part, self.checksum)

    def settle(self) -> None:
        """Bring every byte to the disk."""
        with errors_name(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())


def check_output(source: str, destination: str, *, no_clobber: bool = False) -> None:
    """Refuse a destination that is the source, or that no file can be put at."""
    if destination == "-":
        raise ModelFileError(
            "-: standard output cannot be written to, expected a file name (./- for a file "
            "of that name)"
        )
    target = os.path.realpath(destination)
    folder = os.path.dirname(target)
    if os.path.isdir(target) or not os.path.basename(destination):
        raise ModelFileError(f"{destination}: is a folder, expected a file name")
    if not os.path.isdir(folder):
        raise ModelFileError(f"{destination}: there is no folder {folder}")
    if not os.path.exists(target):
        return
    if os.path.samefile(source, target):
        raise ModelFileError(f"{destination}: the output is the input file {source}")
    if not os.path.isfile(target):
        # renaming a file onto a device would replace the device
        raise ModelFileError(f"{destination}: exists and is not a regular file")
    if no_clobber:
        raise _exists_already(destination)


def check_output_folder(folder: str) -> None:
    """Refuse a folder that exists and is not empty, or that cannot be created."""
    if folder == "-" or not os.path.basename(folder.rstrip("/")):
        raise ModelFileError(f"{folder}: must be the name of a new folder")
    parent = os.path.dirname(os.path.abspath(folder))
    if os.path.isdir(folder):
        if os.path.islink(folder) or os.listdir(folder):
            raise ModelFileError(f"{folder}: must be a new or empty folder, found one with files")
    elif os.path.lexists(folder):
        raise ModelFileError(f"{folder}: must be a new folder, found a file")
    elif not os.path.isdir(parent):
        raise ModelFileError(f"{folder}: there is no folder {parent}")


def sync_folder(folder: str) -> None:
    """Bring the names in a folder to the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextlib.contextmanager
def whole_file(path: str, *, no_clobber: bool = False) -> Iterator[OutputFile]:
    """Write a file that appears under its name only when the block ends without an exception.

    Until then the bytes are in a temporary sibling, which is removed whatever the exception was,
    KeyboardInterrupt and SystemExit included. A process that is killed leaves it behind; the next
    one that writes to the folder removes it. Where ``path`` is a symbolic link, the file that it
    points at is replaced, as it would be by writing through the link. A file that is replaced
    hands on its mode.
    """
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    remove_abandoned(folder)
    temporary = _temporary_path(folder)
    # The name is known before the file exists: an interrupt may come as soon as it does.
    try:
        with errors_name(path):
            while (file := _create_temporary(temporary, mode_of(target))) is None:
                temporary = _temporary_path(folder)
        try:
            output = OutputFile(file, path)
            yield output
            output.settle()
            with errors_name(path):
                if not LOCKS_ARE_KEPT:
                    file.close()
                rename_complete(temporary, target, path, no_clobber=no_clobber)
        finally:
            with errors_name(path):
                file.close()  # after renaming: the lock that it holds protects the temporary
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def remove_abandoned(folder: str) -> None:
    """Remove the temporary files of processes that were killed.

    A process holds a lock on its temporary file as long as it lives. Files whose lock cannot be
    tried (on some network file systems) stay.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if _TEMPORARY.fullmatch(name):
                _remove_if_abandoned(os.path.join(folder, name))


def _remove_if_abandoned(temporary: str) -> None:
    """Remove a temporary file unless a living process writes it."""
    with contextlib.suppress(OSError), open(temporary, "rb") as file:
        if try_lock(file):
            os.unlink(temporary)


def _temporary_path(folder: str) -> str:
    """Return a new path that `remove_abandoned` knows."""
    return os.path.join(folder, f".q43nl-{secrets.token_hex(8)}.tmp")


def _create_temporary(path: str, mode: int | None) -> BinaryIO | None:
    """Create a temporary file that carries this process' lock.

    The mode is that of any new file, or the one given. None if another process found the file
    before it was locked, and removed it.
    """
    # not tempfile: its files are readable by their owner only, and so would the output be
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
    number = os.open(path, flags, _NEW_FILE_MODE if mode is None else mode & 0o600)
    file = os.fdopen(number, "wb")
    try:
        if is_locked_here(file, path):
            if mode is not None:
                os.chmod(path, mode)
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def mode_of(path: str) -> int | None:
    """Return the permissions of a file, or None where there is no file."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode) & 0o777
    except FileNotFoundError:
        return None


def rename_complete(temporary: str, target: str, path: str, *, no_clobber: bool) -> None:
    """Give a complete file its name."""
    if not no_clobber:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # unlike a rename it fails where there is a file
    except FileExistsError:
        raise _exists_already(path) from None
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise _exists_already(path) from None
        os.replace(temporary, target)
    else:
        os.unlink(temporary)


def _exists_already(path: str) -> ModelFileError:
    """Return the error about an output that must not be replaced."""
    return ModelFileError(f"{path}: exists already, and no_clobber forbids to replace it")


@contextlib.contextmanager
def errors_name(path: str) -> Iterator[None]:
    """Let an OSError name the file the user asked for instead of the temporary one, or none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
