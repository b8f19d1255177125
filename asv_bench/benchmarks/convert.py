"""Time and peak memory of model files: a synthetic 64 MB one, there and back.

`setup_cache` makes the files once, in the folder that asv starts each benchmark in.
"""

import numpy as np

import q43nl_numba

from .common import normal, numpy_dtype

MODEL = "model.safetensors"
PACKED = "packed.safetensors"
OUTPUT = "output.safetensors"

METHODS = ("grid", "coarse_fine", "gradient")
RESTORED = "coarse_fine"

SIDE = 1_024
WARM_SIZE = 65_536  # enough for the builds that run in parallel
LAYERS = 8  # each of 4 MiB as float32 and two times 2 MiB as 16-bit types


def tensors():
    """A model's usual mix: matrices of three dtypes, and vectors that are kept as they are."""
    for layer in range(LAYERS):
        for dtype in ("float32", "float16", "bfloat16"):
            matrix = normal(SIDE * SIDE, dtype).reshape(SIDE, SIDE)
            yield f"layer.{layer}.{dtype}.weight", matrix
        yield f"layer.{layer}.norm.weight", np.ones(SIDE, numpy_dtype("float32"))


def make_model():
    """Write the model, or fail: without the convert extra there is nothing to measure."""
    from safetensors.numpy import save_file

    save_file(dict(tensors()), MODEL)


def converter():
    """The package's convert module, or a skipped benchmark."""
    try:
        from q43nl_numba import convert
    except ImportError as error:
        raise NotImplementedError("this commit, or environment, has no convert") from error
    return convert


def load_kernels(method):
    """Run what a conversion runs, on next to nothing, so that no figure holds the loading."""
    weights = normal(WARM_SIZE)
    q43nl_numba.dequantize(q43nl_numba.q43nl(weights, method))


class Convert:
    """The whole way from file to file; the kernels are loaded before."""

    params = METHODS
    param_names = ("method",)
    repeat = (2, 5, 20.0)
    number = 1
    rounds = 1
    timeout = 300

    def setup_cache(self):
        make_model()
        for method in METHODS:  # so that the compiler's memory is not the conversion's
            load_kernels(method)

    def setup(self, method):
        self.convert = converter().convert
        load_kernels(method)

    def time_convert(self, method):
        self.convert(MODEL, OUTPUT, method)

    def peakmem_convert(self, method):
        self.convert(MODEL, OUTPUT, method)

    def peakmem_empty_reference(self, method):
        """Interpreter, packages and kernels; no file."""

    peakmem_convert.params = peakmem_empty_reference.params = (["gradient"],)


class Restore:
    """From a quantized file back to floating tensors, and a look into it."""

    repeat = (2, 5, 20.0)
    number = 1
    rounds = 1
    timeout = 300

    def setup_cache(self):
        make_model()
        converter().convert(MODEL, PACKED, RESTORED)

    def setup(self):
        self.commands = converter()
        load_kernels(RESTORED)

    def time_restore(self):
        self.commands.restore(PACKED, OUTPUT)

    def peakmem_restore(self):
        self.commands.restore(PACKED, OUTPUT)

    def time_inspect(self):
        self.commands.inspect(PACKED)
