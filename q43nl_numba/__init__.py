"""Q43NL, the 4.75-bit block format of the PasLLM engine, for NumPy arrays.

>>> import numpy as np
>>> from q43nl_numba import dequantize, q43nl
>>> weights = np.random.default_rng(0).standard_normal((256, 256), dtype=np.float32)
>>> packed = q43nl(weights)
>>> packed.size * 8 / weights.size
4.75
>>> dequantize(packed, weights.shape).shape
(256, 256)
"""

TYPE_CHECKING = False  # not imported from typing: the commands start with almost nothing
if TYPE_CHECKING:
    from ._dequantize import dequantize
    from ._layout import GROUP_BYTES, GROUP_DTYPE, GROUP_SIZE
    from ._quality import Quality, quality
    from ._quantize import METHODS, q43nl
    from ._version import __version__

__all__ = [
    "GROUP_BYTES",
    "GROUP_DTYPE",
    "GROUP_SIZE",
    "METHODS",
    "Quality",
    "__version__",
    "dequantize",
    "q43nl",
    "quality",
]

# Public names are imported at their first use: the commands must handle signals, and answer
# --help, before Numba is imported.
_MODULES = {
    "GROUP_BYTES": "_layout",
    "GROUP_DTYPE": "_layout",
    "GROUP_SIZE": "_layout",
    "METHODS": "_quantize",
    "Quality": "_quality",
    "__version__": "_version",
    "dequantize": "_dequantize",
    "q43nl": "_quantize",
    "quality": "_quality",
}


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
