"""Peak memory of a process that makes one call; subtract the empty reference of the same input.

The kernels are compiled into the cache by `setup_cache`, in a process of its own: the compiler's
memory would otherwise hide the call's.
"""

import numpy as np

import q43nl_numba

from .common import known, normal, numpy_dtype, packed, quantizer

SIZE = 8 * 1_048_576  # input 32 MiB as float32, result 4.75 MiB
WARM_SIZE = 65_536  # enough for the build that runs in parallel


def warm_up(quantize):
    """Run the same code as the measured call, on next to no memory."""
    return quantize(np.ones(WARM_SIZE, np.float32))


class Quantize:
    params = (
        ["grid", "coarse_fine", "gradient-5/0.3"],
        ["float32", "float16"],
    )
    param_names = ("variant", "dtype")

    def setup_cache(self):
        for variant in self.params[0]:
            if known(variant):
                warm_up(quantizer(variant))

    def setup(self, variant, dtype):
        self.quantize = quantizer(variant)
        warm_up(self.quantize)
        self.weights = normal(SIZE, dtype)

    def peakmem_empty_reference(self, variant, dtype):
        """Interpreter, packages, kernels and input; no call."""

    def peakmem_quantize(self, variant, dtype):
        self.quantize(self.weights)


class Dequantize:
    params = ("float32", "float16")
    param_names = ("dtype",)

    def setup_cache(self):
        q43nl_numba.dequantize(packed(WARM_SIZE))

    def setup(self, dtype):
        self.dtype = numpy_dtype(dtype)
        self.packed = packed(SIZE)
        q43nl_numba.dequantize(packed(WARM_SIZE), dtype=self.dtype)

    def peakmem_empty_reference(self, dtype):
        """Interpreter, packages, kernels and input; no call."""

    def peakmem_dequantize(self, dtype):
        q43nl_numba.dequantize(self.packed, dtype=self.dtype)
