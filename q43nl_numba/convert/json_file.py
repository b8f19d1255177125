"""The JSON files beside a model's weights, read so that an error names file, key and value."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard, TypeVar

from .companions import companion, read_object
from .errors import ModelFileError

#: No size is larger: readers keep them in 64 bits.
LARGEST_INTEGER = 2**63 - 1

_Value = TypeVar("_Value")


class JsonFile:
    """The keys of one JSON object in a file. A key that is ``null`` counts as absent."""

    def __init__(self, path: str, values: Mapping[str, Any]) -> None:
        self.path = path
        self._values = values

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, key: str) -> Any:
        """Return the value of a key, None where it is absent."""
        return self._values.get(key)

    def error(self, key: str, expected: str) -> ModelFileError:
        """Return the error for a key whose value is not what is expected."""
        found = repr(self._values[key]) if key in self._values else "nothing"
        found = found if len(found) <= 200 else found[:197] + "..."
        return ModelFileError(f"{self.path}: key {key!r} must be {expected}, found {found}")

    def integer(
        self,
        key: str,
        *,
        least: int = 1,
        most: int = LARGEST_INTEGER,
        default: int | None = None,
    ) -> int:
        """Return an integer from `least` to `most`; `default` stands for an absent key."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not is_integer(value) or value < least:
            raise self.error(key, f"an integer of at least {least}")
        if value > most:
            raise self.error(key, f"an integer of at most {most}")
        return int(value)

    def number(self, key: str, *, default: float | None = None) -> float | int:
        """Return a number as the file has it, integer or float."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, "a number")
        if not math.isfinite(value) if isinstance(value, float) else abs(value) > LARGEST_INTEGER:
            raise self.error(key, "a finite number")
        return value

    def positive(
        self, key: str, *, most: float = math.inf, default: float | None = None
    ) -> float | int:
        """Return a number above 0, at most `most`; `default` stands for an absent key."""
        value = self.number(key, default=default)
        if not 0 < value <= most:
            limit = "" if most == math.inf else f", at most {most:g}"
            raise self.error(key, f"a number above 0{limit}")
        return value

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return a boolean; `default` stands for an absent key."""
        value = self._optional(key, bool, "true or false")
        return default if value is None else value

    def text(self, key: str, *, default: str) -> str:
        """Return a string; `default` stands for an absent key."""
        value = self._optional(key, str, "a string")
        return default if value is None else value

    def items(self, key: str) -> list[Any]:
        """Return a list, empty where the key is absent."""
        value: list[Any] | None = self._optional(key, list, "a list")
        return [] if value is None else value

    def part(self, key: str) -> JsonFile | None:
        """Return the object that a key holds, None where it is absent."""
        value: dict[str, Any] | None = self._optional(key, dict, "an object")
        return None if value is None else JsonFile(f"{self.path}: key {key!r}", value)

    def _optional(self, key: str, kind: type[_Value], expected: str) -> _Value | None:
        """Return a value of a type, None where the key is absent."""
        value = self.get(key)
        if value is not None and not isinstance(value, kind):
            raise self.error(key, expected)
        return value


def read_json(path: str) -> JsonFile:
    """Read a JSON file that holds an object.

    Raises
    ------
    OSError
        If the file cannot be read.
    ModelFileError
        If it is not JSON, or no object.
    """
    return JsonFile(path, read_object(path))


def read_companion(folder: str, name: str) -> JsonFile:
    """Read a JSON file of a model's folder; one that does not exist has no keys.

    Raises
    ------
    OSError, ModelFileError
        As `read_json`, or if it is a link out of the folder.
    """
    path = companion(folder, name)
    return JsonFile(os.path.join(folder, name), {}) if path is None else read_json(path)


def is_integer(value: object) -> TypeGuard[int]:
    """Tell whether a JSON value is an integer; ``true`` is none."""
    return isinstance(value, int) and not isinstance(value, bool)
