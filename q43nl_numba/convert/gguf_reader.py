"""Read GGUF files with the gguf package, within bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np

from .errors import ModelFileError, optional_package

_Found = TypeVar("_Found")

#: What the package raises about damaged files; it has no errors of its own.
_UNSOUND: Final = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError,
    ValueError,
)  # fmt: skip


def read_gguf(path: str, read: Callable[[Any], _Found]) -> _Found:
    """Open a GGUF file and return what a function takes from the package's reader.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        If it is not sound, or big-endian.
    ModuleNotFoundError
        If the gguf package is missing.
    """
    gguf = optional_package("gguf")
    try:
        with np.errstate(over="raise"):  # sizes that wrap around would pass for small ones
            reader = _bounded_reader(gguf)(path)
            if reader.byte_order != "I":
                raise ModelFileError(f"{path}: must be little-endian GGUF, found big-endian")
            return read(reader)
    except ModelFileError:
        raise
    except _UNSOUND as error:
        raise ModelFileError(f"{path}: must be a sound GGUF file, found {error!r}") from error


def _bounded_reader(gguf: Any) -> Any:
    """Return the gguf package's reader, with an error where it would read on after the end.

    By itself it goes through an array as long as the file says, even if the file has ended.
    """

    class BoundedReader(gguf.GGUFReader):  # type: ignore[misc]
        def _get(self, offset: int, dtype: Any, count: int = 1, *rest: Any, **named: Any) -> Any:
            if int(count) and offset >= self.data.size:
                raise ValueError("the file ends early")
            return super()._get(offset, dtype, count, *rest, **named)

    return BoundedReader
