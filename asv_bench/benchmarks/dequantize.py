"""Time of `dequantize` by size, threads and dtype, beside a plain copy."""

import numpy as np

import q43nl_numba

from .common import THREADS, numpy_dtype, packed

SIZES = [1_024, 32_768, 1_048_576]


class Dequantize:
    params = (SIZES, list(THREADS))
    param_names = ("size", "threads")

    def setup(self, size, threads):
        self.packed = packed(size)
        self.out = np.ones(size, np.float32)
        self.threads = THREADS[threads]
        self.time_into_out(size, threads)

    def time_into_out(self, size, threads):
        q43nl_numba.dequantize(self.packed, out=self.out, num_threads=self.threads)

    def time_new_array(self, size, threads):
        q43nl_numba.dequantize(self.packed, num_threads=self.threads)


class CopyReference:
    """The memory's own speed, which a decoder can at best come near to."""

    params = tuple(SIZES)
    param_names = ("size",)

    def setup(self, size):
        self.source = np.ones(size, np.float32)
        self.out = np.ones(size, np.float32)

    def time_copyto(self, size):
        np.copyto(self.out, self.source)


class Dtypes:
    params = ("float32", "float16", "bfloat16", "float64")
    param_names = ("dtype",)
    size = 1_048_576

    def setup(self, dtype):
        self.packed = packed(self.size)
        self.dtype = numpy_dtype(dtype)
        self.time_dequantize(dtype)

    def time_dequantize(self, dtype):
        q43nl_numba.dequantize(self.packed, dtype=self.dtype)
