"""Methods side by side: the same weights, a row for each method with its error, speed and size.

``variants`` names what is compared, ``samples`` and ``distributions`` give the weights,
``measuring`` makes the rows, ``printing`` shows them, ``command`` is ``q43nl-numba compare``.
"""

from .distributions import DISTRIBUTIONS, draw
from .measuring import Row, best_times, compare
from .printing import format_json, format_table, machine_facts
from .samples import Sample, read_sample
from .variants import ALL_VARIANTS, VARIANTS, Variant, select_variants

__all__ = [
    "ALL_VARIANTS",
    "DISTRIBUTIONS",
    "VARIANTS",
    "Row",
    "Sample",
    "Variant",
    "best_times",
    "compare",
    "draw",
    "format_json",
    "format_table",
    "machine_facts",
    "read_sample",
    "select_variants",
]
