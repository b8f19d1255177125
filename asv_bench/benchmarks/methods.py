"""Time of `q43nl` by method, size, threads and dtype."""

from .common import THREADS, VARIANTS, normal, quantizer

# One setting of each method, where all would only repeat what one shows.
CHOSEN = ["grid", "coarse_fine", "gradient-5/0.3"]


class Methods:
    """From a call's fixed cost (1K weights) to the kernel alone (1M)."""

    params = (list(VARIANTS), [1_024, 32_768, 1_048_576], list(THREADS))
    param_names = ("variant", "size", "threads")

    def setup(self, variant, size, threads):
        if variant == "exact" and size > 32_768:
            raise NotImplementedError("seconds a call: its speed does not depend on the size")
        self.weights = normal(size)
        self.quantize = quantizer(variant, num_threads=THREADS[threads])
        self.quantize(self.weights)

    def time_quantize(self, variant, size, threads):
        self.quantize(self.weights)


class OneGroup:
    """The fewest weights there are: what is around the kernel."""

    params = tuple(VARIANTS)
    param_names = ("variant",)

    def setup(self, variant):
        self.weights = normal(32)
        self.quantize = quantizer(variant)
        self.quantize(self.weights)

    def time_quantize(self, variant):
        self.quantize(self.weights)


class Large(Methods):
    """Far beyond the caches, where a whole model's matrices are."""

    params = (CHOSEN, [16_777_216], ["all"])
    repeat = (2, 5, 10.0)
    number = 1
    rounds = 1


class Dtypes:
    """What converting the input costs, beside the 1M float32 weights of `Methods`."""

    params = (CHOSEN, ["float16", "bfloat16", "float64"], ["all"])
    param_names = ("variant", "dtype", "threads")
    size = 1_048_576

    def setup(self, variant, dtype, threads):
        self.weights = normal(self.size, dtype)
        self.quantize = quantizer(variant, num_threads=THREADS[threads])
        self.quantize(self.weights)

    def time_quantize(self, variant, dtype, threads):
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
