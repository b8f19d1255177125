"""Model files: safetensors in, Q43NL safetensors out, and back.

Everything here is built on the public face of :mod:`q43nl_numba` and needs the packages of the
``convert`` extra (in a clone of the project: ``pip install ".[convert]"``).

``convert`` quantizes a model file, ``restore`` brings it back to floating tensors and ``inspect``
tells what is in a file. One tensor's way through: ``reading`` finds it in the header, ``plan``
decides what becomes of it, ``packing`` (or ``restoring``) does that piece by piece, into the file
that ``output`` renames into place when it is complete; ``record`` keeps in the metadata what the
way back needs.
"""

from q43nl_numba.convert.contents import CurveDistribution, FileContents, TensorContents, inspect
from q43nl_numba.convert.errors import ModelFileError
from q43nl_numba.convert.packing import convert
from q43nl_numba.convert.plan import KEEP_DTYPES
from q43nl_numba.convert.report import ConvertReport, PackedTensor, RestoreReport
from q43nl_numba.convert.restoring import restore

__all__ = [
    "KEEP_DTYPES",
    "ConvertReport",
    "CurveDistribution",
    "FileContents",
    "ModelFileError",
    "PackedTensor",
    "RestoreReport",
    "TensorContents",
    "convert",
    "inspect",
    "restore",
]
