"""What a method is: the contract of a search, and the entry of a method in the table.

To add a method, write a module with a search and a `Method`, and name it in ``__init__.py``. A
search is a function that `_jit.inlined` compiles; it sees one tile, of groups side by side, a lane
each, and knows nothing of arrays' dtypes and shapes outside, of threads or of files. There are two
kinds, which differ in what is left for them to choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .._arrays import checked_integer
from ..kernels.encode import Encoder
from ..kernels.tile import Doubles, Floats, Integers, ScaleBits


class CurveSearch(Protocol):
    """A search for each group's curve; its scale is the absmax, rounded up to binary16."""

    def __call__(
        self,
        magnitudes: Floats,
        importance: Floats | None,
        scales: Floats,
        statistics: Floats | None,
        parameters: Any,
        curves: Integers,
    ) -> None:
        """Write the curve of every lane.

        Parameters
        ----------
        magnitudes : float32[GROUP_SIZE, lanes]
            |weight| / scale, from 0 to 1.
        importance : float32[GROUP_SIZE, lanes] or None
            In units of each group's largest; None where all weights count the same. It is called
            in both ways, and compiled for each.
        scales : float32[lanes]
            In units of the weights; 0 for a group that is stored as zeros.
        statistics : float32[n, lanes] or None
            What `Method.statistics` returned for these groups; None without it.
        parameters
            What `Method.parameters` returned: float64[m].
        curves : int32[lanes]
            Overwritten with stored curves, -127 to 127.
        """


class JointSearch(Protocol):
    """A search for each group's scale and curve; codes are the nearest levels'."""

    def __call__(
        self,
        weights: Floats,
        importance: Floats,
        normalized: Floats,
        absmax: Floats,
        parameters: Any,
        scale_bits: ScaleBits,
        curves: Integers,
        errors: Doubles,
    ) -> None:
        """Lower each lane's error.

        Parameters
        ----------
        weights : float32[GROUP_SIZE, LANES]
        importance : float32[GROUP_SIZE, LANES]
            In units of each group's largest.
        normalized : float32[GROUP_SIZE, LANES]
            weight / absmax, 0 where the importance is 0.
        absmax : float32[LANES]
            Largest magnitude that counts; 0 for a group that is stored as zeros.
        parameters
            What `Method.parameters` returned: a named tuple that has a field ``full``, whether
            code -8, negative scales and curve -128 are allowed.
        scale_bits : uint32[LANES]
        curves : int32[LANES]
        errors : float64[LANES]
            The scale's bits, the curve and the weighted squared error, in squared units of the
            weights. At first they are those of a group of zeros; `joint.take_better` overwrites
            them.
        """


@dataclass(frozen=True)
class Option:
    """A keyword of `q43nl` that some methods take."""

    name: str
    default: int | float | str
    check: Callable[[str, Any], int | float | str]
    """Returns the value as the method wants it, or raises an error that names the option."""
    help: str = ""
    """What it does, in a few words."""


def _flat_doubles(*values: float) -> NDArray[np.float64]:
    return np.array(values, np.float64)


def _unchanged(parameters: Any) -> Any:
    return parameters


@dataclass(frozen=True)
class Method:
    """An entry of the methods' table."""

    name: str
    encoder: Encoder
    """The search, compiled into a kernel from weights to packed bytes."""
    cost: Callable[[Any], float]
    """Nanoseconds that a weight takes on one core, for given parameters. A rough figure will do: it
    decides on how many threads a call runs, and in how large portions."""
    options: tuple[Option, ...] = ()
    parameters: Callable[..., Any] = field(default=_flat_doubles)
    """Turns the options' values into the parameters of the search."""
    feedback_parameters: Callable[[Any], Any] = field(default=_unchanged)
    """Turns the parameters of a call into those for a group that error feedback refines afterwards:
    what only guards single groups may be left out."""
    statistics: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None
    """Turns groups, float32[n, 32], into the statistics that the search takes, float32[k, n]."""
    joint: bool = False
    """Whether the search chooses the scale too."""
    eps_scale: float = 1e-6
    """Default of the scale up to which groups are stored as zeros."""


def integer_from(least: int) -> Callable[[str, Any], int]:
    """Return a check for integers of at least `least`."""
    return lambda name, value: checked_integer(name, value, least)


def integer_between(least: int, most: int) -> Callable[[str, Any], int]:
    """Return a check for integers from `least` to `most`."""

    def check(name: str, value: Any) -> int:
        number = checked_integer(name, value, least)
        if number > most:
            raise ValueError(f"{name} must be an integer of at most {most}, found {value!r}")
        return number

    return check


def one_of(*choices: str) -> Callable[[str, Any], str]:
    """Return a check for one of some words."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, found {value!r}")
        return value

    return check


def positive_number(name: str, value: Any) -> float:
    """Check for numbers above 0 that float32 can hold."""
    if isinstance(value, bool) or not isinstance(value, (Real, np.number)):
        raise TypeError(f"{name} must be a number, found {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 < number <= float(np.finfo(np.float32).max):
        raise ValueError(f"{name} must be finite in float32 and above 0, found {value!r}")
    return number


def find_method(methods: Mapping[str, Method], name: str) -> Method:
    """Return the method of a name, or raise an error that lists the names."""
    if not isinstance(name, str) or name not in methods:
        raise ValueError(f"method must be one of {', '.join(methods)}, found {name!r}")
    return methods[name]


def method_parameters(
    method: Method, methods: Mapping[str, Method], given: Mapping[str, Any]
) -> Any:
    """Return the parameters of a method from all options of a call, each checked.

    An option that the method does not take must be left at its default.
    """
    own = {option.name for option in method.options}
    for other in methods.values():
        for option in other.options:
            if option.name not in own and not _is_default(given[option.name], option):
                takers = [m.name for m in methods.values() if option in m.options]
                raise ValueError(
                    f"{option.name} belongs to method {' and '.join(takers)}, "
                    f"found {given[option.name]!r} with method {method.name!r}"
                )
    return method.parameters(*(o.check(o.name, given[o.name]) for o in method.options))


def _is_default(value: Any, option: Option) -> bool:
    """Return whether a value, which may be anything, is an option's default."""
    return value is option.default or (
        isinstance(value, (int, float, str, np.generic)) and bool(value == option.default)
    )
