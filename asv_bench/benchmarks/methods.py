"""Time of `q43nl` by method, size, threads and dtype."""

from .common import THREADS, VARIANTS, normal, quantizer


class Methods:
    """From a call's fixed cost (1K weights) to the kernel alone (1M)."""

    params = (list(VARIANTS), [1_024, 32_768, 1_048_576], list(THREADS))
    param_names = ("variant", "size", "threads")

    def setup(self, variant, size, threads):
        self.weights = normal(size)
        self.quantize = quantizer(variant, num_threads=THREADS[threads])
        self.quantize(self.weights)

    def time_quantize(self, variant, size, threads):
        self.quantize(self.weights)


class Dtypes:
    """What converting the input costs."""

    params = (["gradient-5/0.3"], ["float32", "float16", "bfloat16", "float64"])
    param_names = ("variant", "dtype")
    size = 1_048_576

    def setup(self, variant, dtype):
        self.weights = normal(self.size, dtype)
        self.quantize = quantizer(variant)
        self.quantize(self.weights)

    def time_quantize(self, variant, dtype):
        self.quantize(self.weights)


class Strided:
    """A transposed matrix, which has to be put in order first."""

    params = ("gradient-5/0.3",)
    param_names = ("variant",)

    def setup(self, variant):
        self.weights = normal(1_048_576).reshape(1_024, 1_024).T
        self.quantize = quantizer(variant)
        self.quantize(self.weights)

    def time_quantize(self, variant):
        self.quantize(self.weights)
