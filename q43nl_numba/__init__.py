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

import sys
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .dequantize import dequantize
    from .layout import GROUP_BYTES, GROUP_DTYPE, GROUP_SIZE
    from .quality import Quality, quality
    from .quantize import METHODS, q43nl
    from .version import __version__

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
    "GROUP_BYTES": "layout",
    "GROUP_DTYPE": "layout",
    "GROUP_SIZE": "layout",
    "METHODS": "quantize",
    "Quality": "quality",
    "__version__": "version",
    "dequantize": "dequantize",
    "q43nl": "quantize",
    "quality": "quality",
}


class _Package(ModuleType):
    """A package in which a public name is never hidden by the module of the same name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


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
