"""Time of the import and of the first call, each in a fresh process.

The first call takes 32K weights: fewer might run in the serial build of a kernel.
"""

import subprocess
import sys

import q43nl_numba

# The default, and the ones that compile least and most.
METHODS = ("gradient", "grid", "exact")

# The names are imported at their first use.
IMPORT = "import q43nl_numba; q43nl_numba.q43nl"

FIRST_CALL = """
import numpy, q43nl_numba
q43nl_numba.q43nl(numpy.ones(32768, numpy.float32), {method!r})
"""

FIRST_DECODE = """
import numpy, q43nl_numba
q43nl_numba.dequantize(numpy.ones(19456, numpy.uint8))
"""

# The package decides about its cache when it is imported: point numba elsewhere before that.
EMPTY_CACHE = """
import atexit, os, shutil, tempfile
os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="q43nl-asv-")
atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], ignore_errors=True)
"""


def run(code):
    """Run the code in a process of its own, so that this one stays without a thread pool."""
    subprocess.run([sys.executable, "-c", code], check=True)


def skip_unknown(method):
    if method not in q43nl_numba.METHODS:
        raise NotImplementedError(f"this commit has no method {method!r}")


class Import:
    repeat = (2, 5, 10.0)

    def timeraw_import(self):
        return IMPORT

    def timeraw_import_numba_reference(self):
        """What the package cannot be faster than."""
        return "import numba"


class WarmCache:
    """Import and first call together, kernels already compiled by an earlier process."""

    params = METHODS
    param_names = ("method",)
    repeat = (2, 5, 10.0)

    def setup_cache(self):
        for method in q43nl_numba.METHODS:
            run(FIRST_CALL.format(method=method))

    def setup(self, method):
        skip_unknown(method)

    def timeraw_first_call(self, method):
        return FIRST_CALL.format(method=method)


class WarmCacheDecode:
    repeat = (2, 5, 10.0)

    def setup_cache(self):
        run(FIRST_DECODE)

    def timeraw_first_dequantize(self):
        return FIRST_DECODE


class ColdCache:
    """Import and first call together, nothing compiled yet."""

    params = METHODS
    param_names = ("method",)
    repeat = (1, 2, 30.0)
    timeout = 300

    def setup(self, method):
        skip_unknown(method)

    def timeraw_first_call(self, method):
        return FIRST_CALL.format(method=method), EMPTY_CACHE
