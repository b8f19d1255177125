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

from .contents import CurveDistribution, FileContents, TensorContents, inspect
from .converting import convert, convert_model, plan_model
from .errors import ModelFileError
from .job import Progress
from .judging import Figures, Sample
from .progress import shown_progress
from .restoring import restore
from .results import (
    ConvertPlan,
    ConvertReport,
    KeptTensor,
    PackedTensor,
    PlannedFile,
    PlannedTensor,
    RestoreReport,
    VerifyReport,
)
from .rules import KEEP_DTYPES, Rule, read_rules
from .run import Unfinished, unfinished
from .verifying import verify_model

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
