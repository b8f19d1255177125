"""What is compared: methods at settings that are worth it, each with a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import METHODS
from .._quantize import largest_storable_weight


@dataclass(frozen=True)
class Variant:
    """A method at one setting of its parameters.

    Parameters
    ----------
    method : str
        A name in `METHODS`.
    parameters : mapping of str to float
        Keyword arguments for `q43nl`; empty for the method's defaults.
    """

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method and its settings, as in ``gradient-5/0.3``.

        Examples
        --------
        >>> Variant("gradient", {"gd_iterations": 5, "gd_lr": 0.3}).label
        'gradient-5/0.3'
        >>> Variant("grid").label
        'grid'
        """
        settings = "/".join(str(value) for value in self.parameters.values())
        return f"{self.method}-{settings}" if settings else self.method

    @property
    def largest_storable(self) -> float:
        """The largest magnitude that can be stored, on one side of zero in each group.

        Examples
        --------
        >>> Variant("grid").largest_storable
        65504.0
        """
        return largest_storable_weight(self.method, **self.parameters)


#: The settings worth comparing of a method that has several; any other method is compared at its
#: defaults. A further setting is one more entry here.
SETTINGS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "gradient": (
        {"gd_iterations": 5, "gd_lr": 0.3},
        {"gd_iterations": 10, "gd_lr": 0.1},
        {"gd_iterations": 20, "gd_lr": 0.1},
    ),
    "optimal": ({"effort": 1}, {"effort": 5}, {"effort": 9}),
}

#: What is compared, in the table's order.
VARIANTS: tuple[Variant, ...] = tuple(
    Variant(method, settings) for method in METHODS for settings in SETTINGS.get(method, ({},))
)

_EFFORTS = range(1, 10)

#: What is compared when it is asked for: also the efforts between those of `VARIANTS`.
ALL_VARIANTS: tuple[Variant, ...] = tuple(
    variant
    for method in METHODS
    for variant in (
        [Variant("optimal", {"effort": effort}) for effort in _EFFORTS]
        if method == "optimal"
        else [variant for variant in VARIANTS if variant.method == method]
    )
)

#: The variant whose error and speed the others are measured against.
REFERENCE = Variant("grid")


def select_variants(names: Sequence[str] | None) -> tuple[Variant, ...]:
    """Look up variants by method (all its settings) or by label (one of them).

    None stands for `VARIANTS`.

    Raises
    ------
    ValueError
        If a name is unknown.

    Examples
    --------
    >>> [variant.label for variant in select_variants(["gradient-5/0.3", "grid"])]
    ['grid', 'gradient-5/0.3']
    """
    if names is None:
        return VARIANTS
    for name in names:
        check_variant_name(name)
    return tuple(v for v in ALL_VARIANTS if v.method in names or v.label in names)


def check_variant_name(name: str) -> str:
    """Return the name, if it is a method's or a variant's."""
    known = (*METHODS, *(v.label for v in ALL_VARIANTS if v.label not in METHODS))
    if name not in known:
        raise ValueError(f"method must be one of {', '.join(known)}, found {name!r}")
    return name
