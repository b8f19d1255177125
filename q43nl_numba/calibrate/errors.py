"""What goes wrong around calibration, and the packages that may be missing."""

from __future__ import annotations

import importlib
from typing import Any

from ..convert.errors import ModelFileError, one_line

__all__ = ["EXTRA_PACKAGES", "CalibrationError", "ModelFileError", "check_packages", "package"]

#: The packages of the ``calibrate`` extra.
EXTRA_PACKAGES = ("safetensors", "ml_dtypes", "tokenizers", "tqdm")


class CalibrationError(ValueError):
    """A text, a model or statistics are not what the work needs.

    The message is one line that says what was found and what was expected. Control characters,
    which a file may hold, are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def package(name: str) -> Any:
    """Import a package of the ``calibrate`` extra, or say how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(
            f"the package {name!r} is needed for calibration and is not installed: "
            'pip install ".[calibrate]" in a clone of the repository',
            name=name,
        ) from error


def check_packages() -> None:
    """Check, before any file is touched, that every package of the extra is there."""
    for name in EXTRA_PACKAGES:
        package(name)
