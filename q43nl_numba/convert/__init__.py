"""Model files: safetensors in, Q43NL safetensors out, and back.

Everything here is built on the public face of :mod:`q43nl_numba` and needs the packages of the
``convert`` extra (in a clone of the project: ``pip install ".[convert]"``).

`convert_model` quantizes a model, `plan_model` tells what it would do, `verify_model` compares the
result with the original, `restore` brings it back to floating tensors, and `inspect` tells what is
in a file or folder.

One tensor's way: ``model`` finds it (``reading`` checks the headers, ``tensors`` reads values),
``plan`` decides what becomes of it (``rules``, ``quantized``), ``converting`` makes a step of that
(``packing``, ``restoring``: the recipes), ``job`` turns steps into the bytes of a file, which
``output`` renames into place, and ``run`` does so for a whole folder. ``record`` keeps in the
metadata what the way back needs; ``judging`` measures what was lost.
"""

from __future__ import annotations

from q43nl_numba.convert.contents import CurveDistribution, FileContents, TensorContents, inspect
from q43nl_numba.convert.converting import convert, convert_model, plan_model
from q43nl_numba.convert.errors import ModelFileError
from q43nl_numba.convert.job import Progress
from q43nl_numba.convert.judging import Figures, Sample
from q43nl_numba.convert.progress import shown_progress
from q43nl_numba.convert.restoring import restore
from q43nl_numba.convert.results import (
    ConvertPlan,
    ConvertReport,
    KeptTensor,
    PackedTensor,
    PlannedFile,
    PlannedTensor,
    RestoreReport,
    VerifyReport,
)
from q43nl_numba.convert.rules import KEEP_DTYPES, Rule, read_rules
from q43nl_numba.convert.run import Unfinished, unfinished
from q43nl_numba.convert.verifying import verify_model

__all__ = [
    "KEEP_DTYPES",
    "ConvertPlan",
    "ConvertReport",
    "CurveDistribution",
    "Figures",
    "FileContents",
    "KeptTensor",
    "ModelFileError",
    "PackedTensor",
    "PlannedFile",
    "PlannedTensor",
    "Progress",
    "RestoreReport",
    "Rule",
    "Sample",
    "TensorContents",
    "Unfinished",
    "VerifyReport",
    "convert",
    "convert_model",
    "inspect",
    "plan_model",
    "read_rules",
    "restore",
    "shown_progress",
    "unfinished",
    "verify_model",
]
