"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import BinaryIO

from q43nl_numba.convert.errors import ModelFileError


class OutputFile:
    """A file under its temporary name; errors speak of the name it is going to have."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self._path = path

    def write(self, part: bytes | memoryview) -> None:
        """Append bytes."""
        with _errors_name(self._path):
            self._file.write(part)

    def settle(self) -> None:
        """Bring every byte to the disk."""
        with _errors_name(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())


def check_output(source: str, destination: str) -> None:
    """Refuse a destination that is the source, or that no file can be put at."""
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


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[OutputFile]:
    """Write a file that appears under its name only when the block ends without an exception.

    Until then the bytes are in a temporary sibling, which is removed whatever the exception was,
    KeyboardInterrupt and SystemExit included. Where ``path`` is a symbolic link, the file that it
    points at is replaced, as it would be by writing through the link.
    """
    target = os.path.realpath(path)
    # not tempfile: its files are readable by their owner only, and so would the output be
    temporary = os.path.join(os.path.dirname(target), f".q43nl-{secrets.token_hex(8)}.tmp")
    try:
        with _errors_name(path):
            file = open(temporary, "xb")  # noqa: SIM115 - closed below, with errors named
        try:
            output = OutputFile(file, path)
            yield output
            output.settle()
        finally:
            with _errors_name(path):
                file.close()
        with _errors_name(path):
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def _errors_name(path: str) -> Iterator[None]:
    """Let an OSError name the file the user asked for instead of the temporary one, or none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
