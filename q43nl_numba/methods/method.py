"""What a method is, for the calls that choose among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import checked_integer
from ..encode import Encoder


def _as_given(*values: float) -> NDArray[np.float64]:
    return np.array(values, np.float64)


@dataclass(frozen=True)
class Option:
    """A keyword of `q43nl` that some methods take."""

    name: str
    default: int | float | str
    check: Callable[[str, Any], int | float | str]
    """Returns the value as the kernel wants it, or raises an error that names the option."""


@dataclass(frozen=True)
class Method:
    """A search for the curve of each group (`free`: for its scale and codes as well)."""

    name: str
    encode: Encoder
    options: tuple[Option, ...] = ()
    parameters: Callable[..., Any] = field(default=_as_given)
    """Turns the options' values into the parameters of the search."""
    hints: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None
    """Turns groups, float32[n, 32], into what the search is told of them, float32[k, n]."""
    free: bool = False
    """Whether the search chooses the scale too (`encode_free`)."""
    eps_scale: float = 1e-6
    """Default of the scale up to which groups are stored as zeros."""


def integer_from(least: int) -> Callable[[str, Any], int]:
    """Check for integers of at least `least`."""
    return lambda name, value: checked_integer(name, value, least)


def integer_between(least: int, most: int) -> Callable[[str, Any], int]:
    """Check for integers from `least` to `most`."""

    def check(name: str, value: Any) -> int:
        number = checked_integer(name, value, least)
        if number > most:
            raise ValueError(f"{name} must be an integer of at most {most}, found {value!r}")
        return number

    return check


def one_of(*choices: str) -> Callable[[str, Any], str]:
    """Check for one of some words."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, found {value!r}")
        return value

    return check


def positive_number(name: str, value: Any) -> float:
    """Check for finite numbers above 0."""
    if isinstance(value, bool) or not isinstance(value, (Real, np.number)):
        raise TypeError(f"{name} must be a number, found {value!r}")
    if not (math.isfinite(float(value)) and float(value) > 0):
        raise ValueError(f"{name} must be finite and above 0, found {value!r}")
    return float(value)


def find_method(methods: Mapping[str, Method], name: str) -> Method:
    """The method of a name, or an error that lists the names."""
    if not isinstance(name, str) or name not in methods:
        raise ValueError(f"method must be one of {', '.join(methods)}, found {name!r}")
    return methods[name]


def method_parameters(
    method: Method, methods: Mapping[str, Method], given: Mapping[str, Any]
) -> Any:
    """Parameters of a method from all options of a call, each checked.

    An option that the method does not take must be left at its default.
    """
    own = {option.name for option in method.options}
    for other in methods.values():
        for option in other.options:
            if option.name not in own and given[option.name] != option.default:
                takers = [m.name for m in methods.values() if option in m.options]
                raise ValueError(
                    f"{option.name} belongs to method {' and '.join(takers)}, "
                    f"found {given[option.name]!r} with method {method.name!r}"
                )
    return method.parameters(*(o.check(o.name, given[o.name]) for o in method.options))
