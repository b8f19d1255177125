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
